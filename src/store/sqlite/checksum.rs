//! Checksums of rows. SQLite does not detect flipped bits, so every record is verified before it is
//! served.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::task::{Service, TaskId};
use crate::token::Digest;

/// XXH3-64 of service, id and record. The hash of each part seeds the next one, and XXH3 includes
/// the length of its input, so that no byte can move from one part to another unnoticed.
pub(super) fn record_checksum(service: &Service, id: &TaskId, record: &[u8]) -> i64 {
    let service = xxh3_64(service.as_str().as_bytes());
    let id = xxh3_64_with_seed(id.as_str().as_bytes(), service);
    xxh3_64_with_seed(record, id).cast_signed()
}

/// XXH3-64 of the reader's digest, the key of the row and the row's checksum.
pub(super) fn grant_checksum(reader: &Digest, row_id: i64, record_checksum: i64) -> i64 {
    let mut bytes = [0; 48];
    bytes[..32].copy_from_slice(reader.as_bytes());
    bytes[32..40].copy_from_slice(&row_id.to_le_bytes());
    bytes[40..].copy_from_slice(&record_checksum.to_le_bytes());
    xxh3_64(&bytes).cast_signed()
}
