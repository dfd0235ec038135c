//! Where an interpreter imports SGLang and aiter from, determined by running that interpreter in the server's
//! environment.
//!
//! Nothing is imported and no GPU is touched: the probe uses `importlib`'s finders, which also handle editable
//! installs. Paths found in scripts are hints; this answer is authoritative until a running server has reported its
//! own ([`ran_from`]).

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::proc::{Interrupt, Keeper, RunError, run};

/// The probe program; its header describes what it prints.
const PROBE: &str = include_str!("../../python/probe/probe.py");

/// The prefix of the answer line.
const TAG: &str = "gemmtune-probe: ";

/// Time limit for the interpreter to answer: on a cold network file system listing a large site-packages takes
/// seconds, never minutes.
const LIMIT: Duration = Duration::from_secs(60);

/// How the server is started, which determines what comes first on its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `python -m sglang.launch_server`: the working directory comes first.
    Module,
    /// A console script such as `sglang serve`: the working directory is not on the path.
    Script,
}

/// Which interpreter to run, and in which environment.
#[derive(Clone, Debug)]
pub struct Question {
    /// The interpreter: a path, or a name to search for on `PATH`.
    pub python: Utf8PathBuf,
    /// How the server is started.
    pub entry: Entry,
    /// The server's working directory.
    pub folder: Option<Utf8PathBuf>,
    /// Variables set (`Some`) or removed (`None`) relative to our own environment.
    pub env: Vec<(String, Option<String>)>,
}

/// What an interpreter reports about itself and its packages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// `sys.executable`.
    pub executable: Utf8PathBuf,
    pub version: String,
    /// `sys.prefix`: the virtual environment, if it is one.
    pub prefix: Utf8PathBuf,
    /// Whether `-E` or `-I` is in force, so that `PYTHONPATH` is ignored and an overlay cannot work.
    pub ignores_environment: bool,
    /// `sys.path` as the server would have it.
    pub path: Vec<String>,
    /// What an import of each package would load. Packages that are not found are absent.
    pub packages: BTreeMap<String, Place>,
    /// Every folder on the path that contains the package, in search order.
    pub candidates: BTreeMap<String, Vec<Utf8PathBuf>>,
    /// Installed distributions of the packages.
    pub distributions: Vec<Distribution>,
    /// torch, read from its `version.py`.
    pub torch: Torch,
    /// `aiter/_version.py`: frozen at installation, so it is wrong after a checkout.
    pub aiter_version: Option<String>,
}

/// What an import would load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Place {
    Package {
        /// Its folder, links resolved.
        folder: Utf8PathBuf,
    },
    /// Folders of that name without `__init__.py`: importing them succeeds but gives an empty package.
    Empty {
        folders: Vec<Utf8PathBuf>,
    },
    Broken {
        text: String,
    },
}

/// An installed distribution (PEP 376) of one of the packages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// The import package it installs.
    pub package: String,
    /// Its name, normalised.
    pub name: String,
    pub version: String,
    /// The folder its metadata is in.
    pub site: Option<Utf8PathBuf>,
    /// The checkout it points to, if it is an editable install that records it.
    pub editable: Option<Utf8PathBuf>,
}

/// The contents of torch's `version.py`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Torch {
    pub version: Option<String>,
    /// HIP version of a ROCm build.
    pub hip: Option<String>,
    /// CUDA version of a CUDA build.
    pub cuda: Option<String>,
}

/// Why the origin of a package is unknown or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// The interpreter cannot be run or did not end in time.
    #[error("ask `{python}` where it imports from")]
    Run {
        python: Utf8PathBuf,
        source: RunError,
    },
    /// The interpreter ended without an answer.
    #[error("ask `{python}` where it imports from: exit code {code}: {said}")]
    NoAnswer {
        python: Utf8PathBuf,
        code: u8,
        /// The end of its output.
        said: String,
    },
    /// The answer cannot be read.
    #[error("read the probe's answer")]
    Unreadable(#[from] serde_json::Error),
    /// The package is not found.
    #[error("find `{package}`: `{python}` cannot import it")]
    Absent {
        package: String,
        python: Utf8PathBuf,
    },
    /// The package is a bare folder.
    #[error(
        "find `{package}`: an import finds the folder `{folder}`, which is no package; \
         start from another working directory, or put the folder that holds the real one on PYTHONPATH"
    )]
    Empty {
        package: String,
        folder: Utf8PathBuf,
    },
    #[error("find `{package}`: the import machinery fails with {text}")]
    Broken { package: String, text: String },
    /// A tree other than the intended one.
    #[error(
        "{what} uses `{used}`, not `{meant}`: what is inspected and edited there would not run"
    )]
    OtherTree {
        /// `the interpreter` or `the running server`.
        what: &'static str,
        /// The tree in use.
        used: Utf8PathBuf,
        meant: Utf8PathBuf,
    },
}

pub fn ask(
    keeper: &Keeper,
    question: &Question,
    interrupt: &Interrupt,
) -> Result<Answer, LocateError> {
    let entry = match question.entry {
        Entry::Module => "module",
        Entry::Script => "script",
    };
    let argv = [question.python.as_str(), "-c", PROBE, entry].map(str::to_owned);
    let ran = run(
        keeper,
        &argv,
        question.folder.clone(),
        question.env.clone(),
        LIMIT,
        interrupt,
    )
    .map_err(|source| LocateError::Run {
        python: question.python.clone(),
        source,
    })?;
    match answer_line(&ran.stdout) {
        Some(line) => Ok(serde_json::from_slice(line)?),
        None => Err(LocateError::NoAnswer {
            python: question.python.clone(),
            code: ran.code,
            said: last_words(&ran.stderr),
        }),
    }
}

/// The answer line in the probe's output, which a `sitecustomize` may precede with its own.
fn answer_line(stdout: &[u8]) -> Option<&[u8]> {
    let at = memchr::memmem::rfind(stdout, TAG.as_bytes())? + TAG.len();
    let line = &stdout[at..];
    Some(&line[..memchr::memchr(b'\n', line).unwrap_or(line.len())])
}

fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut lines: Vec<_> = text
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(3)
        .collect();
    lines.reverse();
    if lines.is_empty() {
        "it said nothing".to_owned()
    } else {
        lines.join("; ")
    }
}

impl Answer {
    /// The folder of a package, or an error if it cannot be worked with.
    pub fn folder(&self, package: &str) -> Result<&Utf8Path, LocateError> {
        let owned = package.to_owned();
        match self.packages.get(package) {
            Some(Place::Package { folder }) => Ok(folder),
            Some(Place::Empty { folders }) => Err(LocateError::Empty {
                package: owned,
                folder: folders.first().cloned().unwrap_or_default(),
            }),
            Some(Place::Broken { text }) => Err(LocateError::Broken {
                package: owned,
                text: text.clone(),
            }),
            None => Err(LocateError::Absent {
                package: owned,
                python: self.executable.clone(),
            }),
        }
    }

    /// Folders on the path that contain the package but are not the one an import would load.
    pub fn shadowed(&self, package: &str) -> Vec<&Utf8Path> {
        let used = self.folder(package).ok();
        let folders = self.candidates.get(package).map_or(&[][..], Vec::as_slice);
        folders
            .iter()
            .map(Utf8PathBuf::as_path)
            .filter(|folder| Some(*folder) != used)
            .collect()
    }

    /// The distribution that installed the folder an import would load: the one whose site folder or checkout
    /// contains it. Metadata of another installation does not apply to it.
    pub fn distribution(&self, package: &str) -> Option<&Distribution> {
        let folder = self.folder(package).ok()?;
        self.distributions
            .iter()
            .filter(|distribution| distribution.package == package)
            .find(|distribution| {
                let checkout = distribution.editable.as_deref();
                checkout.is_some_and(|checkout| folder.starts_with(checkout))
                    || distribution.site.as_deref() == folder.parent()
            })
    }

    /// Checks that an import would load the package from `root` (the package, or the folder that contains it).
    pub fn imports_from(&self, package: &str, root: &Utf8Path) -> Result<(), LocateError> {
        same(self.folder(package)?, root, "the interpreter")
    }
}

/// Checks that a running server, whose overlay recorded that a module was loaded from `file`, uses the tree that was
/// inspected in `folder`.
pub fn ran_from(file: &Utf8Path, folder: &Utf8Path) -> Result<(), LocateError> {
    same(file, folder, "the running server")
}

fn same(used: &Utf8Path, meant: &Utf8Path, what: &'static str) -> Result<(), LocateError> {
    let resolved = |path: &Utf8Path| path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned());
    if resolved(used).starts_with(resolved(meant)) {
        Ok(())
    } else {
        Err(LocateError::OtherTree {
            what,
            used: used.to_owned(),
            meant: meant.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Answer {
        let text = r#"{
            "executable": "/opt/venv/bin/python3", "version": "3.10.12", "prefix": "/opt/venv", "ignores_environment": false,
            "path": ["/sgl-workspace/sglang/python", "/opt/venv/lib/python3.10/site-packages"],
            "packages": {
                "sglang": {"kind": "package", "folder": "/sgl-workspace/sglang/python/sglang"},
                "aiter": {"kind": "empty", "folders": ["/sgl-workspace/aiter"]},
                "torch": {"kind": "broken", "text": "ValueError: no spec"}},
            "candidates": {"sglang": ["/sgl-workspace/sglang/python/sglang", "/opt/venv/lib/python3.10/site-packages/sglang"], "aiter": []},
            "distributions": [
                {"package": "sglang", "name": "sglang", "version": "0.5.5", "site": "/opt/venv/lib/python3.10/site-packages", "editable": null},
                {"package": "sglang", "name": "sglang", "version": "0.5.9", "site": "/opt/other", "editable": "/sgl-workspace/sglang/python"}],
            "torch": {"version": "2.9.0+rocm7.0", "hip": "7.0.51831", "cuda": null},
            "aiter_version": null}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn each_way_not_to_find_a_package_is_said_apart() {
        let answer = answer();
        assert_eq!(
            answer.folder("sglang").unwrap(),
            "/sgl-workspace/sglang/python/sglang"
        );
        let said = ["aiter", "torch", "triton"]
            .map(|package| answer.folder(package).unwrap_err().to_string());
        insta::assert_snapshot!(said.join("\n"), @"
        find `aiter`: an import finds the folder `/sgl-workspace/aiter`, which is no package; start from another working directory, or put the folder that holds the real one on PYTHONPATH
        find `torch`: the import machinery fails with ValueError: no spec
        find `triton`: `/opt/venv/bin/python3` cannot import it
        ");
    }

    #[test]
    fn a_second_install_is_shown_and_its_metadata_is_not_believed() {
        let answer = answer();
        assert_eq!(
            answer.shadowed("sglang"),
            ["/opt/venv/lib/python3.10/site-packages/sglang"]
        );
        assert_eq!(answer.distribution("sglang").unwrap().version, "0.5.9");
    }

    #[test]
    fn another_tree_than_the_one_meant_is_an_error() {
        let answer = answer();
        answer
            .imports_from("sglang", Utf8Path::new("/sgl-workspace/sglang"))
            .unwrap();
        let error = answer
            .imports_from("sglang", Utf8Path::new("/home/me/sglang"))
            .unwrap_err();
        insta::assert_snapshot!(error, @"the interpreter uses `/sgl-workspace/sglang/python/sglang`, not `/home/me/sglang`: what is inspected and edited there would not run");
        let file = Utf8Path::new("/elsewhere/sglang/srt/layers/quantization/fp8_utils.py");
        let error = ran_from(file, Utf8Path::new("/sgl-workspace/sglang")).unwrap_err();
        insta::assert_snapshot!(error, @"the running server uses `/elsewhere/sglang/srt/layers/quantization/fp8_utils.py`, not `/sgl-workspace/sglang`: what is inspected and edited there would not run");
    }

    #[test]
    fn the_answer_is_found_behind_other_output() {
        assert_eq!(
            answer_line(b"hello from site\nx gemmtune-probe: {\"a\":1}\nbye"),
            Some(&b"{\"a\":1}"[..])
        );
        assert_eq!(answer_line(b"no answer"), None);
    }
}
