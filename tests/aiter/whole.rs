//! The program that judges rows of the fused MoE, on `aiter/fused_moe.py` as it stands at 303a583c.

use std::process::Command;

use camino::Utf8Path;
use gemmtune::workload::env::variable;
use serde_json::{Value, json};

use crate::real::trees;
use crate::support::write;

const TAG: &str = "gemmtune-aiter-probe: ";

/// A row for eight tokens, in the names that Python takes for CK's.
const TABLE: &str = "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,doweight_stage1,block_m,ksplit,us1,kernelName1,err1,us2,kernelName2,err2,us,run_1stage,tflops,bw,_tag\n\
    304,8,256,128,8,2,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0,32,0,45.5,moe_ck2stages_gemm1_x,0.0%,31.25,moe_ck2stages_gemm2_x,1.1%,76.75,0,1.0,2.0,\n";

/// The errors of five tokens of eight experts, which the row serves, and of sixteen of nine, a shared one among them, which none
/// does; and what aiter logged.
fn judged(faults: &str) -> (Vec<f64>, String) {
    let keep = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(keep.path()).unwrap();
    let here = Utf8Path::new(env!("CARGO_MANIFEST_DIR"));
    let cpu = here.join("tests/aiter/cpu");
    for entry in cpu.join("jit").read_dir_utf8().unwrap() {
        let path = entry.unwrap().into_path();
        if path.is_file() {
            let text = fs_err::read_to_string(&path).unwrap();
            write(&folder.join("jit").join(path.file_name().unwrap()), &text);
        }
    }
    for (file, name) in [
        ("probe.py", "gemmtune_probe.py"),
        ("fused_moe.py", "fused_moe.py"),
    ] {
        let text = fs_err::read_to_string(here.join("python/aiter_probe").join(file)).unwrap();
        write(&folder.join(name), &text);
    }
    write(&folder.join("table.csv"), TABLE);
    let task = |experts: u32, topk: u32, shared: u32, m: u32| json!({"E": experts, "N": 128, "K": 256, "topk": topk, "shared": shared, "M": m});
    let order = json!({"tasks": [task(8, 2, 0, 5), task(9, 3, 1, 16)], "is_shuffled": true, "times": [0, 1]});
    write(&folder.join("order.json"), &order.to_string());
    let path = format!("{}:{}", cpu.join("bin"), variable("PATH").unwrap());
    let output = Command::new(variable("GEMMTUNE_AITER_PYTHON").expect("tests/aiter/run sets it"))
        .args(["fused_moe.py", "order.json"])
        .current_dir(folder)
        .env("AITER_CONFIG_FMOE", folder.join("table.csv"))
        .env("AITER_JIT_DIR", folder.join("jit"))
        .env("CPU_FAULTS", faults)
        .env("CU_NUM", "304")
        .env("GPU_ARCHS", "gfx942")
        .env("PATH", path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONPATH", &trees()["303a583c"])
        .env("ROCM_HOME", &cpu)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let answers = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| Some(line.split_once(TAG)?.1.to_owned()))
        .map(|line| serde_json::from_str::<Value>(&line).unwrap())
        .filter_map(|line| line.get("done").cloned())
        .map(|done| {
            done["error"]
                .as_f64()
                .unwrap_or_else(|| panic!("{done}\n{said}"))
        })
        .collect();
    (answers, said)
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn the_whole_operation_is_right_against_a_reference_of_its_own_and_a_wrong_kernel_is_found_out() {
    let (errors, said) = judged("");
    assert_eq!(errors.len(), 2, "{said}");
    assert!(errors.iter().all(|error| *error < 0.02), "{errors:?}");
    let row = "using 2stage (kernelName1='moe_ck2stages_gemm1_x', kernelName2='moe_ck2stages_gemm2_x') for (304, 8, 256, 128, 8, 2,";
    assert!(said.contains(row), "{said}");
    assert!(
        said.contains("using 2stage default for (304, 16, 256, 128, 9, 3,"),
        "{said}"
    );
    let (errors, _) = judged("wrong@moe:moe_ck2stages_gemm1_x:*");
    assert!(errors[0] > 0.3 && errors[1] < 0.02, "{errors:?}");
    let (errors, _) = judged("wrong@moe:moe_ck2stages_gemm2_x:*");
    assert!(errors[0] > 0.3 && errors[1] < 0.02, "{errors:?}");
}
