//! What serves a fused MoE today, and the tables that replace it.

use std::io::{self, Write as _};

use camino::Utf8Path;
use serde_json::{Value, json};

use super::super::Written;
use super::super::sglang_triton::files::PROVENANCE;
use super::super::sglang_triton::keys::{self, Rows};
use super::task::{MoeTask, Sizes, pair};
use crate::overlay::{self, OverlayOptions};
use crate::store::file::write_atomic;
use crate::table::moe::default::{Layer, default_config};
use crate::table::moe::folders::{Tables, folder_of_triton};
use crate::table::moe::name::TableName;
use crate::table::moe::release::Release;
use crate::table::moe::serve::{Pair, Server, Source, beyond_scale_block};
use crate::tune::protocol::{Candidate, Device};
use crate::tune::results::Row;
use crate::tune::tuned::{TunedRows, TunedTable};

/// Folder of the raced tables in the output folder, for the overlay.
pub const TABLES: &str = "configs";

/// Folder for `SGLANG_MOE_CONFIG_DIR`: the raced tables and all existing ones, since the variable replaces them.
pub const COMPLETE: &str = "moe-configs";

/// Folder for `VLLM_TUNED_CONFIG_FOLDER`.
pub const VLLM: &str = "vllm";

/// Folder of the overlay that serves the tables.
pub const OVERLAY: &str = "overlay";

/// The variables that start a server with the overlay: shell assignments, one a line.
pub const VARIABLES: &str = "moe.env";

/// The name under which SGLang looks for the table of `sizes` on `device`.
pub fn name(device: &Device, sizes: Sizes, block: (u32, u32)) -> TableName {
    TableName {
        experts: sizes.experts,
        n: sizes.inter,
        device_name: device.name.replace(' ', "_"),
        dtype: Some("fp8_w8a8".to_owned()),
        block_shape: Some(block),
        per_channel: false,
        down: false,
    }
}

/// What serves one (E, N) today.
#[derive(Clone, Debug)]
pub struct Today {
    tables: Option<Pair>,
    default: Candidate,
    keys: Vec<u32>,
}

impl Today {
    /// What a server of the worker's SGLang and Triton uses, from `folder` or from its own software.
    pub fn of(device: &Device, folder: Option<&Utf8Path>, sizes: Sizes, block: (u32, u32)) -> Self {
        let mut today = Self::default_of(device, sizes, block);
        let shipped = Utf8Path::new(&device.shipped);
        let place = folder.unwrap_or(shipped);
        if place.as_str().is_empty() {
            return today;
        }
        let triton = device.versions.get("triton").map_or("", String::as_str);
        let server = Server {
            release: release(device),
            triton,
        };
        let name = name(device, sizes, block);
        let tables = Tables::open(place).ok().flatten();
        today.tables = tables.and_then(|tables| Pair::find(&tables, &name, server).ok());
        let sources = today.tables.iter().flat_map(Pair::sources).flatten();
        let mut keys: Vec<u32> = sources
            .filter_map(|source| match source {
                Source::File { path, .. } => Some(path),
                _ => None,
            })
            .filter_map(|path| super::super::sglang_triton::files::read_rows(path))
            .flat_map(|rows| rows.into_iter().map(|(m, _)| m))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        today.keys = keys;
        today
    }

    /// What serves without a table.
    pub fn default_of(device: &Device, sizes: Sizes, block: (u32, u32)) -> Self {
        let layer = Layer {
            experts: sizes.experts,
            dtype: Some("fp8_w8a8"),
            block_shape: Some(block),
        };
        // With scale blocks it is the same for every M. The worker reports an AMD device's name as torch does; only
        // its architecture is certain.
        let device_name = if device.arch.starts_with("gfx") {
            "AMD"
        } else {
            &device.name
        };
        let default = default_config(layer, 1, device_name, release(device));
        Self {
            tables: None,
            default: Value::Object(default),
            keys: Vec::new(),
        }
    }

    /// The rows for a forward of `m` tokens.
    pub fn pair(&self, m: u32) -> Candidate {
        let served = self.tables.as_ref().and_then(|tables| tables.serve(m).ok());
        match served {
            Some(served) => {
                let down = Value::Object(served.down.config);
                let is_default = served.up.source == Source::Default;
                pair(
                    &Value::Object(served.up.config),
                    (!is_default).then_some(&down),
                )
            }
            None => pair(&self.default, None),
        }
    }
}

fn release(device: &Device) -> Release {
    let version = device.versions.get("sglang");
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(Release::NEWEST)
}

/// Whether both rows stay within a scale block and share one sort of the tokens.
fn is_right(name: &TableName, pair: &Candidate) -> bool {
    let down = if pair["down"].is_null() {
        &pair["up"]
    } else {
        &pair["down"]
    };
    let within = |row: &Candidate| {
        let block_k = row["BLOCK_SIZE_K"].as_i64();
        block_k.is_some_and(|block_k| !beyond_scale_block(name, block_k))
    };
    within(&pair["up"]) && within(down) && pair["up"]["BLOCK_SIZE_M"] == down["BLOCK_SIZE_M"]
}

/// The rows of one (E, N) by M, with the same keys for both GEMMs.
#[derive(Clone, Debug)]
pub struct Table {
    name: TableName,
    rows: Rows,
}

impl Table {
    /// Places `raced` pairs, with guard rows of what serves `today` where a raced row must not apply. A row of today
    /// that computes wrong numbers, or raises, is not taken over: the nearest correct one replaces it.
    pub fn placed(
        device: &Device,
        sizes: Sizes,
        block: (u32, u32),
        raced: &Rows,
        today: &Today,
    ) -> Self {
        let name = name(device, sizes, block);
        let there = today.keys.iter().map(|m| (*m, today.pair(*m)));
        let there: Rows = there.filter(|(_, pair)| is_right(&name, pair)).collect();
        Self {
            name,
            rows: keys::placed(raced, &there, &pair(&today.default, None)),
        }
    }

    /// The table of one projection, named `name`.
    fn projection(&self, down: bool, name: String) -> TunedTable {
        let row = |rows: &Candidate| match &rows["down"] {
            row if down && !row.is_null() => row.clone(),
            // Without its own row the down projection uses the up row.
            _ => rows["up"].clone(),
        };
        TunedTable {
            name,
            rows: TunedRows::ByM(self.rows.iter().map(|(m, rows)| (*m, row(rows))).collect()),
        }
    }

    /// The tables of both projections, named as SGLang does.
    fn both(&self) -> [TunedTable; 2] {
        [false, true].map(|down| self.projection(down, self.name.with_down(down).to_string()))
    }
}

/// Writes SGLang's tables: the raced ones for the overlay with the variables that install it, and a complete folder
/// for `SGLANG_MOE_CONFIG_DIR` into which all tables of `carried` are copied.
pub fn write_sglang(
    folder: &Utf8Path,
    device: &Device,
    carried: &Utf8Path,
    tables: &[Table],
    provenance: &[u8],
) -> io::Result<Written> {
    let raced = folder.join(TABLES);
    let triton = device.versions.get("triton").map_or("", String::as_str);
    let complete = folder.join(COMPLETE).join("configs");
    let own = complete.join(folder_of_triton(triton));
    for folder in [&raced, &own] {
        fs_err::create_dir_all(folder)?;
    }
    carry_along(carried, &complete)?;
    let mut written = Written::default();
    for table in tables.iter().flat_map(Table::both) {
        write_atomic(&own.join(&table.name), table.text().as_bytes())?;
        written.put(&raced, table)?;
    }
    write_atomic(&raced.join(PROVENANCE), provenance)?;
    let overlay_folder = folder.join(OVERLAY);
    overlay::write(&overlay_folder)?;
    let options = OverlayOptions {
        moe_tables: Some(raced.canonicalize_utf8()?),
        ..OverlayOptions::default()
    };
    let variables = folder.join(VARIABLES);
    let overlay_folder = overlay_folder.canonicalize_utf8()?;
    write_atomic(
        &variables,
        overlay::assignments(&overlay_folder, &options).as_bytes(),
    )?;
    written.files.push(variables);
    written.files.push(folder.join(COMPLETE));
    Ok(written)
}

/// Copies every table of the software to `complete`, under its Triton version.
fn carry_along(from: &Utf8Path, complete: &Utf8Path) -> io::Result<()> {
    let Some(tables) = Tables::open(from)?.filter(Tables::by_triton) else {
        return Ok(());
    };
    for (triton, file, path) in tables.files() {
        let Some(triton) = triton else { continue };
        let folder = complete.join(folder_of_triton(triton));
        fs_err::create_dir_all(&folder)?;
        write_atomic(&folder.join(file), &fs_err::read(&path)?)?;
    }
    Ok(())
}

/// Writes vLLM's tables: one row for both GEMMs, named as vLLM does.
pub fn write_vllm(folder: &Utf8Path, tables: &[Table], provenance: &[u8]) -> io::Result<Written> {
    let folder = folder.join(VLLM);
    fs_err::create_dir_all(&folder)?;
    let mut written = Written::default();
    for table in tables {
        written.put(&folder, table.projection(false, table.name.of_vllm()))?;
    }
    write_atomic(&folder.join(PROVENANCE), provenance)?;
    Ok(written)
}

/// Provenance of every row, one JSON line for each.
pub fn provenance(device: &Device, rows: &[&Row<MoeTask>]) -> Vec<u8> {
    let mut text = Vec::new();
    for row in rows {
        let task = &row.shape;
        let line = json!({
            "E": task.experts, "N": task.inter, "K": task.hidden, "topk": task.topk, "M": task.m,
            "config": row.candidate, "us": row.us, "incumbent_kept": row.incumbent_kept,
            "incumbent": row.incumbent, "incumbent_us": row.incumbent_us,
            "noise": row.noise, "err_ratio": row.err_ratio, "effort": row.effort,
            "device": device.name, "arch": device.arch, "versions": device.versions,
            "kernel_hash": device.kernel_hash, "gemmtune": env!("CARGO_PKG_VERSION"),
        });
        // Writing into memory cannot fail.
        let _ = writeln!(text, "{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::super::super::sglang_triton::space::tests::h100;
    use super::super::task::tests::QWEN;
    use super::*;

    const BLOCK: (u32, u32) = (128, 128);

    fn row(block_m: u32, n: u32) -> Candidate {
        json!({"BLOCK_SIZE_M": block_m, "BLOCK_SIZE_N": n, "BLOCK_SIZE_K": 128,
            "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 4})
    }

    struct Scene {
        _keep: tempfile::TempDir,
        folder: Utf8PathBuf,
        device: Device,
    }

    /// A package whose newest Triton folder is not the running one.
    fn scene() -> Scene {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let package = folder.join("sglang");
        let configs = package.join("srt/layers/moe/moe_runner/triton_utils/configs");
        let mut device = h100(&[]);
        device.shipped = package.to_string();
        device
            .versions
            .insert("sglang".to_owned(), "0.5.16".to_owned());
        device
            .versions
            .insert("triton".to_owned(), "3.6.0".to_owned());
        let ours = name(&device, QWEN, BLOCK).to_string();
        let other = Sizes {
            experts: 64,
            ..QWEN
        };
        let other = name(&device, other, BLOCK).to_string();
        for (version, name, n) in [
            ("3_2_0", &ours, 32),
            ("3_5_1", &ours, 64),
            ("3_6_0", &other, 256),
        ] {
            let folder = configs.join(format!("triton_{version}"));
            fs_err::create_dir_all(&folder).unwrap();
            let text = json!({"1": row(16, n), "64": row(64, n)}).to_string();
            write_atomic(&folder.join(name), text.as_bytes()).unwrap();
        }
        Scene {
            _keep: keep,
            folder,
            device,
        }
    }

    #[test]
    fn what_serves_today_is_what_the_release_would_take() {
        let scene = scene();
        let today = Today::of(&scene.device, None, QWEN, BLOCK);
        assert_eq!(
            today.pair(30)["up"],
            row(16, 64),
            "the newest other Triton's"
        );
        assert_eq!(today.pair(40)["up"], row(64, 64), "the nearest key's");
        let older = Device {
            versions: [("sglang", "0.5.9"), ("triton", "3.5.0")]
                .map(|(name, version)| (name.to_owned(), version.to_owned()))
                .into(),
            ..scene.device.clone()
        };
        let today = Today::of(&older, None, QWEN, BLOCK);
        assert_eq!(
            today.pair(1)["up"],
            row(16, 32),
            "0.5.9 knows a list of versions"
        );
        let none = Sizes {
            experts: 32,
            ..QWEN
        };
        let today = Today::of(&scene.device, None, none, BLOCK);
        assert_eq!(today.pair(1), pair(&row_default(), None));
    }

    fn row_default() -> Candidate {
        json!({"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 32,
            "num_warps": 4, "num_stages": 3})
    }

    #[test]
    fn both_files_have_the_same_keys_and_the_complete_folder_all_that_was_there() {
        let scene = scene();
        let today = Today::of(&scene.device, None, QWEN, BLOCK);
        let raced = vec![(4, pair(&row(16, 128), Some(&row(16, 256))))];
        let table = Table::placed(&scene.device, QWEN, BLOCK, &raced, &today);
        let out = scene.folder.join("out");
        let package = Utf8Path::new(&scene.device.shipped);
        let written = write_sglang(
            &out,
            &scene.device,
            package,
            std::slice::from_ref(&table),
            b"",
        )
        .unwrap();
        let read = |path: &Utf8Path| {
            let text = fs_err::read_to_string(path).unwrap();
            serde_json::from_str::<serde_json::Map<String, Value>>(&text).unwrap()
        };
        let (up, down) = (read(&written.files[0]), read(&written.files[1]));
        assert!(
            written.files[1]
                .as_str()
                .ends_with("block_shape=[128, 128]_down.json")
        );
        assert!(up.keys().eq(down.keys()), "{up:?}");
        assert_eq!((&up["4"], &down["4"]), (&row(16, 128), &row(16, 256)));
        // What was not raced is served as today, in both projections.
        assert_eq!((&up["64"], &down["64"]), (&row(64, 64), &row(64, 64)));
        let configs = out.join("moe-configs/configs");
        let files = |version: &str| {
            let mut names: Vec<_> = configs
                .join(version)
                .read_dir_utf8()
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(
            (files("triton_3_2_0").len(), files("triton_3_5_1").len()),
            (1, 1)
        );
        assert_eq!(
            files("triton_3_6_0").len(),
            3,
            "the raced pair beside what was there"
        );
        // A server that reads the complete folder is served by what was raced, and otherwise as before.
        let carried = out.join("moe-configs");
        let now = Today::of(&scene.device, Some(&carried), QWEN, BLOCK);
        assert_eq!(now.pair(4), raced[0].1);
        assert_eq!(now.pair(100)["up"], today.pair(100)["up"]);
        let other = Sizes {
            experts: 64,
            ..QWEN
        };
        let before = Today::of(&scene.device, None, other, BLOCK);
        assert_eq!(
            Today::of(&scene.device, Some(&carried), other, BLOCK).pair(1),
            before.pair(1)
        );
    }

    #[test]
    fn a_row_of_today_that_computes_wrong_numbers_is_not_carried_along() {
        let scene = scene();
        let package = Utf8Path::new(&scene.device.shipped);
        let ours = name(&scene.device, QWEN, BLOCK).to_string();
        let shipped = package
            .join("srt/layers/moe/moe_runner/triton_utils/configs/triton_3_6_0")
            .join(ours);
        let mut spans = row(64, 64);
        spans["BLOCK_SIZE_K"] = 256.into();
        let text = json!({"64": spans, "512": row(64, 32)}).to_string();
        write_atomic(&shipped, text.as_bytes()).unwrap();
        let today = Today::of(&scene.device, None, QWEN, BLOCK);
        assert_eq!(today.pair(64)["up"], spans);
        let raced = vec![(4, pair(&row(16, 128), None))];
        let table = Table::placed(&scene.device, QWEN, BLOCK, &raced, &today);
        assert!(
            table
                .rows
                .iter()
                .all(|(_, pair)| pair["up"]["BLOCK_SIZE_K"] == 128),
            "{table:?}"
        );
        assert!(table.rows.iter().any(|(m, _)| *m == 512));
    }

    #[test]
    fn vllm_gets_its_own_spelling() {
        let scene = scene();
        let today = Today::default_of(&scene.device, QWEN, BLOCK);
        let raced = vec![(4, pair(&row(16, 128), None))];
        let table = Table::placed(&scene.device, QWEN, BLOCK, &raced, &today);
        let written = write_vllm(&scene.folder, &[table], b"").unwrap();
        assert_eq!(
            written.files[0].file_name(),
            Some(
                "E=128,N=768,device_name=NVIDIA_H100_80GB_HBM3,dtype=fp8_w8a8,block_shape=[128,128].json"
            )
        );
    }
}
