//! The output of the demo: a table that changes in place, or plain lines if stdout is not a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};

use crate::cli::print;
use crate::telemetry::{Comparison, CrowdFigures};

/// Number of plain lines of a comparison.
const PLAIN_LINES: f64 = 12.0;

/// Width of the progress bar, in characters.
const BAR_WIDTH: usize = 40;

const WIDTHS: [usize; 3] = [34, 12, 18];

/// Standard output.
pub(super) struct Screen {
    is_live: bool,
    has_colour: bool,
    /// Lines of the table on the terminal.
    drawn: usize,
    /// Time of the next plain line, in seconds.
    next_line: f64,
}

impl Screen {
    /// `is_shared` says that the log is on the same terminal, where a table would be torn apart.
    pub(super) fn new(is_shared: bool, with_colour: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self {
            is_live: is_terminal && !is_shared,
            has_colour: is_terminal && with_colour,
            drawn: 0,
            next_line: 0.0,
        }
    }

    pub(super) fn print(&self, text: &str) {
        print(text);
    }

    /// Shows the figures so far.
    pub(super) fn update(&mut self, figures: &Comparison) {
        if self.is_live {
            let share = figures.elapsed_seconds / figures.length_seconds;
            let done = ((share * BAR_WIDTH as f64) as usize).min(BAR_WIDTH);
            let mut text = self.table(figures);
            let (elapsed, length) = (clock(figures.elapsed_seconds), clock(figures.length_seconds));
            let bar = format!("{}{}", "━".repeat(done), self.dim(&"─".repeat(BAR_WIDTH - done)));
            writeln!(text, "\n  {elapsed} {bar} {length}").expect("writing to a String cannot fail");
            self.redraw(&text);
        } else if figures.elapsed_seconds >= self.next_line {
            if self.next_line == 0.0 {
                print("time  directly / through refrain\n");
            }
            self.next_line += figures.length_seconds / PLAIN_LINES;
            print(&format!("{}\n", line(figures)));
        }
    }

    /// Shows the final figures.
    pub(super) fn finish(&mut self, figures: &Comparison) {
        let length = clock(figures.length_seconds);
        let text = format!("{}\n  Measured in {length}.\n\n", self.table(figures));
        if self.is_live {
            self.redraw(&text);
        } else {
            print(&format!("\n{text}"));
        }
    }

    /// Replaces the table on the terminal.
    fn redraw(&mut self, text: &str) {
        // Moves the cursor to the first line of the table and clears everything below.
        let clear = if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() };
        self.drawn = text.lines().count();
        print(&format!("{clear}{text}"));
    }

    fn table(&self, figures: &Comparison) -> String {
        let [name_width, direct_width, refrain_width] = WIDTHS;
        let header =
            format!("  {:name_width$}{:>direct_width$}{:>refrain_width$}", "", "directly", "through refrain");
        let mut text = format!("{}\n", self.dim(&header));
        for [name, direct, refrain] in rows(figures) {
            let direct = self.coloured("31", &format!("{direct:>direct_width$}"));
            let refrain = self.coloured("1;32", &format!("{refrain:>refrain_width$}"));
            writeln!(text, "  {name:name_width$}{direct}{refrain}").expect("writing to a String cannot fail");
        }
        text
    }

    fn dim(&self, text: &str) -> String {
        self.coloured("2", text)
    }

    fn coloured(&self, code: &str, text: &str) -> String {
        if self.has_colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Rows of the table: name, and the values of both crowds.
fn rows(figures: &Comparison) -> Vec<[String; 3]> {
    let Comparison { finished, direct, refrain, .. } = figures;
    let median = |crowd: &CrowdFigures| {
        crowd.median_delay_seconds.map_or_else(|| "–".to_owned(), |delay| format!("{delay:.1} s"))
    };
    let row = |name: &str, value: &dyn Fn(&CrowdFigures) -> String| {
        [name.to_owned(), value(direct), value(refrain)]
    };
    let mut rows = vec![
        row("upstream calls", &|crowd| crowd.upstream_calls.to_string()),
        row("429s that clients received", &|crowd| crowd.rate_limited.to_string()),
        row("finished tasks that clients know", &|crowd| format!("{} of {finished}", crowd.known)),
        row("time until they knew, median", &median),
    ];
    if direct.failed + refrain.failed > 0 {
        rows.push(row("other failed requests", &|crowd| crowd.failed.to_string()));
    }
    rows
}

/// One line for an output that is not a terminal, with the values of both crowds.
fn line(figures: &Comparison) -> String {
    let Comparison { elapsed_seconds, finished, direct, refrain, .. } = figures;
    format!(
        "{}  upstream calls {} / {}, 429s {} / {}, finished tasks known {} / {} of {finished}",
        clock(*elapsed_seconds),
        direct.upstream_calls,
        refrain.upstream_calls,
        direct.rate_limited,
        refrain.rate_limited,
        direct.known,
        refrain.known,
    )
}

/// Formats seconds as `1:05`.
fn clock(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
