//! `GET /api/config`: the configuration in force, as `refrain config` prints it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use http::Uri;
use serde_json::{Value, json};

use super::parameters::Parameters;
use crate::admin::state::AdminPort;
use crate::api_error::ApiError;

pub(super) async fn config(State(port): State<Arc<AdminPort>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    Parameters::none(&uri)?;
    let values = port
        .values
        .iter()
        .map(|shown| json!({"key": shown.key, "value": shown.value, "source": shown.source}));
    Ok(Json(json!({"values": values.collect::<Vec<_>>()})))
}
