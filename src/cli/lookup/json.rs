//! Look-ups in SGLang's JSON configurations.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Answer, Answers, Error, ErrorKind, LookupArgs, read};
use crate::problem::{Op, Shape};
use crate::proc::quoted;
use crate::store::file::entries;
use crate::table::nearest::{Clamp, Site, default_config, nearest};
use crate::table::sglang_json::{Config, FileName};
use crate::table::shapes::CountedShape;

/// A configuration file and its parsed name.
struct ConfigFile {
    name: FileName,
    config: Config,
}

/// The files of a table: those the runtime opens, and those it does not because of their spelling.
#[derive(Default)]
struct ConfigFiles {
    read: Vec<ConfigFile>,
    unread: Vec<(FileName, String)>,
}

pub(super) fn in_json(args: &LookupArgs, shapes: &[CountedShape]) -> Result<Answers, Error> {
    let mut answers = Answers::default();
    let files = config_files(args, &mut answers.warnings)?;
    let common = Some((128, 128));
    let of = |shape: &Shape, file: &ConfigFile| (file.name.n, file.name.k) == (shape.n, shape.k);
    let mut other_blocks: BTreeSet<String> = BTreeSet::new();
    for CountedShape { shape, records } in shapes {
        if shape.op.aiter().is_some() && args.op != Some(shape.op) {
            answers.other_operations += 1;
            continue;
        }
        answers
            .rows
            .push(json_answer(args, &files, shape, *records)?);
        let mut matching = files.read.iter().filter(|file| of(shape, file)).peekable();
        let first = matching.peek().map(|file| file.name.to_string());
        if matching.all(|file| file.name.block_shape != common) {
            other_blocks.extend(first);
        }
    }
    for name in other_blocks {
        answers.warnings.push(format!(
            "`{name}` is for other scale blocks than 128 by 128, for which there is no file: a model with those misses"
        ));
    }
    if answers.other_operations > 0 {
        answers.warnings.push(format!(
            "{} shapes are of aiter's operations, which read no JSON, and are left out; `--op {}` takes them for \
             SGLang's kernel's",
            answers.other_operations,
            shapes.iter().map(|shape| shape.shape.op).find(|op| op.aiter().is_some()).unwrap_or(Op::UNSAID)
        ));
    }
    Ok(answers)
}

fn config_files(args: &LookupArgs, warnings: &mut Vec<String>) -> Result<ConfigFiles, Error> {
    let mut paths = vec![args.table.clone()];
    if args.table.is_dir() {
        paths = entries(&args.table)
            .map_err(|error| Error::to(ErrorKind::Usage, "look tables up", error))?
            .into_iter()
            .map(camino::Utf8DirEntry::into_path)
            .filter(|path| path.extension() == Some("json"))
            .collect();
        paths.sort();
    }
    let mut files = ConfigFiles::default();
    for path in paths {
        let text = path.file_name().unwrap_or_default();
        let name: FileName = match text.parse() {
            Ok(name) => name,
            // Folders contain files of other kernels too.
            Err(_) if args.table.is_dir() => continue,
            Err(error) => return Err(Error::to(ErrorKind::Usage, "use the file", error)),
        };
        let device = args.device.as_ref().map(|device| device.replace(' ', "_"));
        if name.dtype != "fp8_w8a8" || device.is_some_and(|device| device != name.device_name) {
            continue;
        }
        if name.to_string() != text {
            warnings.push(format!(
                "SGLang never opens `{path}`: it looks for `{name}`{}",
                if text == name.of_vllm() {
                    "; vLLM reads this spelling"
                } else {
                    ""
                }
            ));
            files.unread.push((name, text.to_owned()));
            continue;
        }
        let config = Config::read(path.as_str(), &read(&path, "the configuration")?)
            .map_err(|error| Error::to(ErrorKind::Usage, "use the file", error))?;
        files.read.push(ConfigFile { name, config });
    }
    if files.read.is_empty() && files.unread.is_empty() && args.table.is_dir() {
        let of = args
            .device
            .as_ref()
            .map_or_else(String::new, |device| format!(" for `{device}`"));
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "`{}` holds no block-FP8 configuration of SGLang's{of}",
                args.table
            ),
        )
        .hint("aiter's tables are files: give one with `--table FILE.csv`")
        .hint(
            "SGLang's are named `N=…,K=…,device_name=…,dtype=fp8_w8a8,block_shape=[128, 128].json`",
        ));
    }
    let mut devices: Vec<&str> = files
        .read
        .iter()
        .map(|file| file.name.device_name.as_str())
        .collect();
    devices.sort_unstable();
    devices.dedup();
    if devices.len() > 1 {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "the folder has files for {} devices: --device is needed",
                devices.len()
            ),
        )
        .hint(format!("the devices are {}", devices.join(", "))));
    }
    Ok(files)
}

fn json_answer(
    args: &LookupArgs,
    files: &ConfigFiles,
    shape: &Shape,
    records: u64,
) -> Result<Answer, Error> {
    let mut found = None;
    let mut block_shape = (128, 128);
    // If there are files for several scale blocks, the usual one is used.
    let mut matching: Vec<&ConfigFile> = files
        .read
        .iter()
        .filter(|file| (file.name.n, file.name.k) == (shape.n, shape.k))
        .collect();
    matching.sort_by_key(|file| file.name.block_shape != Some((128, 128)));
    if let Some(file) = matching.first() {
        block_shape = file.name.block_shape.unwrap_or(block_shape);
        let site = Site {
            block_shape,
            is_cuda: !file.name.device_name.starts_with("AMD"),
            clamp: Clamp::of_release(args.sglang.as_deref().unwrap_or("0.5.23")),
        };
        found = nearest(&file.config, shape.m, site).map_err(|error| {
            Error::to(
                ErrorKind::Usage,
                &format!("use `{}` as the runtime does", file.name),
                error,
            )
            .hint(format!(
                "`gemmtune lint {}` lists what is wrong with it",
                quoted(&args.table)
            ))
        })?;
    }
    let hit = found.is_some();
    let unread = files
        .unread
        .iter()
        .find(|(name, _)| (name.n, name.k) == (shape.n, shape.k));
    let reason = match (hit, unread) {
        (true, _) => None,
        (false, Some((_, file))) => Some(format!("`{file}` is not how SGLang spells the name")),
        (false, None) => Some(format!(
            "there is no file for N={} K={}{}",
            shape.n,
            shape.k,
            files
                .read
                .first()
                .map_or_else(String::new, |file| format!(" on {}", file.name.device_name))
        )),
    };
    let padded_m = found.as_ref().map(|found| found.key);
    let runs = match &found {
        Some(found) if found.clamped => {
            "the Triton kernel with the nearest key's configuration, BLOCK_SIZE_K raised to the scale block"
        }
        Some(_) => "the Triton kernel with the nearest key's configuration",
        None => "the Triton kernel with its default configuration",
    };
    let config = found.map_or_else(|| default_config(block_shape), |found| found.config);
    let name: Vec<String> = config
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    Ok(Answer {
        op: shape.op,
        m: shape.m,
        n: shape.n,
        k: shape.k,
        result: if hit { "hit" } else { "miss" },
        padded_m,
        libtype: hit.then(|| "triton".to_owned()),
        kernel_id: None,
        split_k: hit
            .then(|| config.get("SPLIT_K").and_then(Value::as_i64))
            .flatten(),
        kernel_name: hit.then(|| name.join(" ")),
        dtype: shape.dtype.clone(),
        records,
        probe: None,
        line: None,
        us: None,
        runs: runs.to_owned(),
        raises: false,
        reason,
        module_kernel: None,
        config: Some(config),
    })
}
