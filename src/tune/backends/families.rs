//! Every kernel family for block FP8 that the server's interpreter has, raced against one another to build a route.
//!
//! SGLang's Triton kernel competes with its own rows, the libraries with the one kernel that each of them selects,
//! gemmtune's two streaming kernels with their settings. DeepGEMM serves today if it is installed (SGLang's default
//! on Hopper), else the Triton row in use. The winners are written as a [`route`], with the overlay that installs it.

pub mod route;
mod space;

use std::time::Duration;

use camino::Utf8Path;
use serde_json::{Value, json};

use self::route::Route;
use self::space::{Kernel, Setting};
use super::sglang_triton::{SglangTriton, files, worker_files};
use super::{Backend, Deadlines, Field, Pace, Written};
use crate::overlay::{self, OverlayOptions};
use crate::problem::{Op, Shape};
use crate::store::file::write_atomic;
use crate::tune::points::Refine;
use crate::tune::protocol::{Candidate, Device};
use crate::tune::race::Rules;
use crate::tune::results::Row;
use crate::tune::rules::Effort;
use crate::tune::tuned::{TunedRows, TunedTable};

/// Name of the route in the output folder.
pub const ROUTE: &str = "route.json";

/// Folder of the overlay that installs it, in the output folder.
pub const OVERLAY: &str = "overlay";

/// The variables that start a server with it: shell assignments, one a line.
pub const VARIABLES: &str = "route.env";

/// What SGLang runs on Hopper unless a flag changes it (0.5.6.post2 to 0.5.23).
pub const DEFAULT: &str = "deepgemm";

/// The name of SGLang's own Triton kernel in a route; its candidates name no family.
pub const TRITON: &str = "triton";

/// The family that takes the scales of A by columns (`BY_COLUMNS` of `route.py`).
const BY_COLUMNS: &str = "cublaslt";

/// Libraries that a route may name. FlashInfer has a workspace that grows, which a captured graph cannot follow.
const LIBRARIES: [&str; 1] = [BY_COLUMNS];

/// Rows of the Triton kernel that compete with the libraries' kernels.
const TRITON_ROWS: usize = 8;

/// The backend of all families.
#[derive(Clone, Debug, Default)]
pub struct Families {
    /// The Triton kernel among them, and where its rows in use are.
    pub triton: SglangTriton,
    /// Whether the server's linear is the Triton one: then its row in use is the incumbent even if DeepGEMM is
    /// installed, and a kernel that takes the scales of A by columns does not fit its quantiser.
    pub serves_triton: bool,
}

/// Whether the worker has `family`.
pub fn has(device: &Device, family: &str) -> bool {
    let named = |capability: &String| capability.strip_prefix("family:") == Some(family);
    device.capabilities.iter().any(named)
}

/// A candidate that is a family without settings.
fn alone(family: &str) -> Candidate {
    json!({"family": family})
}

/// Whether DeepGEMM supports the shape (SGLang 0.5.16, `deepgemm_w8a8_block_fp8_linear_with_fallback`).
fn default_takes(shape: &Shape) -> bool {
    shape.n.is_multiple_of(64) && shape.k.is_multiple_of(128)
}

impl Families {
    /// Settings of the two streaming kernels alternately, the most promising of each first.
    fn settings(device: &Device, shape: &Shape) -> Vec<Setting> {
        let of_each: Vec<Vec<Setting>> = [Kernel::Stream, Kernel::StreamWg]
            .into_iter()
            .filter(|kernel| has(device, kernel.family()))
            .map(|kernel| space::settings(kernel, device, shape))
            .collect();
        let longest = of_each.iter().map(Vec::len).max().unwrap_or(0);
        (0..longest)
            .flat_map(|place| {
                of_each
                    .iter()
                    .filter_map(move |list| list.get(place).copied())
            })
            .collect()
    }
}

impl Backend for Families {
    fn name(&self) -> &'static str {
        "sglang-families"
    }

    fn options(&self) -> Value {
        let mut options = self.triton.options();
        let mut families = vec![Kernel::Stream.family(), Kernel::StreamWg.family(), DEFAULT];
        families.extend(LIBRARIES);
        options["families"] = json!(families);
        if self.serves_triton {
            options["serves"] = json!("triton");
        }
        options
    }

    fn op(&self) -> Op {
        self.triton.op()
    }

    fn refine(&self, _effort: Effort) -> Refine {
        // A library has slow spots between sizes at which it is the fastest: DeepGEMM takes 78 us for 4096 x 4096 at
        // M = 1024 and 51 at 2048 (docs/evidence/kernel-contest-h200). So every octave is raced, whatever wins at its
        // ends.
        Refine::WhereWinnersDiffer {
            narrow: 1.5,
            wide: 2.0,
        }
    }

    fn rules(&self, effort: Effort) -> Rules {
        self.triton.rules(effort)
    }

    fn pace(&self) -> Pace {
        let pace = self.triton.pace();
        Pace {
            deadlines: Deadlines {
                // DeepGEMM compiles a kernel with nvcc at its first launch, 3 to 7 s on an H200's host.
                floor: Duration::from_secs(60),
                ..pace.deadlines
            },
            ..pace
        }
    }

    fn incumbent(&self, device: &Device, shape: &Shape) -> Option<Candidate> {
        if !self.serves_triton && has(device, DEFAULT) && default_takes(shape) {
            return Some(alone(DEFAULT));
        }
        self.triton.incumbent(device, shape)
    }

    fn field(
        &self,
        device: &Device,
        shape: &Shape,
        neighbours: &[Candidate],
        effort: Effort,
    ) -> Field {
        let triton = self.triton.field(device, shape, &[], effort).candidates;
        let libraries = LIBRARIES
            .into_iter()
            .filter(|family| !self.serves_triton && has(device, family))
            .map(alone);
        let others = neighbours
            .iter()
            .cloned()
            .chain(libraries)
            .chain(triton.into_iter().take(TRITON_ROWS))
            .chain(
                Self::settings(device, shape)
                    .into_iter()
                    .map(|one| one.candidate()),
            );
        let at_most = match effort {
            Effort::Quick => 64,
            Effort::Full => 192,
        };
        Field::new(self.incumbent(device, shape), others, at_most)
    }

    fn relatives(&self, device: &Device, shape: &Shape, candidate: &Candidate) -> Vec<Candidate> {
        if candidate.get("family").is_none() {
            return self.triton.relatives(device, shape, candidate);
        }
        Self::settings(device, shape)
            .iter()
            .filter(|setting| setting.is_one_step_from(candidate))
            .map(Setting::candidate)
            .collect()
    }

    fn write(&self, folder: &Utf8Path, device: &Device, rows: &[Row]) -> std::io::Result<Written> {
        if rows.is_empty() {
            return Ok(Written::default());
        }
        let mut written = Written::default();
        let table = TunedTable {
            name: ROUTE.to_owned(),
            rows: TunedRows::Route(Route::of(device, rows)),
        };
        written.put(folder, table)?;
        files::write_provenance(folder, device, rows)?;
        let overlay_folder = folder.join(OVERLAY);
        overlay::write(&overlay_folder)?;
        // The raced kernels are those that serve.
        worker_files::write(&overlay_folder)?;
        let options = OverlayOptions {
            route: Some(folder.join(ROUTE).canonicalize_utf8()?),
            ..OverlayOptions::default()
        };
        let overlay_folder = overlay_folder.canonicalize_utf8()?;
        let variables = folder.join(VARIABLES);
        let text = overlay::assignments(&overlay_folder, &options);
        write_atomic(&variables, text.as_bytes())?;
        written.files.push(variables);
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::backends::sglang_triton::space::tests::{h100, shape};

    const ALL: [&str; 4] = [
        "family:stream",
        "family:stream-wg",
        "family:deepgemm",
        "family:cublaslt",
    ];

    #[test]
    fn what_sglang_would_run_is_the_incumbent_and_every_family_enters() {
        let backend = Families::default();
        let device = h100(&ALL);
        let field = backend.field(&device, &shape(4, 4096, 4096), &[], Effort::Quick);
        assert_eq!(field.candidates[0], json!({"family": "deepgemm"}));
        let families: std::collections::BTreeSet<_> = field
            .candidates
            .iter()
            .map(|one| one["family"].as_str().unwrap_or("triton"))
            .collect();
        let expected = ["cublaslt", "deepgemm", "stream", "stream-wg", "triton"];
        assert_eq!(families, expected.into_iter().collect());
        assert_eq!(field.candidates.len(), 64);
    }

    #[test]
    fn without_deepgemm_or_where_it_refuses_the_triton_row_is_the_incumbent() {
        let backend = Families::default();
        let row = backend
            .incumbent(&h100(&[]), &shape(4, 4096, 4096))
            .unwrap();
        assert_eq!(row["BLOCK_SIZE_M"], 64);
        let odd = backend.incumbent(&h100(&ALL), &shape(4, 4100, 4096));
        assert_eq!(odd.unwrap()["BLOCK_SIZE_M"], 64);
    }

    #[test]
    fn for_a_server_on_triton_its_row_is_the_incumbent_and_no_family_wants_other_scales() {
        let backend = Families {
            serves_triton: true,
            ..Families::default()
        };
        let field = backend.field(&h100(&ALL), &shape(4, 4096, 4096), &[], Effort::Quick);
        assert_eq!(field.candidates[0]["BLOCK_SIZE_M"], 64);
        let libraries = field.candidates.iter().filter(|one| {
            let family = one["family"].as_str();
            matches!(family, Some("cublaslt" | "deepgemm"))
        });
        assert_eq!(libraries.count(), 0);
    }

    #[test]
    fn relatives_of_a_setting_differ_from_it_in_one_value() {
        let backend = Families::default();
        let (device, shape) = (h100(&ALL), shape(1, 4096, 4096));
        let setting = json!({"family": "stream", "ROW_TILES": 2, "WARPS_K": 16, "WARPS_N": 1,
            "CLUSTER": 1, "DEPTH": 1, "BLOCKS": 1, "PERSISTENT": 0});
        let relatives = backend.relatives(&device, &shape, &setting);
        assert!(!relatives.is_empty());
        for one in relatives {
            let (one, of) = (one.as_object().unwrap(), setting.as_object().unwrap());
            assert_eq!(
                of.iter()
                    .filter(|(name, value)| one.get(*name) != Some(value))
                    .count(),
                1
            );
        }
        assert!(
            backend
                .relatives(&device, &shape, &alone("deepgemm"))
                .is_empty()
        );
    }
}
