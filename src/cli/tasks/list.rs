//! `refrain tasks list`.

use bytesize::ByteSize;
use serde::Serialize;
use serde_json::Value;

use super::ListArguments;
use super::output::{Out, age, printable, tell, time};
use crate::cli::Failure;
use crate::store::{Beside, Seen};
use crate::task::clock;

/// Characters of a title that a line has room for.
const TITLE_LENGTH: usize = 48;

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    service: &'a str,
    size: u64,
    stored_at: i64,
    readers: u64,
    title: Option<String>,
    cursor: i64,
}

pub(super) async fn list(store: &mut Beside, arguments: &ListArguments) -> Result<(), Failure> {
    let mut out = Out::new();
    let now = clock::unix_now();
    let (mut left, mut cursor) = (arguments.limit, arguments.after);
    let mut is_first = true;
    while left > 0 {
        let page = store.list(arguments.service.as_ref(), cursor, left).await?;
        let Some(last) = page.last() else { return out.finish() };
        cursor = Some(last.cursor);
        left -= page.len() as u64;
        if arguments.json {
            for task in &page {
                out.json(&json_line(task))?;
            }
            continue;
        }
        let width = page.iter().map(|task| printable(task.id.as_str()).chars().count()).max().unwrap_or(0);
        if is_first {
            out.line(&line(
                width,
                ["ID", "SERVICE", "SIZE", "AGE", "STORED", "READERS", "TITLE"].map(str::to_owned),
            ))?;
            is_first = false;
        }
        for task in &page {
            let title: String = title(task).unwrap_or_default().chars().take(TITLE_LENGTH).collect();
            let cells = [
                printable(task.id.as_str()),
                task.service.to_string(),
                ByteSize(task.size).to_string(),
                age(task.stored_at, now),
                time(task.stored_at),
                task.readers.to_string(),
                printable(&title),
            ];
            out.line(&line(width, cells))?;
        }
    }
    out.finish()?;
    // One more tells whether it is worth asking for.
    if let Some(cursor) = cursor
        && !arguments.json
        && !store.list(arguments.service.as_ref(), Some(cursor), 1).await?.is_empty()
    {
        tell(&format!("there are more: --after {cursor}"));
    }
    Ok(())
}

fn line(width: usize, [id, service, size, age, stored, readers, title]: [String; 7]) -> String {
    let line =
        format!("{id:<width$}  {service:<12}  {size:>9}  {age:>4}  {stored:<20}  {readers:>7}  {title}");
    line.trim_end().to_owned()
}

fn json_line(task: &Seen) -> Line<'_> {
    Line {
        id: task.id.as_str(),
        service: task.service.as_str(),
        size: task.size,
        stored_at: task.stored_at,
        readers: task.readers,
        title: title(task),
        cursor: task.cursor,
    }
}

/// The first title in the task's response. A large text is not read for it.
fn title(task: &Seen) -> Option<String> {
    let text: Value = serde_json::from_slice(task.text.as_ref()?).ok()?;
    let response = text.get("response")?;
    let in_list = response.pointer("/data").and_then(Value::as_array);
    let titles = in_list.into_iter().flatten().map(|item| item.get("title"));
    titles
        .chain([response.pointer("/data/title"), response.get("title")])
        .flatten()
        .find_map(Value::as_str)
        .map(str::to_owned)
}
