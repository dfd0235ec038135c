//! Rules about a table's header and its bytes.

use std::collections::BTreeMap;

use super::super::aiter::{Row, Table};
use super::super::csv_text;
use super::super::family;
use super::super::revision::{self, Revision};
use super::super::roofline;
use super::csv_rows::{Derived, derived_of};
use super::{Sink, rules};

pub(super) fn check(table: &Table, sink: &mut Sink<'_>) {
    for rule in [
        missing, older_form, evidence, units, unknown, padded, end, empty, place,
    ] {
        rule(table, sink);
    }
}

/// Columns without which a row cannot be found, or its kernel cannot be run.
fn missing(table: &Table, sink: &mut Sink<'_>) {
    let mut needed = vec!["cu_num", "kernelId", "splitK", "us", "kernelName"];
    if table.op.is_always_keyed_by_dtype() {
        needed.push("q_dtype_w");
    }
    // A table with gfx claims to have the newest form, in which libtype is always present.
    if table.has_column("gfx") && revision::has_libtype(table.op, Revision::H) {
        needed.push("libtype");
    }
    for column in needed {
        if !table.has_column(column) {
            sink.add(
                &rules::COLUMN_MISSING,
                Some(1),
                format!("no column `{column}`, which {} needs", table.op),
            );
        }
    }
}

fn older_form(table: &Table, sink: &mut Sink<'_>) {
    if !table.has_column("gfx") {
        sink.add(
            &rules::COLUMN_OLDER_FORM,
            Some(1),
            "no column `gfx`: the look-up falls back to cu_num, the kernel generator of aiter e4048607a5 fails",
        );
        if revision::has_libtype(table.op, Revision::P) && !table.has_column("libtype") {
            sink.add(
                &rules::COLUMN_OLDER_FORM,
                Some(1),
                "no column `libtype`: the kernel generator of aiter 303a583c fails on it",
            );
        }
        if table.op.became_keyed_by_dtype() && !table.has_column("q_dtype_w") {
            sink.add(
                &rules::COLUMN_OLDER_FORM,
                Some(1),
                "no column `q_dtype_w`, a part of the key from aiter 303a583c on",
            );
        }
    } else if table.op.became_keyed_by_dtype() && !table.has_column("q_dtype_w") {
        sink.add(
            &rules::COLUMN_MISSING,
            Some(1),
            format!("no column `q_dtype_w`, which {} needs", table.op),
        );
    }
}

fn evidence(table: &Table, sink: &mut Sink<'_>) {
    for column in ["tflops", "bw", "errRatio"] {
        if !table.has_column(column) {
            sink.add(
                &rules::COLUMN_EVIDENCE,
                Some(1),
                format!("no column `{column}`"),
            );
        }
    }
    let tflops = |row: &Row, us| roofline::tflops(row.m, row.n, row.k, us);
    let bw = |row: &Row, us| roofline::bandwidth(table.op, row.m, row.n, row.k, us);
    not_recorded(table, "tflops", |row| row.tflops, tflops, sink);
    not_recorded(table, "bw", |row| row.bw, bw, sink);
}

/// Converted or hand-written tables have 0 where nothing was recorded; one finding for all of them.
fn not_recorded(
    table: &Table,
    column: &str,
    cell: fn(&Row) -> Option<f64>,
    value: impl Fn(&Row, f64) -> f64,
    sink: &mut Sink<'_>,
) {
    // Two digits are written, so a true value below this is 0.00 as well.
    const LEAST: f64 = 0.011;
    let zero = |row: &&Row| {
        let us = row.us.filter(|us| us.is_finite() && *us > 0.0);
        cell(row) == Some(0.0) && us.is_some_and(|us| value(row, us) > LEAST)
    };
    let mut rows = table.rows.iter().filter(zero);
    let Some(first) = rows.next() else { return };
    let more = match rows.count() {
        0 => String::new(),
        1 => " here and in 1 more row".to_owned(),
        more => format!(" here and in {more} more rows"),
    };
    sink.add(
        &rules::COLUMN_EVIDENCE,
        Some(first.line),
        format!("{column} is 0{more}: not recorded"),
    );
}

/// A column in TB/s, for example, is one oddity of the file, not a contradiction in each of its rows.
fn units(table: &Table, sink: &mut Sink<'_>) {
    let mut all: BTreeMap<(&str, u64), (f64, &Row, usize)> = BTreeMap::new();
    for row in &table.rows {
        let (tflops, bw) = derived_of(table, row);
        for (column, derived) in [("tflops", tflops), ("bw", bw)] {
            if let Derived::InUnit(unit) = derived {
                let (_, _, rows) = all
                    .entry((column, unit.to_bits()))
                    .or_insert((unit, row, 0));
                *rows += 1;
            }
        }
    }
    for ((column, _), (unit, first, rows)) in all {
        let (cell, name, usual) = match (column, unit > 1.0) {
            ("bw", true) => (first.bw, "TB/s", "GB/s"),
            ("bw", false) => (first.bw, "MB/s", "GB/s"),
            (_, true) => (first.tflops, "PFLOPS", "TFLOPS"),
            (_, false) => (first.tflops, "GFLOPS", "TFLOPS"),
        };
        let cell = cell.unwrap_or(0.0);
        sink.add(
            &rules::COLUMN_UNIT,
            Some(first.line),
            format!(
                "{column} is in {name} in {rows} of {} rows, first {cell} for {:.2} {usual}",
                table.rows.len(),
                cell * unit
            ),
        );
    }
}

fn unknown(table: &Table, sink: &mut Sink<'_>) {
    let known = revision::tuned_columns(table.op, Revision::H);
    for column in &table.columns {
        let column = &**column;
        if !known.contains(&column) && !revision::NOTE_COLUMNS.contains(&column) {
            sink.add(
                &rules::COLUMN_UNKNOWN,
                Some(1),
                format!(
                    "column `{column}` belongs to no revision's table of {}",
                    table.op
                ),
            );
        }
    }
}

fn padded(table: &Table, sink: &mut Sink<'_>) {
    for column in &table.quirks.padded_columns {
        sink.add(
            &rules::COLUMN_PADDED,
            Some(1),
            format!("column `{column}` has blanks around its name"),
        );
    }
}

fn end(table: &Table, sink: &mut Sink<'_>) {
    if table.quirks.no_final_newline && !table.rows.is_empty() {
        let last = table.rows.iter().map(|row| row.line).max();
        sink.add(
            &rules::NO_FINAL_NEWLINE,
            last,
            "the last line has no line end",
        );
    }
}

fn empty(table: &Table, sink: &mut Sink<'_>) {
    if table.rows.is_empty() && table.faults.is_empty() {
        sink.add(&rules::TABLE_EMPTY, Some(1), "a header and no row");
    }
}

/// aiter merges `model_configs/*<merge name>*`; a table in that folder with another name is never read.
fn place(table: &Table, sink: &mut Sink<'_>) {
    let mut parts = table.name.rsplit('/');
    let (file, folder) = (parts.next().unwrap_or(""), parts.next());
    let stem = family::stem(table.op);
    if let Some(stem) = stem
        && folder == Some("model_configs")
        && !file.contains(stem)
    {
        sink.add(
            &rules::FILE_NAME_UNREAD,
            None,
            format!("aiter looks for `*{stem}*.csv` here, and `{file}` does not match"),
        );
    }
}

/// Whether the bytes are an untuned table: sizes without any measurement.
pub(super) fn is_untuned(bytes: &[u8]) -> bool {
    let first = header(bytes);
    let has = |name: &str| first.split(',').any(|column| column.trim() == name);
    ["M", "N", "K"].into_iter().all(has)
        && ![
            "us",
            "kernelId",
            "kernelName",
            "cu_num",
            "libtype",
            "solidx",
        ]
        .into_iter()
        .any(has)
}

/// Applies the rules for an untuned table; returns how many rows it has.
pub(super) fn untuned(bytes: &[u8], sink: &mut Sink<'_>) -> usize {
    let known = [
        "M",
        "N",
        "K",
        "q_dtype_w", // FP8 and FP4 tuners
        "B",
        "bias",
        "dtype",
        "outdtype",
        "scaleAB",
        "bpreshuffle", // batched and bf16 tuners
        "op",
        "records", // gemmtune's own shapes file
    ];
    let first = header(bytes);
    for column in first.split(',').map(str::trim) {
        if !known.contains(&column) {
            sink.add(
                &rules::UNTUNED_EXTRA_COLUMN,
                Some(1),
                format!("the tuner does not read column `{column}`"),
            );
        }
    }
    let mut reader = csv_text::trimmed(bytes);
    let mut seen = std::collections::HashMap::new();
    let mut rows = 0;
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).unwrap_or(false) {
        rows += 1;
        let line = record.position().map_or(0, csv::Position::line);
        let cells: Vec<Vec<u8>> = record.iter().map(<[u8]>::to_vec).collect();
        if let Some(earlier) = seen.insert(cells, line) {
            sink.add(
                &rules::DUPLICATE_EQUAL,
                Some(line),
                format!("the same shape is on line {earlier}"),
            );
        }
        for (column, cell) in first.split(',').map(str::trim).zip(&record) {
            let number = std::str::from_utf8(cell)
                .ok()
                .and_then(|cell| cell.trim().parse::<u32>().ok());
            if matches!(column, "M" | "N" | "K") && number.is_none_or(|number| number == 0) {
                sink.add(
                    &rules::LINE_UNREADABLE,
                    Some(line),
                    format!(
                        "`{}` in column {column} is no positive whole number",
                        String::from_utf8_lossy(cell)
                    ),
                );
            }
        }
    }
    rows
}

fn header(bytes: &[u8]) -> String {
    let bytes = csv_text::unmarked(bytes);
    let end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
}
