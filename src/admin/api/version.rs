//! `GET /api/version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde::Serialize;

use super::parameters::Parameters;
use crate::admin::state::AdminPort;
use crate::api_error::ApiError;

#[derive(Serialize)]
pub(super) struct VersionBody {
    name: &'static str,
    version: &'static str,
    sqlite_version: Option<String>,
    started_at: i64,
    uptime_seconds: f64,
}

pub(super) async fn version(
    State(port): State<Arc<AdminPort>>,
    uri: Uri,
) -> Result<Json<VersionBody>, ApiError> {
    Parameters::none(&uri)?;
    Ok(Json(VersionBody {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        sqlite_version: port.sqlite_version.clone(),
        started_at: port.started_at,
        uptime_seconds: port.uptime_seconds(),
    }))
}
