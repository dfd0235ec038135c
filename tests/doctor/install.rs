//! What an installation needs, changes and says; and what must not hide the other checks.

use std::process::Output;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

use crate::said::{line, refusal};
use crate::world::{World, picture, said, write};

/// pip, as far as it is asked: flydsl 0.1.5 is there and 0.1.2 is not, in the words of pip 25 against PyPI.
const PIP: &str = r#"
import os, sys
arguments, site = sys.argv[1:], os.environ["PLAYED_SITE"]
installed = [name for name in os.listdir(site) if name.startswith("flydsl-")]
if arguments[0] == "uninstall":
    for name in installed:
        os.remove(f"{site}/{name}/METADATA")
        os.rmdir(f"{site}/{name}")
    sys.exit()
wanted = next(argument for argument in arguments if "==" in argument)
if wanted != "flydsl==0.1.5":
    print(f"ERROR: Could not find a version that satisfies the requirement {wanted} (from versions: 0.1.5, 0.1.6)", file=sys.stderr)
    print(f"ERROR: No matching distribution found for {wanted}", file=sys.stderr)
    sys.exit(1)
if "--dry-run" not in arguments:
    os.makedirs(f"{site}/flydsl-0.1.5.dist-info")
    with open(f"{site}/flydsl-0.1.5.dist-info/METADATA", "w") as file:
        file.write("Metadata-Version: 2.1\nName: flydsl\nVersion: 0.1.5\n")
"#;

/// A `setup.py` that installs what it pins as it is read, as aiter's does.
fn setup(version: &str) -> String {
    format!(
        "import os, subprocess, sys\nFLYDSL_VERSION = \"flydsl=={version}\"\n\
         subprocess.check_call([sys.executable, \"-m\", \"pip\", \"install\", FLYDSL_VERSION])\n\
         open('installed', 'w').write('1')\nif os.path.exists('refuse'):\n    print('the reason')\n    \
         print('a line', file=sys.stderr)\n    sys.exit('the last line')\n"
    )
}

/// Upstream goes on: `pinned` needs what is nowhere, the next one too, and `later` does not.
fn world() -> (World, Utf8PathBuf) {
    let world = World::new();
    let upstream = world.upstream();
    for (tag, version) in [("pinned", "0.1.2"), ("next", "0.1.3"), ("later", "0.1.5")] {
        write(&upstream.join("setup.py"), &setup(version));
        world.git(&upstream, &["commit", "-qam", tag]);
        world.git(&upstream, &["tag", tag]);
    }
    let site = world.root.join("site");
    write(&site.join("pip/__main__.py"), PIP);
    write(&site.join("pip/__init__.py"), "");
    (world, site)
}

fn doctor(world: &World, site: &Utf8Path, clone: &Utf8Path, arguments: &[&str]) -> Output {
    world
        .command(env!("CARGO_BIN_EXE_gemmtune"))
        .args(["doctor", "--aiter", clone.as_str()])
        .args(arguments)
        .env("PYTHONPATH", site)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PLAYED_SITE", site)
        .current_dir(&world.root)
        .output()
        .unwrap()
}

#[test]
fn a_requirement_that_is_nowhere_is_said_before_anything_starts_with_a_commit_that_installs() {
    let (world, site) = world();
    let clone = world.clone(&[], "main");
    world.git(&clone, &["checkout", "-q", "-B", "mine", "old"]);
    let before = picture(&world, &clone);
    let later = world.commit("later");
    let told = [(10, &[][..]), (0, &["--dry-run"])].map(|(code, more)| {
        let arguments = [&["--fix", "--to", "pinned"], more].concat();
        let told = doctor(&world, &site, &clone, &arguments);
        assert_eq!(told.status.code(), Some(code));
        assert_eq!(picture(&world, &clone), before);
        let said = said(&told);
        assert!(!said.contains("> git"), "nothing was started: {said}");
        let from = said.find("failed to realign").unwrap();
        said[from..].replace(&later, "[later]")
    });
    insta::assert_snapshot!(told.join("\n"), @"
    failed to realign the checkout: install pinned: its setup.py needs flydsl==0.1.2, which pip's registry does not have (it has 0.1.5, 0.1.6); the tree is as it was

    hint: `--to [later]` is the oldest later commit whose requirements are there

    failed to realign the checkout: install pinned: its setup.py needs flydsl==0.1.2, which pip's registry does not have (it has 0.1.5, 0.1.6); the tree is as it was
    ");
}

#[test]
fn what_an_installation_changed_in_the_interpreter_is_listed_and_taken_back() {
    let (world, site) = world();
    let clone = world.clone(&[], "old");
    let fixed = doctor(&world, &site, &clone, &["--fix", "--to", "later"]);
    assert!(fixed.status.success(), "{}", said(&fixed));
    let told = said(&fixed);
    insta::assert_snapshot!(line(&told, "the installation changed"), @"the installation changed flydsl: none -> 0.1.5");
    assert!(site.join("flydsl-0.1.5.dist-info").exists());
    let undone = doctor(&world, &site, &clone, &["--undo-fix"]);
    assert!(undone.status.success(), "{}", said(&undone));
    assert!(!site.join("flydsl-0.1.5.dist-info").exists());
}

#[test]
fn an_installation_that_fails_is_shown_with_what_it_said_and_leaves_no_package_behind() {
    let (world, site) = world();
    let clone = world.clone(&[], "old");
    write(&clone.join("refuse"), "");
    let before = picture(&world, &clone);
    let failed = doctor(&world, &site, &clone, &["--fix", "--to", "later"]);
    assert_eq!(failed.status.code(), Some(10));
    insta::assert_snapshot!(refusal(&failed, &world.root), @"
    error: failed to realign the checkout: AITER_USE_SYSTEM_TRITON=1 [python] setup.py develop: exit code 1; all it said is in `[folder]/clone/.git/gemmtune/install.log`, and the end of it:
    the reason
    a line
    the last line
    the tree is as it was

    hint: fix that, then run `gemmtune doctor` again
    ");
    assert_eq!(picture(&world, &clone), before);
    assert!(!site.join("flydsl-0.1.5.dist-info").exists());
}

#[test]
fn a_submodules_url_that_the_user_set_comes_back() {
    let world = World::new();
    let clone = world.clone(&["--recurse-submodules"], "old");
    let mirror = world.root.join("mirror");
    world.git(
        &world.root,
        &[
            "clone",
            "-q",
            world.root.join("kernels").as_str(),
            mirror.as_str(),
        ],
    );
    let key = "submodule.3rdparty/kernels.url";
    world.git(&clone, &["config", key, mirror.as_str()]);
    let before = picture(&world, &clone);
    let fixed = world.doctor(&clone, &["--fix", "--to", "new"]);
    assert!(fixed.status.success(), "{}", said(&fixed));
    assert_ne!(world.git(&clone, &["config", key]), mirror.as_str());
    let undone = world.doctor(&clone, &["--undo-fix"]);
    assert!(undone.status.success(), "{}", said(&undone));
    assert_eq!(picture(&world, &clone), before);
}

#[test]
fn a_checkout_that_git_does_not_trust_hides_no_other_check() {
    let world = World::new();
    let clone = world.clone(&["--recurse-submodules"], "main");
    let output = world
        .command(env!("CARGO_BIN_EXE_gemmtune"))
        .args(["doctor", "--json", "--aiter", clone.as_str()])
        // As git sees a folder that another user owns.
        .env("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        .current_dir(&world.root)
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = |name: &str| {
        let checks = document["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {checks:?}"))
            .clone()
    };
    let aiter = check("aiter");
    assert_eq!(aiter["verdict"], "failure");
    assert!(
        aiter["found"]
            .as_str()
            .unwrap()
            .contains("dubious ownership"),
        "in git's own words: {aiter}"
    );
    let fix = aiter["fix"].as_str().unwrap();
    insta::assert_snapshot!(fix.replace(clone.as_str(), "[clone]"), @"git reads a folder of another user only where it is declared safe: `git config --global --add safe.directory [clone]`");
    assert_eq!(check("aiter capabilities")["verdict"], "good");
    assert_eq!(check("compiled modules")["verdict"], "good");
}

#[test]
fn a_torch_without_rocm_beside_aiter_is_no_good_sign() {
    let world = World::new();
    let site = world.root.join("site");
    write(&site.join("aiter/__init__.py"), "");
    write(&site.join("torch/__init__.py"), "");
    write(
        &site.join("torch/version.py"),
        "__version__ = '2.11.0+cu130'\ncuda = '13.0'\nhip = None\n",
    );
    let torch = || {
        let output = world
            .command(env!("CARGO_BIN_EXE_gemmtune"))
            .args(["doctor", "--json", "--python", "python3"])
            .env("PYTHONPATH", &site)
            .current_dir(&world.root)
            .output()
            .unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = document["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == "torch")
            .unwrap()
            .clone()
    };
    assert_eq!(torch()["verdict"], "failure", "{}", torch());
    fs_err::remove_dir_all(site.join("aiter")).unwrap();
    assert_eq!(torch()["verdict"], "good", "{}", torch());
}
