//! aiter's Triton GEMM for block FP8: its rows, and its JSON files.
//!
//! The worker runs the kernel of the user's tree through aiter's own wrapper. Candidates are tried in this order:
//! what serves the shape today, winners of similar shapes, rows that the tree ships for other weights at this M, then
//! the whole space in the order of SGLang's model, whose kernel has the same tiles. Files have one row for each
//! bucket of M ([`files`]), so one M of a bucket is raced.

pub mod files;
pub mod space;

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use self::space::{Setting, Space};
use super::sglang_triton::files::write_provenance;
use super::sglang_triton::model;
use super::sglang_triton::space::is_rocm;
use super::{Backend, Field, Pace, Written};
use crate::overlay::{self, OverlayOptions};
use crate::problem::{Op, Shape};
use crate::store::file::{entries, write_atomic};
use crate::table::aiter_triton::{Configs, FileName, Rules};
use crate::tune::points::Refine;
use crate::tune::protocol::{Candidate, Device};
use crate::tune::race::Rules as RaceRules;
use crate::tune::results::Row;
use crate::tune::rules::{Effort, gpu_rules};

/// Folder of the files in the output folder.
pub const TABLES: &str = "configs";

/// Folder of the overlay that makes aiter use them in place of its own.
pub const OVERLAY: &str = "overlay";

/// The variables that start a server with it, for the shell's `.`.
pub const VARIABLES: &str = "aiter-triton.env";

/// Most rows of other weights that are raced, the most frequent ones.
const MINED: usize = 12;

/// The backend of aiter's Triton GEMM.
#[derive(Clone, Debug, Default)]
pub struct AiterTriton {
    /// The aiter tree; the one that the worker's interpreter would import when absent.
    pub root: Option<Utf8PathBuf>,
    /// The architecture whose rows count as today's if the device has none, such as `gfx942`.
    pub config_for: Option<String>,
    /// Folder of the files in use; those of the tree when absent.
    pub tables: Option<Utf8PathBuf>,
}

impl AiterTriton {
    /// How the tree looks up rows, as the worker reported.
    pub fn rules(device: &Device) -> Rules {
        let said = device
            .capabilities
            .iter()
            .find_map(|has| has.strip_prefix("bound:"));
        let from = said.and_then(|bound| bound.parse().ok()).unwrap_or(1);
        Rules::Bounds { from }
    }

    /// The file that would serve a weight.
    fn file_name(gfx: &str, n: u32, k: u32) -> FileName {
        FileName {
            gfx: gfx.to_owned(),
            preshuffled: false,
            weight: Some((n, k)),
        }
    }

    /// The architecture whose rows are in use.
    fn gfx<'a>(&'a self, device: &'a Device) -> &'a str {
        match &self.config_for {
            Some(gfx) if !is_rocm(device) => gfx,
            _ => &device.arch,
        }
    }

    fn folder(&self, device: &Device) -> Option<Utf8PathBuf> {
        let shipped = (!device.shipped.is_empty()).then(|| Utf8PathBuf::from(&device.shipped));
        self.tables.clone().or(shipped)
    }

    fn today(&self, device: &Device, n: u32, k: u32) -> Option<Configs> {
        files::in_force(
            &self.folder(device)?,
            &Self::file_name(self.gfx(device), n, k),
        )
    }

    /// Rows that the tree ships for other weights at this M, most frequent first.
    fn mined(&self, device: &Device, m: u32) -> Vec<Candidate> {
        let Some(files) = self.folder(device).and_then(|folder| entries(&folder).ok()) else {
            return Vec::new();
        };
        let mut found: Vec<(usize, Candidate)> = Vec::new();
        for file in files {
            let ours = |name: &FileName| name.gfx == self.gfx(device) && !name.preshuffled;
            if !file.file_name().parse().is_ok_and(|name| ours(&name)) {
                continue;
            }
            let configs = fs_err::read(file.path())
                .ok()
                .and_then(|bytes| Configs::read(&bytes).ok());
            let row = configs
                .as_ref()
                .and_then(|configs| configs.find(Self::rules(device), m));
            let row = row.map(|(_, row)| Value::Object(row.clone()));
            let Some(setting) = row.and_then(|row| Setting::read(&row)) else {
                continue;
            };
            let row = runnable(device, &setting.candidate());
            match found.iter_mut().find(|(_, known)| *known == row) {
                Some((count, _)) => *count += 1,
                None => found.push((1, row)),
            }
        }
        found.sort_by(|a, b| {
            b.0.cmp(&a.0)
                .then_with(|| a.1.to_string().cmp(&b.1.to_string()))
        });
        found.into_iter().map(|(_, row)| row).take(MINED).collect()
    }
}

/// Writes the overlay and the variables with which a server reads `tables`; returns the file of variables.
fn deployable(folder: &Utf8Path, tables: &Utf8Path) -> std::io::Result<Utf8PathBuf> {
    let overlay_folder = folder.join(OVERLAY);
    overlay::write(&overlay_folder)?;
    let options = OverlayOptions {
        aiter_triton: Some(tables.canonicalize_utf8()?),
        ..OverlayOptions::default()
    };
    let variables = folder.join(VARIABLES);
    let text = overlay::assignments(&overlay_folder.canonicalize_utf8()?, &options);
    write_atomic(&variables, text.as_bytes())?;
    Ok(variables)
}

/// A row without AMD's options, if the device's compiler does not accept them.
fn runnable(device: &Device, row: &Candidate) -> Candidate {
    let mut row = row.clone();
    if let Some(row) = row.as_object_mut() {
        row.retain(|name, _| {
            !device
                .capabilities
                .iter()
                .any(|has| has.strip_prefix("drops:") == Some(name))
        });
    }
    row
}

/// Normalises a row so that equal programs compare equal: parameters that aiter's wrapper recomputes are ignored.
fn folded(row: &Candidate) -> Candidate {
    Setting::read(row).map_or_else(|| row.clone(), |setting| setting.candidate())
}

impl Backend for AiterTriton {
    fn name(&self) -> &'static str {
        "aiter-triton"
    }

    fn options(&self) -> Value {
        json!({"problem": "aiter_gemm", "block": [128, 128], "out_dtype": "bfloat16",
            "aiter_root": self.root, "config_for": self.config_for})
    }

    fn op(&self) -> Op {
        Op::Blockscale
    }

    fn refine(&self, _: Effort) -> Refine {
        Refine::Every
    }

    fn rules(&self, effort: Effort) -> RaceRules {
        gpu_rules(effort)
    }

    fn pace(&self) -> Pace {
        Pace::on_gpus()
    }

    fn incumbent(&self, device: &Device, shape: &Shape) -> Option<Candidate> {
        let configs = self.today(device, shape.n, shape.k)?;
        let (_, row) = configs.find(Self::rules(device), shape.m)?;
        Some(runnable(device, &Value::Object(row.clone())))
    }

    fn field(
        &self,
        device: &Device,
        shape: &Shape,
        neighbours: &[Candidate],
        effort: Effort,
    ) -> Field {
        let space = Space::of(device);
        let mut ranked: Vec<(f64, Setting)> = space
            .settings(device, shape)
            .into_iter()
            .map(|setting| (model::seconds(device, shape, &setting.as_sglang()), setting))
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        let possible = space::splits(shape.k);
        let fits = |row: &Candidate| {
            Setting::read(row).is_some_and(|setting| possible.contains(&setting.splits))
        };
        let incumbent = self.incumbent(device, shape);
        let known = incumbent.as_ref().map(folded);
        let mined = self.mined(device, shape.m);
        let others = neighbours
            .iter()
            .chain(&mined)
            .filter(|row| fits(row))
            .map(folded)
            .chain(ranked.iter().map(|(_, setting)| setting.candidate()))
            .filter(|row| Some(row) != known.as_ref());
        let at_most = match effort {
            Effort::Quick => 32,
            Effort::Full => 96,
        };
        Field::new(incumbent, others, at_most)
    }

    fn relatives(&self, device: &Device, shape: &Shape, candidate: &Candidate) -> Vec<Candidate> {
        let Some(setting) = Setting::read(candidate) else {
            return Vec::new();
        };
        let around = Space::of(device).around(&setting, device, shape);
        around.iter().map(Setting::candidate).collect()
    }

    /// Only files of the device's own architecture: rows raced on another vendor's device never get the name of one
    /// of aiter's files.
    fn write(&self, folder: &Utf8Path, device: &Device, rows: &[Row]) -> std::io::Result<Written> {
        if rows.is_empty() {
            return Ok(Written::default());
        }
        let mut by_weight: BTreeMap<(u32, u32), BTreeMap<u32, Candidate>> = BTreeMap::new();
        for row in rows {
            let raced = by_weight.entry((row.shape.n, row.shape.k)).or_default();
            raced.insert(row.shape.m, row.candidate.clone());
        }
        let tables = folder.join(TABLES);
        fs_err::create_dir_all(&tables)?;
        let mut written = Written::default();
        for ((n, k), raced) in by_weight {
            let name = Self::file_name(&device.arch, n, k);
            let today = self.today(device, n, k);
            let table = files::merge(&tables, &name, &raced, today.as_ref(), Self::rules(device))?;
            written.files.push(tables.join(&table.name));
            written.tables.push(table);
        }
        write_provenance(&tables, device, rows)?;
        written.files.push(deployable(folder, &tables)?);
        Ok(written)
    }
}

#[cfg(test)]
pub(in crate::tune::backends) mod tests {
    use super::super::sglang_triton::space::tests::h100;
    use super::*;

    /// An MI300X as the worker would report it.
    pub(in crate::tune::backends) fn gfx942() -> Device {
        Device {
            name: "AMD Instinct MI300X".to_owned(),
            arch: "gfx942".to_owned(),
            cu_num: 304,
            smem_bytes: 64 << 10,
            capabilities: vec!["bound:1".to_owned()],
            ..h100(&[])
        }
    }

    pub(in crate::tune::backends) fn shape(m: u32, n: u32, k: u32) -> Shape {
        Shape {
            op: Op::Blockscale,
            m,
            n,
            k,
            dtype: "torch.float8_e4m3fn".to_owned(),
        }
    }

    fn row(block_n: u32, splits: u32) -> Value {
        json!({"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": block_n, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4,
            "num_stages": 2, "waves_per_eu": 2, "matrix_instr_nonkdim": 16, "cache_modifier": ".cg", "NUM_KSPLIT": splits,
            "GROUP_K": 128})
    }

    struct Tree {
        _keep: tempfile::TempDir,
        folder: Utf8PathBuf,
    }

    /// A folder of files: one for all weights, and one for N = 512, K = 7168.
    fn tree() -> Tree {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let put = |name: &str, value: Value| {
            write_atomic(&folder.join(name), value.to_string().as_bytes()).unwrap();
        };
        put(
            "gfx942-GEMM-A8W8_BLOCKSCALE.json",
            json!({"any": row(128, 1)}),
        );
        put(
            "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
            json!({"M_LEQ_16": row(16, 14), "M_LEQ_64": row(32, 3), "any": row(64, 1)}),
        );
        Tree {
            _keep: keep,
            folder,
        }
    }

    fn on(tree: &Tree, device: Device) -> Device {
        Device {
            shipped: tree.folder.to_string(),
            ..device
        }
    }

    #[test]
    fn todays_row_is_that_of_the_weights_own_file_and_bucket() {
        let tree = tree();
        let device = on(&tree, gfx942());
        let backend = AiterTriton::default();
        let today =
            |m, n, k| backend.incumbent(&device, &shape(m, n, k)).unwrap()["BLOCK_SIZE_N"].clone();
        assert_eq!(today(1, 512, 7168), 16);
        assert_eq!(today(17, 512, 7168), 32);
        assert_eq!(today(65, 512, 7168), 64);
        assert_eq!(today(1, 4096, 512), 128);
    }

    #[test]
    fn rows_of_other_weights_are_raced_where_their_split_fits() {
        let tree = tree();
        let device = on(&tree, gfx942());
        let field =
            AiterTriton::default().field(&device, &shape(16, 4096, 7168), &[], Effort::Quick);
        assert!(field.has_incumbent);
        // The file for all weights is today's; the other one's row comes next, without what the wrapper recomputes.
        assert_eq!(field.candidates[0]["BLOCK_SIZE_N"], 128);
        assert_eq!(field.candidates[1]["NUM_KSPLIT"], 14);
        assert!(field.candidates[1].get("GROUP_K").is_none());
        assert_eq!(field.candidates.len(), 32);
        // 4096 is 32 scale blocks, which 14 does not divide.
        let field =
            AiterTriton::default().field(&device, &shape(16, 4096, 4096), &[], Effort::Full);
        assert!(field.candidates.iter().all(|row| row["NUM_KSPLIT"] != 14));
    }

    #[test]
    fn on_another_make_the_named_rows_are_todays_without_amds_options() {
        let tree = tree();
        let drops =
            ["waves_per_eu", "matrix_instr_nonkdim", "kpack"].map(|name| format!("drops:{name}"));
        let device = Device {
            capabilities: drops.to_vec(),
            ..on(&tree, h100(&[]))
        };
        let backend = AiterTriton {
            config_for: Some("gfx942".to_owned()),
            ..AiterTriton::default()
        };
        let field = backend.field(&device, &shape(16, 512, 7168), &[], Effort::Quick);
        assert_eq!(field.candidates[0]["NUM_KSPLIT"], 14);
        assert!(
            field
                .candidates
                .iter()
                .all(|row| row.get("waves_per_eu").is_none())
        );
        assert_eq!(
            backend.incumbent(&device, &shape(16, 512, 7168)),
            Some(field.candidates[0].clone())
        );
    }

    fn raced(m: u32, candidate: Value) -> Row {
        Row {
            shape: shape(m, 512, 7168),
            candidate,
            us: 10.0,
            incumbent: None,
            incumbent_us: None,
            incumbent_kept: false,
            noise: 0.01,
            err_ratio: 0.0,
            timed: 3,
            busy_s: 0.1,
            effort: Effort::Quick,
        }
    }

    #[test]
    fn the_file_written_is_named_as_aiter_looks_for_it_and_carries_the_rest_along() {
        let tree = tree();
        let out = tempfile::tempdir().unwrap();
        let out = Utf8Path::from_path(out.path()).unwrap();
        let device = on(&tree, gfx942());
        let backend = AiterTriton::default();
        let written = backend
            .write(out, &device, &[raced(64, row(256, 1))])
            .unwrap();
        assert_eq!(
            written.files[0].file_name(),
            Some("gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json")
        );
        let configs = Configs::read(&fs_err::read(&written.files[0]).unwrap()).unwrap();
        let serves =
            |m| configs.find(AiterTriton::rules(&device), m).unwrap().1["BLOCK_SIZE_N"].clone();
        assert_eq!(
            [1, 16, 17, 32, 33, 64, 65].map(serves),
            [16, 16, 32, 32, 256, 256, 64].map(Value::from)
        );
        // A second run adds to it.
        backend
            .write(out, &device, &[raced(1, row(48, 1))])
            .unwrap();
        let configs = Configs::read(&fs_err::read(&written.files[0]).unwrap()).unwrap();
        let serves =
            |m| configs.find(AiterTriton::rules(&device), m).unwrap().1["BLOCK_SIZE_N"].clone();
        assert_eq!([1, 2, 64].map(serves), [48, 16, 256].map(Value::from));
        assert!(configs.faults(AiterTriton::rules(&device)).is_empty());
        let variables = fs_err::read_to_string(out.join(VARIABLES)).unwrap();
        assert!(
            variables.contains("GEMMTUNE_AITER_TRITON=") && variables.contains("PYTHONPATH="),
            "{variables}"
        );
        assert!(
            out.join("overlay/gemmtune_overlay/aiter_triton.py")
                .is_file()
        );
    }

    #[test]
    fn rows_raced_on_nvidia_are_not_named_as_amds() {
        let tree = tree();
        let out = tempfile::tempdir().unwrap();
        let out = Utf8Path::from_path(out.path()).unwrap();
        let backend = AiterTriton {
            config_for: Some("gfx942".to_owned()),
            ..AiterTriton::default()
        };
        let written = backend
            .write(out, &on(&tree, h100(&[])), &[raced(64, row(256, 1))])
            .unwrap();
        assert!(
            written.files[0].file_name().unwrap().starts_with("sm_90-"),
            "{written:?}"
        );
    }
}
