//! Locating packages by asking real interpreters in real virtual environments.

use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::proc::{Interrupt, Keeper};
use gemmtune::store::file::write_atomic;
use gemmtune::tree::locate::{Answer, Entry, LocateError, Question, ask};

struct Site {
    _keep: tempfile::TempDir,
    root: Utf8PathBuf,
}

impl Site {
    /// A virtual environment without packages.
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        let made = Command::new("python3")
            .args(["-m", "venv", "--without-pip", root.join("venv").as_str()])
            .status()
            .expect("python3 is needed to test what runs in Python");
        assert!(made.success());
        Self { _keep: keep, root }
    }

    fn site_packages(&self) -> Utf8PathBuf {
        let lib = self.root.join("venv/lib");
        let version = lib.read_dir_utf8().unwrap().next().unwrap().unwrap();
        version.path().join("site-packages")
    }

    fn write(path: &Utf8Path, text: &str) {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        write_atomic(path, text.as_bytes()).unwrap();
    }

    /// A package whose import would fail loudly: asking must not import it.
    fn package(folder: &Utf8Path, name: &str) -> Utf8PathBuf {
        let package = folder.join(name);
        Self::write(
            &package.join("__init__.py"),
            "raise RuntimeError('imported')\n",
        );
        package
    }

    fn question(&self) -> Question {
        Question {
            python: self.root.join("venv/bin/python"),
            entry: Entry::Module,
            folder: Some(self.root.clone()),
            env: vec![("PYTHONPATH".to_owned(), None)],
        }
    }

    fn ask(question: &Question) -> Result<Answer, LocateError> {
        let keeper = Keeper::new(Utf8PathBuf::from(env!("CARGO_BIN_EXE_gemmtune")));
        ask(&keeper, question, &Interrupt::new())
    }
}

#[test]
fn an_editable_install_is_found_where_its_checkout_is() {
    let site = Site::new();
    let checkout = site.root.join("src/aiter-repo");
    let package = Site::package(&checkout, "aiter");
    Site::write(
        &package.join("_version.py"),
        "__version__ = version = '0.1.12.post2.dev33+g303a583c8'\n",
    );
    let packages = site.site_packages();
    Site::write(
        &packages.join("__editable__.amd_aiter.pth"),
        checkout.as_str(),
    );
    let metadata = packages.join("amd_aiter-0.1.12.dist-info");
    Site::write(
        &metadata.join("METADATA"),
        "Metadata-Version: 2.1\nName: amd-aiter\nVersion: 0.1.12\n",
    );
    Site::write(
        &metadata.join("direct_url.json"),
        &format!("{{\"url\": \"file://{checkout}\", \"dir_info\": {{\"editable\": true}}}}"),
    );
    let torch = Site::package(&packages, "torch");
    Site::write(
        &torch.join("version.py"),
        "from typing import Optional\n__version__ = '2.9.0+rocm7.0'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.0.51831'\n",
    );

    let answer = Site::ask(&site.question()).unwrap();
    assert_eq!(answer.folder("aiter").unwrap(), package);
    assert_eq!(
        answer.aiter_version.as_deref(),
        Some("0.1.12.post2.dev33+g303a583c8")
    );
    let distribution = answer.distribution("aiter").unwrap();
    assert_eq!(
        (distribution.name.as_str(), distribution.version.as_str()),
        ("amd-aiter", "0.1.12")
    );
    assert_eq!(distribution.editable.as_deref(), Some(checkout.as_path()));
    assert_eq!(answer.torch.hip.as_deref(), Some("7.0.51831"));
    assert_eq!(answer.torch.cuda, None);
    assert_eq!(answer.prefix, site.root.join("venv"));
}

#[test]
fn a_shadow_on_pythonpath_wins_and_the_hidden_install_is_shown() {
    let site = Site::new();
    let installed = Site::package(&site.site_packages(), "sglang");
    let mine = Site::package(&site.root.join("mine"), "sglang");
    let mut question = site.question();
    question.env = vec![(
        "PYTHONPATH".to_owned(),
        Some(site.root.join("mine").to_string()),
    )];
    let answer = Site::ask(&question).unwrap();
    assert_eq!(answer.folder("sglang").unwrap(), mine);
    assert_eq!(answer.shadowed("sglang"), [&installed]);
}

#[test]
fn the_working_directory_counts_for_a_module_and_not_for_a_script() {
    let site = Site::new();
    let installed = Site::package(&site.site_packages(), "sglang");
    let here = Site::package(&site.root, "sglang");
    let mut question = site.question();
    assert_eq!(
        Site::ask(&question).unwrap().folder("sglang").unwrap(),
        here
    );
    question.entry = Entry::Script;
    assert_eq!(
        Site::ask(&question).unwrap().folder("sglang").unwrap(),
        installed
    );
}

#[test]
fn a_bare_folder_of_the_right_name_is_no_package() {
    let site = Site::new();
    // The top of a checkout: `sglang/python/sglang` is the package, `sglang` is not.
    Site::package(&site.root.join("sglang/python"), "sglang");
    let error = Site::ask(&site.question())
        .unwrap()
        .folder("sglang")
        .unwrap_err();
    assert!(matches!(error, LocateError::Empty { .. }), "{error}");
}

#[test]
fn an_interpreter_that_is_none_and_one_that_fails_are_said_apart() {
    let site = Site::new();
    let mut question = site.question();
    question.python = site.root.join("no-such-python");
    let error = Site::ask(&question).unwrap_err().to_string();
    assert!(error.contains("no-such-python"), "{error}");
    question.python = Utf8PathBuf::from("false");
    let error = Site::ask(&question).unwrap_err();
    assert!(
        matches!(error, LocateError::NoAnswer { code: 1, .. }),
        "{error}"
    );
}
