"""What both revisions of the stand-in's fused MoE share: the file that is read, the kernels there are, and their numbers.

A module of the fused MoE holds every kernel, whatever table there is; Python asks for one by its name, and C++ runs a choice of its own
where it does not know the name (`csrc/ck_gemm_moe_2stages_codegen/gemm_moe_ck2stages.cu`, `moe_dispatch`).
"""

import csv
import functools
import glob
import os
import sys
import types

import torch
from torch import experts, profiler  # noqa: F401  what a fused MoE asks of the played torch

import aiter
from aiter._lookup import CU_NUM, GFX, LAUNCHED, log  # noqa: F401
from aiter.utility.times import us_of

HERE = os.path.dirname(os.path.abspath(__file__))
#: Tiles that kernels of both stages have, and the one of the kernel for both.
TILES, ONE_STAGE = (16, 32, 64, 128), 32
#: What kernels of aiter's own choice are said to take together, us: more than any pair of the tuner's.
DEFAULT_US = 150.0


@functools.lru_cache
def tuned_file():
    """The one file that is read, as `AITER_CONFIG.get_config_file` finds it; several are merged, of one key the first."""
    named = os.environ.get("AITER_CONFIG_FMOE")
    if named:
        paths = named.split(":")
    else:
        models = sorted(glob.glob(os.path.join(HERE, "configs/model_configs/*tuned_fmoe*")))
        models = [path for path in models if "untuned" not in path]
        paths = [os.path.join(HERE, "configs/tuned_fmoe.csv"), *models]
    if len(paths) == 1:
        return paths[0]
    log(f"merge tuned file under model_configs/ and configs/ {':'.join(paths)}")
    columns, rows = [], []
    for path in paths:
        for row in read(path):
            columns += [name for name in row if name not in columns]
            rows.append(row)
    merged = os.path.join(os.environ["HOME"], "tuned_fmoe.csv")
    with open(merged, "w", encoding="ascii", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return merged


class Configs:
    """`AITER_CONFIGS`."""

    @property
    def AITER_CONFIG_FMOE_FILE(self):
        return tuned_file()


def read(path):
    with open(path, encoding="ascii", newline="") as file:
        return list(csv.DictReader(file))


def cell(text):
    """A cell as pandas reads it: numbers as numbers, an empty one as NaN."""
    if text == "":
        return float("nan")
    try:
        return int(text)
    except ValueError:
        return text


def names():
    """The kernels of the Silu module, as the tuner's stand-in calls them; STANDIN_LACKS names the beginning of some that it has not."""
    known = {f"standin_{stage}_{tile}" for stage in ("stage1", "stage2") for tile in TILES}
    known.add(f"standin_asm_1stage_{ONE_STAGE}")
    lacks = os.environ.get("STANDIN_LACKS")
    return {name for name in known if not (lacks and name.startswith(lacks))}


def dispatched(name, size):
    """The kernel that C++ runs for `name` and its time; None where it is a choice of its own."""
    if isinstance(name, str) and name != "":
        if name in names():
            stage, _, tile = name.removeprefix("standin_").rpartition("_")
            return name, us_of(stage, int(tile), size) * (3 if stage == "asm_1stage" else 1)
        print(f"[aiter WARNING] ck kernel not found: {name}", file=sys.stderr, flush=True)
    return None, DEFAULT_US / 2


def run(metadata, x, w1, w2, topk_weight, topk_ids, expert_mask, w1_scale, w2_scale, token):
    """The operation with the kernels that `metadata` asks for."""
    assert hasattr(w1, "tiled") and hasattr(w2, "tiled"), "a plain weight is read as a shuffled one"
    tokens, topk = topk_ids.shape
    size = (token, int(w2.shape[1]), int(w2.shape[2]))
    asked = [metadata.stage1] if metadata.run_1stage else [metadata.stage1, metadata.stage2]
    ran = [dispatched(stage.keywords["kernelName"], size) for stage in asked]
    LAUNCHED("moe_sorting", 4.0)
    LAUNCHED("dynamic_per_group_scaled_quant_kernel", 2.0)
    tuned = any(name for name, _ in ran)
    for at, (name, us) in enumerate(ran):
        if at:
            # What the tuner's own time leaves out; PLAYED_BETWEEN makes it long for tuned rows.
            LAUNCHED("dynamic_per_group_scaled_quant_kernel", float(os.environ.get("PLAYED_BETWEEN", "2") if tuned else 2))
        LAUNCHED(name or "moe_heuristic", us * (2 if metadata.run_1stage and not name else 1))
    if profiler.is_open():
        return torch.zeros(tokens, w2.shape[1], dtype=torch.bfloat16)
    wrong = os.environ.get("STANDIN_WRONG")
    out = product(x, w1, w2, topk_weight.tolist(), topk_ids.tolist(), expert_mask, w1_scale, w2_scale)
    return out * 1.5 if wrong and any(name and wrong in name for name, _ in ran) else out


def product(x, w1, w2, weights, ids, expert_mask, w1_scale, w2_scale):
    """Both GEMMs of the experts that this rank holds, as they compute: 1x128 in, SiLU, 1x128 between, weighted sum."""
    local = list(range(w1.shape[0]))
    if expert_mask is not None:
        here = [expert for expert, held in enumerate(expert_mask.tolist()) if held]
        local = dict(zip(here, range(len(here))))
    inter, rows = int(w2.shape[2]), []
    values = quantised(x.float())
    for at, (mine, experts) in enumerate(zip(weights, ids)):
        total = None
        for weight, expert in zip(mine, experts):
            if expert_mask is not None and expert not in local:
                continue
            expert = local[expert]
            between = values[[at]] @ wide(w1, w1_scale, expert)
            between = between.to(torch.bfloat16).float()
            between = (torch.nn.functional.silu(between[:, :inter]) * between[:, inter:]).to(torch.bfloat16).float()
            part = ((quantised(between) @ wide(w2, w2_scale, expert)) * weight).to(torch.bfloat16).float()
            total = part if total is None else total + part
        rows.append(torch.zeros(1, w2.shape[1]) if total is None else total)
    return torch.cat(rows, dim=0).to(torch.bfloat16)


def quantised(x):
    m, k = x.shape
    kind = aiter.dtypes.fp8
    groups = x.view(m, k // 128, 128)
    scale = groups.abs().amax(dim=(2,)).view(m, k // 128, 1) / torch.finfo(kind).max + 1e-30
    return ((groups / scale).to(kind).float() * scale).view(m, k)


#: Weights as numbers, transposed, by identity and expert; the weight is kept, so that no other one gets its identity.
_WIDE = {}


def wide(w, scale, expert):
    if (id(w), expert) not in _WIDE:
        _, n, k = w.shape
        rows, groups = scale.shape[1:]
        q = torch.Tensor(w.values[expert * n * k : (expert + 1) * n * k], (n, k))
        blocks = torch.Tensor(scale.values[expert * rows * groups : (expert + 1) * rows * groups], (rows, groups))
        blocks = blocks.repeat_interleave(128, 0)[:n].view(n, k // 128, 1)
        _WIDE[id(w), expert] = w, (q.view(n, k // 128, 128) * blocks).view(n, k).t()
    return _WIDE[id(w), expert][1]


def stages(one_stage, first, second):
    """What a look-up answers, as far as it is read: `MOEMetadata`."""
    return types.SimpleNamespace(
        stage1=functools.partial(run, kernelName=first),
        stage2=None if one_stage else functools.partial(run, kernelName=second),
        run_1stage=one_stage,
    )
