use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For people, with every column
    Wide,
    /// For scripts
    Json,
    /// For people who write YAML
    Yaml,
    /// For shells: the values alone, one a line
    Value,
}

/// What a terminal shows in a line at least.
const COLUMNS: usize = 80;

/// Text in lines that fit, broken at blanks: `first` before the first one, as many blanks or `rest` before
/// the others. A word that is longer than a line stays whole, to be copied.
pub(super) fn wrapped(first: &str, rest: &str, text: &str) -> String {
    let mut lines = vec![first.to_owned()];
    let mut is_bare = true;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let Some(line) = lines.last_mut() else { break };
        let width = line.chars().count() + usize::from(!is_bare) + word.chars().count();
        if !is_bare && width > COLUMNS {
            lines.push(format!("{rest}{word}"));
        } else {
            if !is_bare {
                line.push(' ');
            }
            line.push_str(word);
            is_bare = false;
        }
    }
    lines.join("\n")
}

/// Writes text to stdout, lines that say that something is wrong (`! …`) in colour on a terminal that has it.
pub(super) fn write_marked(text: &str) -> io::Result<()> {
    if anstream::AutoStream::choice(&io::stdout()) == anstream::ColorChoice::Never {
        return write(text);
    }
    let marked = text.lines().map(|line| match line.split_once("! ") {
        Some((before, what)) if before.chars().all(|c| " │├└─".contains(c)) => {
            format!("{before}\u{1b}[31m! {what}\u{1b}[0m")
        }
        _ => line.to_owned(),
    });
    write(&marked.collect::<Vec<_>>().join("\n"))
}

/// Writes text to stdout. `println!` panics where the reader has gone.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()
}

/// Says a line on stderr. `eprintln!` would panic where nobody reads any more, in the middle of an attach.
pub(super) fn say(line: &str) {
    // There is nobody left to tell that it failed.
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// As [`print()`], where the table has colours: they go where no terminal is.
pub(super) fn print_styled(
    format: Format,
    value: &impl Serialize,
    table: impl FnOnce() -> String,
) -> io::Result<()> {
    match format {
        Format::Table | Format::Wide => {
            let mut stdout = anstream::stdout().lock();
            writeln!(stdout, "{}", table())?;
            stdout.flush()
        }
        Format::Json | Format::Yaml | Format::Value => print(format, value, table),
    }
}

/// Writes a value as JSON or YAML, or `table` for people.
pub(super) fn print(
    format: Format,
    value: &impl Serialize,
    table: impl FnOnce() -> String,
) -> io::Result<()> {
    match format {
        Format::Table | Format::Wide => write(&table()),
        Format::Value => {
            let mut lines = Vec::new();
            values(&serde_json::to_value(value)?, &mut lines);
            write(&lines.join("\n"))
        }
        Format::Json => write(&serde_json::to_string_pretty(value)?),
        Format::Yaml => write(&serde_saphyr::to_string(value).map_err(io::Error::other)?),
    }
}

/// The fields of an object, the items of a list.
fn values(value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) => lines.extend(fields.values().map(cell)),
        Value::Array(items) => lines.extend(items.iter().map(cell)),
        other => lines.push(cell(other)),
    }
}

/// A value in one place of a table: text as it is, nothing as `-`, what has parts as JSON.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A table without lines, as `kubectl` prints them.
pub(super) fn table<Row: IntoIterator<Item = String>>(
    header: impl IntoIterator<Item = &'static str>,
    rows: impl IntoIterator<Item = Row>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.into_iter().collect::<Vec<_>>());
    for row in rows {
        table.add_row(row.into_iter().collect::<Vec<_>>());
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A size for people: binary units, as `lsblk` prints them.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut scaled = bytes;
    while unit + 1 < UNITS.len() && scaled >= 1024 && scaled.is_multiple_of(1024) {
        scaled /= 1024;
        unit += 1;
    }
    format!("{scaled} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_blanks_and_long_words_stay_whole() {
        let iqn = "iqn.2010-10.org.openstack:volume-4c2b2d6e-8c60-4f0b-9a6e-000000000000";
        let text = format!("to {iqn}{iqn} at 10.0.2.2:3260 and more");
        let lines = wrapped("- ", "  ", &text);
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines[0], "- to");
        assert_eq!(lines[1], format!("  {iqn}{iqn}"));
        assert_eq!(lines[2], "  at 10.0.2.2:3260 and more");
        assert_eq!(wrapped("- ", "  ", ""), "- ");
        let sentence = "word ".repeat(40);
        assert!(wrapped("│  ├─ ", "│  │  ", &sentence).lines().all(|l| l.chars().count() <= 80));
    }
}
