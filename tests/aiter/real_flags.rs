//! Scripts, keys and flags of real trees: what was read in aiter's source at four revisions, and what is found here.

use camino::Utf8PathBuf;
use gemmtune::problem::Op;
use gemmtune::tune::aiter::Script;
use gemmtune::tune::aiter::flags::Takes;

use crate::real::trees;

/// Revision, operation, folder of its script below `csrc`, mode, key columns, what `--libtype` takes (`list`: a list
/// that the script checks itself), whether there is `--blockPerCu`.
const KNOWN: &str = "
v0.1.9   gemm_a8w8_blockscale             ck_gemm_a8w8_blockscale             -            cu_num,M,N,K               -                           no
v0.1.9   gemm_a8w8_blockscale_bpreshuffle ck_gemm_a8w8_blockscale_bpreshuffle -            cu_num,M,N,K               -                           no
v0.1.9   gemm_a8w8_bpreshuffle            ck_gemm_a8w8_bpreshuffle            -            cu_num,M,N,K,q_dtype_w     list                        no
v0.1.9   gemm_a8w8                        ck_gemm_a8w8                        -            cu_num,M,N,K               -                           no
v0.1.9   gemm_a4w4                        ck_gemm_a4w4_blockscale             -            cu_num,M,N,K               -                           no
303a583c gemm_a8w8_blockscale             ck_gemm_a8w8_blockscale             -            cu_num,M,N,K               all,asm,both,ck,cktile      yes
303a583c gemm_a8w8_blockscale_bpreshuffle ck_gemm_a8w8_blockscale             --preshuffle cu_num,M,N,K               all,asm,both,ck,cktile      yes
303a583c gemm_a8w8_bpreshuffle            ck_gemm_a8w8_bpreshuffle            -            cu_num,M,N,K,q_dtype_w     list                        yes
303a583c gemm_a8w8                        ck_gemm_a8w8                        -            cu_num,M,N,K,q_dtype_w     -                           no
303a583c gemm_a4w4                        ck_gemm_a4w4_blockscale             -            cu_num,M,N,K               -                           no
v0.1.13  gemm_a8w8_blockscale             ck_gemm_a8w8_blockscale             -            gfx,cu_num,M,N,K           all,asm,both,ck,cktile      yes
v0.1.13  gemm_a8w8_blockscale_bpreshuffle ck_gemm_a8w8_blockscale             --preshuffle gfx,cu_num,M,N,K           all,asm,both,ck,cktile      yes
v0.1.13  gemm_a8w8_bpreshuffle            ck_gemm_a8w8_bpreshuffle            -            gfx,cu_num,M,N,K,q_dtype_w list                        yes
v0.1.13  gemm_a8w8                        ck_gemm_a8w8                        -            gfx,cu_num,M,N,K,q_dtype_w -                           no
v0.1.13  gemm_a4w4                        ck_gemm_a4w4_blockscale             -            gfx,cu_num,M,N,K           -                           no
HEAD     gemm_a8w8_blockscale             ck_gemm_a8w8_blockscale             -            gfx,cu_num,M,N,K           all,asm,both,ck,cktile,opus yes
HEAD     gemm_a8w8_blockscale_bpreshuffle ck_gemm_a8w8_blockscale             --preshuffle gfx,cu_num,M,N,K           all,asm,both,ck,cktile,opus yes
HEAD     gemm_a8w8_bpreshuffle            ck_gemm_a8w8_bpreshuffle            -            gfx,cu_num,M,N,K,q_dtype_w list                        yes
HEAD     gemm_a8w8                        ck_gemm_a8w8                        -            gfx,cu_num,M,N,K,q_dtype_w -                           no
HEAD     gemm_a4w4                        ck_gemm_a4w4_blockscale             -            gfx,cu_num,M,N,K           -                           no
";

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn every_flag_table_of_real_trees_is_recognised() {
    let trees = trees();
    for line in KNOWN.lines().filter(|line| !line.is_empty()) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        let [revision, op, folder, mode, keys, libtype, block_per_cu] = cells[..] else {
            panic!("{line}");
        };
        let tree = &trees[revision];
        let what = format!("{op} at {revision}");
        let op: Op = op.parse().unwrap();
        let script = Script::find(tree, op).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(
            script.path.parent().unwrap(),
            tree.join("csrc").join(folder),
            "{what}"
        );
        assert_eq!(script.mode.unwrap_or("-"), mode, "{what}");
        assert_eq!(script.keys.join(","), keys, "{what}");
        let flag = |name: &str| script.flags.get(name);
        let takes = |name: &str| flag(name).map(|flag| flag.takes);
        for name in [
            "-i",
            "--untune_file",
            "-o",
            "--tune_file",
            "-o2",
            "--mp",
            "--errRatio",
            "--batch",
        ] {
            assert_eq!(takes(name), Some(Takes::One), "{what} {name}");
        }
        for name in ["-k", "--splitK", "--all", "-v", "--verbose"] {
            assert_eq!(takes(name), Some(Takes::Nothing), "{what} {name}");
        }
        let old = revision == "v0.1.9";
        assert_eq!(
            takes("--sort"),
            Some(if old { Takes::Nothing } else { Takes::One }),
            "{what}"
        );
        for name in ["--timeout", "--warmup", "--iters"] {
            assert_eq!(takes(name), (!old).then_some(Takes::One), "{what} {name}");
        }
        for name in ["--shape_grouped", "--compare", "--update_improved"] {
            assert_eq!(
                takes(name),
                (!old).then_some(Takes::Nothing),
                "{what} {name}"
            );
        }
        assert_eq!(
            takes("--run_config"),
            (!old).then_some(Takes::Optional),
            "{what}"
        );
        assert_eq!(
            takes("--blockPerCu"),
            (block_per_cu == "yes").then_some(Takes::Several),
            "{what}"
        );
        let choices = flag("--libtype").map(|flag| {
            let mut choices = flag.choices.clone();
            choices.sort_unstable();
            choices.join(",")
        });
        let wanted = match libtype {
            "-" => None,
            "list" => Some(""),
            choices => Some(choices),
        };
        assert_eq!(choices.as_deref(), wanted, "{what}");
        let timeout = flag("--timeout").and_then(|flag| flag.default.clone());
        let default = match revision {
            "v0.1.9" => None,
            "HEAD" => Some("1800"),
            _ => Some("None"),
        };
        assert_eq!(timeout.as_deref(), default, "{what}");
    }
    let traits = |revision: &str| {
        let script = Script::find(&trees[revision], Op::Blockscale).unwrap();
        [
            script.poisons_batches(),
            script.counts_queueing(),
            script.shares_outputs(),
            script.obeys_split_k,
        ]
    };
    assert_eq!(traits("v0.1.9"), [true, true, true, false]);
    assert_eq!(traits("303a583c"), [true, true, true, false]);
    assert_eq!(traits("v0.1.13"), [false, true, true, true]);
    assert_eq!(traits("HEAD"), [false, false, false, true]);
    let libraries = |revision: &str, op| {
        let script = Script::find(&trees[revision], op).unwrap();
        script.libraries.map(|known| known.len())
    };
    assert_eq!(libraries("v0.1.9", Op::Blockscale), None);
    assert_eq!(libraries("303a583c", Op::Blockscale), Some(2));
    assert_eq!(libraries("303a583c", Op::BlockscaleBpreshuffle), Some(3));
    assert_eq!(
        libraries("303a583c", Op::Bpreshuffle),
        Some(3),
        "no assembly"
    );
    assert_eq!(libraries("HEAD", Op::BlockscaleBpreshuffle), Some(6));
    assert_eq!(libraries("HEAD", Op::A8w8), None);
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_wheel_keeps_its_scripts_elsewhere() {
    // `aiter_meta/csrc` beside the package, as `setup.py` lays it out.
    let keep = tempfile::tempdir().unwrap();
    let site = Utf8PathBuf::try_from(keep.path().join("site-packages")).unwrap();
    fs_err::create_dir_all(site.join("aiter_meta")).unwrap();
    let tree = &trees()["303a583c"];
    for (from, to) in [("aiter", "aiter"), ("csrc", "aiter_meta/csrc")] {
        std::os::unix::fs::symlink(tree.join(from), site.join(to)).unwrap();
    }
    let script = Script::find(&site, Op::Blockscale).unwrap();
    assert!(
        script.path.starts_with(site.join("aiter_meta")),
        "{}",
        script.path
    );
}
