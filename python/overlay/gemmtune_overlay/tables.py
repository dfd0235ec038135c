"""Hands SGLang tuned Triton tables from a folder of ours, because no release reads any folder but its own package's.

A table of ours replaces the shipped one for its (N, K, block shape); every other shape is looked up as before. Not
covered: a GEMM traced by `torch.compile` (0.5.9 and later look nothing up while tracing, and neither does this).
"""

import functools
import json
import os
import sys

LOOKUP = "get_w8a8_block_fp8_configs"
GEMM = "w8a8_block_fp8_matmul_triton"


def patch(module, folder, recorder):
    """Hooks the table look-up of `module`, where it defines it, and the GEMM, to record what each M was served."""
    lookup = getattr(module, LOOKUP, None)
    if lookup is None:
        return
    is_compiling = sys.modules["torch"].compiler.is_compiling
    cache = {}

    @functools.wraps(lookup)
    def tuned_or_shipped(N, K, block_n, block_k):
        if is_compiling():
            return lookup(N, K, block_n, block_k)
        key = (N, K, block_n, block_k)
        if key not in cache:
            try:
                cache[key] = _read(module, folder, key, recorder)
            except Exception as error:
                recorder.error(f"table N={N} K={K}", error)
                cache[key] = None
        return cache[key] if cache[key] is not None else lookup(N, K, block_n, block_k)

    # Callers that clear or inspect the lru_cache find it where it was.
    for name in ("cache_clear", "cache_info"):
        if hasattr(lookup, name):
            setattr(tuned_or_shipped, name, getattr(lookup, name))
    setattr(module, LOOKUP, tuned_or_shipped)
    gemm = getattr(module, GEMM, None)
    if gemm is not None:
        setattr(module, GEMM, _served(gemm, tuned_or_shipped, cache, recorder))


def _read(module, folder, key, recorder):
    """The table for `key`, or None where the folder has none. A table that cannot be right is an error."""
    n, k, block_n, block_k = key
    device = module.get_device_name().replace(" ", "_")
    name = f"N={n},K={k},device_name={device},dtype=fp8_w8a8,block_shape=[{block_n}, {block_k}].json"
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        table = {int(m): config for m, config in json.load(file).items()}
    if not table:
        raise ValueError(f"{path} has no row")
    # SGLang's own words for a table it takes, so that a log says the same whoever put the table there.
    logger = getattr(module, "logger", None)
    if logger is not None:
        logger.info("Using configuration from %s for W8A8 Block FP8 kernel.", path)
    recorder.once({"table": {"N": n, "K": k, "block": [block_n, block_k], "keys": list(table), "file": path}})
    return table


def _served(gemm, lookup, cache, recorder):
    """`gemm`, with each (M, N, K) it runs recorded beside the configuration that serves it: the proof of engagement."""
    is_compiling = sys.modules["torch"].compiler.is_compiling
    seen = set()

    @functools.wraps(gemm)
    def served(A, B, As, Bs, block_size, *args, **kwargs):
        if not is_compiling():
            try:
                shape = (A.numel() // A.shape[-1], int(B.shape[0]), int(B.shape[1]))
                if shape not in seen:
                    seen.add(shape)
                    _record(shape, block_size, lookup, cache, recorder)
            except Exception as error:
                recorder.error(GEMM, error)
        return gemm(A, B, As, Bs, block_size, *args, **kwargs)

    return served


def _record(shape, block_size, lookup, cache, recorder):
    m, n, k = shape
    block_n, block_k = (int(size) for size in block_size)
    table = lookup(n, k, block_n, block_k)
    served = {"M": m, "N": n, "K": k, "source": "default", "key": None, "config": None}
    if table:
        nearest = min(table, key=lambda row: abs(row - m))  # SGLang's own rule: the first of equals
        ours = cache.get((n, k, block_n, block_k)) is table
        served.update(source="injected" if ours else "sglang", key=nearest, config=table[nearest])
    recorder.once({"served": served})
