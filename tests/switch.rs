//! `gemmtune switch`: every era, architecture and ROCm version, patched, traced and undone.

mod trees;

use serde_json::Value;
use trees::{FP8, FP8_UTILS, Tree, gemmtune};

const ERAS: [&str; 9] = ["e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "e7b"];

fn run(verb: &str, tree: &Tree, more: &[&str]) -> (i32, String, String) {
    gemmtune(&[&["switch", verb, tree.root.as_str(), "--json"], more].concat())
}

fn ok(verb: &str, tree: &Tree, more: &[&str]) -> Value {
    let (code, stdout, stderr) = run(verb, tree, more);
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

/// The kernels that `trace` finds on a machine.
fn kernels(tree: &Tree, arch: &str, rocm: &str) -> Vec<String> {
    let (code, stdout, stderr) = gemmtune(&["trace", tree.root.as_str(), "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let document: Value = serde_json::from_str(&stdout).unwrap();
    let path = document["paths"]
        .as_array()
        .unwrap()
        .iter()
        .find(|path| path["arch"] == arch && (path["rocm"] == "any" || path["rocm"] == rocm))
        .unwrap()
        .clone();
    let mut found: Vec<String> = if path["kernel"] == "depends" {
        let choices = path["choices"].as_array().unwrap();
        choices
            .iter()
            .map(|choice| choice["kernel"].as_str().unwrap().to_owned())
            .collect()
    } else {
        vec![path["kernel"].as_str().unwrap().to_owned()]
    };
    found.sort();
    found.dedup();
    found
}

fn machines() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    ["gfx942", "gfx950"].into_iter().flat_map(|arch| {
        [("7.1", "<7.2"), ("7.2", ">=7.2")].map(|(rocm, bound)| (arch, rocm, bound))
    })
}

/// Applies, checks with `trace`, applies again, undoes.
fn there_and_back(
    tree: &Tree,
    arch: &str,
    rocm: &str,
    more: &[&str],
    bound: &str,
) -> Option<(Value, Vec<String>)> {
    let before = tree.snapshot();
    let arguments = [&["--arch", arch, "--rocm", rocm, "--mode", "patch"], more].concat();
    let (code, stdout, stderr) = run("apply", tree, &arguments);
    if code != 0 {
        assert_eq!(code, 10, "{stderr}");
        assert_eq!(tree.snapshot(), before, "a refusal touches nothing");
        return None;
    }
    let document: Value = serde_json::from_str(&stdout).unwrap();
    let found = kernels(tree, arch, bound);
    let patched = tree.snapshot();
    ok("apply", tree, &arguments);
    assert_eq!(tree.snapshot(), patched, "twice is once");
    ok("undo", tree, &[]);
    assert_eq!(tree.snapshot(), before);
    Some((document, found))
}

#[test]
fn ck_is_forced_everywhere_and_guarded_where_it_is_not_safe() {
    for era in ERAS {
        let tree = Tree::fixture(era);
        for (arch, rocm, bound) in machines() {
            let (document, found) =
                there_and_back(&tree, arch, rocm, &["--to", "ck"], bound).unwrap();
            let shuffled = arch == "gfx950" && rocm == "7.2" && era >= "e3";
            let guarded = arch == "gfx950" && rocm == "7.1";
            let expected: &[&str] = match (shuffled, guarded) {
                (true, _) => &["bpreshuffle"],
                (_, true) => &["ck", "triton"],
                _ => &["ck"],
            };
            assert_eq!(found, expected, "{era} {arch} {rocm}");
            assert_eq!(
                document["env"]["SGLANG_ROCM_SMALLM_FP8_BS"] == "0",
                era == "e7b" && shuffled
            );
        }
    }
}

#[test]
fn a_tree_that_calls_ck_already_gets_the_guard_it_lacks_and_nothing_else() {
    let released = Tree::fixture("e0");
    let swapped = Tree::fixture("e1");
    swapped.replace(
        FP8_UTILS,
        "from aiter.ops.triton.gemm_a8w8_blockscale import gemm_a8w8_blockscale",
        "from aiter import gemm_a8w8_blockscale",
    );
    let mut said = Vec::new();
    for tree in [released, swapped] {
        let before = tree.snapshot();
        for (arch, rocm, bound) in machines() {
            let ck = ["--to", "ck"];
            let (document, found) = there_and_back(&tree, arch, rocm, &ck, bound).unwrap();
            let guarded = (arch, rocm) == ("gfx950", "7.1");
            assert_eq!(document["means"] != "none", guarded, "{document}");
            let expected: &[&str] = if guarded { &["ck", "triton"] } else { &["ck"] };
            assert_eq!(found, expected, "{arch} {rocm}");
        }
        let old = ["--to", "ck", "--arch", "gfx950", "--rocm", "7.1"];
        let (code, _, stderr) = run("apply", &tree, &[&old[..], &["--mode", "env"]].concat());
        assert_eq!(code, 10);
        said.push(tree.said(&stderr));
        let document = ok("apply", &tree, &old);
        assert_eq!(document["means"], "overlay");
        assert_eq!(document["steps"].as_array().unwrap().len(), 1);
        let step = &document["steps"][0];
        assert_eq!(
            (&step["do"], &step["name"]),
            (&"route".into(), &"gemm_a8w8_blockscale".into())
        );
        assert_eq!(step["rules"][3]["min_m"], 513);
        ok("undo", &tree, &[]);
        // Without a version the guard is there: it does no harm where it is not needed.
        let unknown = ok(
            "apply",
            &tree,
            &["--to", "ck", "--arch", "gfx950", "--dry-run"],
        );
        assert_eq!(unknown["means"], "overlay");
        assert_eq!(tree.snapshot(), before);
    }
    said.dedup();
    insta::assert_snapshot!(said.join("\n"), @"
    error: env cannot do this on this tree: CK is what this tree calls; Triton above the M that is safe below ROCm 7.2

    hint: use `--mode overlay`
    ");
}

#[test]
fn triton_is_forced_everywhere() {
    for era in ERAS {
        let tree = Tree::fixture(era);
        for (arch, rocm, bound) in machines() {
            let (document, found) =
                there_and_back(&tree, arch, rocm, &["--to", "triton"], bound).unwrap();
            if document["unset"][0] == "SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK" {
                assert_eq!((document["means"].as_str(), arch), (Some("none"), "gfx942"));
            } else {
                assert_eq!(found, ["triton"], "{era} {arch} {rocm}");
            }
        }
    }
}

#[test]
fn routes_split_by_m_except_where_weights_are_laid_out_at_load() {
    for era in ERAS {
        let tree = Tree::fixture(era);
        for (arch, rocm, bound) in machines() {
            let split = [
                "--to",
                "ck",
                "--route",
                "512,7168,M<=256",
                "--route",
                "4608,4096",
            ];
            let whole = ["--to", "ck", "--route", "512,7168"];
            let shuffled = arch == "gfx950" && rocm == "7.2" && era >= "e3";
            let by_m = there_and_back(&tree, arch, rocm, &split, bound);
            assert_eq!(by_m.is_none(), shuffled, "{era} {arch} {rocm}");
            let (_, found) = there_and_back(&tree, arch, rocm, &whole, bound).unwrap();
            let ck = if shuffled { "bpreshuffle" } else { "ck" };
            assert_eq!(found, [ck, "triton"], "{era} {arch} {rocm}");
        }
    }
}

#[test]
fn a_route_never_passes_the_m_that_is_safe() {
    let tree = Tree::fixture("e4");
    let arguments = [
        "--arch", "gfx950", "--rocm", "7.1", "--mode", "patch", "--to", "ck",
    ];
    let routes = ["--route", "4608,4096,M<=4000", "--route", "2560,4096,M<=64"];
    ok("apply", &tree, &[&arguments[..], &routes[..]].concat());
    let text = tree.text(FP8_UTILS);
    assert!(
        text.contains("shape == (4608, 4096) and m <= 512"),
        "{text}"
    );
    assert!(text.contains("shape == (2560, 4096) and m <= 64"), "{text}");
}

#[test]
fn the_least_invasive_way_is_chosen_and_others_are_refused_where_they_would_not_work() {
    let means = |era: &str, arch: &str| {
        let tree = Tree::fixture(era);
        let document = ok(
            "apply",
            &tree,
            &["--to", "ck", "--arch", arch, "--rocm", "7.1", "--dry-run"],
        );
        document["means"].as_str().unwrap().to_owned()
    };
    assert_eq!(means("e0", "gfx942"), "none");
    assert_eq!(means("e1", "gfx942"), "overlay");
    assert_eq!(means("e7", "gfx942"), "env");
    assert_eq!(means("e7", "gfx950"), "overlay");

    let tree = Tree::fixture("e4");
    let env = ["--to", "ck", "--arch", "gfx942", "--mode", "env"];
    let (code, _, stderr) = run("apply", &tree, &env);
    assert_eq!(code, 10);
    insta::assert_snapshot!(tree.said(&stderr), @"
    error: env cannot do this on this tree: bind triton_gemm_a8w8_blockscale to self:ck_gemm_a8w8_blockscale

    hint: use `--mode overlay`
    ");
    let unknown = ["--to", "ck", "--arch", "gfx950"];
    let (code, _, stderr) = run("apply", &tree, &unknown);
    assert_eq!(code, 2);
    insta::assert_snapshot!(tree.said(&stderr), @"
    error: what must be done on gfx950 depends on the ROCm version

    hint: add `--rocm`, such as `--rocm 7.1`
    ");
}

#[test]
fn the_overlay_gets_the_same_decision() {
    let tree = Tree::fixture("e5");
    let before = tree.snapshot();
    let document = ok(
        "apply",
        &tree,
        &["--to", "ck", "--arch", "gfx950", "--rocm", "7.1"],
    );
    let path = document["env"]["GEMMTUNE_SWITCH"].as_str().unwrap();
    let decision: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    assert_eq!(decision["actions"][0]["do"], "set_force_ck");
    assert_eq!(decision["actions"][1]["name"], "ck_gemm_a8w8_blockscale");
    assert_eq!(decision["actions"][1]["rules"][0]["min_M"], 2049);
    assert!(ok("status", &tree, &[])["overlay"].is_object());
    ok("undo", &tree, &[]);
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn instrument_and_switch_share_a_tree_and_come_off_in_turn() {
    let tree = Tree::fixture("e6");
    let before = tree.snapshot();
    let instrument = |verb: &str, more: &[&str]| {
        gemmtune(&[&["instrument", verb, tree.root.as_str()], more].concat())
    };
    assert_eq!(instrument("apply", &["--mode", "patch"]).0, 0);
    let ck = ["--to", "ck", "--arch", "gfx942", "--mode", "patch"];
    ok("apply", &tree, &ck);
    let (code, _, stderr) = instrument("undo", &[]);
    assert_eq!(code, 10);
    insta::assert_snapshot!(tree.said(&stderr), @"
    error: failed to change the tree: undo `instrument`: `switch` changed `[tree]/sglang/srt/layers/quantization/fp8_utils.py` after it

    hint: run `gemmtune switch undo [tree]/sglang` first
    ");
    let triton = ["--to", "triton", "--arch", "gfx942", "--mode", "patch"];
    let (code, _, stderr) = run("apply", &tree, &triton);
    assert_eq!(code, 10, "another wish needs an undo first");
    insta::assert_snapshot!(tree.said(&stderr), @r#"
    error: the tree is switched otherwise already: {"to":"ck","arch":"gfx942","rocm":null,"routes":[]}

    hint: run `gemmtune switch undo [tree]` first
    "#);
    ok("undo", &tree, &[]);
    assert_eq!(instrument("undo", &[]).0, 0);
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn an_overlay_that_captures_and_switches_goes_when_both_are_undone() {
    let tree = Tree::fixture("e1");
    let before = tree.snapshot();
    let instrument = |verb: &str| gemmtune(&["instrument", verb, tree.root.as_str()]).0;
    assert_eq!(instrument("apply"), 0);
    ok("apply", &tree, &["--to", "ck", "--arch", "gfx942"]);
    assert_eq!(instrument("undo"), 0);
    assert!(ok("status", &tree, &[])["overlay"].is_object());
    ok("undo", &tree, &[]);
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn a_branch_that_was_edited_by_hand_is_followed_and_refused() {
    // The predicate is not asked on gfx950 any more, so switching it off would change nothing.
    let tree = Tree::fixture("e4");
    let text = tree.text(FP8_UTILS).replace(
        "        use_triton = use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k)\n",
        "        use_triton = True\n",
    );
    tree.write(FP8_UTILS, &text);
    let before = tree.snapshot();
    let wish = [
        "--to", "ck", "--arch", "gfx950", "--rocm", "7.2", "--mode", "patch",
    ];
    let (code, _, stderr) = run("apply", &tree, &wish);
    assert_eq!(code, 11, "{stderr}");
    insta::assert_snapshot!(tree.said(&stderr), @r#"
    error: this tree was edited: with "use_aiter_triton_gemm_w8a8_tuned_gfx950 answers False in fp8_utils and fp8 befor… (111 characters)" it would call triton, which is not what was asked for

    hint: nothing was changed; `--mode overlay` leaves the tree alone
    "#);
    assert_eq!(tree.snapshot(), before);
}

/// Run with `GEMMTUNE_WHEELS=FOLDER`, after `tests/fetch_wheels.py [--all] FOLDER`.
#[test]
#[ignore = "needs a folder of wheels in GEMMTUNE_WHEELS"]
fn released_wheels_are_switched_and_restored() {
    let trees = trees::wheels();
    std::thread::scope(|scope| {
        for half in trees.chunks(trees.len().div_ceil(2)) {
            scope.spawn(|| half.iter().for_each(every_switch));
        }
    });
}

fn every_switch(tree: &Tree) {
    for (arch, rocm, bound) in machines() {
        for wish in [
            &["--to", "ck"][..],
            &["--to", "triton"],
            &["--to", "ck", "--route", "512,7168"],
        ] {
            let done = there_and_back(tree, arch, rocm, wish, bound);
            assert!(done.is_some(), "{} {arch} {rocm} {wish:?}", tree.version);
        }
    }
}

type Edit<'a> = &'a dyn Fn(&Tree);

#[test]
fn a_tree_whose_weights_are_laid_out_by_another_answer_is_refused() {
    let predicate = "use_aiter_triton_gemm_w8a8_tuned_gfx950";
    let asked = format!("if not {predicate}(");
    for era in ["e3", "e4", "e5", "e6", "e7b"] {
        let edits: [(&str, Edit<'_>); 4] = [
            ("constant", &|tree| {
                tree.replace(FP8, &asked, "if not some_constant(");
            }),
            ("bound again", &|tree| {
                let text = tree.text(FP8);
                tree.write(
                    FP8,
                    &format!("{text}\ndef {predicate}(n, k):\n    return True\n"),
                );
            }),
            ("another import", &|tree| {
                let text = tree.text(FP8).replace(predicate, "elsewhere");
                tree.write(FP8, &text);
            }),
            ("new branch", &|tree| {
                tree.replace(
                    FP8_UTILS,
                    "    if _use_aiter:\n        return aiter_w8a8_block_fp8_linear\n",
                    "    if _use_aiter and mine():\n        return mine_too\n    if _use_aiter:\n        return aiter_w8a8_block_fp8_linear\n",
                );
            }),
        ];
        for (what, edit) in edits {
            let tree = Tree::fixture(era);
            edit(&tree);
            let before = tree.snapshot();
            for wish in [
                &["--to", "ck"][..],
                &["--to", "triton"],
                &["--to", "ck", "--route", "384,1024"],
            ] {
                for mode in ["overlay", "patch"] {
                    let machine = ["--arch", "gfx950", "--rocm", "7.2", "--mode", mode];
                    let (code, _, stderr) = run("apply", &tree, &[wish, &machine].concat());
                    assert_eq!(code, 11, "{era} {what} {wish:?} {mode}: {stderr}");
                    assert!(stderr.contains('^'), "{stderr}");
                    assert_eq!(tree.snapshot(), before);
                }
            }
            // Below ROCm 7.2 no weight is laid out.
            if what == "constant" && era > "e3" {
                ok(
                    "apply",
                    &tree,
                    &["--to", "triton", "--arch", "gfx950", "--rocm", "7.1"],
                );
            }
        }
    }
}
