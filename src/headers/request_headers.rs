//! The fields of a request's header that decide what becomes of it, found in one walk over it. Looking each of them up
//! by name would cost every hit a dozen look-ups, and most of them never come.

use http::{HeaderMap, HeaderValue};

/// A field of a header: absent, there once, or on several lines.
#[derive(Clone, Default)]
pub struct HeaderValues<'a> {
    first: Option<&'a HeaderValue>,
    more: Vec<&'a HeaderValue>,
}

impl<'a> HeaderValues<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        match self.first {
            None => self.first = Some(value),
            Some(_) => self.more.push(value),
        }
    }

    /// Whether there is no such field.
    pub fn is_absent(&self) -> bool {
        self.first.is_none()
    }

    /// The first value, however many there are.
    pub fn first(&self) -> Option<&'a HeaderValue> {
        self.first
    }

    /// The value of a field that stands there exactly once.
    pub fn only(&self) -> Option<&'a HeaderValue> {
        self.first.filter(|_| self.more.is_empty())
    }

    /// All values, in order.
    pub fn values(&self) -> impl Iterator<Item = &'a HeaderValue> {
        self.first.into_iter().chain(self.more.iter().copied())
    }
}

/// See the head of this file.
#[derive(Default)]
pub struct RequestHeaders<'a> {
    /// Values of `authorization`.
    pub authorization: HeaderValues<'a>,
    /// Values of `cache-control`.
    pub cache_control: HeaderValues<'a>,
    /// Values of `connection`.
    pub connection: HeaderValues<'a>,
    /// Values of `content-encoding`.
    pub content_encoding: HeaderValues<'a>,
    /// Values of `content-type`.
    pub content_type: HeaderValues<'a>,
    /// Values of `host`.
    pub host: HeaderValues<'a>,
    /// Values of `prefer`.
    pub prefer: HeaderValues<'a>,
    /// Values of `transfer-encoding`.
    pub transfer_encoding: HeaderValues<'a>,
    /// Values of `x-request-id`.
    pub x_request_id: HeaderValues<'a>,
    /// A field that says who asks in another way than `authorization`: `cookie`, `x-api-key` or `payment-signature`.
    pub names_another_caller: bool,
}

impl<'a> RequestHeaders<'a> {
    /// The fields of a request.
    pub fn of(headers: &'a HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in headers {
            let field = match name.as_str() {
                "authorization" => &mut fields.authorization,
                "cache-control" => &mut fields.cache_control,
                "connection" => &mut fields.connection,
                "content-encoding" => &mut fields.content_encoding,
                "content-type" => &mut fields.content_type,
                "host" => &mut fields.host,
                "prefer" => &mut fields.prefer,
                "transfer-encoding" => &mut fields.transfer_encoding,
                "x-request-id" => &mut fields.x_request_id,
                "cookie" | "x-api-key" | "payment-signature" => {
                    fields.names_another_caller = true;
                    continue;
                }
                _ => continue,
            };
            field.add(value);
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_its_values_in_order() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "a"), ("prefer", "x"), ("other", "o"), ("prefer", "y")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let fields = RequestHeaders::of(&headers);
        assert_eq!(fields.host.only(), Some(&HeaderValue::from_static("a")));
        assert_eq!(fields.prefer.values().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!((fields.prefer.first(), fields.prefer.only()), (headers.get("prefer"), None));
        assert!(fields.authorization.is_absent() && !fields.prefer.is_absent());
        assert!(!fields.names_another_caller);
        for name in ["cookie", "x-api-key", "payment-signature"] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(""))]);
            assert!(RequestHeaders::of(&headers).names_another_caller, "{name}");
        }
    }
}
