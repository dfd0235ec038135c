"""Device graphs: which calls were captured into which graph, and how often each graph was replayed.

A server decodes from captured graphs, so Python sees a GEMM only while it is captured. Every graph of every
release is a `torch.cuda.CUDAGraph` (decode, prefill, draft model, the segments of breakable graphs; ROCm too), so
counting there gives each captured GEMM its true weight without knowing SGLang's runners. SGLang's decode runner
is hooked as well, for the batch sizes it ran. Not seen: graphs launched past torch
(`cuda_graph_dedup_mixin.py` of 0.5.16 and later, off by default).
"""

import functools
import sys

#: Where SGLang says whether a capture, warm-up passes included, is going on.
CAPTURE_MODE_MODULES = (
    "sglang.srt.model_executor.runner_utils.capture_mode",  # 0.5.14 and later
    "sglang.srt.model_executor.cuda_graph_runner",
    "sglang.srt.model_executor.piecewise_cuda_graph_runner",
)


class _State:
    """What this process is capturing now."""

    def __init__(self):
        self.captures = 0
        self.graph = None  # number of the graph being captured
        self.tokens = {}  # operation -> M -> calls, of that graph
        self.runner_depth = 0  # inside a runner's capture method
        self.rank = None
        self.expert_rank = None


_state = _State()


def phase():
    """How a call runs now: ("eager", None), ("warmup", None) or ("capture", number of the graph)."""
    if _state.graph is not None:
        return "capture", _state.graph
    if _state.runner_depth > 0 or _is_capture_mode():
        return "warmup", None
    return "eager", None


def captured(graph, tokens, op="gemm"):
    """Notes that a call of `op` with M = `tokens` went into `graph`.

    Operations are counted apart: with data-parallel attention a fused MoE has the tokens of all ranks, the GEMMs those of one.
    """
    if graph == _state.graph:
        counts = _state.tokens.setdefault(op, {})
        counts[tokens] = counts.get(tokens, 0) + 1


def patch_torch(module, recorder):
    """Hooks capture and replay of `torch.cuda.CUDAGraph`."""
    graph_class = module.CUDAGraph
    begin, end, replay = graph_class.capture_begin, graph_class.capture_end, graph_class.replay

    @functools.wraps(begin)
    def capture_begin(self, *args, **kwargs):
        result = begin(self, *args, **kwargs)
        _state.captures += 1
        _state.graph = _state.captures
        _state.tokens = {}
        return result

    @functools.wraps(end)
    def capture_end(self, *args, **kwargs):
        number, tokens = _state.graph, _state.tokens
        _state.graph, _state.tokens = None, {}
        self._gemmtune_graph = None
        if number is not None and tokens:
            # The M of a graph is that of its GEMMs; of a graph without any, that of what it has.
            counts = tokens.get("gemm") or next(iter(tokens.values()))
            most = max(counts, key=counts.get)
            self._gemmtune_graph = (("replay", number), ("tokens", most))
            recorder.once({"capture": number, "tokens": most, "count": 1})
        return end(self, *args, **kwargs)

    @functools.wraps(replay)
    def counted_replay(self, *args, **kwargs):
        key = getattr(self, "_gemmtune_graph", None)
        if key is not None:
            recorder.count(key)
        return replay(self, *args, **kwargs)

    graph_class.capture_begin = capture_begin
    graph_class.capture_end = capture_end
    graph_class.replay = counted_replay


def patch_runner(module, class_name, step, recorder):
    """Hooks a graph runner of SGLang: its capture method marks warm-up passes, its `step` method counts batches."""
    runner = getattr(module, class_name)
    capture = getattr(runner, "capture", None)
    if capture is not None:

        @functools.wraps(capture)
        def marked_capture(self, *args, **kwargs):
            _state.runner_depth += 1
            try:
                return capture(self, *args, **kwargs)
            finally:
                _state.runner_depth -= 1

        runner.capture = marked_capture
    if step is None:
        return
    run = getattr(runner, step)

    @functools.wraps(run)
    def counted(self, *args, **kwargs):
        result = run(self, *args, **kwargs)
        try:
            size = int(self.bs)  # after padding
            # `num_tokens_per_bs` to 0.5.15.post1, `captured_req_width` since; 1 without speculation.
            width = getattr(self, "captured_req_width", None) or getattr(self, "num_tokens_per_bs", None) or 1
            recorder.count((("batch", size), ("runner", class_name), ("tokens", size * int(width))))
        except Exception as error:
            recorder.error(f"{class_name}.{step}", error)
        return result

    setattr(runner, step, counted)


def tensor_parallel_rank():
    """(rank, size) of tensor parallelism, or (None, None) while they cannot be told: unknown is not rank 0."""
    if _state.rank is None:
        try:
            _state.rank = _ask_rank()
        except Exception:
            return None, None  # groups are not initialised yet
    return _state.rank


def _ask_rank():
    # The one getter that all releases from 0.5.5 to 0.5.23 have under the same name; it raises before the groups exist.
    group = sys.modules["sglang.srt.distributed.parallel_state"].get_tp_group()
    return int(group.rank_in_group), int(group.world_size)


def expert_parallel_rank():
    """(rank, size) of expert parallelism, or None while it cannot be told."""
    if _state.expert_rank is None:
        try:
            # The same name in all releases from 0.5.5 to 0.5.23.
            group = sys.modules["sglang.srt.distributed.parallel_state"].get_moe_ep_group()
            _state.expert_rank = int(group.rank_in_group), int(group.world_size)
        except Exception:
            return None
    return _state.expert_rank


def _is_capture_mode():
    for name in CAPTURE_MODE_MODULES:
        module = sys.modules.get(name)
        ask = getattr(module, "get_is_capture_mode", None)
        if ask is not None and ask():
            return True
    return False
