//! Shape of a request path, for the access log.
//!
//! A client chooses its paths, so a path can contain an id, a secret or any other text. Only
//! segments that are in a list of known words are shown.

use crate::task::find_in_catalogue;

/// Segments of the upstream's documented paths, other than services.
const KNOWN_SEGMENTS: [&str; 32] = [
    "audio",
    "audios",
    "chat",
    "completions",
    "describe",
    "edits",
    "embeddings",
    "extend",
    "files",
    "generations",
    "images",
    "imagine",
    "lyrics",
    "messages",
    "models",
    "mp4",
    "persona",
    "responses",
    "search",
    "speech",
    "style",
    "tasks",
    "timing",
    "token",
    "transcriptions",
    "translate",
    "upload",
    "v1",
    "v1beta",
    "videos",
    "voices",
    "wav",
];

/// Most segments that are shown.
const MAX_SEGMENTS: usize = 6;

/// Returns the path with `*` in place of every segment that is neither a known word nor a service.
/// `is_service` knows the services that are not in the catalogue.
pub(super) fn of(path: &str, is_service: impl Fn(&str) -> bool) -> String {
    let mut shape = String::with_capacity(path.len().min(64));
    for (index, segment) in path.strip_prefix('/').unwrap_or(path).split('/').enumerate() {
        if index == MAX_SEGMENTS {
            shape.push_str("/…");
            break;
        }
        let is_known = segment.is_empty()
            || KNOWN_SEGMENTS.binary_search(&segment).is_ok()
            || (index == 0 && (find_in_catalogue(segment).is_some() || is_service(segment)));
        shape.push('/');
        shape.push_str(if is_known { segment } else { "*" });
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_segments_are_shown() {
        assert!(KNOWN_SEGMENTS.is_sorted(), "for the binary search");
        for (path, expected) in [
            ("/producer/tasks", "/producer/tasks"),
            ("/mine/tasks", "/mine/tasks"),
            ("/producer/audios/1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad", "/producer/audios/*"),
            ("/openai/chat/completions", "/openai/chat/completions"),
            ("/v1/files/file-abc", "/v1/files/*"),
            ("/secret", "/*"),
            ("/x/producer", "/*/*"),
            ("/%70roducer/tasks", "/*/tasks"),
            ("/", "/"),
            ("*", "/*"),
            ("//producer/", "//*/"),
            ("/tasks/tasks/tasks/tasks/tasks/tasks/tasks", "/tasks/tasks/tasks/tasks/tasks/tasks/…"),
        ] {
            assert_eq!(of(path, |name| name == "mine"), expected);
        }
    }
}
