//! The client port's URL map and its layers, on a page.

mod error;
pub mod passthrough;
pub mod soundness;

pub use error::ApiError;
