//! The tables that tuning produces, as rows, so that deploying them, in another stage and maybe on another day,
//! parses no file again.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::backends::families::route::Route;
use super::backends::sglang_triton::keys::Rows;
use crate::problem::Op;
use crate::table::aiter::{Quirks, Row, Table};
use crate::table::sglang_json;

/// A table, and the name under which its runtime looks for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunedTable {
    /// Name of its file.
    pub name: String,
    /// The contents of the table.
    #[serde(flatten)]
    pub rows: TunedRows,
}

/// Rows by the format of the files that runtimes read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TunedRows {
    /// CSV of aiter and of the reference engine: one row for each problem.
    Csv {
        /// The operation it serves.
        op: Op,
        /// Columns in file order.
        columns: Vec<String>,
        /// Rows in file order.
        rows: Vec<Row>,
    },
    /// SGLang's JSON: configurations by M. Their order is part of the look-up.
    ByM(Rows),
    /// aiter's JSON of a Triton GEMM: configurations by the key of a bucket of M.
    ByBucket(Map<String, Value>),
    /// A route: which family computes which GEMM.
    Route(Route),
}

impl TunedTable {
    /// aiter's CSV `table` under `name`.
    pub fn csv(name: &str, table: &Table) -> Self {
        Self {
            name: name.to_owned(),
            rows: TunedRows::Csv {
                op: table.op,
                columns: table.columns.iter().map(ToString::to_string).collect(),
                rows: table.rows.clone(),
            },
        }
    }

    /// Its rows for the operation `of`, if it is a CSV; empty otherwise.
    pub fn csv_rows(&self, of: Op) -> &[Row] {
        match &self.rows {
            TunedRows::Csv { op, rows, .. } if *op == of => rows,
            _ => &[],
        }
    }

    /// Number of rows in the table, whatever its format.
    pub fn count(&self) -> usize {
        match &self.rows {
            TunedRows::Csv { rows, .. } => rows.len(),
            TunedRows::ByM(rows) => rows.len(),
            TunedRows::ByBucket(rows) => rows.len(),
            TunedRows::Route(route) => route.rows.len(),
        }
    }

    /// The text of the file that its runtime reads.
    pub fn text(&self) -> String {
        match &self.rows {
            TunedRows::Csv { op, columns, rows } => csv(*op, columns, rows),
            TunedRows::ByM(rows) => {
                let mut table = sglang_json::Config::default();
                for (m, candidate) in rows {
                    let params = candidate.as_object().cloned().unwrap_or_default();
                    table.set(*m, params.into_iter().collect());
                }
                table.to_json()
            }
            TunedRows::ByBucket(rows) => four_blanks(rows),
            TunedRows::Route(route) => route.to_json(),
        }
    }
}

fn csv(op: Op, columns: &[String], rows: &[Row]) -> String {
    let table = Table {
        name: String::new(),
        op,
        columns: columns.iter().map(|name| name.as_str().into()).collect(),
        rows: rows.to_vec(),
        faults: Vec::new(),
        quirks: Quirks::default(),
    };
    table.to_csv()
}

/// JSON, indented as in aiter's files.
fn four_blanks(rows: &Map<String, Value>) -> String {
    let mut text = Vec::new();
    let pretty = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, pretty);
    rows.serialize(&mut writer)
        .expect("writing into memory cannot fail, and keys are strings");
    text.push(b'\n');
    String::from_utf8(text).expect("serde_json writes UTF-8")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn through_a_document(table: &TunedTable) -> TunedTable {
        let document = serde_json::to_string_pretty(table).unwrap();
        serde_json::from_str(&document).unwrap()
    }

    #[test]
    fn a_csv_comes_out_of_a_document_byte_for_byte_with_columns_of_the_tuners_own() {
        let text = "gfx,cu_num,M,N,K,q_dtype_w,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio,new\n\
                    gfx942,304,16,512,7168,torch.float8_e4m3fnuz,ck,7,0,4.5,k,1.29,45.5,0.0,x y\n\
                    gfx942,304,32,512,7168,,cktile,,,3.2000000000000006,\"a,b\",,,,\n";
        let read = Table::read("t.csv", text.as_bytes(), Some(Op::Bpreshuffle)).unwrap();
        let table = TunedTable::csv("tuned.csv", &read);
        assert_eq!(through_a_document(&table).text(), text);
        assert_eq!(
            (table.count(), table.csv_rows(Op::Bpreshuffle).len()),
            (2, 2)
        );
    }

    #[test]
    fn json_tables_keep_the_order_of_their_keys_in_a_document() {
        let config = json!({"BLOCK_SIZE_M": 16, "num_warps": 4, "GROUP_SIZE_M": 1});
        let by_m = TunedTable {
            name: "N=1".to_owned(),
            rows: TunedRows::ByM(vec![(8, config.clone()), (4, config.clone())]),
        };
        let buckets = [("M_LEQ_64", config.clone()), ("any", config)];
        let by_bucket = TunedTable {
            name: "gfx942".to_owned(),
            rows: TunedRows::ByBucket(
                buckets
                    .map(|(key, row)| (key.to_owned(), row))
                    .into_iter()
                    .collect(),
            ),
        };
        for table in [by_m, by_bucket] {
            let text = table.text();
            assert_eq!(through_a_document(&table).text(), text);
            let first = text.find("\"8\"").or_else(|| text.find("M_LEQ_64"));
            let second = text.find("\"4\"").or_else(|| text.find("any"));
            assert!(first < second, "{text}");
            assert!(text.find("num_warps") < text.find("GROUP_SIZE_M"), "{text}");
        }
    }
}
