//! Rules about SGLang's fused-MoE tables: the contents of one, a pair of them, and the folders they are in.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};

use super::super::moe::folders::{self, Found, Tables};
use super::super::moe::name::TableName;
use super::super::moe::release::{Fallback, Mismatch, Release};
use super::super::moe::serve::beyond_scale_block;
use super::super::nearest;
use super::super::sglang_json::{Config, ConfigError, Entry, REQUIRED_KEYS};
use super::json::{self, of_device};
use super::json_name::{self, is_of_vllm};
use super::rules;
use super::{Finding, Severity, Sink};

/// A decode step has fewer tokens than this; a table whose first key is larger has no row for it.
const FIRST_AT_MOST: i64 = 16;
/// SGLang's smallest default of `--chunked-prefill-size` (`server_args.py`, GPUs below 35 GB): a table whose last key
/// is below it serves every full prefill with its last row.
const LAST_AT_LEAST: i64 = 2048;

/// A table that was parsed, for the rules about several tables.
pub(super) struct MoeFile {
    path: Utf8PathBuf,
    name: TableName,
    config: Config,
    release: Option<Release>,
}

/// Whether a file name begins like a fused-MoE table's.
pub(super) fn is_name(file: &str) -> bool {
    let named =
        |key: &str| file.contains(&format!(",{key}=")) || file.contains(&format!(", {key}="));
    file.starts_with("E=") && named("N") && named("device_name")
}

/// Checks one file; returns how many entries it has, and the table.
pub(super) fn check(
    path: &str,
    bytes: &[u8],
    release: Option<Release>,
    sink: &mut Sink<'_>,
) -> (usize, Option<MoeFile>) {
    let name = name(path, sink);
    let config = match Config::read(path, bytes) {
        Ok(config) => config,
        Err(error) => {
            let ConfigError::Json { source, .. } = &error;
            let line = u64::try_from(source.line()).ok().filter(|line| *line > 0);
            sink.add(&rules::FILE_UNREADABLE, line, format!("{error}: {source}"));
            return (0, None);
        }
    };
    if config.entries.is_empty() {
        sink.add(&rules::CONFIG_EMPTY, Some(1), "an object without entries");
    }
    let vllm = is_of_vllm(path);
    for entry in &config.entries {
        // vLLM writes the Triton version it tuned with into the file and removes it again on reading.
        if vllm && entry.key == "triton_version" {
            continue;
        }
        json::key(entry, sink);
        params(entry, name.as_ref(), release, sink);
    }
    json::duplicates(&config, sink);
    if let Some(by_m) = config.by_m() {
        let keys: Vec<i64> = by_m.iter().map(|(m, _)| *m).collect();
        json::unreachable(&config, &keys, sink);
        coverage(keys, sink);
    }
    let rows = config.entries.len();
    let file = name.filter(|_| !vllm).map(|name| MoeFile {
        path: path.into(),
        name,
        config,
        release,
    });
    (rows, file)
}

fn name(path: &str, sink: &mut Sink<'_>) -> Option<TableName> {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = match file.parse::<TableName>() {
        Ok(name) => name,
        Err(error) => {
            sink.add(&rules::FILE_NAME_UNREAD, None, error.to_string());
            return None;
        }
    };
    json_name::spelling(path, file, &name.to_string(), &name.of_vllm(), sink);
    if !name.is_asked_for() {
        sink.add(
            &rules::FILE_NAME_UNREAD,
            None,
            format!("no fused MoE looks for `{file}`: scale blocks and channels go with fp8_w8a8 and int8_w8a8 only, one of the two"),
        );
    }
    json_name::device(&name.device_name, sink);
    folder(path, sink);
    Some(name)
}

/// SGLang's tables are in a folder for each Triton version, vLLM's are not.
fn folder(path: &str, sink: &mut Sink<'_>) {
    let mut above = path.rsplit('/').skip(1);
    if above.next() == Some("configs") && !is_of_vllm(path) {
        sink.add(
            &rules::TRITON_FOLDER_UNREAD,
            None,
            "the table lies in `configs` itself, where only vLLM looks: SGLang opens `configs/triton_X_Y_Z`",
        );
    }
}

fn coverage(mut keys: Vec<i64>, sink: &mut Sink<'_>) {
    keys.sort_unstable();
    let (Some(&first), Some(&last)) = (keys.first(), keys.last()) else {
        return;
    };
    if first > FIRST_AT_MOST {
        sink.add(
            &rules::SMALL_M_MISSING,
            Some(1),
            format!("the first key is {first}: every smaller M runs its row"),
        );
    }
    if last < LAST_AT_LEAST {
        sink.add(
            &rules::M_SET_SHORT,
            Some(1),
            format!("the last key is {last}: every larger M runs its row, all of prefill too"),
        );
    }
    json::gaps(&keys, sink);
}

fn params(entry: &Entry, name: Option<&TableName>, release: Option<Release>, sink: &mut Sink<'_>) {
    let line = Some(entry.line);
    let Some(pairs) = json::object(entry, sink) else {
        return;
    };
    json::repeated(entry, pairs, sink);
    for required in REQUIRED_KEYS {
        if entry.params.get(required).is_none() {
            sink.add(
                &rules::CONFIG_KEY_MISSING,
                line,
                format!("key `{}` has no `{required}`", entry.key),
            );
        }
    }
    let vllm = is_of_vllm(sink.file);
    let device = name.map_or("", |name| name.device_name.as_str());
    for (param, value) in pairs {
        let known = REQUIRED_KEYS.contains(&param.as_str())
            || matches!(param.as_str(), "num_warps" | "num_stages")
            || of_device(param, device).unwrap_or(match param.as_str() {
                "USE_TMA" => !vllm,
                "SPLIT_K" => vllm,
                _ => false,
            });
        if !known {
            sink.add(
                &rules::CONFIG_KEY_UNKNOWN,
                line,
                format!(
                    "key `{}` has `{param}`, which the kernel does not take",
                    entry.key
                ),
            );
        } else if let Some(expected) = json::rejected(param, value) {
            sink.add(
                &rules::CONFIG_VALUE_INVALID,
                line,
                format!(
                    "key `{}` has `{param}` = {value}; it has to be {expected}",
                    entry.key
                ),
            );
        }
    }
    let Some(name) = name.filter(|_| !vllm) else {
        return;
    };
    let number = |param: &str| entry.params.get(param).and_then(serde_json::Value::as_i64);
    if let (Some(size), Some((_, block_k))) = (number("BLOCK_SIZE_K"), name.block_shape)
        && beyond_scale_block(name, size)
    {
        sink.add(
            &rules::BLOCK_K_ABOVE_SCALE,
            line,
            format!(
                "key `{}` has BLOCK_SIZE_K = {size} with scale blocks of {block_k}",
                entry.key
            ),
        );
    }
    if !name.down
        && entry.params.get("USE_TMA").is_some()
        && release.is_none_or(|release| !release.takes_tma_of_up_row())
    {
        sink.add_as(
            &rules::UP_ROW_TMA,
            // If no release is given, a newer one may be meant.
            if release.is_some() {
                Severity::Error
            } else {
                Severity::Warning
            },
            line,
            format!(
                "key `{}` of a table of the up projection has USE_TMA",
                entry.key
            ),
        );
    }
}

/// Why a row should not be given to any runtime, whatever the folder of its table.
pub(in crate::table) fn judge_row(
    name: &TableName,
    entry: &Entry,
    release: Option<Release>,
) -> Vec<String> {
    let file = name.to_string();
    let mut findings = Vec::new();
    let mut sink = Sink {
        file: &file,
        revisions: &[],
        findings: &mut findings,
    };
    json::key(entry, &mut sink);
    params(entry, Some(name), release, &mut sink);
    let errors = findings
        .into_iter()
        .filter(|finding| finding.severity == Severity::Error);
    errors.map(|finding| finding.message).collect()
}

/// Checks what no single table shows.
pub(super) fn together(files: &[MoeFile], findings: &mut Vec<Finding>) {
    let mut groups: BTreeMap<Utf8PathBuf, Vec<&MoeFile>> = BTreeMap::new();
    for file in files {
        groups.entry(root(&file.path)).or_default().push(file);
    }
    for (root, files) in groups {
        let by_path: BTreeMap<&Utf8Path, &MoeFile> = files
            .iter()
            .map(|file| (file.path.as_path(), *file))
            .collect();
        let release = files.iter().find_map(|file| file.release);
        let group = Group {
            by_path,
            release,
            tables: tables(&root, &files),
        };
        group.pairs(findings);
        group.folders(&root, findings);
    }
}

fn triton_of(folder: &Utf8Path) -> Option<String> {
    folders::triton_of_folder(folder.file_name()?)
}

/// The `configs` folder of a table, or its own folder if that is not one of a Triton version.
fn root(path: &Utf8Path) -> Utf8PathBuf {
    let folder = path.parent().unwrap_or(path);
    match folder.parent() {
        Some(above) if triton_of(folder).is_some() => above.to_owned(),
        _ => folder.to_owned(),
    }
}

fn tables(root: &Utf8Path, files: &[&MoeFile]) -> Tables {
    let mut by_folder: BTreeMap<Utf8PathBuf, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let folder = file.path.parent().unwrap_or(&file.path).to_owned();
        let name = file.path.file_name().unwrap_or_default().to_owned();
        by_folder.entry(folder).or_default().insert(name);
    }
    let folders = by_folder.into_iter().map(|(folder, files)| {
        let triton = triton_of(&folder);
        (triton, folder, files)
    });
    Tables::new(root, folders)
}

/// The tables below one `configs` folder.
struct Group<'a> {
    by_path: BTreeMap<&'a Utf8Path, &'a MoeFile>,
    /// The release that reads them, where it is known.
    release: Option<Release>,
    tables: Tables,
}

impl Group<'_> {
    /// Each up table with the down table that the runtime reads with it, for every Triton version that has a folder.
    fn pairs(&self, findings: &mut Vec<Finding>) {
        let names: BTreeSet<TableName> = self
            .by_path
            .values()
            .map(|file| file.name.with_down(false))
            .collect();
        let tritons = self.tables.tritons();
        let tritons = if tritons.is_empty() {
            vec![""]
        } else {
            tritons
        };
        let release = self.release.unwrap_or(Release::NEWEST);
        for name in names {
            let mut told: BTreeSet<(Option<&Utf8Path>, &Utf8Path)> = BTreeSet::new();
            for triton in &tritons {
                let found = |down: bool| {
                    self.tables
                        .search(&name.with_down(down), release, triton)
                        .ok()
                };
                let (Some(up), Some(down)) = (found(false), found(true)) else {
                    continue; // a folder that is no version: reported below
                };
                let file = |found: &Found| {
                    found
                        .path()
                        .and_then(|path| self.by_path.get(path).copied())
                };
                let (up_file, Some(down_file)) = (file(&up), file(&down)) else {
                    continue;
                };
                if told.insert((up_file.map(|file| file.path.as_path()), &down_file.path)) {
                    self.pair(&up, up_file, &down, down_file, triton, findings);
                }
            }
        }
    }

    fn pair(
        &self,
        up: &Found,
        up_file: Option<&MoeFile>,
        down: &Found,
        down_file: &MoeFile,
        triton: &str,
        findings: &mut Vec<Finding>,
    ) {
        let differ = up_file.and_then(|up| differing_block_m(&up.config, &down_file.config));
        let at = |differ: &Differ| {
            format!(
                "at M = {} BLOCK_SIZE_M is {} in the up row and {} in the down row",
                differ.m, differ.up, differ.down
            )
        };
        let folder = |path: &Utf8Path| {
            path.parent()
                .and_then(Utf8Path::file_name)
                .unwrap_or_default()
                .to_owned()
        };
        if up.path().and_then(Utf8Path::parent) == down.path().and_then(Utf8Path::parent) {
            if let Some(differ) = &differ {
                let mut finding = rules::UP_DOWN_BLOCK_M.finding(
                    down_file.path.as_str(),
                    Some(differ.line),
                    at(differ),
                );
                let release = down_file.release.or(self.release);
                if release.is_some_and(|release| release.mismatch() == Mismatch::Overridden) {
                    finding.severity = Severity::Warning;
                }
                findings.push(finding);
            }
            return;
        }
        let mixed = match up.path() {
            None => format!(
                "there is no table of the up projection beside it: with Triton {triton} the default goes with these down rows"
            ),
            Some(path) => format!(
                "with Triton {triton} the up rows come from `{}` and the down rows from `{}`{}",
                folder(path),
                folder(&down_file.path),
                differ.map_or_else(String::new, |differ| format!("; {}", at(&differ)))
            ),
        };
        let place = up_file.map_or(&down_file.path, |file| &file.path);
        findings.push(rules::DOWN_OF_OTHER_TRITON.finding(place.as_str(), None, mixed));
    }

    /// Folders that the release never opens, or only with a Triton version other than the one it requires.
    fn folders(&self, root: &Utf8Path, findings: &mut Vec<Finding>) {
        let listed = match self.release.map(Release::fallback) {
            Some(Fallback::Listed(listed)) => Some(listed),
            _ => None,
        };
        let required = self.release.and_then(Release::required_triton);
        for triton in self.tables.tritons() {
            let (severity, message) = if folders::version_key(triton).is_none() {
                let raises = format!(
                    "`{triton}` is no version of numbers: from 0.5.12 on every look-up that passes the folder raises ValueError"
                );
                (Severity::Error, raises)
            } else if let (Some(listed), Some(required)) = (listed, required)
                && !listed.contains(&triton)
                && required != triton
            {
                let only = format!(
                    "this release opens it where Triton is {triton} and at no other time; it requires {required} and falls back to {} only",
                    listed.join(", ")
                );
                (Severity::Warning, only)
            } else {
                continue;
            };
            let folder = root.join(folders::folder_of_triton(triton));
            let finding = rules::TRITON_FOLDER_UNREAD.finding(folder.as_str(), None, message);
            findings.push(Finding {
                severity,
                ..finding
            });
        }
    }
}

/// An M for which the two tables give rows with different `BLOCK_SIZE_M`.
struct Differ {
    m: u32,
    up: i64,
    down: i64,
    line: u64,
}

fn differing_block_m(up: &Config, down: &Config) -> Option<Differ> {
    // The selected rows change only at the keys and halfway between neighbours.
    let mut sizes: BTreeSet<u32> = BTreeSet::new();
    for config in [up, down] {
        let mut keys: Vec<u32> = config
            .by_m()?
            .iter()
            .filter_map(|(m, _)| u32::try_from(*m).ok())
            .collect();
        keys.sort_unstable();
        for pair in keys.windows(2) {
            let middle = pair[0] + (pair[1] - pair[0]) / 2;
            sizes.extend([middle, middle.saturating_add(1)]);
        }
        sizes.extend(keys);
    }
    sizes.into_iter().filter(|m| *m > 0).find_map(|m| {
        let row = |config: &Config| {
            let (key, params) = nearest::row(config, m).ok()??;
            Some((key, params.get("BLOCK_SIZE_M")?.as_i64()?))
        };
        let ((_, of_up), (key, of_down)) = (row(up)?, row(down)?);
        let line = down.entries.iter().find(|entry| entry.m == Some(key))?.line;
        (of_up != of_down).then_some(Differ {
            m,
            up: of_up,
            down: of_down,
            line,
        })
    })
}
