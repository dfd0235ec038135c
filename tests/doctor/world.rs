//! Repositories as aiter's, made here, and gemmtune run on clones of them.

use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::store::file::write_atomic;
use serde_json::Value;

/// A folder with an upstream aiter, its submodule, and clones of it.
pub(crate) struct World {
    _keep: tempfile::TempDir,
    pub(crate) root: Utf8PathBuf,
}

/// Texts that make a file of a tree show every capability that is needed.
const ABLE: [(&str, &str); 7] = [
    (
        "csrc/ck_gemm_a8w8_blockscale/gemm_a8w8_blockscale_tune.py",
        "\"--libtype\" --preshuffle",
    ),
    (
        "aiter/utility/base_tuner.py",
        "\"--timeout\" sys.exit(1) str2bool shape_grouped run_config",
    ),
    (
        "aiter/utility/mp_tuner.py",
        "pool_restart_needed AcceleratorError",
    ),
    (
        "aiter/ops/gemm_op_a8w8.py",
        "def gemm_a8w8_blockscale():\n    libtype = 1\n",
    ),
    ("aiter/ops/gemm_op_common.py", "ctypes"),
    (
        "aiter/jit/core.py",
        "/tmp/aiter_configs Auto-resolved aiter_tensor_t",
    ),
    (
        "setup.py",
        "import os, sys\nopen('installed', 'w').write(os.environ['AITER_USE_SYSTEM_TRITON'])\nsys.exit(os.path.exists('refuse'))\n",
    ),
];

impl World {
    /// Upstream has two commits: `old`, able to nothing, and `new`, able to all, with a submodule since `old`.
    pub(crate) fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        let world = Self { _keep: keep, root };
        write(
            &world.root.join("gitconfig"),
            "[user]\nname = t\nemail = t@t\n[protocol \"file\"]\nallow = always\n[init]\ndefaultBranch = main\n[advice]\ndetachedHead = false\n",
        );
        write(&world.root.join("bin/rocminfo"), "#!/bin/sh\nexit 1\n");
        let kernels = world.root.join("kernels");
        world.repository(&kernels, &[("kernel.h", "1")]);
        let upstream = world.upstream();
        world.repository(
            &upstream,
            &[
                ("aiter/__init__.py", ""),
                (".gitignore", "*.so\nbuild/\ninstalled\nrefuse\n"),
                ("csrc/a.cu", ""),
                ("setup.py", ""),
            ],
        );
        world.git(
            &upstream,
            &[
                "submodule",
                "add",
                "-q",
                kernels.as_str(),
                "3rdparty/kernels",
            ],
        );
        world.git(&upstream, &["commit", "-qm", "old"]);
        world.git(&upstream, &["tag", "old"]);
        for (file, text) in ABLE {
            write(&upstream.join(file), text);
        }
        world.git(&upstream, &["add", "-A"]);
        world.git(&upstream, &["commit", "-qm", "new"]);
        world.git(&upstream, &["tag", "new"]);
        world
    }

    pub(crate) fn upstream(&self) -> Utf8PathBuf {
        self.root.join("upstream")
    }

    pub(crate) fn repository(&self, folder: &Utf8Path, files: &[(&str, &str)]) {
        for (file, text) in files {
            write(&folder.join(file), text);
        }
        self.git(&self.root, &["init", "-q", folder.as_str()]);
        self.git(folder, &["add", "-A"]);
        self.git(folder, &["commit", "-qm", "first"]);
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("GIT_CONFIG_GLOBAL", self.root.join("gitconfig"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env_remove("AITER_JIT_DIR");
        command
    }

    pub(crate) fn git(&self, folder: &Utf8Path, arguments: &[&str]) -> String {
        let output = self
            .command("git")
            .arg("-C")
            .arg(folder)
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "git {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A clone with its submodule, at `at`, on branch main unless `at` is another commit.
    pub(crate) fn clone(&self, options: &[&str], at: &str) -> Utf8PathBuf {
        let clone = self.root.join("clone");
        let url = format!("file://{}", self.upstream());
        let arguments = [&["clone", "-q"], options, &[&url, clone.as_str()]].concat();
        self.git(&self.root, &arguments);
        if at != "main" {
            self.git(&clone, &["checkout", "-q", at]);
        }
        clone
    }

    pub(crate) fn head(&self, clone: &Utf8Path) -> String {
        self.git(clone, &["rev-parse", "HEAD"])
    }

    pub(crate) fn commit(&self, name: &str) -> String {
        self.git(&self.upstream(), &["rev-parse", name])
    }

    pub(crate) fn doctor(&self, clone: &Utf8Path, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_gemmtune"))
            .args(["doctor", "--aiter", clone.as_str()])
            .args(arguments)
            .current_dir(&self.root)
            .output()
            .unwrap()
    }

    /// A program that stands before those of the machine in [`World::path`].
    pub(crate) fn program(&self, name: &str, body: &str) {
        let path = self.root.join("bin").join(name);
        write(&path, &format!("#!/bin/sh\n{body}\n"));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(&path, mode).unwrap();
    }

    pub(crate) fn path(&self) -> String {
        let path = std::env::var_os("PATH").unwrap().into_string().unwrap();
        format!("{}:{path}", self.root.join("bin"))
    }

    pub(crate) fn check(&self, clone: &Utf8Path, name: &str) -> (String, String) {
        let output = self.doctor(clone, &["--json"]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = document["checks"].as_array().unwrap();
        let check = checks
            .iter()
            .find(|check| check["name"] == name)
            .unwrap_or_else(|| panic!("no {name} in {checks:?}"));
        let text = |key: &str| check[key].as_str().unwrap().to_owned();
        (text("verdict"), text("found"))
    }
}

pub(crate) fn write(path: &Utf8Path, text: &str) {
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    write_atomic(path, text.as_bytes()).unwrap();
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Everything a failed realignment must leave as it was.
pub(crate) fn picture(world: &World, clone: &Utf8Path) -> String {
    let modules = clone.join("aiter/jit/module_x.so").exists();
    let urls = world.git(clone, &["config", "--list", "--local"]);
    let status = world.git(clone, &["submodule", "status"]);
    let branch = world.git(
        clone,
        &[
            "status",
            "--branch",
            "--porcelain=v2",
            "--untracked-files=no",
        ],
    );
    format!("{branch}\n{status}\n{modules}\n{urls}")
}
