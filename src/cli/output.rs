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
