"""aiter's real Triton GEMM without a GPU: what the worker plans is what the wrapper does with real tensors, for every row that
the tree ships; a row compiles for AMD; and the overlay's rows are served by aiter's own look-up.

    python tests/aiter/triton_gemm.py TREE
"""

import glob
import json
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = os.path.join(HERE, "..", "..", "python")
sys.path[:0] = [PYTHON, os.path.join(PYTHON, "overlay")]

M_OF = {"any": 20_000}
"""An M that a key serves."""

ROW = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2,
       "waves_per_eu": 2, "matrix_instr_nonkdim": 16, "cache_modifier": ".cg", "NUM_KSPLIT": 7}  # fmt: skip


def target(arch):
    """Has Triton compile for `arch`."""
    from gpu_worker.compile_child import CompileTarget
    from triton.runtime.driver import driver

    driver.set_active(CompileTarget("hip", arch, 64))


def shipped(root):
    """(gfx, N, K, key, row) of every row the tree ships for a weight of its own."""
    for path in sorted(
        glob.glob(os.path.join(root, "aiter/ops/triton/configs/gemm/gfx9*-GEMM-A8W8_BLOCKSCALE-N=*.json"))
    ):
        gfx, n, k = re.search(r"(gfx\w+)-GEMM-A8W8_BLOCKSCALE-N=(\d+)-K=(\d+)", os.path.basename(path)).groups()
        with open(path, encoding="utf-8") as file:
            for key, row in json.load(file).items():
                yield gfx, int(n), int(k), key, row


def plans(root):
    """Rows planned like the wrapper's own launches, and how many."""
    import torch
    from gpu_worker.aiter import plan as planning
    from gpu_worker.aiter import tree
    from gpu_worker.plan import Problem

    found, count = tree.open_tree(root), 0
    for _, n, k, key, row in shipped(root):
        m = int(key.removeprefix("M_LEQ_")) if key not in M_OF else M_OF[key]
        planned = planning.plan(found, Problem(m, n, k, "float8_e4m3fn"), row, (128, 128), rocm=True)
        made = launched(found.wrapper, planning, m, n, k, row, torch)
        assert [plain(call) for call in planned.calls] == [plain(call) for call in made], (n, k, key, row)
        assert planned.calls[0].module.startswith("aiter.ops.triton._triton_kernels.")
        count += 1
    assert count, "the tree ships no row"
    return {"rows": count, "origin": found.origin, "bounds": found.bounds[0]}


def launched(wrapper, planning, m, n, k, row, torch):
    """What the wrapper launches for tensors of torch's, without memory."""
    new = lambda *shape, dtype: torch.empty(shape, dtype=dtype, device="meta")
    operands = (
        new(m, k, dtype=torch.float8_e4m3fn),
        new(n, k, dtype=torch.float8_e4m3fn),
        new(m, -(-k // 128), dtype=torch.float32),
        new(-(-n // 128), -(-k // 128), dtype=torch.float32),
    )
    calls, kept = [], {}
    for name, value in list(vars(wrapper).items()):
        if isinstance(getattr(value, "arg_names", None), (list, tuple)):
            kept[name] = value
            setattr(wrapper, name, planning._Recorder(value, calls))
    try:
        out = wrapper.gemm_a8w8_blockscale(*operands, dtype=torch.bfloat16, config=dict(row))
    finally:
        for name, value in kept.items():
            setattr(wrapper, name, value)
    assert tuple(out.shape) == (m, n) and out.dtype == torch.bfloat16
    return calls


def plain(call):
    """A call whose tensors are their dtypes."""
    arguments = []
    for name, value in call.arguments:
        dtype = getattr(value, "dtype", None)
        arguments.append((name, str(dtype).removeprefix("torch.") if dtype is not None else value))
    return call.function, arguments, call.options, call.grid


def compiles(root, arch):
    """Shared memory and spilled registers of a row's two kernels, compiled by Triton for `arch`."""
    from gpu_worker.aiter import launching, tree
    from gpu_worker.aiter import plan as planning
    from gpu_worker.compile_child import registers
    from gpu_worker.plan import Problem

    target(arch)
    assert "torch" not in sys.modules
    found = tree.open_tree(root)
    dtype = "float8_e4m3fnuz" if arch == "gfx942" else "float8_e4m3fn"
    compiled = launching.warm_up(planning.plan(found, Problem(16, 2112, 7168, dtype), ROW, (128, 128), rocm=True))
    said = [{"shared": one.metadata.shared, **registers(one.asm["amdgcn"])} for one in compiled]
    assert len(said) == 2 and said[0]["shared"] > 0 and said[0]["spilled"] == 0, said
    return said[0]


def serves(root):
    """The overlay before aiter's own look-up: our rows for our weight, aiter's for every other."""
    from gpu_worker.aiter import tree

    target("gfx942")
    keep = tempfile.mkdtemp()
    ours = {"M_LEQ_16": {**ROW, "BLOCK_SIZE_N": 48}, "any": {**ROW, "BLOCK_SIZE_N": 80}}
    with open(os.path.join(keep, "gfx942-GEMM-A8W8_BLOCKSCALE-N=640-K=1280.json"), "w", encoding="utf-8") as file:
        json.dump(ours, file)
    os.environ.update(GEMMTUNE_AITER_TRITON=keep, GEMMTUNE_RECORD_DIR=os.path.join(keep, "records"))
    sys.meta_path.insert(0, tree._Finder(root))
    from gemmtune_overlay import hooks

    hooks.install("test")
    kernels = next(name for name in ("gemm.basic.gemm_a8w8_blockscale", "gemm_a8w8_blockscale")
                   if os.path.isfile(os.path.join(root, "aiter/ops/triton/_triton_kernels", name.replace(".", "/") + ".py")))  # fmt: skip
    module = __import__(f"aiter.ops.triton._triton_kernels.{kernels}", fromlist=["_get_config"])

    def row(m, n, k):
        answer = module._get_config(m, n, k)
        return answer[0] if isinstance(answer, tuple) else answer

    for _ in range(2):
        assert row(16, 640, 1280) == ours["M_LEQ_16"] and row(17, 640, 1280) == ours["any"]
    with open(
        os.path.join(root, "aiter/ops/triton/configs/gemm/gfx942-GEMM-A8W8_BLOCKSCALE.json"), encoding="utf-8"
    ) as file:
        default = json.load(file)["any"]
    assert row(16, 656, 1280) == default
    lines = []
    for path in glob.glob(os.path.join(keep, "records", "*.jsonl")):
        with open(path, encoding="utf-8") as file:
            lines += [json.loads(line) for line in file]
    assert not [line for line in lines if "error" in line], lines
    served = {
        (one["M"], one["N"]): (one["source"], one["config"]["BLOCK_SIZE_N"])
        for one in (line["served"] for line in lines if "served" in line)
    }
    assert served == {
        (16, 640): ("injected", 48),
        (17, 640): ("injected", 80),
        (16, 656): ("aiter", default["BLOCK_SIZE_N"]),
    }, served
    return {"served": len(served)}


PARTS = {
    "plans": plans,
    "gfx942": lambda root: compiles(root, "gfx942"),
    "gfx950": lambda root: compiles(root, "gfx950"),
    "serves": serves,
}


def main(arguments):
    """All parts, each in a process of its own: a tree is imported once."""
    root = os.path.abspath(arguments[0])
    if len(arguments) > 1:
        if arguments[1] == "plans":
            target("gfx942")
        print(json.dumps(PARTS[arguments[1]](root)))
        return
    for part in PARTS:
        said = subprocess.run(
            [sys.executable, __file__, root, part], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        print(part, said.strip(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
