//! Strict query parameters: each one known, given once, and valid.

use http::Uri;

use crate::api_error::ApiError;

/// Characters of an unknown name that an error message shows.
const MAX_SHOWN: usize = 64;

/// Syntax of services, for error messages.
pub(super) const SERVICE: &str = "1 to 64 letters, digits, - or _";

/// The decoded query of a request.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// Checks that a request has no parameters.
    pub(super) fn none(uri: &Uri) -> Result<(), ApiError> {
        Self::read(uri, &[]).map(|_| ())
    }

    /// Reads the parameters of a request. A name that is not in `known`, or is repeated, is an
    /// error.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let query = uri.query().unwrap_or_default();
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        for (index, (name, _)) in pairs.iter().enumerate() {
            let shown: String = name.chars().take(MAX_SHOWN).collect();
            if !known.contains(&name.as_str()) {
                return Err(ApiError::bad_request(format!("Unknown parameter {shown:?}.")));
            }
            if pairs[..index].iter().any(|(other, _)| other == name) {
                return Err(ApiError::bad_request(format!("The parameter {shown} is given twice.")));
            }
        }
        Ok(Self(pairs))
    }

    /// Returns the value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the parsed value of a parameter, or an error that says what the value must be.
    pub(super) fn parsed<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        must_be: &str,
    ) -> Result<Option<T>, ApiError> {
        self.get(name).map(|value| parse(value).ok_or_else(|| invalid(name, must_be))).transpose()
    }
}

/// Returns the error 400 that names a parameter and says what its value must be.
pub(super) fn invalid(name: &str, must_be: &str) -> ApiError {
    ApiError::bad_request(format!("{name} must be {must_be}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        let read = |target: &str| Parameters::read(&target.parse().unwrap(), &["service", "limit"]);
        let parameters = read("/x?service=a%2Fb+c&limit=").unwrap();
        assert_eq!((parameters.get("service"), parameters.get("limit")), (Some("a/b c"), Some("")));
        assert_eq!(read("/x?").unwrap().get("service"), None);
        for bad in ["/x?other=1", "/x?service", "/x?service=a&service=a", "/x?Service=a", "/x?=a", "/x?a%00b"]
        {
            assert_eq!(read(bad).is_err(), bad != "/x?service", "{bad}");
        }
    }

    #[test]
    fn invalid_values_are_refused() {
        let limit = |value: &str| {
            let uri = format!("/x?limit={value}").parse().unwrap();
            let parameters = Parameters::read(&uri, &["limit"]).unwrap();
            parameters.parsed("limit", |value| value.parse::<u8>().ok(), "small")
        };
        assert_eq!(limit("7").unwrap(), Some(7));
        assert_eq!(limit("700").unwrap_err(), invalid("limit", "small"));
    }
}
