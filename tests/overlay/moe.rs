//! Fused MoE as the overlay records it: SGLang's own look-up of each era where wheels are at hand, one in its form elsewhere.

use super::{Said, Scene, only};
use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::log::LogSummary;
use gemmtune::log::record::{CallKind, Record, parse};
use gemmtune::log::scan::{Lines, scan};
use gemmtune::overlay::OverlayOptions;
use gemmtune::workload::env::variable;

/// What the look-up's module imports of SGLang: an `sglang` package around it without anything else.
const AROUND: [(&str, &str); 11] = [
    ("sglang/__init__.py", "__version__ = 'x'"),
    ("sglang/srt/__init__.py", ""),
    (
        "sglang/srt/utils.py",
        "get_device_name = lambda: 'NVIDIA H200'\nis_hip = lambda: False",
    ),
    (
        "sglang/srt/server_args.py",
        "from types import SimpleNamespace\nget_global_server_args = lambda: SimpleNamespace(enable_deterministic_inference=False)",
    ),
    (
        "sglang/srt/runtime_context.py",
        "from types import SimpleNamespace\nfrom .server_args import get_global_server_args as get_server_args\nget_exec = lambda: SimpleNamespace(deterministic=get_server_args())",
    ),
    ("sglang/srt/distributed/__init__.py", ""),
    (
        "sglang/srt/distributed/parallel_state.py",
        "from types import SimpleNamespace\n_TP = _EP = None\ndef get_tp_group():\n    assert _TP\n    return _TP\n\
         def get_moe_ep_group():\n    assert _EP\n    return _EP\n\
         def start(rank, size, experts):\n    global _TP, _EP\n    _TP = SimpleNamespace(rank_in_group=rank, world_size=size)\n    \
         _EP = SimpleNamespace(rank_in_group=rank % experts, world_size=experts)\n",
    ),
    ("sglang/srt/layers/__init__.py", ""),
    ("sglang/srt/layers/moe/__init__.py", ""),
    ("sglang/srt/layers/moe/moe_runner/__init__.py", ""),
    ("triton/__init__.py", "__version__ = '3.6.0'"),
];

/// The package around the look-up, by era.
const FOLDERS: [&str; 2] = [
    "srt/layers/moe/fused_moe_triton",
    "srt/layers/moe/moe_runner/triton_utils",
];

/// A look-up in the form of SGLang's: the parameters and the answer, of a table with two rows.
const IN_ITS_FORM: &str = "
def try_get_optimal_moe_config(w1_shape, w2_shape, top_k, dtype, M, is_marlin=False, block_shape=None, per_channel_quant=False,
                               return_down_config=False):
    up = {'BLOCK_SIZE_M': 16 if M < 64 else 64}
    return (up, ({**up, 'USE_TMA': True}, 64)) if return_down_config else up
";

/// A tree with the look-up of `module`, in the folder of its era.
fn tree(scene: &Scene, folder: &str, module: &str) -> Utf8PathBuf {
    let root = scene.root.join("tree");
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    };
    for (path, text) in AROUND {
        write(path, text);
    }
    // As SGLang has it: the package copies the name.
    let init = "get_config = lambda: None\nfrom .fused_moe_triton_config import try_get_optimal_moe_config\n";
    write(&format!("sglang/{folder}/__init__.py"), init);
    write(
        &format!("sglang/{folder}/fused_moe_triton_config.py"),
        module,
    );
    root
}

/// Runs `code` in the tree, with torch's graphs from the reduced tree; `ask(M, …)` is a fused MoE's look-up.
fn run(scene: &Scene, root: &Utf8Path, folder: &str, code: &str) -> Said {
    let dotted = folder.replace('/', ".");
    let tables = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/moe-configs");
    let preamble = format!(
        "
import os
os.environ['SGLANG_MOE_CONFIG_DIR'] = '{tables}'
torch.dtype = torch.float = None
from sglang.srt.distributed import parallel_state
def ask(m, experts=256, n=512, dtype='fp8_w8a8', block=[128, 128], topk=8, **more):
    from sglang.{dotted} import try_get_optimal_moe_config
    return try_get_optimal_moe_config((experts, 2 * n, 7168), (experts, 7168, n), topk, dtype, m, block_shape=block,
                                      return_down_config=True, **more)
"
    );
    let path = format!("{root}:{}", Scene::tree());
    let options = OverlayOptions::capture(scene.records());
    scene.run_on_path(&options, &path, &format!("{preamble}{code}"))
}

/// Calls by (M, kind, graph), added up.
fn calls(scene: &Scene) -> Vec<(u32, CallKind, Option<u32>, u64)> {
    let mut sums = std::collections::BTreeMap::new();
    for line in scene.lines() {
        if let Record::MoeCalls {
            m, kind, bs, count, ..
        } = parse(line.as_bytes()).unwrap()
        {
            *sums.entry((m, kind, bs)).or_default() += count;
        }
    }
    sums.into_iter()
        .map(|((m, kind, bs), count)| (m, kind, bs, count))
        .collect()
}

fn summary(scene: &Scene) -> LogSummary {
    let mut summary = LogSummary::default();
    for entry in scene.records().read_dir_utf8().unwrap() {
        let path = entry.unwrap().into_path();
        scan(
            fs_err::File::open(&path).unwrap(),
            path.as_str(),
            Lines::Count,
            &mut summary,
        )
        .unwrap();
    }
    summary
}

/// What every era must show: E, N, K, topk, dtype, scales, M and the rows that were answered, on a rank of both kinds.
const EAGER: &str = "
ask(1)
parallel_state.start(3, 4, 2)
for m in (1, 512, 0): first = ask(m)
second = ask(512)
assert first is not second and first[0] == first[0]
ask(7, 64, 96, None, None, 4)
";

fn shows_every_part(scene: &Scene) {
    let problems: Vec<String> = summary(scene)
        .moe
        .problems()
        .iter()
        .map(|counted| {
            let problem = &counted.problem;
            format!(
                "{problem} {}/{} M={:?} x{}",
                problem.dtype,
                problem.scales,
                counted.m.unwrap(),
                counted.records
            )
        })
        .collect();
    assert_eq!(
        problems,
        [
            "fused_moe_triton E=64 N=96 K=7168 topk=4 / M=7 x1",
            "fused_moe_triton E=256 N=512 K=7168 topk=8 fp8_w8a8/128x128 M=1 x2",
            "fused_moe_triton E=256 N=512 K=7168 topk=8 fp8_w8a8/128x128 M=512 x2",
        ]
    );
    let hellos = scene
        .values("ep_rank")
        .into_iter()
        .zip(scene.values("ep_world"));
    assert_eq!(
        hellos.collect::<Vec<_>>(),
        [(1.into(), 2.into())],
        "{:?}",
        scene.lines()
    );
    assert!(scene.values("error").is_empty(), "{:?}", scene.lines());
    let ranks: Vec<_> = summary(scene)
        .hellos
        .into_iter()
        .map(|hello| (hello.rank, hello.world))
        .collect();
    assert_eq!(ranks, [(Some(3), Some(4))]);
}

#[test]
fn a_fused_moe_is_recorded_with_what_it_is_asked_and_what_it_is_answered() {
    for folder in FOLDERS {
        let scene = Scene::new();
        let root = tree(&scene, folder, IN_ITS_FORM);
        run(&scene, &root, folder, EAGER);
        shows_every_part(&scene);
        let served = &summary(&scene).moe.served;
        let ((_, m), rows) = served.last_key_value().unwrap();
        assert_eq!(
            (*m, &rows.up["BLOCK_SIZE_M"], rows.injected),
            (512, &64.into(), false)
        );
        assert_eq!(rows.down["USE_TMA"], true);
    }
}

#[test]
fn captured_look_ups_weigh_as_often_as_their_graph_is_replayed_and_apart_from_gemms() {
    let scene = Scene::new();
    let root = tree(&scene, FOLDERS[1], IN_ITS_FORM);
    let code = "
from gemmtune_overlay import graphs
def graph(sizes):
    made = torch.cuda.CUDAGraph()
    made.capture_begin()
    for m in sizes: ask(m)
    made.capture_end()
    return made
import torch.cuda.graphs
ask(9)
one, two = graph([64, 64, 64]), graph([8])
for _ in range(5): one.replay()
two.replay()
print(json.dumps(ask(9)[0]['BLOCK_SIZE_M']))
";
    let said = run(&scene, &root, FOLDERS[1], code);
    assert_eq!(only(&said.stdout), 16);
    assert_eq!(
        calls(&scene),
        [
            (8, CallKind::Capture, Some(2), 1),
            (9, CallKind::Eager, None, 2),
            (64, CallKind::Capture, Some(1), 3),
        ]
    );
    let problems = summary(&scene).moe.problems();
    let by_m: Vec<_> = problems
        .iter()
        .map(|counted| (counted.m.unwrap(), counted.records))
        .collect();
    assert_eq!(by_m, [(8, 1), (9, 2), (64, 15)]);
}

#[test]
fn a_look_up_of_an_unknown_form_is_told_and_left_as_it_is() {
    let scene = Scene::new();
    let root = tree(
        &scene,
        FOLDERS[1],
        "try_get_optimal_moe_config = lambda *args, **more: 'answer'",
    );
    let said = run(&scene, &root, FOLDERS[1], "print(json.dumps(ask(1)))");
    assert_eq!(only(&said.stdout), "answer");
    let errors = scene.values("where");
    assert_eq!(
        errors,
        ["try_get_optimal_moe_config"],
        "{:?}",
        scene.lines()
    );
}

#[test]
#[ignore = "needs SGLang releases: `tests/realtrees/run` fetches them and runs this"]
fn every_releases_own_look_up_is_recorded() {
    let cache = Utf8PathBuf::from(variable("GEMMTUNE_TESTS_CACHE").unwrap());
    let mut releases = 0;
    for release in variable("GEMMTUNE_REALTREES").unwrap().split_whitespace() {
        let package = cache.join(format!("sglang-{release}/sglang"));
        let file = |folder: &&str| package.join(folder).join("fused_moe_triton_config.py");
        let folder = FOLDERS
            .into_iter()
            .find(|folder| file(folder).is_file())
            .unwrap();
        let scene = Scene::new();
        let root = tree(
            &scene,
            folder,
            &fs_err::read_to_string(file(&folder)).unwrap(),
        );
        run(&scene, &root, folder, EAGER);
        shows_every_part(&scene);
        // The rows of testdata/moe-configs: 256 tokens' for one, up and down.
        let served = summary(&scene).moe.served;
        let (_, rows) = served
            .iter()
            .find(|((problem, m), _)| problem.experts == 256 && *m == 1)
            .unwrap();
        assert_eq!(rows.up["BLOCK_SIZE_M"], 16, "{release}: {rows:?}");
        assert!(rows.down.is_object(), "{release}: {rows:?}");
        releases += 1;
    }
    assert!(releases > 0);
}
