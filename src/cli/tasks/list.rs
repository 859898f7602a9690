//! `refrain tasks list`: prints the stored tasks, newest first.

use bytesize::ByteSize;
use serde::Serialize;

use super::ListArguments;
use super::output::{Output, age, printable, time, write_stderr};
use crate::cli::CliError;
use crate::clock;
use crate::store::{ListCursor, ListedTask, StoreMaintenance, TaskFilter};
use crate::task::TaskSummary;

/// Longest title in the table, in characters.
const TITLE_LENGTH: usize = 48;

#[derive(Serialize)]
struct ListLine<'a> {
    id: &'a str,
    service: &'a str,
    size: u64,
    stored_at: i64,
    readers: u64,
    title: Option<String>,
    cursor: i64,
}

pub(super) async fn list(store: &mut StoreMaintenance, arguments: &ListArguments) -> Result<(), CliError> {
    let mut output = Output::new();
    let now = clock::unix_now();
    let filter = TaskFilter { service: arguments.service.clone(), ..TaskFilter::default() };
    let mut left = arguments.limit;
    let mut cursor = arguments.after.map(ListCursor::Row);
    let mut is_first = true;
    loop {
        let listed = store.list(&filter, cursor, left).await?;
        cursor = listed.next;
        let page = listed.tasks;
        left -= page.len() as u64;
        if arguments.json {
            for task in &page {
                output.json(&json_line(task))?;
            }
        } else if !page.is_empty() {
            table(&mut output, &page, is_first, now)?;
            is_first = false;
        }
        if left == 0 || cursor.is_none() {
            break;
        }
    }
    output.finish()?;
    if left == arguments.limit && !arguments.json {
        let further = if arguments.after.is_some() { "further " } else { "" };
        let service = arguments.service.as_ref().map_or_else(String::new, |service| format!(" of {service}"));
        write_stderr(&format!("no {further}task{service} is stored"));
    }
    // Looks one task ahead, so that the hint appears only if there are more.
    let mut next = cursor.clone().filter(|_| !arguments.json);
    while next.is_some() {
        let listed = store.list(&filter, next, 1).await?;
        if let (Some(cursor), false) = (&cursor, listed.tasks.is_empty()) {
            write_stderr(&format!("more tasks follow: --after {cursor}"));
            break;
        }
        next = listed.next;
    }
    Ok(())
}

/// Writes the tasks as a table. Each page has its own column widths.
fn table(output: &mut Output, page: &[ListedTask], with_head: bool, now: i64) -> Result<(), CliError> {
    let width = page.iter().map(|task| printable(task.id.as_str()).chars().count()).max().unwrap_or(0);
    if with_head {
        let head = ["ID", "SERVICE", "SIZE", "AGE", "STORED", "READERS", "TITLE"];
        output.line(&line(width, head.map(str::to_owned)))?;
    }
    for task in page {
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
        output.line(&line(width, cells))?;
    }
    Ok(())
}

fn line(width: usize, [id, service, size, age, stored, readers, title]: [String; 7]) -> String {
    let line =
        format!("{id:<width$}  {service:<12}  {size:>9}  {age:>4}  {stored:<20}  {readers:>7}  {title}");
    line.trim_end().to_owned()
}

fn json_line(task: &ListedTask) -> ListLine<'_> {
    ListLine {
        id: task.id.as_str(),
        service: task.service.as_str(),
        size: task.size,
        stored_at: task.stored_at,
        readers: task.readers,
        title: title(task),
        cursor: task.row_id,
    }
}

/// Returns the title, unless the record is too large to be read for it.
fn title(task: &ListedTask) -> Option<String> {
    TaskSummary::parse(task.record.as_ref()?).title
}
