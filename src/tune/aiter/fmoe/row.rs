//! Rows of the tuner's table as written, and which of them are accepted.

use camino::Utf8Path;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Serialize, Serializer};

use super::call::Call;
use crate::problem::op::fused_moe_aiter::ERR_LIMIT;
use crate::table::csv_text;
use crate::table::fmoe::rules::FALLBACK_TAG;
use crate::table::fmoe::table::{Row, Table};
use crate::table::lint::{Report, Severity};
use crate::tune::aiter::keep::Found;

/// A row as text, so that nothing the tuner wrote is lost, whatever its columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub columns: Vec<String>,
    /// The cells, one for each column.
    pub cells: Vec<String>,
}

impl Line {
    /// Parses it as a look-up would.
    pub(super) fn row(&self) -> Option<Row> {
        let table = Table::read("tuned_fmoe.csv", table([self]).as_bytes()).ok()?;
        let row = table.rows.into_iter().next()?;
        Some(Row { line: 0, ..row })
    }
}

/// The file's field `line`.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::tune::aiter) struct Stored {
    line: Line,
}

impl Found<Call> for Line {
    type Stored = Stored;

    fn store(&self, _: &Call) -> Stored {
        Stored { line: self.clone() }
    }

    fn restore(stored: Stored, _: &Call) -> Option<Self> {
        Some(stored.line)
    }

    fn is_copy_of(&self, other: &Self) -> bool {
        self == other
    }
}

/// Serialises cells by column name, for documents.
pub(super) fn named<S: Serializer>(line: &Line, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(line.columns.len()))?;
    for (column, cell) in line.columns.iter().zip(&line.cells) {
        map.serialize_entry(column, cell)?;
    }
    map.end()
}

/// A table of `lines`, whose columns are those of the first line followed by further ones of later lines.
pub(super) fn table<'a>(lines: impl IntoIterator<Item = &'a Line>) -> String {
    let lines: Vec<&Line> = lines.into_iter().collect();
    let mut columns: Vec<&str> = Vec::new();
    for column in lines.iter().flat_map(|line| &line.columns) {
        if !columns.contains(&column.as_str()) {
            columns.push(column);
        }
    }
    let cells = |line: &Line| -> Vec<String> {
        let cell = |column: &&str| {
            let at = line.columns.iter().position(|name| name == column);
            at.map_or_else(String::new, |at| line.cells[at].clone())
        };
        columns.iter().map(cell).collect()
    };
    csv_text::text(&columns, lines.into_iter().map(cells))
}

/// The complete rows of the table at `path`. The tuner rewrites it in place, so only lines with a line end are used.
pub(super) fn read(path: &Utf8Path) -> Vec<Line> {
    fs_err::read(path).map_or_else(|_| Vec::new(), |bytes| whole(&bytes))
}

fn whole(bytes: &[u8]) -> Vec<Line> {
    let end = memchr::memrchr(b'\n', bytes).map_or(0, |end| end + 1);
    let mut reader = csv_text::reader(&bytes[..end]);
    let Ok(header) = reader.headers().cloned() else {
        return Vec::new();
    };
    let columns: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
    reader
        .records()
        .filter_map(Result::ok)
        .filter(|record| record.len() == columns.len())
        .map(|record| Line {
            columns: columns.clone(),
            cells: record.iter().map(str::to_owned).collect(),
        })
        // A row for machines without FlyDSL accompanies the one it replaces.
        .filter(|line| line.row().is_some_and(|row| &*row.tag != FALLBACK_TAG))
        .collect()
}

/// Whether the share of wrong elements in `line` is above the default limit.
pub(super) fn is_above_default(line: &Line) -> bool {
    let err = line.row().map(|row| row.err).unwrap_or_default();
    err.iter().flatten().any(|err| *err > ERR_LIMIT)
}

/// Why `line` cannot be deployed on a card of `gfx` with `cu_num` compute units; `None` if it can. Reasons are errors
/// of `lint`, and more wrong elements than `err_limit` allows, whatever the tuner let through.
pub(super) fn refusal(line: &Line, gfx: &str, cu_num: u32, err_limit: f64) -> Option<String> {
    let Some(row) = line.row() else {
        return Some("it cannot be read".to_owned());
    };
    if row.cu_num != cu_num || row.gfx_or(gfx) != gfx {
        return Some(format!(
            "it was written for {} with {} compute units",
            row.gfx_or("a device"),
            row.cu_num
        ));
    }
    for (column, err) in ["err1", "err2"].iter().zip(row.err) {
        match err {
            Some(err) if (0.0..=err_limit).contains(&err) => {}
            Some(err) => {
                return Some(format!(
                    "{column} says that {:.1} % of its numbers are wrong, at most {:.1} % may be",
                    err * 100.0,
                    err_limit * 100.0
                ));
            }
            // A single kernel for both stages has a single error.
            None if *column == "err2" && row.run_1stage => {}
            None => {
                return Some(format!(
                    "{column} is empty: nothing says that its numbers are right"
                ));
            }
        }
    }
    let mut report = Report::default();
    report.check_csv("tuned_fmoe.csv", table([line]).as_bytes(), None);
    let harm = report
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::Error);
    harm.map(|finding| format!("{}: {}", finding.rule, finding.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,doweight_stage1,block_m,ksplit,us1,kernelName1,err1,us2,kernelName2,err2,us,run_1stage,tflops,bw,_tag\n\
        304,64,7168,256,257,9,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0,32,0,400.5,a,0.0%,320.25,b,7.1%,720.75,0,1.0,2.0,\n\
        304,128,7168,256,257,9,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0,32,0,400.5,a,0.0%,0,,0.0%,400.5,1,1.0,2.0,\n";

    #[test]
    fn a_table_cut_anywhere_gives_a_prefix_of_its_rows_and_is_written_as_it_was() {
        let full = whole(TABLE.as_bytes());
        assert_eq!(full.len(), 2);
        assert_eq!(table(&full), TABLE);
        for end in 0..TABLE.len() {
            let cut = whole(&TABLE.as_bytes()[..end]);
            assert_eq!(cut, full[..cut.len()], "cut at {end}");
        }
        let fallback = TABLE.replace("2.0,\n", "2.0,flydsl_fallback\n");
        assert!(whole(fallback.as_bytes()).is_empty());
    }

    #[test]
    fn a_row_is_refused_for_wrong_numbers_another_card_and_what_lint_calls_an_error() {
        let reason = |from: &str, to: &str| {
            let text = TABLE.replace(from, to);
            refusal(&whole(text.as_bytes())[0], "gfx942", 304, 0.1)
        };
        assert_eq!(reason("", ""), None);
        let said = [
            ("7.1%", "17.1%"),
            ("0.0%,320", "0.5,320"),
            ("7.1%", ""),
            ("304,64", "80,64"),
            ("720.75", "-1"),
            ("720.75", "0.01"),
            (",b,", ",,"),
            ("304,64", "304,65"),
        ]
        .map(|(from, to)| reason(from, to).unwrap_or_else(|| panic!("{to} is taken")));
        insta::assert_snapshot!(said.join("\n"), @"
        err2 says that 17.1 % of its numbers are wrong, at most 10.0 % may be
        err1 says that 50.0 % of its numbers are wrong, at most 10.0 % may be
        err2 is empty: nothing says that its numbers are right
        it was written for gfx942 with 80 compute units
        us-invalid: us is -1
        above-roofline: 0.01 us for 64 tokens means 634179 TFLOPS; gfx942 with 304 compute units does at most 2615
        kernel-name-unset: kernelName2 is empty in a row of two stages
        moe-token-unreachable: token=65: so many tokens are looked up at 128
        ");
    }
}
