//! Closed sets of label values, for metrics, log lines and the JSON API: one enum for each label.
//!
//! A label value is never an id, a token or a raw path.

use std::fmt::{Debug, Write};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder};

/// A label with a closed set of values.
pub trait Label: Copy + Debug + PartialEq + 'static {
    /// All values, in the order of their indexes.
    const ALL: &'static [Self];

    /// Returns the index of the value in [`Label::ALL`].
    fn index(self) -> usize;

    /// Returns the value as it is shown.
    fn as_str(self) -> &'static str;
}

/// Declares the enum of a label. The derives of prometheus-client would show the variants' own
/// names.
macro_rules! label {
    (
        $(#[$doc:meta])*
        $name:ident($label:literal) { $($(#[$variant_doc:meta])* $variant:ident => $value:literal,)+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn index(self) -> usize {
                self as usize
            }

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
                encoder.write_str(self.as_str())
            }
        }

        impl EncodeLabelSet for $name {
            fn encode(&self, encoder: &mut LabelSetEncoder) -> std::fmt::Result {
                [($label, *self)].encode(encoder)
            }
        }
    };
}

/// A service as a label: one whose lookups are interpreted, or `other`. `Metrics::service` returns
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceLabel(pub(super) usize);

/// A named client or token as a label, or `other`. `Metrics::client` returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientLabel(pub(super) usize);

impl ClientLabel {
    /// Label of every request whose client or token has no name.
    pub const OTHER: Self = Self(0);
}

label! {
    /// Type of a client request.
    RequestAction("action") {
        /// `{"action":"retrieve",…}`
        Retrieve => "retrieve",
        /// `{"action":"retrieve_batch",…}`
        RetrieveBatch => "retrieve_batch",
        /// `{"action":"delete",…}`
        Delete => "delete",
        /// Any other request.
        Other => "other",
    }
}

label! {
    /// Result of a client request.
    RequestOutcome("outcome") {
        /// Everything came from the store.
        Hit => "hit",
        /// Nothing was fetched; at least one record is a snapshot of a pending task.
        Pending => "pending",
        /// Some records came from the store and some from the upstream.
        Partial => "partial",
        /// Everything came from the upstream.
        Miss => "miss",
        /// The request was passed through.
        Bypass => "bypass",
        /// refrain refused the request.
        Refused => "refused",
        /// refrain answered the request itself: a CORS preflight or `OPTIONS *`.
        Answered => "answered",
        /// The upstream sent an error or no usable response, or the handler panicked.
        Failed => "failed",
        /// The client disconnected before the response.
        Aborted => "aborted",
    }
}

label! {
    /// Kind of a request in the list of the last requests.
    RequestKind("kind") {
        /// It succeeded without the upstream.
        Local => "local",
        /// It succeeded with a response of the upstream.
        Upstream => "upstream",
        /// The client received a status of at least 400, or disconnected before the response.
        Failed => "failed",
    }
}

label! {
    /// Source of a task that a client looked up, or the reason why it was not returned.
    IdOutcome("outcome") {
        /// The record came from the store.
        Hit => "hit",
        /// The record is a snapshot of a pending task.
        Pending => "pending",
        /// The record came from the upstream.
        Fetched => "fetched",
        /// The upstream sent an error or no usable response.
        Failed => "failed",
        /// refrain refused it, because of `only-if-cached` or a limit.
        Refused => "refused",
    }
}

label! {
    /// Result of a lookup call: its status, or the type of its failure.
    ///
    /// A status without a variant of its own counts in its class, so the number of series is
    /// bounded.
    CallStatus("status") {
        /// Success.
        S200 => "200",
        /// `bad_request`
        S400 => "400",
        /// The upstream does not accept the token.
        S401 => "401",
        /// The token is disabled, has no credit or lacks a permission.
        S403 => "403",
        /// `no_api`
        S404 => "404",
        /// The request body is too large.
        S413 => "413",
        /// The request cannot be processed.
        S422 => "422",
        /// The upstream's rate limit.
        S429 => "429",
        /// `api_error`
        S500 => "500",
        /// A gateway of the upstream got no usable response.
        S502 => "502",
        /// The upstream is overloaded or under maintenance.
        S503 => "503",
        /// `timeout`
        S504 => "504",
        /// Any other success.
        Success => "2xx",
        /// A redirect, which is not followed.
        Redirect => "3xx",
        /// Any other client error.
        ClientError => "4xx",
        /// Any other server error.
        ServerError => "5xx",
        /// The upstream's host name does not resolve.
        Dns => "dns",
        /// The connection was refused.
        Refused => "refused",
        /// The connection was not established in time.
        ConnectTimeout => "connect_timeout",
        /// The TLS handshake failed.
        Tls => "tls",
        /// The outgoing proxy did not establish the connection.
        Proxy => "proxy",
        /// The connection failed for another reason.
        Unreachable => "unreachable",
        /// The response did not arrive in time.
        Timeout => "timeout",
        /// The connection ended within the response.
        Interrupted => "interrupted",
        /// The response is larger than `upstream.max_response_bytes`.
        TooLarge => "too_large",
        /// The response is not valid HTTP.
        BadMessage => "bad_message",
        /// Any other result.
        Other => "other",
    }
}

impl CallStatus {
    /// Returns the label for a status code or for the name of a failure.
    pub fn of(word: &str) -> Self {
        if let Some(known) = Self::ALL.iter().find(|known| known.as_str() == word) {
            return *known;
        }
        match word.as_bytes() {
            [b'2', _, _] => Self::Success,
            [b'3', _, _] => Self::Redirect,
            [b'4', _, _] => Self::ClientError,
            [b'5', _, _] => Self::ServerError,
            _ => Self::Other,
        }
    }
}

label! {
    /// Class of the response to a request that was passed through.
    PassthroughStatus("status") {
        /// Status 101: the connection switched to another protocol.
        Informational => "1xx",
        /// Success.
        Success => "2xx",
        /// A redirect, which is passed on to the client.
        Redirect => "3xx",
        /// A client error.
        ClientError => "4xx",
        /// A server error of the upstream.
        ServerError => "5xx",
        /// An error of refrain itself, without a response of the upstream.
        Failed => "failed",
    }
}

impl PassthroughStatus {
    /// Returns the class of a status code that the upstream sent.
    pub fn of(status: u16) -> Self {
        match status {
            ..200 => Self::Informational,
            200..300 => Self::Success,
            300..400 => Self::Redirect,
            400..500 => Self::ClientError,
            _ => Self::ServerError,
        }
    }
}

label! {
    /// Source of a 429 response that a client received.
    RateLimitSource("source") {
        /// refrain: the queue is full or the wait too long.
        Refrain => "refrain",
        /// The upstream, for a lookup, after all retries.
        Upstream => "upstream",
        /// The upstream, for a request that was passed through.
        PassedThrough => "passed_through",
    }
}

label! {
    /// Type of a store failure.
    StoreErrorKind("kind") {
        /// A read failed and counted as a miss.
        Read => "read",
        /// A write failed, so the data is not stored.
        Write => "write",
        /// A row did not match its checksum and was deleted.
        Checksum => "checksum",
        /// The database file was corrupt and was set aside.
        Corrupt => "corrupt",
    }
}

label! {
    /// Setting that made the sweep remove a task.
    EvictionReason("reason") {
        /// `store.max_bytes`
        MaxBytes => "max_bytes",
        /// `store.max_age`
        MaxAge => "max_age",
    }
}

label! {
    /// Result of looking up an id in the store.
    StoreLookupResult("result") {
        /// Found in the memory cache.
        Memory => "memory",
        /// Found in the database.
        Disk => "disk",
        /// Not stored, or not readable with this token.
        Miss => "miss",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_statuses_are_a_closed_set() {
        for status in 100..1000 {
            let label = CallStatus::of(&status.to_string());
            let word = label.as_str();
            let class = format!("{}xx", status / 100);
            assert!(word == status.to_string() || word == class || word == "other", "{status}: {word}");
            assert_eq!(word == "other", !(200..600).contains(&status), "{status}: {word}");
        }
        assert_eq!(CallStatus::of("dns"), CallStatus::Dns);
        assert_eq!(CallStatus::of("anything"), CallStatus::Other);
        for label in CallStatus::ALL {
            assert_eq!(CallStatus::of(label.as_str()), *label);
            assert_eq!(CallStatus::ALL[label.index()], *label);
        }
    }
}
