//! Shapes, dispatch, graphs and ranks, as recorded and logged.

use super::{PREAMBLE, Scene, only};
use gemmtune::log::record::{CallKind, Record, parse};
use gemmtune::overlay::OverlayOptions;
use gemmtune::store::file::write_atomic;

#[test]
fn both_toggles_give_the_playbooks_lines_and_a_record_file() {
    let scene = Scene::new();
    let said = scene.run(
        &OverlayOptions::capture(scene.records()),
        "
from sglang.srt.distributed import parallel_state
parallel_state.start(0, 8)
from sglang.srt.layers.quantization import fp8
fp8.dispatch_w8a8_block_fp8_linear()
for m in (33, 33, 0): linear(m)
linear((2, 3)[1])
fp8.aiter_w8a8_block_fp8_linear(Tensor(4, 8, 1024), Tensor(384, 1024), [128, 128], None)
",
    );
    let dumps: Vec<_> = said
        .stderr
        .lines()
        .filter(|line| line.contains("[GEMM_shape_dump]"))
        .collect();
    assert_eq!(dumps.len(), 3, "{}", said.stderr);
    assert!(dumps[0].ends_with("M=33 N=384 K=1024 (aiter gemm_a8w8_blockscale / bpreshuffle tune CSV) | csv_row: 33,384,1024,torch.float8_e4m3fn"), "{}", dumps[0]);
    assert!(
        dumps[2].contains("x.shape=(4, 8, 1024)") && dumps[2].contains("csv_row: 32,384,1024"),
        "{}",
        dumps[2]
    );
    let identity = "aiter_w8a8_block_fp8_linear (sglang.srt.layers.quantization.fp8_utils)";
    let dispatch = format!("[Fp8LinearMethod] block_quant w8a8_block_fp8_linear={identity}");
    assert_eq!(
        said.stderr
            .lines()
            .filter(|line| **line == dispatch)
            .count(),
        1,
        "{}",
        said.stderr
    );

    assert_eq!(
        scene.calls(),
        [
            (3, CallKind::Eager, None, 1),
            (32, CallKind::Eager, None, 1),
            (33, CallKind::Eager, None, 2)
        ]
    );
    let lines = scene.lines();
    assert!(
        matches!(parse(lines[0].as_bytes()), Ok(Record::Hello(_))),
        "the first line is the hello: {}",
        lines[0]
    );
    let hellos: Vec<_> = lines
        .iter()
        .filter_map(|line| match parse(line.as_bytes()).unwrap() {
            Record::Hello(hello) => Some((hello.rank, hello.world)),
            _ => None,
        })
        .collect();
    assert_eq!(
        hellos,
        [(None, None), (Some(0), Some(8))],
        "known ranks replace unknown ones"
    );
    assert_eq!(scene.values("dispatch"), [identity]);
    assert_eq!(scene.values("kernel")[0], "triton_gemm_a8w8_blockscale");
    assert!(scene.values("error").is_empty(), "{lines:?}");
}

#[test]
fn per_channel_gemms_are_recorded_where_aiters_is_called_and_nowhere_else() {
    let scene = Scene::new();
    let said = scene.run(
        &OverlayOptions::capture(scene.records()),
        "
from sglang.srt.distributed import parallel_state
parallel_state.start(0, 8)
from sglang.srt.layers.quantization import fp8_utils
fp8_utils.apply_fp8_linear(Tensor(5, 1024), Tensor(1024, 384), None)
fp8_utils.apply_fp8_linear(Tensor(5, 1024), Tensor(1024, 384), None, use_per_token_if_dynamic=True)
for activation in (Tensor(7, 1024), (Tensor(7, 1024), None)):
    fp8_utils.apply_fp8_ptpc_linear(activation, Tensor(384, 1024), None)
import aiter
print(json.dumps(len(aiter.CALLS)))
",
    );
    assert_eq!(only(&said.stdout), 3);
    let dumps: Vec<_> = said
        .stderr
        .lines()
        .filter(|line| line.contains("[GEMM_shape_dump] op=gemm_a8w8_bpreshuffle "))
        .collect();
    assert_eq!(dumps.len(), 2, "{}", said.stderr);
    for (line, row) in dumps.iter().zip(["5,384,1024", "7,384,1024"]) {
        assert!(
            line.ends_with(&format!("csv_row: {row},torch.float8_e4m3fn")),
            "{line}"
        );
    }
    let mut recorded = std::collections::BTreeMap::new();
    for line in scene.lines() {
        if let Record::Calls { shape, count, .. } = parse(line.as_bytes()).unwrap() {
            *recorded.entry(shape.to_string()).or_insert(0) += count;
        }
    }
    let expected = [
        ("gemm_a8w8_bpreshuffle M=5 N=384 K=1024".to_owned(), 1),
        ("gemm_a8w8_bpreshuffle M=7 N=384 K=1024".to_owned(), 2),
    ];
    assert_eq!(recorded, expected.into());
    let utils = "(sglang.srt.layers.quantization.fp8_utils)";
    assert_eq!(
        scene.values("dispatch"),
        [
            format!("apply_fp8_linear {utils}"),
            format!("apply_fp8_ptpc_linear {utils}")
        ]
    );
    for linear in ["apply_fp8_linear", "apply_fp8_ptpc_linear"] {
        let line = format!("[Fp8LinearMethod] per_channel fp8_linear={linear} {utils}");
        assert_eq!(said.stderr.matches(&line).count(), 1, "{}", said.stderr);
    }
    assert!(scene.values("error").is_empty(), "{:?}", scene.lines());
}

#[test]
fn without_the_variables_nothing_is_hooked_and_nothing_is_written() {
    let scene = Scene::new();
    let options = OverlayOptions {
        records: Some(scene.records()),
        ..OverlayOptions::default()
    };
    let said = scene.run(&options, "
from sglang.srt.layers.quantization import fp8, fp8_utils
import sglang.srt.model_executor.cuda_graph_runner
linear(33)
print(json.dumps([hasattr(fp8.aiter_w8a8_block_fp8_linear, '__wrapped__'), hasattr(torch.cuda.CUDAGraph.replay, '__wrapped__'),
    any('gemmtune' in type(finder).__module__ for finder in sys.meta_path)]))
");
    assert_eq!(only(&said.stdout), serde_json::json!([false, false, false]));
    assert_eq!(said.stderr, "");
    assert!(!scene.records().exists());
}

#[test]
fn each_toggle_works_alone() {
    let scene = Scene::new();
    let code = "linear(33)";
    let shapes = scene
        .run(
            &OverlayOptions {
                shapes: true,
                ..OverlayOptions::default()
            },
            code,
        )
        .stderr;
    assert!(
        shapes.contains("[GEMM_shape_dump]") && !shapes.contains("[Fp8LinearMethod]"),
        "{shapes}"
    );
    let dispatch = scene
        .run(
            &OverlayOptions {
                dispatch: true,
                ..OverlayOptions::default()
            },
            code,
        )
        .stderr;
    assert!(
        !dispatch.contains("[GEMM_shape_dump]") && dispatch.contains("[Fp8LinearMethod]"),
        "{dispatch}"
    );
}

#[test]
fn ranks_other_than_zero_record_and_do_not_log() {
    let scene = Scene::new();
    let said = scene.run(
        &OverlayOptions {
            dispatch: false,
            ..OverlayOptions::capture(scene.records())
        },
        "
from sglang.srt.distributed import parallel_state
parallel_state.start(3, 8)
linear(33)
",
    );
    assert_eq!(said.stderr, "");
    assert_eq!(scene.calls(), [(33, CallKind::Eager, None, 1)]);
}

#[test]
fn captured_calls_weigh_as_often_as_their_graph_is_replayed() {
    let scene = Scene::new();
    scene.run(
        &OverlayOptions::capture(scene.records()),
        "
from sglang.srt.model_executor import cuda_graph_runner
runner = cuda_graph_runner.CudaGraphRunner()
runner.capture([1, 4], Tensor(384, 1024))
for batch in (1, 3, 4, 4): assert runner.replay(batch) == 'replayed'
",
    );
    // Largest first: graph 1 holds M = 8 (batch 4, two tokens a request), graph 2 holds M = 2.
    assert_eq!(
        scene.calls(),
        [
            (2, CallKind::Capture, Some(2), 2),
            (2, CallKind::Warmup, None, 2),
            (8, CallKind::Capture, Some(1), 2),
            (8, CallKind::Warmup, None, 2),
        ]
    );
    let mut replays = std::collections::BTreeMap::new();
    let mut captures = Vec::new();
    for line in scene.lines() {
        match parse(line.as_bytes()).unwrap() {
            Record::Replay { bs, tokens, count } => {
                *replays.entry((bs, tokens)).or_insert(0) += count;
            }
            Record::Capture { bs, tokens, count } => captures.push((bs, tokens, count)),
            _ => {}
        }
    }
    assert_eq!(captures, [(1, 8, 1), (2, 2, 1)]);
    assert_eq!(
        replays.into_iter().collect::<Vec<_>>(),
        [((1, 8), 3), ((2, 2), 1)]
    );
    assert_eq!(
        scene.values("batch"),
        [1, 4, 4],
        "each size at once, the rest at exit"
    );
}

#[test]
fn a_call_under_torch_compile_is_left_to_the_compiler() {
    let scene = Scene::new();
    let said = scene.run(
        &OverlayOptions::capture(scene.records()),
        "
torch.compiler.now = True
from sglang.srt.layers.quantization import fp8_utils
print(json.dumps(linear(33)))
",
    );
    assert_eq!(only(&said.stdout), "triton");
    assert!(scene.calls().is_empty());
}

#[test]
fn spawned_ranks_are_hooked_and_write_files_of_their_own() {
    let scene = Scene::new();
    let script = scene.root.join("launch.py");
    write_atomic(
        &script,
        format!(
            "{PREAMBLE}
import multiprocessing
def rank(number):
    from sglang.srt.distributed import parallel_state
    parallel_state.start(number, 2)
    linear(33)
if __name__ == '__main__':
    context = multiprocessing.get_context('spawn')
    ranks = [context.Process(target=rank, args=(number,)) for number in range(2)]
    [rank.start() for rank in ranks], [rank.join() for rank in ranks]
"
        )
        .as_bytes(),
    )
    .unwrap();
    scene.run(
        &OverlayOptions::capture(scene.records()),
        &format!(
            "import runpy; runpy.run_path({:?}, run_name='__main__')",
            script.as_str()
        ),
    );
    let mut ranks: Vec<_> = scene
        .lines()
        .iter()
        .filter_map(|line| match parse(line.as_bytes()).unwrap() {
            Record::Hello(hello) => hello.rank,
            _ => None,
        })
        .collect();
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 1]);
    assert_eq!(scene.records().read_dir_utf8().unwrap().count(), 2);
}

#[test]
fn a_killed_server_loses_no_shape() {
    let scene = Scene::new();
    let code = "
import os, signal
for m in (1, 2, 3): linear(m)
os.kill(os.getpid(), signal.SIGKILL)
";
    // Started by a shell, so that the test's own check of the exit code sees a success.
    let options = OverlayOptions::capture(scene.records());
    scene.run(
        &options,
        &format!(
            "import subprocess; subprocess.run([sys.executable, '-c', {:?}])",
            format!("{PREAMBLE}{code}")
        ),
    );
    let shapes: Vec<_> = scene.calls().into_iter().map(|(m, ..)| m).collect();
    assert_eq!(shapes, [1, 2, 3]);
}

#[test]
fn a_hidden_sitecustomize_still_runs() {
    let scene = Scene::new();
    let theirs = scene.root.join("theirs");
    fs_err::create_dir(&theirs).unwrap();
    write_atomic(
        &theirs.join("sitecustomize.py"),
        b"import builtins\nbuiltins.theirs = __file__\n",
    )
    .unwrap();
    let path = format!("{theirs}:{}", Scene::tree());
    let said = scene.run_on_path(
        &OverlayOptions::capture(scene.records()),
        &path,
        "linear(33); print(json.dumps(theirs))",
    );
    assert_eq!(only(&said.stdout), theirs.join("sitecustomize.py").as_str());
    assert_eq!(scene.calls().len(), 1);
}

#[test]
fn a_finder_that_asks_all_others_as_ours_does_is_no_endless_loop() {
    let scene = Scene::new();
    let theirs = scene.root.join("theirs");
    fs_err::create_dir(&theirs).unwrap();
    let finder = "
import sys
class Finder:
    asking = False
    def find_spec(self, name, path=None, target=None):
        if self.asking:
            return None
        self.asking = True
        try:
            found = (other.find_spec(name, path, target) for other in sys.meta_path if other is not self)
            return next(filter(None, found), None)
        finally:
            self.asking = False
sys.meta_path.insert(0, Finder())
";
    write_atomic(&theirs.join("sitecustomize.py"), finder.as_bytes()).unwrap();
    let path = format!("{theirs}:{}", Scene::tree());
    let said = scene.run_on_path(
        &OverlayOptions::capture(scene.records()),
        &path,
        "print(json.dumps(linear(33)))",
    );
    assert_eq!(only(&said.stdout), serde_json::json!("triton"));
    assert_eq!(scene.calls().len(), 1);
}

#[test]
fn the_plugin_registry_is_a_second_door_where_another_sitecustomize_came_first() {
    let scene = Scene::new();
    // Ours is hidden: the finder never stood, and the modules are imported before the plugins load.
    fs_err::remove_file(scene.root.join("overlay/sitecustomize.py")).unwrap();
    let said = scene.run(
        &OverlayOptions::capture(scene.records()),
        "
from sglang.srt.layers.quantization import fp8, fp8_utils
from sglang.srt import plugins
plugins.load_plugins()
plugins.load_plugins()
linear(33)
print(json.dumps([fp8.aiter_w8a8_block_fp8_linear is fp8_utils.aiter_w8a8_block_fp8_linear,
    fp8.dispatch_w8a8_block_fp8_linear() is fp8.aiter_w8a8_block_fp8_linear]))
",
    );
    assert_eq!(only(&said.stdout), serde_json::json!([true, true]));
    assert_eq!(
        scene.calls(),
        [(33, CallKind::Eager, None, 1)],
        "hooked once, not twice"
    );
    assert_eq!(scene.values("via")[0], "plugin");
}

#[test]
fn a_record_folder_that_cannot_be_made_does_not_stop_the_server() {
    let scene = Scene::new();
    let file = scene.root.join("a-file");
    write_atomic(&file, b"").unwrap();
    let said = scene.run(
        &OverlayOptions::capture(file.join("records")),
        "print(json.dumps([linear(33), linear(34)]))",
    );
    assert_eq!(only(&said.stdout), serde_json::json!(["triton", "triton"]));
    assert_eq!(
        said.stderr
            .matches("gemmtune overlay: no more records")
            .count(),
        1,
        "{}",
        said.stderr
    );
}

#[test]
fn an_unknown_release_is_named_in_the_record_and_left_alone() {
    let scene = Scene::new();
    let tree = scene.root.join("tree");
    let package = tree.join("sglang/srt/layers/quantization");
    fs_err::create_dir_all(&package).unwrap();
    for folder in package.ancestors().take(4) {
        write_atomic(&folder.join("__init__.py"), b"").unwrap();
    }
    write_atomic(&package.join("fp8_utils.py"), b"answer = 42\n").unwrap();
    let path = format!("{tree}:{}", Scene::tree());
    let said = scene.run_on_path(
        &OverlayOptions::capture(scene.records()),
        &path,
        "
from sglang.srt.layers.quantization import fp8_utils
print(fp8_utils.answer)
",
    );
    assert_eq!(only(&said.stdout), 42);
    let errors = scene.values("error");
    assert!(
        errors[0].as_str().unwrap().contains("an unknown release"),
        "{errors:?}"
    );
}
