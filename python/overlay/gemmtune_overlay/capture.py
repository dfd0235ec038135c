"""Which GEMMs run: shapes, the implementation that serves them, and the kernel it picks.

Only shapes, dtypes and names are read, never tensor values, so nothing synchronises and a graph capture goes on
undisturbed. Under `torch.compile` the hooks are transparent: dynamo sees a constant test and the original call.
"""

import functools
import logging
import sys
import threading
from math import prod

from . import graphs

#: SGLang's own logger for these layers, so that the lines carry its prefix and go where its lines go.
LOGGER = logging.getLogger("sglang.srt.layers.quantization.fp8")

AITER_LEAF = "aiter_w8a8_block_fp8_linear"
DISPATCHER = "dispatch_w8a8_block_fp8_linear"
#: SGLang's own block-FP8 GEMMs below its linears, for quantised operands (0.5.5 to 0.5.23), and what a log calls each.
GEMMS = {
    "w8a8_block_fp8_matmul_triton": "SGLang Triton FP8 block GEMM path",
    "w8a8_block_fp8_matmul_deepgemm": "SGLang DeepGEMM FP8 block GEMM path",
}
BLOCK_GEMM = "w8a8_block_fp8_matmul"
#: What the linears for block FP8 have in their names. Those that end in one of GEMMS or in aiter are counted there; every
#: other one (FlashInfer, CUTLASS) hands its operands to a library, so it is counted itself.
LINEARS = "w8a8_block_fp8_linear"
COUNTED_BELOW = ("triton_", "deepgemm_", "aiter_", "dispatch_", "_")
CHANNEL_GEMM = "gemm_a8w8_bpreshuffle"
#: SGLang's linears for one scale per token and per output channel (0.5.5 to 0.5.23). Both end in aiter's GEMM, the first one
#: only for some inputs: where it takes torch's instead, no table of aiter's serves.
CHANNEL_LINEARS = ("apply_fp8_linear", "apply_fp8_ptpc_linear")
#: Names under which `fp8_utils` holds aiter's GEMMs: bare in 0.5.5 to 0.5.10.post1, aliased since.
KERNEL_NAMES = (
    "gemm_a8w8_blockscale",
    "ck_gemm_a8w8_blockscale",
    "triton_gemm_a8w8_blockscale",
    "gemm_a8w8_blockscale_bpreshuffle",
)


def patch_fp8_utils(module, settings, recorder):
    """Hooks the aiter leaf, the dispatcher and the kernels of `fp8_utils`."""
    leaf = getattr(module, AITER_LEAF, None)
    if leaf is None:
        raise AttributeError(f"{module.__name__} has no {AITER_LEAF}: an unknown release")
    # Set in 0.5.11 and later: gfx95x on ROCm >= 7.2, where CK means the preshuffled operation and its table.
    preshuffled = getattr(module, "_use_aiter_bpreshuffle_gfx95", False)
    op = "gemm_a8w8_blockscale_bpreshuffle" if preshuffled else "gemm_a8w8_blockscale"
    observer = Observer(settings, recorder, op, "aiter FP8 block GEMM path", named=False)

    def observe_leaf(input, weight, block_size=None, *_, **__):
        observer.dispatch(AITER_LEAF, module.__name__)
        observer.shape(input, weight, block_size)

    setattr(module, AITER_LEAF, _observed(leaf, observe_leaf, recorder))
    if settings.log_dispatch and hasattr(module, DISPATCHER):
        setattr(module, DISPATCHER, _reporting(getattr(module, DISPATCHER), observer))
    if settings.dump_shapes:
        for name in KERNEL_NAMES:
            kernel = getattr(module, name, None)
            if callable(kernel):
                setattr(module, name, _observed(kernel, _kernel_counter(name, kernel, recorder), recorder))
    if settings.dump_shapes:
        _patch_linears(module, settings, recorder)
    _patch_channel(module, Observer(settings, recorder, CHANNEL_GEMM, "aiter FP8 per-channel GEMM path"), recorder)


#: Whether this thread is inside a linear that has been counted: it may fall back to a GEMM that is hooked as well.
_counted = threading.local()


def _patch_linears(module, settings, recorder):
    """Hooks the block-FP8 linears of `module` below which no GEMM is hooked."""
    for name, linear in list(vars(module).items()):
        if LINEARS in name and callable(linear) and not name.startswith(COUNTED_BELOW):
            observer = Observer(settings, recorder, BLOCK_GEMM, f"SGLang FP8 block GEMM path ({name})")
            setattr(module, name, _unless_compiling(linear, _counted_linear(linear, observer)))


def _counted_linear(linear, observer):
    @functools.wraps(linear)
    def counted(input, weight, block_size, *args, **kwargs):
        try:
            observer.shape(input, weight, block_size)
        except Exception as error:
            observer.failed(linear.__name__, error)
        before, _counted.now = getattr(_counted, "now", False), True
        try:
            return linear(input, weight, block_size, *args, **kwargs)
        finally:
            _counted.now = before

    return counted


def _patch_channel(module, observer, recorder):
    """Hooks the per-channel linears of `fp8_utils` and the GEMM behind them.

    What is counted are calls of the GEMM: its weight is (N, K) in every release, while the first linear is handed (K, N) and
    the second one (N, K), and releases from 0.5.22 on may take a kernel of their own for few rows. The linear that is
    under way gives the identity.
    """
    under_way = threading.local()

    def entered(linear):
        @functools.wraps(linear)
        def within(*args, **kwargs):
            before = getattr(under_way, "name", None)
            under_way.name = linear.__name__
            try:
                return linear(*args, **kwargs)
            finally:
                under_way.name = before

        return within

    def observe(XQ, WQ, *_, **__):
        name = getattr(under_way, "name", None)
        owner = module.__name__ if name else getattr(gemm, "__module__", "?")
        observer.dispatch(name or CHANNEL_GEMM, owner, "per_channel fp8_linear")
        observer.shape(XQ, WQ, None)

    # One linear has the name from an import, the other one asks the module for it.
    gemm = getattr(module, CHANNEL_GEMM, None)
    if not callable(gemm):
        return  # the server runs without aiter
    hooked = _observed(gemm, observe, recorder)
    for holder in (module, getattr(module, "aiter", None)):
        if getattr(holder, CHANNEL_GEMM, None) is gemm:
            setattr(holder, CHANNEL_GEMM, hooked)
    for name in CHANNEL_LINEARS:
        linear = getattr(module, name, None)
        if callable(linear):
            setattr(module, name, _unless_compiling(linear, entered(linear)))


def patch_fp8_kernel(module, settings, recorder):
    """Hooks SGLang's own block-FP8 GEMMs, where this module defines them."""
    if not settings.dump_shapes:
        return
    for name, path in GEMMS.items():
        gemm = getattr(module, name, None)
        if gemm is not None:
            observer = Observer(settings, recorder, BLOCK_GEMM, path)
            setattr(module, name, _observed(gemm, _gemm_counter(observer), recorder))


def _gemm_counter(observer):
    def count(A, B, As=None, Bs=None, block_size=None, *_, **__):
        if not getattr(_counted, "now", False):
            observer.shape(A, B, block_size)

    return count


class Observer:
    """Turns calls of one operation into records and log lines."""

    def __init__(self, settings, recorder, op, path, named=True):
        self._settings = settings
        self._recorder = recorder
        self._op = op
        # The playbook's text stands for aiter's block-scaled operations; another one is named behind the tag.
        self._named = (f" op={op}" if named else "", path)
        self._table = op if named else "aiter gemm_a8w8_blockscale / bpreshuffle"
        self._logged = set()
        self._rank_known = False

    def dispatch(self, name, module, what="block_quant w8a8_block_fp8_linear"):
        """Says which implementation serves `what`; once per identity."""
        identity = f"{name} ({module})"
        if not self._settings.log_dispatch or identity in self._logged:
            return
        self._logged.add(identity)
        self._recorder.once({"dispatch": identity, "count": 1})
        LOGGER.warning("[Fp8LinearMethod] %s=%s", what, identity)

    def failed(self, where, error):
        """Says that an observation failed; the observed function ran all the same."""
        self._recorder.error(where, error)

    def shape(self, activation, weight, block_size):
        """Counts one GEMM of `activation` (…, K) with `weight` (N, K); a (fp8, scale) pair stands for its first."""
        if not self._settings.dump_shapes:
            return
        if isinstance(activation, tuple):
            activation = activation[0]
        m = int(prod(activation.shape[:-1]))
        if m == 0:  # an idle data-parallel rank
            return
        n, k = (int(size) for size in weight.shape)
        self._tell_rank()
        kind, graph = graphs.phase()
        if kind == "capture":
            graphs.captured(graph, m)
        self._recorder.count(
            (
                ("op", self._op), ("M", m), ("N", n), ("K", k), ("dtype", str(weight.dtype)),
                ("kind", kind), ("bs", graph),
            )
        )  # fmt: skip
        row = f"{m},{n},{k},{weight.dtype}"
        blocks = "" if block_size is None else f" block_size={block_size}"
        # Once per row and process; unknown is not rank 0, but a rank that cannot tell must not be lost either.
        if row not in self._logged and graphs.tensor_parallel_rank()[0] in (0, None):
            self._logged.add(row)
            LOGGER.warning(
                "[GEMM_shape_dump]%s %s%s | x.shape=%s weight.shape=%s | "
                "M=%d N=%d K=%d (%s tune CSV) | csv_row: %s",
                *self._named, blocks, tuple(activation.shape), tuple(weight.shape), m, n, k, self._table, row,
            )  # fmt: skip

    def _tell_rank(self):
        if not self._rank_known:
            rank, world = graphs.tensor_parallel_rank()
            self._rank_known = rank is not None
            self._recorder.rank(rank, world)


def _kernel_counter(symbol, kernel, recorder):
    """Counts which kernel ran under the name `symbol`: the identity a switch is proven by."""
    target = f"{getattr(kernel, '__module__', '?')}:{getattr(kernel, '__qualname__', repr(kernel))}"

    def count(XQ, WQ, *_, **__):
        m = int(XQ.shape[0])
        if m == 0:  # an idle data-parallel rank
            return
        n, k = (int(size) for size in WQ.shape)
        recorder.count((("kernel", symbol), ("target", target), ("M", m), ("N", n), ("K", k)))

    return count


def _observed(original, observe, recorder):
    """`original`, with `observe` called first with the same arguments. `observe` never keeps `original` from running."""

    def observed(*args, **kwargs):
        try:
            observe(*args, **kwargs)
        except Exception as error:
            recorder.error(getattr(original, "__name__", "?"), error)
        return original(*args, **kwargs)

    return _unless_compiling(original, observed)


def _unless_compiling(original, hooked):
    """`hooked`, but `original` while dynamo traces."""
    is_compiling = sys.modules["torch"].compiler.is_compiling

    @functools.wraps(original)
    def chosen(*args, **kwargs):
        return (original if is_compiling() else hooked)(*args, **kwargs)

    return chosen


def _reporting(dispatcher, observer):
    """The dispatcher, its answer logged and returned unchanged: `fp8.py` compares it by identity."""

    @functools.wraps(dispatcher)
    def reported(*args, **kwargs):
        chosen = dispatcher(*args, **kwargs)
        try:
            function = getattr(chosen, "func", chosen)  # a functools.partial from 0.5.21 on
            observer.dispatch(getattr(function, "__qualname__", repr(function)), getattr(function, "__module__", "?"))
        except Exception as error:
            observer.failed(DISPATCHER, error)
        return chosen

    return reported
