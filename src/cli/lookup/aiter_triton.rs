//! Look-ups in the JSON files of aiter's Triton GEMM.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use super::{Answer, Answers, Error, ErrorKind, LookupArgs, read};
use crate::problem::{Op, Shape};
use crate::proc::quoted;
use crate::store::file::entries;
use crate::table::aiter_triton::{Configs, FileName, Rules};
use crate::table::shapes::CountedShape;

/// The files of a folder by their parsed names.
type Files = BTreeMap<FileName, Configs>;

/// Whether `table` is such a file, or a folder that contains some.
pub(super) fn is_one(table: &Utf8Path) -> bool {
    if !table.is_dir() {
        return name_of(table).is_some();
    }
    entries(table).is_ok_and(|files| files.iter().any(|file| name_of(file.path()).is_some()))
}

fn name_of(path: &Utf8Path) -> Option<FileName> {
    path.file_name()?.parse().ok()
}

pub(super) fn answers(args: &LookupArgs, shapes: &[CountedShape]) -> Result<Answers, Error> {
    let files = files(args)?;
    let gfx = architecture(args, &files)?;
    let mut answers = Answers {
        revisions: super::revisions(args),
        ..Answers::default()
    };
    let Some(&shown) = answers.revisions.first() else {
        return Ok(answers);
    };
    let mut open = 0;
    for CountedShape { shape, records } in shapes {
        let preshuffled = match shape.op {
            Op::Blockscale => false,
            Op::BlockscaleBpreshuffle => true,
            _ => {
                answers.other_operations += 1;
                continue;
            }
        };
        let name = FileName {
            gfx: gfx.clone(),
            preshuffled,
            weight: Some((shape.n, shape.k)),
        };
        let answer = answer(&files, &name, Rules::from(shown), shape, *records);
        let differs = answers.revisions.iter().any(|&other| {
            let other = self::answer(&files, &name, Rules::from(other), shape, *records);
            (&other.config, other.raises) != (&answer.config, answer.raises)
        });
        open += usize::from(differs);
        answers.rows.push(answer);
    }
    if open > 0 {
        answers.warnings.push(format!(
            "{open} answers depend on the revision of aiter: shown are those of {}; `--revision` says another",
            shown.name()
        ));
    }
    if answers.other_operations > 0 {
        answers.warnings.push(format!(
            "{} shapes are of operations that do not read these files, and are left out",
            answers.other_operations
        ));
    }
    Ok(answers)
}

/// The named file and its neighbours: a file for one weight does not serve the others, the one without a weight does.
fn files(args: &LookupArgs) -> Result<Files, Error> {
    let paths: Vec<Utf8PathBuf> = if args.table.is_dir() {
        entries(&args.table)
            .map_err(|error| Error::to(ErrorKind::Usage, "look tables up", error))?
            .into_iter()
            .map(camino::Utf8DirEntry::into_path)
            .collect()
    } else {
        vec![args.table.clone()]
    };
    let mut files = Files::new();
    for path in paths {
        let Some(name) = name_of(&path) else {
            continue; // files of other kernels
        };
        let configs = Configs::read(&read(&path, "the configuration")?).map_err(|error| {
            Error::to(ErrorKind::Usage, &format!("use `{path}`"), error)
                .hint(format!("`gemmtune lint {}` says more", quoted(&path)))
        })?;
        files.insert(name, configs);
    }
    Ok(files)
}

fn architecture(args: &LookupArgs, files: &Files) -> Result<String, Error> {
    if let Some(gfx) = &args.gfx {
        return Ok(gfx.clone());
    }
    let known: BTreeSet<&str> = files.keys().map(|name| name.gfx.as_str()).collect();
    match known.iter().collect::<Vec<_>>()[..] {
        [one] => Ok((*one).to_owned()),
        _ => Err(Error::new(
            ErrorKind::Usage,
            format!(
                "the folder has files for {} architectures: --gfx and --cu are needed",
                known.len()
            ),
        )
        .hint(format!(
            "the architectures are {}",
            Vec::from_iter(known).join(", ")
        ))),
    }
}

fn answer(files: &Files, name: &FileName, rules: Rules, shape: &Shape, records: u64) -> Answer {
    let of_weight = files.get(name);
    let default = name.default_of();
    let configs = of_weight.or_else(|| files.get(&default));
    let found = configs.and_then(|configs| configs.find(rules, shape.m));
    let (mut reason, mut raises) = (None, false);
    let runs = match (&found, configs) {
        (Some((key, _)), _) => format!(
            "aiter's Triton kernel with `{key}` of `{}`",
            if of_weight.is_some() { name } else { &default }
        ),
        (None, Some(_)) => {
            raises = true;
            reason = Some(format!("no key of the file holds for M={}", shape.m));
            "KeyError".to_owned()
        }
        (None, None) => {
            reason = Some(format!("there is neither `{name}` nor `{default}` here"));
            "what the tree's other files say".to_owned()
        }
    };
    if of_weight.is_none() && found.is_some() {
        reason = Some(format!("there is no `{name}`"));
    }
    let config = found.as_ref().map(|(_, config)| (*config).clone());
    let words = |config: &serde_json::Map<String, Value>| {
        let each: Vec<String> = config
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        each.join(" ")
    };
    // A row of the file for this weight is a hit; the file for all others is what runs without one.
    let hit = found.is_some() && of_weight.is_some();
    Answer {
        op: shape.op,
        m: shape.m,
        n: shape.n,
        k: shape.k,
        result: if hit { "hit" } else { "miss" },
        padded_m: None,
        libtype: hit.then(|| "triton".to_owned()),
        kernel_id: None,
        split_k: config
            .as_ref()
            .filter(|_| hit)
            .and_then(|config| config.get("NUM_KSPLIT"))
            .and_then(Value::as_i64),
        kernel_name: config.as_ref().filter(|_| hit).map(words),
        dtype: shape.dtype.clone(),
        records,
        probe: None,
        line: None,
        us: None,
        runs,
        raises,
        reason,
        module_kernel: None,
        config,
    }
}
