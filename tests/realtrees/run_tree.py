"""Executes the FP8 linear paths of a real SGLang tree and prints what ran and how right it was.

Arguments: none. Environment: REALTREES_ARCH, REALTREES_HIP; PYTHONPATH holds the overlay if one is tried, this
folder, the stand-in's folder and the tree. Prints one JSON document on standard output; SGLang's own words go to
standard error. Errors are relative Frobenius errors against the float64 product of the same quantised operands.
"""

import contextlib
import json
import os
import sys
import types

_OVERRIDES = contextlib.ExitStack()
_REPLY = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever SGLang prints must not mix with the reply

import channel
import rocm_look
import torch

torch.manual_seed(0)
torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))

M_VALUES = [int(m) for m in os.environ.get("REALTREES_M", "1,2,33,128,4096").split(",")]
#: (384, 1024) is outside the predicate's list, (512, 7168) inside; (4096, 2048) has a safe M of 2048 on gfx95x
#: with ROCm < 7.2, and only there says something that the others do not.
WEIGHTS = [(384, 1024), (512, 7168)]
if rocm_look.ARCH == "gfx950" and rocm_look.HIP < "7.2":
    WEIGHTS.append((4096, 2048))
#: Rows whose error is measured; the kernels compute all of them.
ROWS = 32


def reference(q, scales, wq, w_scale, rows):
    """float64 product of quantised operands, on `rows`."""
    from aiter import _layout

    x = q[rows].double() * scales[rows].double().repeat_interleave(128, 1)
    w = wq.double() * _layout.expand_weight_scale(w_scale, *wq.shape).double()
    return x @ w.t()


def error(out, expected, rows):
    out = out.reshape(-1, out.shape[-1])[rows].double()
    if not torch.isfinite(out).all():
        return None
    return float((out - expected).norm() / expected.norm())


def some_rows(m):
    return torch.arange(m) if m <= ROWS else torch.linspace(0, m - 1, ROWS).long()


def activation(m, k):
    # Group maxima must differ between rows, or a transposed scale would go unnoticed.
    return (torch.randn(m, k) * torch.rand(m, k // 128).add_(0.25).repeat_interleave(128, 1)).bfloat16()


def weight(n, k, dtype):
    from aiter import _layout

    w = torch.randn(n, k)
    blocks = w.abs().reshape(-1, k) if n % 128 else w.abs()
    rows = (n + 127) // 128
    scale = torch.empty(rows, k // 128)
    for row in range(rows):
        scale[row] = blocks[row * 128 : (row + 1) * 128].reshape(-1, k // 128, 128).amax(dim=(0, 2))
    scale /= torch.finfo(dtype).max
    return (w / _layout.expand_weight_scale(scale, n, k)).to(dtype), scale


def ran():
    """The one kernel that ran since the last question, or what went wrong."""
    import aiter

    calls, aiter.CALLS[:] = list(aiter.CALLS), []
    return calls[0][0] if len(calls) == 1 else [call[0] for call in calls]


def case(what, m, n, k, run, expected_of, rows):
    import aiter

    aiter.CALLS.clear()
    result = {"case": what, "M": m, "N": n, "K": k, "kernel": None, "error": None}
    try:
        out = run()
        result["kernel"] = ran()
        result["error"] = error(out, expected_of(), rows)
    except Exception as failure:
        result["raised"] = f"{type(failure).__name__}: {failure}"[:300]
    return result


def linear_cases(fp8, linear_module):
    """`ReplicatedLinear` as a model builds it, loaded like a checkpoint, then applied."""
    import aiter
    from aiter import _layout

    results = []
    config = fp8.Fp8Config(is_checkpoint_fp8_serialized=True, activation_scheme="dynamic", weight_block_size=[128, 128])
    for n, k in WEIGHTS:
        layer = linear_module.ReplicatedLinear(
            k, n, bias=False, params_dtype=torch.bfloat16, quant_config=config, prefix=f"layers.0.linear_{n}_{k}"
        )
        wq, w_scale = weight(n, k, torch.float8_e4m3fn)
        layer.weight.data.copy_(wq)
        layer.weight_scale_inv.data.copy_(w_scale)
        layer.quant_method.process_weights_after_loading(layer)
        for m in M_VALUES:
            x, rows = activation(m, k), some_rows(m)

            def expected():
                q, scales = aiter.LAST_QUANTISED
                return reference(q, scales, wq, w_scale, rows)

            results.append(case("2-D", m, n, k, lambda: layer(x)[0], expected, rows))
            if m == 128:
                deep = x.view(4, 32, k)
                results.append(case("3-D", m, n, k, lambda: layer(deep)[0], expected, rows))
            q, scales = _layout.quantise_groups(x, aiter.dtypes.fp8)
            for what, handed in pairs(fp8.__name__, scales, m):
                apply = lambda: layer.quant_method.apply(layer, (q, handed))
                results.append(case(what, m, n, k, apply, lambda: reference(q, scales, wq, w_scale, rows), rows))
    return results


def pairs(fp8_name, scales, m):
    """Scale layouts in which a producer of this release and device hands over its pair."""
    utils = sys.modules[fp8_name + "_utils"]
    view = scales.t().contiguous().t()
    if getattr(utils, "_use_aiter_bpreshuffle_gfx95", False):
        return [("tuple", view)]  # the one layout that both branches of every such release read right
    # No producer of the releases with this variable makes a view on gfx942, and their CK branch would misread one.
    official = os.environ.get("SGLANG_AITER_GFX942_BLOCKSCALE_USE_CK") == "1"
    # Nor of 0.5.5 and its posts, which run CK as they are.
    official = official or str(sys.modules["sglang"].__version__).startswith("0.5.5")
    if rocm_look.ARCH == "gfx942" and m <= 128 and not official:
        return [("tuple", scales), ("tuple-view", view)]
    return [("tuple", scales)]


def one_rank(parallel_state):
    """Tensor parallelism of one rank, without a process group."""
    group = types.SimpleNamespace(world_size=1, rank_in_group=0, rank=0)
    parallel_state._TP = group
    try:
        parallel_state.get_tp_group()
    except RuntimeError:  # 0.5.22 and later keep the group in a context of their own
        _OVERRIDES.enter_context(parallel_state.get_parallel().override(tp_group=group))
    try:
        from sglang.srt.runtime_context import get_parallel
    except ImportError:
        return
    try:
        get_parallel().tp_size  # noqa: B018
    except ValueError:  # 0.5.19 to 0.5.21 keep sizes there, which a server fills in from its arguments
        _OVERRIDES.enter_context(get_parallel().override(tp_size=1, tp_rank=0))
    except Exception:  # 0.5.14 to 0.5.18 answer from the groups, and nothing asks
        pass


def main():
    os.environ.setdefault("SGLANG_USE_AITER", "1")
    os.environ.setdefault("SGLANG_USE_AITER_FP8_PER_TOKEN", "1")  # of per-tensor checkpoints alone
    import sglang
    from sglang.srt.distributed import parallel_state

    one_rank(parallel_state)
    # In this order, or 0.5.6 imports in a circle.
    from sglang.srt.layers.quantization import fp8, fp8_utils  # isort: skip
    from sglang.srt.layers import linear as linear_module  # isort: skip

    sabotage = os.environ.get("REALTREES_SABOTAGE")
    if sabotage:
        exec(compile(sabotage, "sabotage", "exec"), {"fp8": fp8, "fp8_utils": fp8_utils})
    chosen = fp8_utils.dispatch_w8a8_block_fp8_linear()
    reply = {
        "sglang": str(getattr(sglang, "__version__", None)),
        "arch": rocm_look.ARCH,
        "hip": rocm_look.HIP,
        "dispatch": chosen.__name__,
        "cases": linear_cases(fp8, linear_module),
        "channel": channel.cases(case, linear_module, fp8, fp8_utils, [m for m in M_VALUES if m <= 128]),
    }
    json.dump(reply, _REPLY)
    _REPLY.write("\n")
    _REPLY.flush()


main()
