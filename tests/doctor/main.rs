//! `gemmtune doctor` and its `--fix`, on real git repositories made here.

mod install;
#[path = "../said/mod.rs"]
mod said;
mod world;

use std::process::Command;

use said::refusal;
use serde_json::Value;
use world::{World, picture, said, write};

#[test]
fn an_able_tree_passes_whatever_its_ancestry_says() {
    let world = World::new();
    let clone = world.clone(&["--recurse-submodules"], "main");
    let (verdict, found) = world.check(&clone, "aiter");
    assert_eq!(verdict, "good", "{found}");
    insta::assert_snapshot!(found.replace(&world.head(&clone)[..12], "[head]"), @"[head] on main: not a descendant of the pin, which proves nothing (aiter's main branch was rewritten in March 2026); it can do what is needed");
    assert_eq!(world.check(&clone, "aiter capabilities").0, "good");
    assert_eq!(world.check(&clone, "aiter submodules").0, "good");
    assert_eq!(world.check(&clone, "after a table change").0, "note");
}

#[test]
fn an_old_detached_tree_without_its_submodule_is_told_apart() {
    let world = World::new();
    let clone = world.clone(&[], "old");
    let (verdict, found) = world.check(&clone, "aiter");
    assert_eq!(verdict, "failure");
    insta::assert_snapshot!(found.replace(&world.head(&clone)[..12], "[head]"), @"[head] on no branch, and the pin 303a583c89fe was never fetched");
    insta::assert_snapshot!(world.check(&clone, "aiter capabilities").1, @"missing: libtype (the tuner can search CK and CKTile); runtime-libtype (the runtime obeys the row's library); preshuffle (the tuner can tune the shuffled operation); tuner-timeout (a dead worker ends, if a limit is given); pool-restart (the pool restarts after a fault); accelerator-error (a GPU fault is distinguished from a wrong result); exit-code (failed shapes are seen in the exit code); sort-bool (--sort takes a value); shape-grouped (candidates of a shape can stay together); run-config (a finished table can be measured (--run_config, --compare)); padded-m-ctypes (the padding of M is called through ctypes); merged-configs (several tables are merged at start); duplicate-rewrite (equal keys in two tables rewrite the files and stop the server); tensor-type (modules built by this generation are understood)");
    assert_eq!(
        world.check(&clone, "aiter submodules").1,
        "3rdparty/kernels not initialised"
    );
    assert_eq!(world.doctor(&clone, &[]).status.code(), Some(10));
}

#[test]
fn a_realignment_goes_step_by_step_and_back_to_the_byte() {
    let world = World::new();
    let clone = world.clone(&[], "main");
    world.git(&clone, &["checkout", "-q", "-B", "mine", "old"]);
    write(&clone.join("aiter/jit/module_x.so"), "old binary");
    write(&clone.join("aiter/jit/build/module_x/blob"), "old blob");
    let before = picture(&world, &clone);

    let shown = world.doctor(&clone, &["--fix", "--dry-run", "--to", "new"]);
    assert!(shown.status.success(), "{}", said(&shown));
    let text = said(&shown);
    let text = text.split("to get to").nth(1).unwrap();
    let order = [
        "git checkout --detach new",
        "git submodule sync",
        "git submodule update --init --recursive",
        "move 2 compiled",
        "setup.py develop",
    ];
    let places: Vec<_> = order
        .iter()
        .map(|step| {
            text.find(step)
                .unwrap_or_else(|| panic!("no {step} in {text}"))
        })
        .collect();
    assert!(places.is_sorted(), "{text}");
    assert_eq!(picture(&world, &clone), before, "a dry run changes nothing");

    let fixed = world.doctor(&clone, &["--fix", "--to", "new"]);
    assert!(fixed.status.success(), "{}", said(&fixed));
    assert_eq!(world.head(&clone), world.commit("new"));
    assert!(clone.join("3rdparty/kernels/kernel.h").exists());
    assert!(!clone.join("aiter/jit/module_x.so").exists());
    assert_eq!(
        fs_err::read_to_string(clone.join("installed")).unwrap(),
        "1",
        "Triton is guarded"
    );
    assert_eq!(world.check(&clone, "aiter capabilities").0, "good");

    let undone = world.doctor(&clone, &["--undo-fix"]);
    assert!(undone.status.success(), "{}", said(&undone));
    assert_eq!(picture(&world, &clone), before);
    assert_eq!(
        fs_err::read_to_string(clone.join("aiter/jit/build/module_x/blob")).unwrap(),
        "old blob"
    );
    assert_eq!(
        world.doctor(&clone, &["--undo-fix"]).status.code(),
        Some(10),
        "once"
    );
}

/// A commit in a submodule that is nowhere else must not be lost by going there and back.
#[test]
fn a_submodule_that_stood_elsewhere_stands_there_again() {
    let world = World::new();
    let clone = world.clone(&["--recurse-submodules"], "old");
    let module = clone.join("3rdparty/kernels");
    write(&module.join("mine.h"), "2");
    world.git(&module, &["add", "-A"]);
    world.git(&module, &["commit", "-qm", "mine"]);
    let (before, mine) = (picture(&world, &clone), world.head(&module));

    let fixed = world.doctor(&clone, &["--fix", "--to", "new"]);
    assert!(fixed.status.success(), "{}", said(&fixed));
    assert_ne!(world.head(&module), mine);
    let undone = world.doctor(&clone, &["--undo-fix"]);
    assert!(undone.status.success(), "{}", said(&undone));
    assert_eq!(world.head(&module), mine);
    assert_eq!(picture(&world, &clone), before);
}

#[test]
fn a_commit_that_is_not_there_is_fetched_into_a_shallow_clone_too() {
    let world = World::new();
    let clone = world.clone(&["--depth", "1", "--no-tags"], "main");
    assert!(world.check(&clone, "aiter").0 == "good");
    let old = world.commit("old");
    let fixed = world.doctor(&clone, &["--fix", "--to", &old]);
    assert!(fixed.status.success(), "{}", said(&fixed));
    assert_eq!(world.head(&clone), old);
}

#[test]
fn a_commit_is_fetched_from_the_only_remote_whatever_its_name() {
    let world = World::new();
    let clone = world.clone(&["--depth", "1", "--no-tags", "--origin", "rocm"], "main");
    let old = world.commit("old");
    let fixed = world.doctor(&clone, &["--fix", "--to", &old]);
    assert!(fixed.status.success(), "{}", said(&fixed));
    assert_eq!(world.head(&clone), old);
}

#[test]
fn a_tree_with_changes_is_refused_and_the_files_are_named() {
    let world = World::new();
    let clone = world.clone(&["--recurse-submodules"], "old");
    write(&clone.join("csrc/a.cu"), "mine");
    write(&clone.join("3rdparty/kernels/kernel.h"), "mine too");
    let refused = world.doctor(&clone, &["--fix", "--to", "new"]);
    assert_eq!(refused.status.code(), Some(10));
    insta::assert_snapshot!(refusal(&refused, &world.root), @"
    error: failed to realign the checkout: change `[folder]/clone`: 2 tracked files are changed there: csrc/a.cu, 3rdparty/kernels/kernel.h

    hint: commit them, or put them away with `git stash`
    ");
    assert_eq!(world.head(&clone), world.commit("old"));
    assert_eq!(
        fs_err::read_to_string(clone.join("csrc/a.cu")).unwrap(),
        "mine"
    );
}

#[test]
fn without_the_remote_the_error_is_clear_and_the_tree_unchanged() {
    let world = World::new();
    let clone = world.clone(&["--depth", "1", "--no-tags"], "main");
    write(&clone.join("aiter/jit/module_x.so"), "binary");
    let old = world.commit("old");
    fs_err::rename(world.upstream(), world.root.join("gone")).unwrap();
    let before = picture(&world, &clone);
    let failed = world.doctor(&clone, &["--fix", "--to", &old]);
    assert_eq!(failed.status.code(), Some(10));
    let text = said(&failed);
    assert!(
        text.contains("git fetch")
            && text.contains("the tree is as it was")
            && text.contains("network"),
        "with git's own words: {text}"
    );
    assert_eq!(picture(&world, &clone), before);
}

#[test]
fn a_step_that_fails_takes_every_step_before_it_back() {
    let world = World::new();
    let clone = world.clone(&[], "main");
    world.git(&clone, &["checkout", "-q", "-B", "mine", "old"]);
    write(&clone.join("aiter/jit/module_x.so"), "binary");
    write(&clone.join("refuse"), "");
    let before = picture(&world, &clone);
    let failed = world.doctor(&clone, &["--fix", "--to", "new"]);
    assert_eq!(failed.status.code(), Some(10));
    insta::assert_snapshot!(refusal(&failed, &world.root), @"
    error: failed to realign the checkout: AITER_USE_SYSTEM_TRITON=1 [python] setup.py develop: exit code 1; all it said is in `[folder]/clone/.git/gemmtune/install.log`, and the end of it:
    it said nothing
    the tree is as it was

    hint: fix that, then run `gemmtune doctor` again
    ");
    assert_eq!(
        picture(&world, &clone),
        before,
        "branch, submodule and modules are as they were"
    );
}

#[test]
fn a_rewritten_history_is_named_and_can_still_be_left() {
    let world = World::new();
    let clone = world.clone(&[], "old");
    // Upstream starts anew from a root of its own, as aiter did.
    let upstream = world.upstream();
    world.git(&upstream, &["checkout", "-q", "--orphan", "rewritten"]);
    world.git(&upstream, &["commit", "-qm", "rewritten"]);
    let rewritten = world.commit("rewritten");
    let fixed = world.doctor(&clone, &["--fix", "--to", &rewritten]);
    assert!(fixed.status.success(), "{}", said(&fixed));
    assert_eq!(world.head(&clone), rewritten);
    let undone = world.doctor(&clone, &["--undo-fix"]);
    assert!(undone.status.success(), "{}", said(&undone));
    assert_eq!(world.head(&clone), world.commit("old"));
}

#[test]
fn modules_built_for_another_commit_and_dead_locks_are_found() {
    let world = World::new();
    let clone = world.clone(&["--recurse-submodules"], "main");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(9000);
    for file in ["aiter/jit/module_x.so", "aiter/jit/build/lock_module_x"] {
        write(&clone.join(file), "");
        fs_err::File::options()
            .write(true)
            .open(clone.join(file))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    let (verdict, found) = world.check(&clone, "compiled modules");
    assert_eq!(
        (verdict.as_str(), found.as_str()),
        (
            "failure",
            "built before this commit was checked out: module_x.so"
        )
    );
    assert_eq!(world.check(&clone, "build locks").0, "failure");
    // An able tree stays at its commit; what hangs on it is renewed.
    let head = world.head(&clone);
    assert!(world.doctor(&clone, &["--fix"]).status.success());
    assert_eq!(world.head(&clone), head);
    assert_eq!(world.check(&clone, "compiled modules").0, "good");
}

#[test]
fn a_folder_that_is_no_checkout_has_nothing_to_realign() {
    let world = World::new();
    let wheel = world.root.join("site-packages");
    write(&wheel.join("aiter/__init__.py"), "");
    let refused = world.doctor(&wheel, &["--fix"]);
    assert_eq!(refused.status.code(), Some(10));
    insta::assert_snapshot!(refusal(&refused, &world.root), @"
    error: `[folder]/site-packages/aiter` is no git checkout, so there is nothing to realign

    hint: install another release of aiter instead
    ");
}

#[test]
fn someone_who_has_only_the_reference_engine_is_told_so_and_that_all_is_well() {
    let world = World::new();
    // An interpreter of whatever system, with nothing but its standard library.
    world.program("python3", "exec \"$REAL_PYTHON\" -S \"$@\"");
    for program in ["rocminfo", "amd-smi", "rocm-smi", "nvidia-smi"] {
        world.program(program, "exit 1");
    }
    let real = String::from_utf8(
        Command::new("python3")
            .args(["-c", "import sys; print(sys.executable)"])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    let doctor = |arguments: &[&str]| {
        world
            .command(env!("CARGO_BIN_EXE_gemmtune"))
            .arg("doctor")
            .args(arguments)
            .env("PATH", world.path())
            .env("REAL_PYTHON", real.trim())
            .env_remove("PYTHONPATH")
            .current_dir(&world.root)
            .output()
            .unwrap()
    };
    let output = doctor(&["--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict_of = |name: &str| {
        let checks = document["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        check["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(verdict_of("torch"), "note");
    assert_eq!(verdict_of("SGLang"), "note");
    assert_eq!(verdict_of("reference engine"), "good");
    // Whoever names an interpreter means a server, and hears what it lacks.
    let output = doctor(&["--python", "python3"]);
    assert_eq!(output.status.code(), Some(10), "{}", said(&output));
}

#[test]
fn where_one_program_is_refused_the_next_one_is_asked() {
    let world = World::new();
    let gpus = || {
        let output = world
            .command(env!("CARGO_BIN_EXE_gemmtune"))
            .args(["doctor", "--json", "--aiter", "."])
            .env("PATH", world.path())
            .current_dir(&world.root)
            .output()
            .unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = document["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "GPUs").unwrap();
        (document["gpus"].clone(), check.clone())
    };
    world.program(
        "rocminfo",
        "printf '\\033[37mROCk module is loaded\\033[0m\\n\\033[31mUnable to open /dev/kfd read-write: Permission denied\\033[0m\\n'; exit 255",
    );
    world.program(
        "amd-smi",
        "echo 'RuntimeError: WARNING: User is missing the following required groups: render, video.' >&2; exit 1",
    );
    for program in ["rocm-smi", "nvidia-smi"] {
        world.program(program, "exit 6");
    }
    let (found, check) = gpus();
    assert_eq!(found, serde_json::json!([]));
    let said = ["found", "fix"].map(|part| check[part].as_str().unwrap());
    insta::assert_snapshot!(said.join("\n"), @"
    none seen by rocminfo, amd-smi, rocm-smi or nvidia-smi (rocminfo: Unable to open /dev/kfd read-write: Permission denied; amd-smi: RuntimeError: WARNING: User is missing the following required groups: render, video.; rocm-smi: lists no GPU; nvidia-smi: lists no GPU)
    be in the groups that own /dev/kfd and /dev/dri (`render` and `video`; in a container `--device=/dev/kfd --device=/dev/dri --group-add=video --group-add=render`)
    ");

    let smi = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/devices/rocm-smi-mi300a.json"
    );
    world.program("rocm-smi", &format!("cat {smi}"));
    let (found, check) = gpus();
    assert_eq!(found.as_array().unwrap().len(), 2);
    assert_eq!(check["found"], "2 x AMD Instinct MI300A gfx942");

    let info = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/devices/rocminfo-mi300a.txt"
    );
    world.program("rocminfo", &format!("cat {info}"));
    assert_eq!(gpus().1["found"], "1 x gfx942, 228 CUs, 93 GiB");
}
