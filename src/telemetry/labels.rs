//! The closed sets of words that stand in labels, log lines and the JSON API: one enum a set, one word a variant.
//!
//! Never an id, a token or a raw path. What is not in a set counts as its `other`.

use std::fmt::Debug;

/// A label's closed set of values.
pub trait Label: Copy + Debug + PartialEq + 'static {
    /// All of them, in the order of their indexes.
    const ALL: &'static [Self];

    /// The place in [`Label::ALL`].
    fn index(self) -> usize;

    /// The word.
    fn as_str(self) -> &'static str;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $word:literal,)+ }) => {
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
                    $(Self::$variant => $word,)+
                }
            }
        }
    };
}

labels! {
    /// What a request asked for.
    RequestAction {
        /// `{"action":"retrieve",…}`
        Retrieve => "retrieve",
        /// `{"action":"retrieve_batch",…}`
        RetrieveBatch => "retrieve_batch",
        /// `{"action":"delete",…}`
        Delete => "delete",
        /// Anything else.
        Other => "other",
    }
}

labels! {
    /// How a request ended.
    RequestOutcome {
        /// Everything from the store.
        Hit => "hit",
        /// Nothing was asked upstream; some of it is a remembered pending answer.
        Pending => "pending",
        /// Some of it from the store, some from the upstream.
        Partial => "partial",
        /// Everything from the upstream.
        Miss => "miss",
        /// Passed through.
        Bypass => "bypass",
        /// Refused here.
        Refused => "refused",
        /// No sound answer from the upstream, or an error of it.
        Failed => "failed",
        /// The client hung up first.
        Aborted => "aborted",
    }
}

labels! {
    /// What became of an id that a look-up asked for, as its client saw it.
    IdOutcome {
        /// From the store.
        Hit => "hit",
        /// A remembered pending answer.
        Pending => "pending",
        /// From the upstream.
        Fetched => "fetched",
        /// No answer: an error of the upstream, or none to be had.
        Failed => "failed",
        /// No answer: refused here, by `only-if-cached` or a limit.
        Refused => "refused",
    }
}

labels! {
    /// What a look-up call came to: its status or the kind of its failure. Statuses that are not listed count as their
    /// class, so that a strange upstream cannot make ever new series.
    CallStatus {
        /// Success.
        S200 => "200",
        /// `bad_request` and its like.
        S400 => "400",
        /// The token is not, or no longer, accepted.
        S401 => "401",
        /// Out of credit, disabled, forbidden.
        S403 => "403",
        /// `no_api`.
        S404 => "404",
        /// Too large a body.
        S413 => "413",
        /// Not processable.
        S422 => "422",
        /// The upstream's rate limit.
        S429 => "429",
        /// `api_error`.
        S500 => "500",
        /// A gateway of the upstream's had no answer.
        S502 => "502",
        /// The upstream is overloaded or under maintenance.
        S503 => "503",
        /// `timeout`.
        S504 => "504",
        /// Another success.
        Success => "2xx",
        /// A redirect, which is not followed.
        Redirect => "3xx",
        /// Another error of the client's.
        ClientError => "4xx",
        /// Another error of the server's.
        ServerError => "5xx",
        /// The upstream's name does not resolve.
        Dns => "dns",
        /// Nobody listens there.
        Refused => "refused",
        /// No connection in time.
        ConnectTimeout => "connect_timeout",
        /// No TLS session.
        Tls => "tls",
        /// The outgoing proxy gave no connection.
        Proxy => "proxy",
        /// No connection for another reason.
        Unreachable => "unreachable",
        /// No answer in time.
        Timeout => "timeout",
        /// The answer broke off.
        Interrupted => "interrupted",
        /// The answer is too large.
        TooLarge => "too_large",
        /// The answer is not sound HTTP.
        BadMessage => "bad_message",
        /// None of these.
        Other => "other",
    }
}

impl CallStatus {
    /// The label of a status or of the word for a failure.
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

labels! {
    /// What a request that passed through was answered with.
    PassthroughStatus {
        /// 101, where a connection changed its protocol.
        Informational => "1xx",
        /// Success.
        Success => "2xx",
        /// A redirect, handed on.
        Redirect => "3xx",
        /// An error of the client's.
        ClientError => "4xx",
        /// An error of the upstream's.
        ServerError => "5xx",
        /// No answer of the upstream's: refrain's own error.
        Failed => "failed",
    }
}

impl PassthroughStatus {
    /// The class of a status that the upstream sent.
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

labels! {
    /// Whose 429 a client saw.
    RateLimitSource {
        /// refrain's own: the queue was too long or full.
        Refrain => "refrain",
        /// The upstream's, to a look-up, after all tries.
        Upstream => "upstream",
        /// The upstream's, to a request that passed through.
        PassedThrough => "passed_through",
    }
}

labels! {
    /// What failed in the store.
    StoreErrorKind {
        /// A read; it counted as a miss.
        Read => "read",
        /// A write; what was to be written is not stored.
        Write => "write",
        /// A row or a right whose checksum does not fit; dropped.
        Checksum => "checksum",
        /// The file; set aside.
        Corrupt => "corrupt",
    }
}

labels! {
    /// Why the sweep removed a task.
    EvictionReason {
        /// `store.max_bytes`
        MaxBytes => "max_bytes",
        /// `store.max_age`
        MaxAge => "max_age",
    }
}

labels! {
    /// Where the store found a task that it was asked for.
    StoreLookupResult {
        /// In memory.
        Memory => "memory",
        /// On disk.
        Disk => "disk",
        /// Nowhere, or not for this reader.
        Miss => "miss",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_a_closed_set() {
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
