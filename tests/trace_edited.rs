//! `gemmtune trace` and `switch` on edited trees: the truth, or a refusal at the line.

mod trees;

use serde_json::Value;
use trees::{FP8, FP8_UTILS, Tree, gemmtune};

const TRITON: &str = "    from aiter.ops.triton.gemm_a8w8_blockscale import gemm_a8w8_blockscale\n";
const PREDICATE: &str = "use_aiter_triton_gemm_w8a8_tuned_gfx950";
const DECIDED: &str = "    if use_triton:\n";

/// A reduced tree with `from` replaced by `to` in `file`, or with `to` at its end where `from` is empty.
fn edited(fixture: &str, file: &str, from: &str, to: &str) -> Tree {
    let tree = Tree::fixture(fixture);
    if from.is_empty() {
        tree.write(file, &format!("{}\n{to}\n", tree.text(file)));
    } else {
        tree.replace(file, from, to);
    }
    tree
}

/// Era, kernel per (arch, ROCm) and means of forcing CK per arch, as one line.
fn traced(tree: &Tree) -> String {
    let (code, stdout, stderr) = gemmtune(&["trace", tree.root.as_str(), "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let document: Value = serde_json::from_str(&stdout).unwrap();
    let texts = |list: &str, keys: &[&str]| {
        let items = document[list].as_array().unwrap();
        let line = |item: &Value| {
            let words = keys.iter().map(|key| item[*key].as_str().unwrap());
            words.collect::<Vec<_>>().join(" ")
        };
        items.iter().map(line).collect::<Vec<_>>().join(", ")
    };
    format!(
        "{}: {}; {}",
        document["era"].as_str().unwrap(),
        texts("paths", &["arch", "rocm", "kernel"]),
        texts("force_ck", &["means"])
    )
}

#[test]
fn names_bound_where_nobody_follows_are_refused_at_that_line() {
    let ck = "triton_gemm_a8w8_blockscale = ck_gemm_a8w8_blockscale";
    let held = "            self.w8a8_block_fp8_linear = dispatch_w8a8_block_fp8_linear()\n";
    let mut all = Vec::new();
    for (file, from, to) in [
        (FP8_UTILS, "", "globals()['x'] = 1"),
        (FP8_UTILS, "", &format!("if _use_aiter:\n    exec('{ck}')")),
        (
            FP8_UTILS,
            "",
            "setattr(sys.modules[__name__], 'triton_gemm_a8w8_blockscale', ck_gemm_a8w8_blockscale)",
        ),
        (
            FP8_UTILS,
            "",
            "module.triton_gemm_a8w8_blockscale = ck_gemm_a8w8_blockscale",
        ),
        (
            FP8_UTILS,
            "",
            &format!("def swap():\n    global triton_gemm_a8w8_blockscale\n    {ck}"),
        ),
        (FP8_UTILS, "", "if _use_aiter:\n    set_force_ck_w8a8(True)"),
        (FP8_UTILS, "", "del triton_gemm_a8w8_blockscale"),
        (FP8_UTILS, "", "del aiter_w8a8_block_fp8_linear"),
        (FP8_UTILS, &format!("def {PREDICATE}("), "def renamed("),
        (
            FP8_UTILS,
            "    from aiter import gemm_a8w8_blockscale as ck_gemm_a8w8_blockscale\n",
            "    from .aiter import gemm_a8w8_blockscale as ck_gemm_a8w8_blockscale\n",
        ),
        (FP8, held, "            self.w8a8_block_fp8_linear = mine\n"),
        (
            FP8,
            held,
            &format!(
                "{held}            if ours():\n                self.w8a8_block_fp8_linear = mine\n"
            ),
        ),
        (FP8, held, "            pass\n"),
        (FP8, "", "fp8_utils.set_force_ck_w8a8(True)"),
        (
            FP8,
            "",
            "fp8_utils.triton_gemm_a8w8_blockscale = aiter.gemm_a8w8_blockscale",
        ),
    ] {
        let tree = edited("e5", file, from, to);
        let (code, _, said) = gemmtune(&["trace", tree.root.as_str()]);
        assert_eq!(code, 11, "{to}: {said}");
        all.push(tree.said(&said));
    }
    insta::assert_snapshot!("names_bound_where_nobody_follows", all.join("\n"));
}

#[test]
fn a_star_behind_the_kernel_imports_is_refused() {
    let star = format!("{TRITON}    from aiter import *\n");
    let tree = edited("e1", FP8_UTILS, TRITON, &star);
    let (code, _, said) = gemmtune(&["trace", tree.root.as_str()]);
    assert_eq!(code, 11, "{said}");
    insta::assert_snapshot!(tree.said(&said), @"
    error: a `*` may bind the kernels' names again
      --> [tree]/sglang/srt/layers/quantization/fp8_utils.py:29:23
       |
    29 |     from aiter import *
       |                       ^ what runs under this name is not, or may not be, what was read
       |
       = note: names bound by plain statements, as every SGLang release has them

    hint: known are SGLang 0.5.5 to 0.5.23; nothing was changed, and nothing is guessed
    ");
    // In front of them it binds nothing that stays.
    let star = format!("    from aiter import *\n{TRITON}");
    assert!(traced(&edited("e1", FP8_UTILS, TRITON, &star)).starts_with("E1: gfx942 any triton"));
}

#[test]
fn what_is_edited_openly_is_followed() {
    let none = "gfx942 any triton, gfx950 any triton; overlay, overlay";
    let ck = "gfx942 any ck, gfx950 any ck; none, none";
    for (from, to, expected) in [
        (
            TRITON,
            &format!("{TRITON}    if 0:\n        from aiter import gemm_a8w8_blockscale\n")[..],
            none,
        ),
        (
            TRITON,
            &format!(
                "{TRITON}    if TYPE_CHECKING:\n        from aiter import gemm_a8w8_blockscale\n"
            ),
            none,
        ),
        (
            TRITON,
            &format!("{TRITON}    if True:\n        from aiter import gemm_a8w8_blockscale\n"),
            ck,
        ),
        (
            TRITON,
            &format!("{TRITON}    gemm_a8w8_blockscale = aiter.gemm_a8w8_blockscale\n"),
            ck,
        ),
    ] {
        let said = traced(&edited("e1", FP8_UTILS, from, to));
        assert_eq!(said.split_once(": ").unwrap().1, expected, "{to}");
    }
    for (from, to, expected) in [
        (
            DECIDED,
            &format!("    use_triton &= False\n{DECIDED}")[..],
            "gfx942 any depends, gfx950 <7.2 depends, gfx950 >=7.2 depends; overlay, refused",
        ),
        (
            DECIDED,
            &format!("    use_triton = False\n{DECIDED}"),
            "gfx942 any ck, gfx950 <7.2 ck, gfx950 >=7.2 bpreshuffle; none, none",
        ),
        // The means of its era would change nothing here.
        (
            DECIDED,
            &format!("    use_triton = True\n{DECIDED}"),
            "gfx942 any triton, gfx950 any triton; overlay, refused",
        ),
        (
            &format!("def {PREDICATE}("),
            &format!(
                "def is_gfx95_supported():\n    return False\n\n\n_use_aiter_gfx95 = is_gfx95_supported()\n\n\ndef {PREDICATE}("
            ),
            "gfx942 any triton, gfx950 <7.2 triton, gfx950 >=7.2 depends; overlay, refused",
        ),
    ] {
        let said = traced(&edited("e5", FP8_UTILS, from, to));
        assert_eq!(said.split_once(": ").unwrap().1, expected, "{to}");
    }
    let empty = Tree::fixture("e4");
    let list = "[\n        (512, 7168),\n        (7168, 2048),\n    ]";
    empty.replace(FP8_UTILS, list, "[]");
    insta::assert_snapshot!(traced(&empty), @"E4: gfx942 any triton, gfx950 <7.2 ck, gfx950 >=7.2 bpreshuffle; overlay, none");
}

#[test]
fn nothing_to_do_is_said_only_of_a_tree_that_does_it() {
    let quant = "    aiter_per1x128_quant = ";
    let ck = "    triton_gemm_a8w8_blockscale = ck_gemm_a8w8_blockscale\n";
    let tree = edited("e5", FP8_UTILS, quant, &format!("{ck}{quant}"));
    let before = tree.snapshot();
    let triton = [
        "switch",
        "apply",
        tree.root.as_str(),
        "--to",
        "triton",
        "--arch",
        "gfx942",
    ];
    let (code, _, said) = gemmtune(&triton);
    assert_eq!(code, 11, "{said}");
    insta::assert_snapshot!(tree.said(&said), @r#"
    error: this tree was edited: with "Triton is what this tree calls on gfx942" it would call ck, which is not what was asked for

    hint: nothing was changed; `--mode overlay` leaves the tree alone
    "#);
    let (code, said, _) = gemmtune(&[
        "switch",
        "apply",
        Tree::fixture("e5").root.as_str(),
        "--to",
        "triton",
        "--arch",
        "gfx942",
    ]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(tree.snapshot(), before);
}

#[test]
fn an_answer_about_a_name_is_void_once_the_name_is_bound_again() {
    let tree = edited(
        "e5",
        FP8_UTILS,
        DECIDED,
        &format!(
            "    rows = 1\n    if rows > 64:\n        return torch.empty(0)\n    rows = input.shape[0]\n    if rows > 64:\n        use_triton = False\n{DECIDED}"
        ),
    );
    let (code, _, said) = gemmtune(&["trace", tree.root.as_str()]);
    assert_eq!(
        code, 11,
        "the first test's answer says nothing of the second: {said}"
    );
    tree.replace(
        FP8_UTILS,
        "        return torch.empty(0)\n",
        "        raise ValueError\n",
    );
    insta::assert_snapshot!(traced(&tree), @"E5: gfx942 any depends, gfx950 <7.2 depends, gfx950 >=7.2 depends; overlay, overlay");
}
