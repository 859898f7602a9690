//! `GET /api/version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde_json::{Value, json};

use super::parameters::Parameters;
use crate::admin::state::AdminPort;
use crate::api_error::ApiError;

pub(super) async fn version(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    Parameters::none(&uri)?;
    Ok(Json(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "sqlite_version": port.sqlite_version,
        "started_at": port.started_at,
        "uptime_seconds": port.uptime_seconds(),
    })))
}
