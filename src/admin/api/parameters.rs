//! The parameters of a request, read strictly: each known, each once, each right.

use http::Uri;

use crate::api_error::ApiError;

/// Characters of an unknown name that an error tells.
const SHOWN: usize = 64;

/// What stands behind the `?`, as forms encode it.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// For paths that take none.
    pub(super) fn none(uri: &Uri) -> Result<(), ApiError> {
        Self::read(uri, &[]).map(|_| ())
    }

    /// For paths that take these.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let query = uri.query().unwrap_or_default();
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        for (place, (name, _)) in pairs.iter().enumerate() {
            let shown: String = name.chars().take(SHOWN).collect();
            if !known.contains(&name.as_str()) {
                return Err(ApiError::bad_request(format!("There is no parameter {shown:?} here.")));
            }
            if pairs[..place].iter().any(|(other, _)| other == name) {
                return Err(ApiError::bad_request(format!("The parameter {shown} stands there twice.")));
            }
        }
        Ok(Self(pairs))
    }

    /// The text of a parameter.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// What `parse` makes of a parameter; where that is nothing, an error that says what it must be.
    pub(super) fn parsed<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        must_be: &str,
    ) -> Result<Option<T>, ApiError> {
        self.text(name).map(|text| parse(text).ok_or_else(|| wrong(name, must_be))).transpose()
    }
}

/// 400 that names the parameter.
pub(super) fn wrong(name: &str, must_be: &str) -> ApiError {
    ApiError::bad_request(format!("{name} must be {must_be}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_parameter_is_known_and_stands_there_once() {
        let read = |target: &str| Parameters::read(&target.parse().unwrap(), &["service", "limit"]);
        let parameters = read("/x?service=a%2Fb+c&limit=").unwrap();
        assert_eq!((parameters.text("service"), parameters.text("limit")), (Some("a/b c"), Some("")));
        assert_eq!(read("/x?").unwrap().text("service"), None);
        for bad in ["/x?other=1", "/x?service", "/x?service=a&service=a", "/x?Service=a", "/x?=a", "/x?a%00b"]
        {
            assert_eq!(read(bad).is_err(), bad != "/x?service", "{bad}");
        }
        let limit = |text: &str| {
            let parameters = read(&format!("/x?limit={text}")).unwrap();
            parameters.parsed("limit", |text| text.parse::<u8>().ok(), "small")
        };
        assert_eq!(limit("7").unwrap(), Some(7));
        assert_eq!(limit("700").unwrap_err(), wrong("limit", "small"));
    }
}
