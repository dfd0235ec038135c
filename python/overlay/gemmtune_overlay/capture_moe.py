"""Which fused MoE runs in SGLang's Triton kernel, and which rows serve it.

The hook stands where the operation looks its rows up: one name with one signature from 0.5.6 to 0.5.23 (0.5.5 has one
parameter less), asked once for each forward, in Python and outside the kernel. E and topk are already those of the rank.
"""

import functools
import inspect
import sys

from . import graphs

LOOKUP = "try_get_optimal_moe_config"
OP = "fused_moe_triton"


def patch(module, recorder, served=True):
    """Counts what `module` is asked for; with `served` the rows it answers are recorded, once for each problem and M."""
    lookup = getattr(module, LOOKUP, None)
    if lookup is None:
        raise AttributeError(f"{module.__name__} has no {LOOKUP}: an unknown release")
    names = list(inspect.signature(lookup).parameters)
    is_compiling = sys.modules["torch"].compiler.is_compiling
    observer = Observer(recorder, served)

    @functools.wraps(lookup)
    def observed(*args, **kwargs):
        answer = lookup(*args, **kwargs)
        if not is_compiling():
            try:
                observer.asked({**dict(zip(names, args)), **kwargs}, answer)
            except Exception as error:
                recorder.error(LOOKUP, error)
        return answer

    setattr(module, LOOKUP, observed)


class Observer:
    """Turns look-ups into records. Shapes and rows are read, never a tensor."""

    def __init__(self, recorder, served):
        self._recorder = recorder
        self._served = served
        self._seen = set()

    def asked(self, call, answer):
        """Counts one look-up."""
        m = int(call["M"])
        if m == 0:  # an idle data-parallel rank
            return
        self._recorder.rank(*graphs.tensor_parallel_rank(), expert=graphs.expert_parallel_rank())
        block = [int(size) for size in call.get("block_shape") or ()]
        block = block if all(block) else []
        channel = bool(call.get("per_channel_quant", False))
        problem = (
            ("M", m), ("E", int(call["w2_shape"][0])), ("N", int(call["w2_shape"][2])), ("K", int(call["w1_shape"][2])),
            ("topk", int(call["top_k"])), ("dtype", call["dtype"] or ""),
        )  # fmt: skip
        scales = "x".join(str(size) for size in block) or ("channel" if channel else "")
        kind, graph = graphs.phase()
        if kind == "capture":
            graphs.captured(graph, m, OP)
        self._recorder.count((("fused_moe", OP), *problem, ("scales", scales), ("kind", kind), ("bs", graph)))
        if self._served and (problem, scales) not in self._seen:
            self._seen.add((problem, scales))
            up, (down, _) = answer if call.get("return_down_config") else (answer, (None, None))
            rows = {"up": dict(up), "down": dict(down) if down else None}
            more = {"block": block, "per_channel": channel, "source": "sglang"}
            self._recorder.once({"served_moe": {**dict(problem), **more, **rows}})
