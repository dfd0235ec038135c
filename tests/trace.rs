//! `gemmtune trace` on reduced trees, on edited ones, and on released wheels.

mod trees;

use serde_json::Value;
use trees::{FP8_UTILS, Tree, gemmtune};

fn trace(tree: &Tree) -> Value {
    let (code, stdout, stderr) = gemmtune(&["trace", tree.root.as_str(), "--json"]);
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

/// Kernel per (arch, rocm), as one line.
fn paths(document: &Value) -> String {
    document["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|path| {
            let text = |key: &str| path[key].as_str().unwrap().to_owned();
            format!("{} {} {}", text("arch"), text("rocm"), text("kernel"))
        })
        .collect::<Vec<_>>()
        .join(", ")
}

fn refusal(tree: &Tree) -> String {
    let (code, stdout, stderr) = gemmtune(&["trace", tree.root.as_str(), "--json"]);
    assert_eq!(code, 11, "{stdout}{stderr}");
    let document: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(document["error"]["exit_code"], 11, "{stdout}");
    tree.said(&stderr)
}

#[test]
fn a_failure_is_the_one_json_document() {
    let failed = |arguments: &[&str]| -> Value {
        let (code, stdout, stderr) = gemmtune(arguments);
        let document: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(document["error"]["exit_code"], code, "{stdout}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        document["error"].clone()
    };
    let missing = failed(&["trace", "no-such-tree", "--json"]);
    assert_eq!(missing["exit_code"], 10);
    insta::assert_snapshot!(missing["message"].as_str().unwrap(), @"`no-such-tree` holds no `sglang` package");
    assert_eq!(missing["hints"].as_array().unwrap().len(), 1);
    assert_eq!(failed(&["trace", "--json"])["exit_code"], 2);

    let (code, stdout, _) = gemmtune(&["trace", "no-such-tree"]);
    assert_eq!((code, stdout.as_str()), (10, ""));
}

const TRITON: &str = "gfx942 any triton, gfx950 any triton";
const E3: &str = "gfx942 any triton, gfx950 <7.2 triton, gfx950 >=7.2 depends";
const E4: &str = "gfx942 any triton, gfx950 <7.2 depends, gfx950 >=7.2 depends";
const E7: &str = "gfx942 any depends, gfx950 <7.2 depends, gfx950 >=7.2 depends";

#[test]
fn every_dispatch_structure_is_recognised_and_followed() {
    for (name, era, expected) in [
        ("e0", "E0", "gfx942 any ck, gfx950 any ck"),
        ("e1", "E1", TRITON),
        ("e2", "E2", "gfx942 any triton, gfx950 any depends"),
        ("e3", "E3", E3),
        ("e4", "E4", E4),
        ("e5", "E5", E4),
        ("e6", "E6", E4),
        ("e7", "E7", E7),
        ("e7b", "E7b", E7),
    ] {
        let document = trace(&Tree::fixture(name));
        assert_eq!(document["era"], era);
        assert_eq!(paths(&document), expected, "{name}");
    }
}

#[test]
fn what_decides_is_quoted_from_the_tree() {
    let document = trace(&Tree::fixture("e7"));
    let because = |index: usize| {
        document["paths"][index]["because"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    insta::assert_snapshot!([0, 1, 2].map(because).join("\n"), @"
    triton when `not (envs.SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK.get())`, ck when `envs.SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK.get()`; decided by the environment (`SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK`)
    triton when `use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k) or ( _ck_safe_m is not None and input_2d.shape[0] > _ck_safe_m )`, ck when `not (use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k) or ( _ck_safe_m is not None and input_2d.shape[0] > _ck_safe_m ))`; decided by the number of rows M and the shape (`use_aiter_triton_gemm_w8a8_tuned_gfx950`)
    triton when `use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k)`, bpreshuffle when `not (use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k))`; decided by the shape (`use_aiter_triton_gemm_w8a8_tuned_gfx950`)
    ");
    // Without SGLang's list of variables nobody knows what holds while it is unset.
    assert_eq!(document["paths"][0]["by_default"], Value::Null);
    for (default, kernel) in [("False", "triton"), ("True", "ck")] {
        let tree = Tree::fixture("e7");
        tree.write(
            "sglang/srt/environ.py",
            &format!(
                "class Envs:\n    OTHER = EnvBool(True)\n    SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK = EnvBool({default})\n"
            ),
        );
        let document = trace(&tree);
        assert_eq!(document["paths"][0]["by_default"], kernel);
        assert_eq!(document["paths"][1]["by_default"], Value::Null, "M decides");
    }
    assert_eq!(document["force_ck"][0]["means"], "env");
    assert_eq!(document["triton_shapes"][0], serde_json::json!([512, 7168]));
    assert_eq!(document["safe_m"][1], serde_json::json!([4096, 1024, 4096]));
    let exits = &trace(&Tree::fixture("e7b"))["side_exits"];
    insta::assert_snapshot!(format!("{exits:#}"), @r#"
    [
      {
        "file": "srt/layers/quantization/fp8_utils.py",
        "line": 92,
        "what": "`return input.new_empty(output_shape, dtype=input.dtype)` if `input_2d.shape[0] == 0`"
      },
      {
        "file": "srt/layers/quantization/fp8_utils.py",
        "line": 101,
        "what": "`return out.view(*output_shape)` if `out is not None`"
      }
    ]
    "#);
}

#[test]
fn shapes_that_get_nan_from_ck_are_named_where_no_guard_is() {
    let nan = |name: &str| {
        let notes = trace(&Tree::fixture(name))["notes"].clone();
        let notes: Vec<String> = serde_json::from_value(notes).unwrap();
        notes.into_iter().find(|note| note.contains("NaN"))
    };
    let mut notes = ["e0", "e2", "e4", "e5"]
        .map(|bare| nan(bare).unwrap())
        .to_vec();
    notes.dedup();
    insta::assert_snapshot!(notes.join("\n"), @"on gfx95x below ROCm 7.2 CK returns NaN for M > 2048 with N=2560, K=4096, M > 4096 with N=4096, K=1024, M > 2048 with N=4096, K=2048, M > 512 with N=4608, K=4096, and the release has no guard there: `gemmtune switch apply --to ck` adds it");
    // 0.5.15.post1 guards two shapes of the four; E1 and E3 call no CK there.
    insta::assert_snapshot!(nan("e6").unwrap(), @"on gfx95x below ROCm 7.2 CK returns NaN for M > 2048 with N=4096, K=2048, M > 512 with N=4608, K=4096, and the release has no guard there: `gemmtune switch apply --to ck` adds it");
    assert_eq!((nan("e1"), nan("e3")), (None, None));
    let all = Tree::fixture("e6");
    let row = "    (4096, 1024): 4096,\n";
    let rows = format!("{row}    (4096, 2048): 2048,\n    (4608, 4096): 512,\n");
    all.replace(FP8_UTILS, row, &rows);
    assert!(!trace(&all)["notes"].to_string().contains("NaN"));
}

#[test]
fn a_kernel_that_is_returned_early_counts() {
    let tree = Tree::fixture("e1");
    tree.replace(
        FP8_UTILS,
        "    output = gemm_a8w8_blockscale(",
        "    if input_2d.shape[0] <= 256:\n        from aiter import gemm_a8w8_blockscale as ck\n        return ck(q_input, weight, x_scale, weight_scale)\n    output = gemm_a8w8_blockscale(",
    );
    let path = &trace(&tree)["paths"][0];
    assert_eq!(path["kernel"], "depends");
    insta::assert_snapshot!(path["because"].as_str().unwrap(), @"ck when `input_2d.shape[0] <= 256`, triton when `not (input_2d.shape[0] <= 256)`; decided by the number of rows M");
}

#[test]
fn a_name_that_an_import_may_or_may_not_bind_is_refused_at_that_import() {
    let tree = Tree::fixture("e1");
    let import = "from aiter.ops.triton.gemm_a8w8_blockscale import gemm_a8w8_blockscale\n";
    tree.replace(
        FP8_UTILS,
        &format!("    {import}"),
        &format!("    try:\n        {import}    except ImportError:\n        from aiter import gemm_a8w8_blockscale\n"),
    );
    insta::assert_snapshot!(refusal(&tree), @"
    error: which kernel this name means is decided when the module is imported
      --> [tree]/sglang/srt/layers/quantization/fp8_utils.py:23:1
       |
    23 | if _use_aiter:
       | ^^^^^^^^^^^^^^ binds a GEMM under a condition that the tree does not fix
       |
       = note: one binding for each kernel name, as every SGLang release has it

    hint: known are SGLang 0.5.5 to 0.5.23; nothing was changed, and nothing is guessed
    ");
    let tree = Tree::fixture("e1");
    tree.replace(
        FP8_UTILS,
        "def aiter_w8a8_block_fp8_linear(",
        "@functools.cache\ndef aiter_w8a8_block_fp8_linear(",
    );
    insta::assert_snapshot!(refusal(&tree), @"
    error: a decorator is on `aiter_w8a8_block_fp8_linear`
      --> [tree]/sglang/srt/layers/quantization/fp8_utils.py:53:5
       |
    53 | def aiter_w8a8_block_fp8_linear(
       |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^ what is called under this name is what the decorator makes of it
       |
       = note: a plain `def`, as SGLang 0.5.5 to 0.5.23 have it

    hint: known are SGLang 0.5.5 to 0.5.23; nothing was changed, and nothing is guessed
    ");
}

#[test]
fn evidence_quotes_lines_that_are_there() {
    let tree = Tree::fixture("e4");
    for line in trace(&tree)["evidence"].as_array().unwrap() {
        let text = fs_err::read_to_string(line["file"].as_str().unwrap()).unwrap();
        let number = usize::try_from(line["line"].as_u64().unwrap()).unwrap();
        assert_eq!(
            text.lines().nth(number - 1).unwrap().trim(),
            line["text"].as_str().unwrap()
        );
    }
}

#[test]
fn a_byte_order_mark_tabs_and_carriage_returns_change_nothing() {
    let tree = Tree::fixture("e6");
    let text = tree
        .text(FP8_UTILS)
        .replace("    ", "\t")
        .replace('\n', "\r\n");
    tree.write(FP8_UTILS, &format!("\u{feff}{text}"));
    let document = trace(&tree);
    assert_eq!(
        (document["era"].as_str(), paths(&document).as_str()),
        (Some("E6"), E4)
    );
}

#[test]
fn a_hand_swapped_import_is_reported_as_ck() {
    let tree = Tree::fixture("e1");
    tree.replace(
        FP8_UTILS,
        "    from aiter.ops.triton.gemm_a8w8_blockscale import gemm_a8w8_blockscale\n",
        "    from aiter import gemm_a8w8_blockscale\n",
    );
    let document = trace(&tree);
    assert_eq!(document["era"], "E0");
    assert_eq!(document["patched_from"], "E1");
    assert_eq!(paths(&document), "gfx942 any ck, gfx950 any ck");
    // Two releases before 0.5.6 came with this structure: nobody edited those.
    tree.write("sglang/version.py", "__version__ = \"0.5.5.post2\"\n");
    let document = trace(&tree);
    assert_eq!(document["patched_from"], serde_json::Value::Null);
    insta::assert_snapshot!(format!("{:#}", document["notes"]), @r#"
    [
      "paths hold with SGLANG_USE_AITER=1 and the aiter backend (the default then); without it ROCm runs SGLang's own Triton kernel",
      "SGLang 0.5.5.post2 is older than 0.5.6: its block-FP8 linear calls CK as its default, with no Triton path beside it, so there is no safe baseline to compare with",
      "on gfx95x below ROCm 7.2 CK returns NaN for M > 2048 with N=2560, K=4096, M > 4096 with N=4096, K=1024, M > 2048 with N=4096, K=2048, M > 512 with N=4608, K=4096, and the release has no guard there: `gemmtune switch apply --to ck` adds it"
    ]
    "#);
}

#[test]
fn the_last_of_two_imports_of_one_name_counts() {
    let tree = Tree::fixture("e1");
    tree.replace(
        FP8_UTILS,
        "    from aiter import gemm_a8w8_bpreshuffle, get_hip_quant\n",
        "    from aiter import gemm_a8w8_blockscale, gemm_a8w8_bpreshuffle, get_hip_quant\n",
    );
    let document = trace(&tree);
    assert_eq!(
        (document["era"].as_str(), paths(&document).as_str()),
        (Some("E1"), TRITON)
    );
}

#[test]
fn renamed_names_and_imports_in_other_blocks_are_followed() {
    let tree = Tree::fixture("e4");
    let text = tree
        .text(FP8_UTILS)
        .replace("ck_gemm_a8w8_blockscale", "composable")
        .replace("triton_gemm_a8w8_blockscale", "portable")
        .replace(
            "    from aiter import gemm_a8w8_blockscale as composable\n",
            "    try:\n        from aiter import gemm_a8w8_blockscale as composable\n    except ImportError:\n        raise\n",
        );
    tree.write(FP8_UTILS, &text);
    let document = trace(&tree);
    assert_eq!(
        (document["era"].as_str(), paths(&document).as_str()),
        (Some("E4"), E4)
    );

    let tree = Tree::fixture("e2");
    let import = "    from aiter.ops.triton.gemm_a8w8_blockscale import (\n        gemm_a8w8_blockscale as triton_gemm_a8w8_blockscale,\n    )\n";
    tree.replace(FP8_UTILS, import, "");
    tree.replace(
        FP8_UTILS,
        "    input_2d = input.view(-1, input.shape[-1])\n    output_shape = [*input.shape[:-1], weight.shape[0]]\n",
        &format!("{import}    input_2d = input.view(-1, input.shape[-1])\n    output_shape = [*input.shape[:-1], weight.shape[0]]\n"),
    );
    assert_eq!(
        trace(&tree)["era"],
        "E2",
        "an import inside the function binds too"
    );
}

#[test]
fn an_edited_branch_is_reported_as_it_is_and_not_as_its_era() {
    let tree = Tree::fixture("e4");
    tree.replace(
        FP8_UTILS,
        "    else:\n        use_triton = True\n",
        "    else:\n        use_triton = False\n",
    );
    let document = trace(&tree);
    assert_eq!(document["era"], "E4");
    assert!(
        paths(&document).starts_with("gfx942 any ck"),
        "{}",
        paths(&document)
    );

    let tree = Tree::fixture("e4");
    tree.replace(
        FP8_UTILS,
        "    return (n, k) in [\n        (512, 7168),\n        (7168, 2048),\n    ]\n",
        "    return False\n",
    );
    assert_eq!(
        paths(&trace(&tree)),
        "gfx942 any triton, gfx950 <7.2 ck, gfx950 >=7.2 bpreshuffle"
    );

    let tree = Tree::fixture("e5");
    tree.replace(
        FP8_UTILS,
        "    aiter_per1x128_quant = ",
        "    triton_gemm_a8w8_blockscale = ck_gemm_a8w8_blockscale\n    aiter_per1x128_quant = ",
    );
    assert!(paths(&trace(&tree)).starts_with("gfx942 any ck"));
}

const CALL: &str = "    output = gemm_a8w8_blockscale_op(";

/// The line under the caret of a refusal.
#[test]
fn a_dispatch_that_may_lead_elsewhere_is_refused_at_that_line() {
    let auto = "    if _use_aiter:\n        return aiter_w8a8_block_fp8_linear\n";
    let before = |more: &str| format!("    if {more}:\n        return my_linear\n{auto}");
    let mut said = Vec::new();
    for (name, from, to) in [
        ("e1", auto, before("_use_aiter and is_gfx95_supported()")),
        (
            "e4",
            auto,
            before("_use_aiter and os.environ.get(\"MINE\")"),
        ),
        ("e7b", auto, before("is_hip()")),
        (
            "e4",
            "def dispatch_w8a8_block_fp8_linear(",
            "@cache\ndef dispatch_w8a8_block_fp8_linear(".to_owned(),
        ),
    ] {
        let tree = Tree::fixture(name);
        tree.replace(FP8_UTILS, from, &to);
        said.push(refusal(&tree));
    }
    for more in [
        "aiter_w8a8_block_fp8_linear = logged(aiter_w8a8_block_fp8_linear)",
        "from mylib import aiter_w8a8_block_fp8_linear",
        "from mylib import *",
        "if _use_aiter:\n    def aiter_w8a8_block_fp8_linear(*args, **kwargs):\n        return None",
        "dispatch_w8a8_block_fp8_linear = partial(other)",
        "use_aiter_triton_gemm_w8a8_tuned_gfx950 = lambda n, k: False",
    ] {
        let tree = Tree::fixture("e4");
        tree.write(FP8_UTILS, &format!("{}\n{more}\n", tree.text(FP8_UTILS)));
        said.push(refusal(&tree));
    }
    insta::assert_snapshot!("dispatches_that_may_lead_elsewhere", said.join("\n"));
}

#[test]
fn what_is_no_branch_of_ours_is_let_be() {
    let auto = "    if _use_aiter:\n        return aiter_w8a8_block_fp8_linear\n";
    for branch in [
        "is_blackwell_supported() and new_thing()",
        "deep_gemm_wrapper.READY",
    ] {
        let tree = Tree::fixture("e4");
        let before = paths(&trace(&tree));
        tree.replace(
            FP8_UTILS,
            auto,
            &format!("    if {branch}:\n        return cute_linear\n{auto}"),
        );
        assert_eq!(paths(&trace(&tree)), before, "{branch}");
    }
    // A result may be worked on before it is returned.
    for after in [
        "    output = post(output)\n",
        "    output = output + 1\n",
        "    output = output[:2]\n",
    ] {
        let tree = Tree::fixture("e1");
        tree.replace(
            FP8_UTILS,
            "    if bias is not None:\n        output += bias\n\n    return output.to(",
            &format!(
                "{after}    if bias is not None:\n        output += bias\n\n    return output.to("
            ),
        );
        assert_eq!(paths(&trace(&tree)), TRITON, "{after}");
    }
}

#[test]
fn structure_that_is_not_understood_is_refused_with_a_caret() {
    let triton = "    from aiter.ops.triton.gemm_a8w8_blockscale import (\n        gemm_a8w8_blockscale as triton_gemm_a8w8_blockscale,\n    )\n";
    let mut said = Vec::new();
    for (name, from, to) in [
        ("e2", triton, "    # Triton is off\n"),
        (
            "e4",
            triton,
            "    from mylib import fast as triton_gemm_a8w8_blockscale\n",
        ),
        (
            "e1",
            "    from aiter.ops.triton.gemm_a8w8_blockscale import gemm_a8w8_blockscale\n",
            "    if torch.rand(1) > 0.5:\n        from aiter.ops.triton.gemm_a8w8_blockscale import gemm_a8w8_blockscale\n    else:\n        from aiter import gemm_a8w8_blockscale\n",
        ),
        (
            "e1",
            "    output = gemm_a8w8_blockscale(",
            "    output = pick(gemm_a8w8_blockscale)(",
        ),
        (
            "e3",
            "def aiter_w8a8_block_fp8_linear(",
            "def aiter_w8a8_block_fp8_linear_v2(",
        ),
        (
            "e0",
            "        return aiter_w8a8_block_fp8_linear\n",
            "        return None\n",
        ),
        (
            "e6",
            "    if use_triton:\n        gemm_a8w8_blockscale_op = triton_gemm_a8w8_blockscale\n",
            "    match use_triton:\n        case _:\n            pass\n    if use_triton:\n        gemm_a8w8_blockscale_op = triton_gemm_a8w8_blockscale\n",
        ),
        ("e0", "def dispatch", "def def dispatch"),
        // What binds a name that decides, however it does.
        (
            "e4",
            CALL,
            "    for gemm_a8w8_blockscale_op in kernels():\n        pass\n    output = gemm_a8w8_blockscale_op(",
        ),
        (
            "e4",
            CALL,
            "    with picked() as gemm_a8w8_blockscale_op:\n        pass\n    output = gemm_a8w8_blockscale_op(",
        ),
        (
            "e4",
            CALL,
            "    assert True\n    if (gemm_a8w8_blockscale_op := pick(n, k)) is None:\n        pass\n    output = gemm_a8w8_blockscale_op(",
        ),
        // A kernel that is called, and something else that is returned.
        (
            "e4",
            CALL,
            "    output = torch.ops.mylib.fast(input)\n    unused = gemm_a8w8_blockscale_op(",
        ),
        (
            "e4",
            CALL,
            "    if mylib.takes(n, k):\n        return mylib.fast(input, weight)\n    output = gemm_a8w8_blockscale_op(",
        ),
    ] {
        let tree = Tree::fixture(name);
        tree.replace(FP8_UTILS, from, to);
        said.push(refusal(&tree));
    }
    insta::assert_snapshot!("structure_that_is_not_understood", said.join("\n"));
}

#[test]
fn a_folder_without_sglang_is_an_environment_failure() {
    let (code, stdout, stderr) = gemmtune(&["trace", "/"]);
    assert_eq!((code, stdout.as_str()), (10, ""), "{stderr}");
    insta::assert_snapshot!(stderr, @r#"
    error: `/` holds no `sglang` package

    hint: give the folder that `python -c "import sglang; print(sglang.__path__)"` prints
    "#);
}

/// Run with `GEMMTUNE_WHEELS=FOLDER`, after `tests/fetch_wheels.py [--all] FOLDER`.
#[test]
#[ignore = "needs a folder of wheels in GEMMTUNE_WHEELS"]
fn released_wheels_are_traced_as_they_were_read() {
    let table = include_str!("../testdata/trees/dispatch.tsv");
    for tree in trees::wheels() {
        let start = std::time::Instant::now();
        let document = trace(&tree);
        let seconds = start.elapsed().as_secs_f64();
        // The bound is for release builds on an idle machine.
        assert!(cfg!(debug_assertions) || seconds < 1.0, "{seconds} s");
        let row = [
            document["sglang_version"].as_str().unwrap(),
            document["era"].as_str().unwrap(),
            document["file"].as_str().unwrap(),
            document["dispatch"].as_str().unwrap(),
            document["imports"].as_str().unwrap(),
            document["force_ck"][0]["means"].as_str().unwrap(),
            document["force_ck"][1]["means"].as_str().unwrap(),
        ]
        .join("\t");
        let expected = table
            .lines()
            .find(|line| line.starts_with(&format!("{}\t", tree.version)))
            .unwrap();
        assert_eq!(row, expected);
        let kernels = match document["era"].as_str().unwrap() {
            "E0" => "gfx942 any ck, gfx950 any ck",
            "E1" => TRITON,
            "E2" => "gfx942 any triton, gfx950 any depends",
            "E3" => E3,
            "E4" | "E5" | "E6" => E4,
            _ => E7,
        };
        assert_eq!(paths(&document), kernels, "{}", tree.version);
    }
}

/// Lines lost, doubled and swapped, as a bad merge does it: an answer or a refusal, never a panic.
#[test]
fn a_mangled_tree_is_traced_or_refused() {
    use gemmtune::tree::package::Package;
    for era in ["e0", "e2", "e4", "e7b"] {
        let tree = Tree::fixture(era);
        let text = tree.text(FP8_UTILS);
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let mut refused = 0;
        for at in 0..lines.len() {
            let mut mangled = lines.clone();
            match at % 3 {
                0 => drop(mangled.remove(at)),
                1 => mangled.insert(at, lines[at]),
                _ => mangled.swap(at, (at + 1) % lines.len()),
            }
            tree.write(FP8_UTILS, &mangled.concat());
            let package = Package::find(&tree.root).unwrap();
            match gemmtune::tree::route::trace(&package) {
                Ok(trace) => assert!(!trace.paths.is_empty()),
                Err(error) => refused += usize::from(!error.to_string().is_empty()),
            }
        }
        assert!(refused > 0, "{era}");
    }
}

#[test]
fn code_that_nests_or_branches_without_end_is_refused() {
    let tree = Tree::fixture("e1");
    let text = tree.text(FP8_UTILS);
    let lines = |count: usize, line: &dyn Fn(usize) -> String| {
        (0..count).map(line).collect::<Vec<_>>().concat()
    };
    let endless = [
        format!("x = {}1\n", "not ".repeat(100_000)),
        format!("x = a{}\n", ".b".repeat(100_000)),
        lines(2000, &|depth| format!("{}if a:\n", " ".repeat(depth))),
        lines(5000, &|at| format!("if a{at}: b{at} = 1\n")),
    ];
    let said = endless.map(|more| {
        tree.write(FP8_UTILS, &format!("{text}{more}"));
        refusal(&tree).lines().next().unwrap().to_owned()
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: a statement without end
    error: a statement without end
    error: blocks nest too deep
    error: too many ways through this code
    ");
}
