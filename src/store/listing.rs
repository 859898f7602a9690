//! What a listing of stored tasks takes and returns, and the text form of its cursor.

use std::fmt;

use bytes::Bytes;

use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Conditions of a listing; all of them must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Service of the task.
    pub service: Option<Service>,
    /// First bytes of the id.
    pub id_prefix: Option<String>,
    /// Earliest time at which the task was stored, in seconds since the Unix epoch.
    pub stored_after: Option<i64>,
    /// Time before which the task was stored, in seconds since the Unix epoch.
    pub stored_before: Option<i64>,
    /// Part of the title, in any letter case.
    pub title: Option<String>,
}

impl TaskFilter {
    /// Whether a cursor belongs to a listing with this filter.
    pub fn accepts(&self, cursor: &ListCursor) -> bool {
        match cursor {
            ListCursor::Row(_) => self.id_prefix.is_none(),
            ListCursor::Id { service, .. } => {
                self.id_prefix.is_some() && self.service.as_ref().is_none_or(|wanted| wanted == service)
            }
        }
    }
}

/// The end of a page, where the next one begins. Its text form goes to clients and back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListCursor {
    /// The key of the last row, in a listing by time of storing.
    Row(i64),
    /// The last row, in a listing by service and id.
    Id {
        /// Service of the row.
        service: Service,
        /// Bytes of the id; empty before the first one of the service.
        id: Vec<u8>,
        /// Key of the row.
        row_id: i64,
    },
}

impl ListCursor {
    /// Parses the text form that [`fmt::Display`] writes. Returns `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let row_id = |text: &str| text.parse().ok().filter(|id| *id >= 0 && !text.starts_with('+'));
        match text.split('.').collect::<Vec<_>>()[..] {
            [row] => Some(Self::Row(row_id(row)?)),
            [service, id, row] => {
                Some(Self::Id { service: Service::parse(service)?, id: from_hex(id)?, row_id: row_id(row)? })
            }
            _ => None,
        }
    }
}

impl fmt::Display for ListCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(row_id) => write!(f, "{row_id}"),
            Self::Id { service, id, row_id } => {
                write!(f, "{service}.")?;
                id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, ".{row_id}")
            }
        }
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks_exact(2);
    let is_valid = pairs.remainder().is_empty() && text.len() <= 2048;
    is_valid.then(|| pairs.map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect())?
}

/// A task in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTask {
    /// Key of the row.
    pub row_id: i64,
    /// Service of the task.
    pub service: Service,
    /// Id of the task.
    pub id: TaskId,
    /// Length of the record in bytes.
    pub size: u64,
    /// When the record was stored, in seconds since the Unix epoch.
    pub stored_at: i64,
    /// Number of tokens that may read it, counted up to 1,000.
    pub readers: u64,
    /// The record, if it is at most 64 KiB long.
    pub record: Option<Bytes>,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskPage {
    /// Last stored first; by service and id if the filter has an id prefix.
    pub tasks: Vec<ListedTask>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<ListCursor>,
}

/// One of the records stored for an id. There are several if the upstream sent different bytes to
/// different tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordDetails {
    /// Service of the task.
    pub service: Service,
    /// When the record was stored, in seconds since the Unix epoch.
    pub stored_at: i64,
    /// Length of the record in bytes.
    pub size: u64,
    /// Digests of the tokens that may read it.
    pub readers: Vec<Digest>,
    /// The record; `None` if it is damaged or exceeds the size limit.
    pub record: Option<Bytes>,
    /// Whether the record does not match its checksum.
    pub is_damaged: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cursor_text_round_trips(
            text in "[0-9a-z._+-]{0,20}|\\PC{0,20}",
            id in proptest::collection::vec(any::<u8>(), 0..20),
            row_id in 0_i64..,
        ) {
            if let Some(cursor) = ListCursor::parse(&text) {
                prop_assert_eq!(ListCursor::parse(&cursor.to_string()), Some(cursor));
            }
            let service = Service::parse("producer").unwrap();
            let cursor = ListCursor::Id { service, id, row_id };
            prop_assert_eq!(ListCursor::parse(&cursor.to_string()), Some(cursor));
        }
    }
}
