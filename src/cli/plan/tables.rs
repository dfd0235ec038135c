//! The tables in use according to the arguments of `gemmtune plan`.

use camino::{Utf8Path, Utf8PathBuf};

use super::triton;
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::store::file::entries;
use crate::table::aiter::Table;
use crate::table::aiter_triton;
use crate::table::sglang_json::{Config, FileName};

/// The tables and configuration files of the server, by format.
pub(super) struct Tables {
    /// aiter's CSV tables, of all operations.
    pub(super) csv: Vec<Table>,
    /// SGLang's JSON files.
    pub(super) configs: Vec<(FileName, Config)>,
    /// JSON files of aiter's Triton GEMM.
    pub(super) files: Vec<(aiter_triton::FileName, aiter_triton::Configs)>,
}

/// Reads the files at `paths`, including those in folders.
pub(super) fn read(paths: &[Utf8PathBuf]) -> Result<Tables, Error> {
    let (mut tables, mut configs, mut triton) = (Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        let files = if path.is_dir() {
            let files = files_of(path)?;
            if files.is_empty() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("the folder `{path}` holds no table"),
                )
                .hint("aiter's tables have `tuned` in their names, SGLang's begin with `N=`, those of aiter's Triton GEMM with the architecture"));
            }
            files
        } else {
            vec![path.clone()]
        };
        for file in files {
            let bytes = crate::store::file::read(&file)
                .map_err(|error| Error::to(ErrorKind::Usage, "read a table", error))?;
            let wrong = |error: Box<dyn std::error::Error + Send + Sync>| {
                Error::to(ErrorKind::Usage, "use a table", error).hint(format!(
                    "`gemmtune lint {}` says more about the file",
                    quoted(&file)
                ))
            };
            if let Some(why) = file.file_name().and_then(aiter_triton::refusal) {
                let error = Error::new(ErrorKind::Usage, format!("plan with `{file}`: {why}"));
                return Err(error.hint("leave the file out"));
            }
            if let Some(name) = triton::name_of(&file) {
                let configs =
                    aiter_triton::Configs::read(&bytes).map_err(|error| wrong(Box::new(error)))?;
                triton.push((name, configs));
            } else if file.extension() == Some("json") {
                let name: FileName = file
                    .file_name()
                    .unwrap_or("")
                    .parse()
                    .map_err(|error| wrong(Box::new(error)))?;
                let config =
                    Config::read(file.as_str(), &bytes).map_err(|error| wrong(Box::new(error)))?;
                configs.push((name, config));
            } else {
                let table = Table::read(file.as_str(), &bytes, None)
                    .map_err(|error| wrong(Box::new(error)))?;
                tables.push(table);
            }
        }
    }
    Ok(Tables {
        csv: tables,
        configs,
        files: triton,
    })
}

/// SGLang's and aiter's block-FP8 files and the CSV files of a folder, by name.
fn files_of(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Error> {
    let failed = |error| Error::to(ErrorKind::Usage, "look through the tables", error);
    let mut files = Vec::new();
    for entry in entries(folder).map_err(failed)? {
        let block_fp8 = |name: FileName| name.dtype == "fp8_w8a8";
        let wanted = match entry.path().extension() {
            Some("csv") => {
                entry.file_name().contains("tuned") && !entry.file_name().contains("untuned")
            }
            Some("json") => {
                entry.file_name().parse().is_ok_and(block_fp8)
                    || triton::name_of(entry.path()).is_some_and(|name| !name.preshuffled)
            }
            _ => false,
        };
        if wanted {
            files.push(entry.into_path());
        }
    }
    files.sort();
    Ok(files)
}
