//! The fields of a request's header that decide what becomes of it, found in one walk over it. Looking each of them up
//! by name would cost every hit a dozen look-ups, and most of them never come.

use http::{HeaderMap, HeaderValue};

/// A field of a header: absent, there once, or on several lines.
#[derive(Clone, Default)]
pub(super) struct Field<'a> {
    first: Option<&'a HeaderValue>,
    more: Vec<&'a HeaderValue>,
}

impl<'a> Field<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        match self.first {
            None => self.first = Some(value),
            Some(_) => self.more.push(value),
        }
    }

    /// Whether there is no such field.
    pub(super) fn is_absent(&self) -> bool {
        self.first.is_none()
    }

    /// The first value, however many there are.
    pub(super) fn first(&self) -> Option<&'a HeaderValue> {
        self.first
    }

    /// The value of a field that stands there exactly once.
    pub(super) fn only(&self) -> Option<&'a HeaderValue> {
        self.first.filter(|_| self.more.is_empty())
    }

    /// All values, in order.
    pub(super) fn values(&self) -> impl Iterator<Item = &'a HeaderValue> {
        self.first.into_iter().chain(self.more.iter().copied())
    }
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) authorization: Field<'a>,
    pub(super) cache_control: Field<'a>,
    pub(super) connection: Field<'a>,
    pub(super) content_encoding: Field<'a>,
    pub(super) content_type: Field<'a>,
    pub(super) host: Field<'a>,
    pub(super) prefer: Field<'a>,
    pub(super) transfer_encoding: Field<'a>,
    pub(super) x_request_id: Field<'a>,
    /// A field that says who asks in another way than `authorization`: `cookie`, `x-api-key` or `payment-signature`.
    pub(super) names_another_caller: bool,
}

impl<'a> Fields<'a> {
    /// The fields of a request.
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
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
        let fields = Fields::of(&headers);
        assert_eq!(fields.host.only(), Some(&HeaderValue::from_static("a")));
        assert_eq!(fields.prefer.values().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!((fields.prefer.first(), fields.prefer.only()), (headers.get("prefer"), None));
        assert!(fields.authorization.is_absent() && !fields.prefer.is_absent());
        assert!(!fields.names_another_caller);
        for name in ["cookie", "x-api-key", "payment-signature"] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(""))]);
            assert!(Fields::of(&headers).names_another_caller, "{name}");
        }
    }
}
