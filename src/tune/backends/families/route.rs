//! A route: which family computes which GEMM, by (N, K) and ranges of M. The overlay reads it (`route.py`).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BY_COLUMNS, DEFAULT, TRITON};
use crate::tune::protocol::Device;
use crate::tune::results::Row;

/// Version of the file's format.
const FORMAT: u32 = 1;

/// A route, as stored in its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Version of this format, 1.
    pub format: u32,
    /// Name of the device it was raced on.
    pub device: String,
    /// Number of multiprocessors, in which parts with one name may differ. Unknown in routes that an older gemmtune
    /// wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cu_num: Option<u32>,
    /// Software it was raced with.
    pub versions: std::collections::BTreeMap<String, String>,
    /// GEMMs that are routed to another family; all others stay where SGLang sends them.
    pub rows: Vec<RouteRow>,
}

/// GEMMs that one family computes with one setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteRow {
    /// Output features.
    #[serde(rename = "N")]
    pub n: u32,
    /// Input features.
    #[serde(rename = "K")]
    pub k: u32,
    /// Smallest M, inclusive.
    #[serde(rename = "min_M")]
    pub min_m: u32,
    #[serde(rename = "max_M")]
    pub max_m: u32,
    pub family: String,
    pub setting: Value,
    /// Median time at `max_M`, µs.
    pub us: f64,
    /// Time of what serves it without the route, in the same run-off, µs.
    pub default_us: Option<f64>,
}

impl Route {
    /// The route for the raced `rows`. A row applies to its own M and those below it down to the next raced one; an M
    /// above the largest that was raced is not covered. Rows that the incumbent won are left out: they stay where
    /// SGLang sends them.
    pub fn of(device: &Device, rows: &[Row]) -> Self {
        let mut sorted: Vec<&Row> = rows.iter().collect();
        sorted.sort_by_key(|row| (row.shape.n, row.shape.k, row.shape.m));
        let mut found: Vec<RouteRow> = Vec::new();
        let mut before: Option<&Row> = None;
        for row in sorted {
            let shape = &row.shape;
            let same = before.filter(|b| (b.shape.n, b.shape.k) == (shape.n, shape.k));
            let min_m = same.map_or(1, |b| b.shape.m + 1);
            before = Some(row);
            let family = row.candidate["family"].as_str().unwrap_or(TRITON);
            if row.incumbent_kept || family == DEFAULT {
                continue;
            }
            let mut setting = row.candidate.clone();
            if let Some(object) = setting.as_object_mut() {
                object.shift_remove("family");
            }
            let next = RouteRow {
                n: shape.n,
                k: shape.k,
                min_m,
                max_m: shape.m,
                family: family.to_owned(),
                setting,
                us: row.us,
                default_us: row.incumbent_us,
            };
            match found.last_mut() {
                Some(last) if last.goes_on_as(&next) => {
                    last.max_m = next.max_m;
                    (last.us, last.default_us) = (next.us, next.default_us);
                }
                _ => found.push(next),
            }
        }
        Self {
            format: FORMAT,
            device: device.name.clone(),
            cu_num: Some(device.cu_num),
            versions: device.versions.clone(),
            rows: found,
        }
    }

    /// Reads a route; `Err` describes what is wrong with it, as a clause.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let route: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if route.format != FORMAT {
            return Err(format!(
                "it has format {}, this gemmtune reads {FORMAT}",
                route.format
            ));
        }
        let inverted = |row: &&RouteRow| row.min_m == 0 || row.min_m > row.max_m;
        match route.rows.iter().find(inverted) {
            Some(row) => Err(format!(
                "a row for N={} K={} goes from M={} to {}",
                row.n, row.k, row.min_m, row.max_m
            )),
            None => Ok(route),
        }
    }

    /// A remark if the route was raced on a device other than this one: what is fastest there may not be fastest
    /// here, and gemmtune's own kernels are compiled for their device's multiprocessors.
    pub fn of_another_device(&self, name: &str, cu_num: u32) -> Option<String> {
        let other = |cu_num: &u32| format!("{} with {cu_num} multiprocessors", self.device);
        if self.device != name {
            return Some(format!(
                "it was raced on {}, and this is {name}",
                self.cu_num
                    .as_ref()
                    .map_or_else(|| self.device.clone(), other)
            ));
        }
        let theirs = self.cu_num.as_ref().filter(|theirs| **theirs != cu_num)?;
        Some(format!(
            "it was raced on {}, and this one has {cu_num}",
            other(theirs)
        ))
    }

    /// The row that computes a GEMM; `None` if it stays with SGLang.
    pub fn row(&self, n: u32, k: u32, m: u32) -> Option<&RouteRow> {
        let of_weight = |row: &&RouteRow| (row.n, row.k) == (n, k) && row.spans(m);
        self.rows.iter().find(of_weight).filter(|row| row.takes(m))
    }

    /// The contents of the route's file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data with string keys");
        text.push('\n');
        text
    }
}

impl RouteRow {
    /// The row as a phrase.
    pub fn in_words(&self) -> String {
        format!(
            "{} for N={} K={}, M={} to {}",
            self.family, self.n, self.k, self.min_m, self.max_m
        )
    }

    fn spans(&self, m: u32) -> bool {
        (self.min_m..=self.max_m).contains(&m)
    }

    /// Whether its family supports `m` rows as SGLang passes them: scales by columns are padded to multiples of four
    /// (`scale_tma_aligned`, SGLang 0.5.5 to 0.5.23), and cuBLASLt only accepts them without a gap.
    pub fn takes(&self, m: u32) -> bool {
        self.family != BY_COLUMNS || m.is_multiple_of(4)
    }

    /// Whether `next` has the same family and setting for the M that follow.
    fn goes_on_as(&self, next: &Self) -> bool {
        (self.n, self.k, &self.family, &self.setting)
            == (next.n, next.k, &next.family, &next.setting)
            && self.max_m + 1 == next.min_m
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tune::backends::sglang_triton::space::tests::{h100, shape};
    use crate::tune::rules::Effort;

    fn row(m: u32, candidate: Value, incumbent_kept: bool) -> Row {
        Row {
            shape: shape(m, 4096, 4096),
            candidate,
            incumbent_kept,
            us: 6.0,
            incumbent: Some(json!({"family": "deepgemm"})),
            incumbent_us: Some(9.0),
            noise: 0.0,
            err_ratio: 0.0,
            timed: 10,
            busy_s: 0.1,
            effort: Effort::Quick,
        }
    }

    fn ranges(rows: &[Row]) -> Vec<(u32, u32, String)> {
        let route = Route::of(&h100(&[]), rows);
        let range = |row: &RouteRow| (row.min_m, row.max_m, row.family.clone());
        route.rows.iter().map(range).collect()
    }

    #[test]
    fn a_winner_serves_its_own_rows_and_those_below_it_that_were_not_raced() {
        let stream = || json!({"family": "stream", "DEPTH": 1});
        let found = ranges(&[
            row(16, json!({"family": "stream-wg", "DEPTH": 3}), false),
            row(1, stream(), false),
            row(8, stream(), false),
            row(64, json!({"family": "deepgemm"}), true),
            row(1024, json!({"family": "cublaslt"}), false),
        ]);
        let expected = [
            (1, 8, "stream".to_owned()),
            (9, 16, "stream-wg".to_owned()),
            (65, 1024, "cublaslt".to_owned()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_serves_today_needs_no_row_and_a_row_of_the_triton_kernel_is_one() {
        let found = ranges(&[
            row(1, json!({"family": "stream"}), true),
            row(2, json!({"family": "deepgemm"}), false),
            row(128, json!({"BLOCK_SIZE_M": 16}), false),
        ]);
        assert_eq!(found, [(3, 128, "triton".to_owned())]);
    }

    #[test]
    fn a_route_says_what_computes_a_gemm_and_what_stays() {
        let route = Route::of(
            &h100(&[]),
            &[
                row(8, json!({"family": "stream", "DEPTH": 1}), false),
                row(64, json!({"family": "deepgemm"}), true),
                row(1024, json!({"family": "cublaslt"}), false),
            ],
        );
        let family = |m| route.row(4096, 4096, m).map(|row| row.family.as_str());
        let found = [1, 8, 9, 64, 68, 70, 1024, 1025].map(family);
        let (stream, cublaslt) = (Some("stream"), Some("cublaslt"));
        assert_eq!(
            found,
            [stream, stream, None, None, cublaslt, None, cublaslt, None],
            "70 rows are scales with a gap"
        );
        assert!(route.row(4096, 512, 1).is_none());
        assert_eq!(Route::read(route.to_json().as_bytes()), Ok(route));
    }

    #[test]
    fn a_route_is_of_the_device_by_its_name_and_its_multiprocessors() {
        let route = Route::of(&h100(&[]), &[]);
        let (name, units) = (h100(&[]).name, 132);
        assert_eq!(route.of_another_device(&name, units), None);
        let said = route.of_another_device("NVIDIA H200", units).unwrap();
        insta::assert_snapshot!(said, @"it was raced on NVIDIA H100 80GB HBM3 with 132 multiprocessors, and this is NVIDIA H200");
        let said = route.of_another_device(&name, 114).unwrap();
        insta::assert_snapshot!(said, @"it was raced on NVIDIA H100 80GB HBM3 with 132 multiprocessors, and this one has 114");
        // Written before multiprocessors were recorded.
        let older = Route {
            cu_num: None,
            ..route
        };
        assert_eq!(older.of_another_device(&name, 114), None);
    }

    #[test]
    fn a_file_that_is_no_route_is_refused_with_the_reason() {
        let said = [
            "[]",
            r#"{"format":2,"device":"","versions":{},"rows":[]}"#,
            r#"{"format":1,"device":"","versions":{},"rows":[{"N":1,"K":1,"min_M":9,"max_M":8,"family":"x",
                "setting":{},"us":1.0,"default_us":null}]}"#,
        ]
        .map(|text| Route::read(text.as_bytes()).unwrap_err());
        insta::assert_snapshot!(said.join("\n"), @"
        invalid length 0, expected struct Route with 5 elements at line 1 column 2
        it has format 2, this gemmtune reads 1
        a row for N=1 K=1 goes from M=9 to 8
        ");
    }

    #[test]
    fn the_file_is_what_the_overlay_documents() {
        let rows = [row(8, json!({"family": "stream", "DEPTH": 1}), false)];
        let document: Value =
            serde_json::from_str(&Route::of(&h100(&[]), &rows).to_json()).unwrap();
        assert_eq!(document["format"], 1);
        assert_eq!(
            document["rows"][0],
            json!({"N": 4096, "K": 4096, "min_M": 1, "max_M": 8, "family": "stream",
                   "setting": {"DEPTH": 1}, "us": 6.0, "default_us": 9.0})
        );
    }
}
