"""Routes block-FP8 GEMMs to other kernel families than the one SGLang chose, by (N, K) and ranges of M.

    {"format": 1, "device": "NVIDIA H200", "cu_num": 132, "rows": [
        {"N": 4096, "K": 4096, "min_M": 1, "max_M": 8, "family": "stream", "setting": {"ROW_TILES": 2, …}}]}

The functions below SGLang's block-FP8 linears take quantised operands, (A, B, As, Bs, block_size, output_dtype), in all
releases from 0.5.5 to 0.5.23: one that calls DeepGEMM and one that launches the Triton kernel. Each is replaced by one that
looks its GEMM up and has the family compute it; a GEMM that no row names, and one whose operands do not lie as the family
takes them, goes the way it went before. The families are the GPU worker's (`gpu_worker.families`, beside this package): what
serves is what was raced. The family `triton` is the module's own Triton kernel, its setting a row of a table.

Every GEMM is counted with what computed it: `gemmtune:FAMILY`, or the function that was there before.

A route of another device than the one that serves (its name, and its multiprocessors where the file has them) routes nothing: what
was fastest there need not be here. That is looked at by the first GEMM, since nothing may touch the device before.

A kernel is loaded at its first call. During the capture of a graph nothing may be loaded, so a GEMM whose first call that is
goes the old way and is recorded; SGLang runs each batch size twice before it captures it.
"""

import functools
import json
import os
import sys
import threading
import types

FORMAT = 1
FUNCTIONS = ("w8a8_block_fp8_matmul_deepgemm", "w8a8_block_fp8_matmul_triton")
BLOCK = (128, 128)
TRITON, LOOKUP = "w8a8_block_fp8_matmul_triton", "get_w8a8_block_fp8_configs"

#: Families that would copy scales of A that lie by rows, which was not in the time they were raced with.
BY_COLUMNS = ("cublaslt",)


def patch(module, path, recorder):
    """Replaces those of FUNCTIONS that `module` defines."""
    document = _read(path)
    rows = document["rows"]
    torch = sys.modules["torch"]
    triton = TritonRows(module) if hasattr(module, TRITON) and hasattr(module, LOOKUP) else None
    raced_on = (document.get("device"), document.get("cu_num"))
    router = Router(torch, rows, recorder, triton=triton, raced_on=raced_on)
    for name in FUNCTIONS:
        original = getattr(module, name, None)
        if original is not None:
            setattr(module, name, router.instead_of(name, original))
            recorder.once({"switch": {"do": "route to families", "ok": True, "detail": f"{name}, {len(rows)} rows"}})


def _read(path):
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    if document.get("format") != FORMAT:
        raise ValueError(f"{path} has format {document.get('format')!r}, expected {FORMAT}")
    return document


class TritonRows:
    """The module's Triton kernel with a configuration that is given, instead of the one that it looks up."""

    def __init__(self, module):
        self._gemm = getattr(module, TRITON)
        self._now = threading.local()
        lookup = getattr(module, LOOKUP)

        @functools.wraps(lookup)
        def given_or_found(N, K, block_n, block_k):
            given = getattr(self._now, "given", None)
            return {1: given} if given is not None else lookup(N, K, block_n, block_k)

        for name in ("cache_clear", "cache_info"):
            if hasattr(lookup, name):
                setattr(given_or_found, name, getattr(lookup, name))
        setattr(module, LOOKUP, given_or_found)

    def compute(self, configuration, A, B, As, Bs, block_size, dtype):
        """The product; what the kernel looks up meanwhile is `configuration`, whatever M is."""
        self._now.given = configuration
        try:
            return self._gemm(A, B, As, Bs, block_size, output_dtype=dtype)
        finally:
            self._now.given = None


class Router:
    """Which family computes a GEMM, and the families that have been opened."""

    def __init__(self, torch, rows, recorder, families=None, triton=None, raced_on=(None, None)):
        self._torch = torch
        self._rows = rows
        self._recorder = recorder
        self._families = families
        self._triton = triton
        self._raced_on = raced_on
        self._is_here = None
        self._chosen = {}
        self._loaded = set()

    def instead_of(self, name, original):
        """`original`, with the GEMMs that a row names computed by its family."""
        is_compiling = self._torch.compiler.is_compiling
        counted = f"{original.__module__}:{original.__qualname__}"

        @functools.wraps(original)
        def routed(A, B, As, Bs, block_size, *args, **kwargs):
            if not is_compiling():
                try:
                    row = self._row(A, B)
                    if row is not None:
                        out = self._compute(row, A, B, As, Bs, block_size, args, kwargs)
                        if out is not None:
                            self._count(name, f"gemmtune:{row['family']}", A, B)
                            return out
                    self._count(name, counted, A, B)
                except Exception as error:
                    self._recorder.error(name, error)
                    self._chosen[(A.numel() // A.shape[-1], *B.shape)] = None  # not tried again
                    self._count(name, counted, A, B)
            return original(A, B, As, Bs, block_size, *args, **kwargs)

        return routed

    def _row(self, A, B):
        problem = (A.numel() // A.shape[-1], *B.shape)
        if problem not in self._chosen:
            m, n, k = problem
            fits = (one for one in self._rows if (one["N"], one["K"]) == (n, k) and one["min_M"] <= m <= one["max_M"])
            self._chosen[problem] = next(fits, None) if self._here() else None
        return self._chosen[problem]

    def _here(self):
        """Whether the route is of the device that serves; said once where it is not."""
        if self._is_here is None:
            cuda, (name, cu_num) = self._torch.cuda, self._raced_on
            index = cuda.current_device()
            found = cuda.get_device_name(index), cuda.get_device_properties(index).multi_processor_count
            self._is_here = name in (None, found[0]) and cu_num in (None, found[1])
            if not self._is_here:
                detail = f"raced on {name} ({cu_num} multiprocessors), served by {found[0]} ({found[1]})"
                self._recorder.once({"switch": {"do": "route to families", "ok": False, "detail": detail}})
        return self._is_here

    def _compute(self, row, A, B, As, Bs, block_size, args, kwargs):
        """The product by the row's family, or None where it is not for these operands or cannot be had now."""
        torch = self._torch
        dtype = args[0] if args else kwargs.get("output_dtype", torch.float16)
        wrong = _misfit(torch, A, B, As, Bs, block_size, dtype)
        if wrong is None and row["family"] in BY_COLUMNS and not As.t().is_contiguous():
            wrong = "the scales of A do not lie by columns"
        if wrong is not None:
            self._recorder.once({"switch": {"do": "route to families", "ok": False, "detail": f"{wrong}: {row}"}})
            return None
        key = (id(row), A.shape[0])
        if key not in self._loaded and torch.cuda.is_current_stream_capturing():
            return None
        if row["family"] == "triton":
            if self._triton is None:
                raise LookupError(f"there is no {TRITON} here")
            out = self._triton.compute(row["setting"], A, B, As, Bs, list(block_size), dtype)
            self._loaded.add(key)
            return out
        family = self._open(row["family"])
        from gpu_worker.plan import Problem

        out = A.new_empty((A.shape[0], B.shape[0]), dtype=dtype)
        problem = Problem(A.shape[0], B.shape[0], B.shape[1], str(A.dtype).replace("torch.", ""))
        operands = types.SimpleNamespace(a=A, a_scale=As, weights=[(B, Bs)], out=out)
        family.launch(problem, operands, row["setting"], BLOCK)(0)
        self._loaded.add(key)
        return out

    def _open(self, name):
        if self._families is None:
            from gpu_worker.device import facts
            from gpu_worker.families import Families

            torch = self._torch
            root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            # The worker's own folder (`gpu_worker/bench.py`): what the race compiled is found there.
            cache = os.path.join(root, "gemmtune", "sglang-triton", "families")
            self._families = Families(torch, facts(torch, torch.cuda.current_device()), cache)
        return self._families.open(name)

    def _count(self, symbol, target, A, B):
        m = int(A.shape[0])
        if m == 0:  # an idle data-parallel rank
            return
        n, k = (int(size) for size in B.shape)
        self._recorder.count((("kernel", symbol), ("target", target), ("M", m), ("N", n), ("K", k)))


def _misfit(torch, A, B, As, Bs, block_size, dtype):
    """What keeps a family from taking these operands; None if nothing does. Shapes, dtypes and strides only."""
    if tuple(block_size) != BLOCK or dtype != torch.bfloat16:
        return "blocks of 128 x 128 and bfloat16 are routed"
    if A.dim() != 2 or not A.is_contiguous() or not B.is_contiguous():
        return "the operands are not plain matrices"
    if A.dtype != torch.float8_e4m3fn or B.dtype != torch.float8_e4m3fn:
        return f"the operands are {A.dtype} and {B.dtype}"
    blocks_k = -(-B.shape[1] // 128)
    if As.dtype != torch.float32 or tuple(As.shape) != (A.shape[0], blocks_k):
        return f"the scales of A are {As.dtype}, {tuple(As.shape)}"
    if Bs.dtype != torch.float32 or tuple(Bs.shape) != (-(-B.shape[0] // 128), blocks_k) or not Bs.is_contiguous():
        return f"the scales of B are {Bs.dtype}, {tuple(Bs.shape)}"
    return None
