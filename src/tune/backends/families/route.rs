//! A route: which family computes which GEMM, by (N, K) and ranges of M. The overlay reads it (`route.py`).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::DEFAULT;
use crate::tune::protocol::Device;
use crate::tune::results::Row;

/// A route, as the file holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Version of this format, 1.
    pub format: u32,
    /// The device it was raced on.
    pub device: String,
    /// Software it was raced with.
    pub versions: std::collections::BTreeMap<String, String>,
    /// GEMMs that go to another family; every other one stays where SGLang sends it.
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
    /// Fewest rows of the activation.
    #[serde(rename = "min_M")]
    pub min_m: u32,
    /// Most rows.
    #[serde(rename = "max_M")]
    pub max_m: u32,
    /// The family.
    pub family: String,
    /// Its settings.
    pub setting: Value,
    /// Median time at `max_M`, µs.
    pub us: f64,
    /// Of what serves it without the route, in the same run-off, µs.
    pub default_us: Option<f64>,
}

impl Route {
    /// The route of the raced `rows`. A row holds for its own M and for those below it down to the next raced one: nothing
    /// is said of an M above the largest that was raced. Rows that the incumbent won, and those that a family wins which
    /// SGLang can be asked for itself, are left out.
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
            let family = row.candidate["family"].as_str().unwrap_or_default();
            if row.incumbent_kept || family.is_empty() || family == DEFAULT {
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
            format: 1,
            device: device.name.clone(),
            versions: device.versions.clone(),
            rows: found,
        }
    }

    /// The route as the file holds it.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain data with string keys");
        text.push('\n');
        text
    }
}

impl RouteRow {
    /// Whether `next` is the same family and setting for the M that follow.
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
    fn what_serves_today_and_what_sglang_itself_can_run_need_no_row() {
        let found = ranges(&[
            row(1, json!({"family": "stream"}), true),
            row(2, json!({"family": "deepgemm"}), false),
            row(4, json!({"BLOCK_SIZE_M": 16}), false),
        ]);
        assert!(found.is_empty());
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
