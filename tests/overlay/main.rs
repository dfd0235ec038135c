//! The overlay as a server meets it: the real files in front of a reduced tree, one Python process a test.
//!
//! Real SGLang releases are executed in `tests/realtrees`.

mod capture;
mod moe;
mod switch;

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::log::record::{CallKind, Record, parse};
use gemmtune::overlay::{self, OverlayOptions};
use gemmtune::store::file::write_atomic;
use gemmtune::tree::force::Step;
use serde_json::Value;

/// A folder with the overlay written out, and what a process that ran in it said.
struct Scene {
    _keep: tempfile::TempDir,
    root: Utf8PathBuf,
}

struct Said {
    stdout: String,
    stderr: String,
}

const PREAMBLE: &str = "
import json, sys, torch
from torch import Tensor
def linear(m, n=384, k=1024, **more):
    from sglang.srt.layers.quantization import fp8
    return fp8.aiter_w8a8_block_fp8_linear(input=Tensor(m, k), weight=Tensor(n, k), block_size=[128, 128], weight_scale=None, **more)
";

impl Scene {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        overlay::write(&root.join("overlay")).unwrap();
        Self { _keep: keep, root }
    }

    fn tree() -> Utf8PathBuf {
        Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/overlay-tree")
    }

    /// Runs `code` with the overlay in front of `path`.
    fn run_on_path(&self, options: &OverlayOptions, path: &str, code: &str) -> Said {
        let present = |name: &str| (name == "PYTHONPATH").then(|| path.to_owned());
        let output = Command::new("python3")
            .args(["-c", &format!("{PREAMBLE}{code}")])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .envs(overlay::environment(
                &self.root.join("overlay"),
                options,
                present,
            ))
            .output()
            .expect("python3 is needed to test what runs in Python");
        let said = Said {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(output.status.success(), "{}", said.stderr);
        said
    }

    fn run(&self, options: &OverlayOptions, code: &str) -> Said {
        self.run_on_path(options, Self::tree().as_str(), code)
    }

    fn records(&self) -> Utf8PathBuf {
        self.root.join("records")
    }

    /// The lines of every record file, file after file.
    fn lines(&self) -> Vec<String> {
        let Ok(entries) = self.records().read_dir_utf8() else {
            return Vec::new();
        };
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().path().to_owned())
            .collect();
        files.sort();
        let texts = files
            .iter()
            .map(|file| fs_err::read_to_string(file).unwrap());
        texts
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// The values of `key` in the records that have it.
    fn values(&self, key: &str) -> Vec<Value> {
        let lines = self.lines();
        let objects = lines
            .iter()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        objects
            .filter_map(|object| object.get(key).cloned())
            .collect()
    }

    /// Calls by (M, kind, graph), added up as the record format says.
    fn calls(&self) -> Vec<(u32, CallKind, Option<u32>, u64)> {
        let mut sums = std::collections::BTreeMap::new();
        for line in self.lines() {
            if let Record::Calls {
                shape,
                kind,
                bs,
                count,
            } = parse(line.as_bytes()).unwrap()
            {
                *sums.entry((shape.m, kind, bs)).or_default() += count;
            }
        }
        sums.into_iter()
            .map(|((m, kind, bs), count)| (m, kind, bs, count))
            .collect()
    }

    fn switch(&self, steps: &[Step]) -> OverlayOptions {
        let file = self.root.join("switch.json");
        write_atomic(&file, overlay::decision(steps).as_bytes()).unwrap();
        OverlayOptions {
            switch: Some(file),
            records: Some(self.records()),
            ..OverlayOptions::default()
        }
    }
}

fn only(json: &str) -> Value {
    serde_json::from_str(json.trim()).unwrap()
}
