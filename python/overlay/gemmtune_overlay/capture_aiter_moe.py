"""Which fused MoE runs in aiter, and which row of its table serves it.

Two hooks, because neither function sees all of it: `fused_moe` is called once for each operation and has the real number of tokens
and the expert mask; `get_2stage_cfgs` below it has the key as it is looked up and gives the kernels that will be asked for. Both have
these names from v0.1.7 to e4048607 (`aiter/fused_moe.py`). The line that aiter logs cannot count: the look-up is cached. SGLang 0.5.23
wraps `fused_moe` on gfx95x when its first runner is built, which stays above these hooks.

Under `torch.compile` the operator below `fused_moe` runs by itself: then the rounded tokens of the key stand for the real ones.
"""

import functools
import inspect
import sys
import threading

from . import graphs

OPERATION = "fused_moe"
LOOKUP = "get_2stage_cfgs"
OP = "fused_moe_aiter"

#: `quant_remap` of `aiter/fused_moe.py`: what a layer of 128x128 blocks asks for is the activation's quantisation.
QUANTISED_AS = {"per_128x128": "per_1x128"}


def patch(module, recorder):
    """Counts the calls of `module`'s fused MoE, and records what each look-up was answered, once for each key."""
    operation, lookup = getattr(module, OPERATION, None), getattr(module, LOOKUP, None)
    if operation is None or lookup is None:
        raise AttributeError(f"{module.__name__} has no {OPERATION} or {LOOKUP}: an unknown release")
    is_compiling = sys.modules["torch"].compiler.is_compiling
    called, asked = inspect.signature(operation), inspect.signature(lookup)
    observer = Observer(module, recorder)
    under_way = threading.local()

    @functools.wraps(operation)
    def observed(*args, **kwargs):
        if is_compiling():
            return operation(*args, **kwargs)
        before = getattr(under_way, "call", None)
        under_way.call = None
        try:
            under_way.call = Call(called.bind(*args, **kwargs).arguments)
        except Exception as error:
            recorder.error(OPERATION, error)
        try:
            return operation(*args, **kwargs)
        finally:
            under_way.call = before

    @functools.wraps(lookup)
    def answered(*args, **kwargs):
        answer = lookup(*args, **kwargs)
        try:
            # A two-stage call looks its key up twice.
            call = getattr(under_way, "call", None)
            if call is None or not call.is_counted:
                observer.looked_up(call, asked.bind(*args, **kwargs).arguments, answer)
                if call is not None:
                    call.is_counted = True
        except Exception as error:
            recorder.error(LOOKUP, error)
        return answer

    for name in ("cache_clear", "cache_info"):  # of the cache around it; aiter's tuner clears it
        if hasattr(lookup, name):
            setattr(answered, name, getattr(lookup, name))
    setattr(module, OPERATION, observed)
    setattr(module, LOOKUP, answered)


class Call:
    """What only `fused_moe` is told. Shapes are read, never a tensor."""

    def __init__(self, arguments):
        self.tokens = int(arguments["topk_ids"].shape[0])
        mask = arguments.get("expert_mask")
        self.experts_of_all = None if mask is None else int(mask.numel())
        self.is_counted = False


class Observer:
    """Turns look-ups into records."""

    def __init__(self, module, recorder):
        self._module = module
        self._recorder = recorder
        self._seen = set()

    def looked_up(self, call, key, answer):
        """Counts one call, and says once what its key was answered with."""
        if key.get("config_file"):  # a table of its own, for experts that are fused with a shared one
            return
        tokens = call.tokens if call is not None else int(key["token"])
        if tokens == 0:  # an idle data-parallel rank
            return
        of_all = call.experts_of_all if call is not None else -1 if key.get("is_ep") else None
        quantised = member(key["q_type"])
        self._recorder.rank(*graphs.tensor_parallel_rank(), expert=graphs.expert_parallel_rank())
        problem = (
            ("M", tokens), ("model_dim", int(key["model_dim"])), ("inter_dim", int(key["inter_dim"])),
            ("expert", int(key["expert"])), ("topk", int(key["topk"])), ("act_type", member(key["activation"])),
            ("dtype", str(key["dtype"])), ("q_dtype_a", str(key["q_dtype_a"])), ("q_dtype_w", str(key["q_dtype_w"])),
            ("q_type", QUANTISED_AS.get(quantised, quantised)), ("use_g1u1", bool(key["use_g1u1"])),
            ("doweight_stage1", bool(key["doweight_stage1"])), ("experts_of_all", of_all),
            ("is_shuffled", bool(key.get("is_shuffled", True))),
        )  # fmt: skip
        kind, graph = graphs.phase()
        if kind == "capture":
            graphs.captured(graph, tokens, OP)
        self._recorder.count((("fused_moe", OP), *problem, ("kind", kind), ("bs", graph)))
        if problem not in self._seen:
            self._seen.add(problem)
            served = {"fused_moe": OP, **dict(problem), **kernels(answer), "table": table(self._module)}
            self._recorder.once({"served_aiter_moe": served})


def member(value):
    """`Silu` of `ActivationType.Silu`, an enumeration or its text."""
    return str(value).rsplit(".", 1)[-1]


def kernels(answer):
    """What a look-up's answer asks its modules for; empty names where it is aiter's own choice."""

    def name(stage):
        found = getattr(stage, "keywords", {}).get("kernelName", "")
        return found if isinstance(found, str) else ""  # pandas reads an empty cell as a number

    return {
        "one_stage": bool(answer.run_1stage),
        "kernels": [name(answer.stage1), name(answer.stage2)],
        "block_m": int(answer.block_m),
    }


def table(module):
    """The file that rows are looked up in."""
    configs = getattr(module, "AITER_CONFIGS", module)
    return str(getattr(configs, "AITER_CONFIG_FMOE_FILE", ""))
