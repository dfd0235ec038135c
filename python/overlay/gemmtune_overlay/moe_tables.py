"""Serves SGLang's Triton fused MoE from tuned tables in a folder of ours.

`SGLANG_MOE_CONFIG_DIR` would replace every table that SGLang ships; this answers for the (E, N) that the folder has tables
for, and leaves every other one to SGLang. The hook stands at `try_get_optimal_moe_config`: one name and one signature from
0.5.6 to 0.5.23, asked once for each forward.

A table is a pair of files, for the up and for the down projection, under the names SGLang would look for. Both are needed: the
projections share one sort of the tokens and so their BLOCK_SIZE_M.
"""

import functools
import inspect
import json
import os
import sys

from . import graphs

LOOKUP = "try_get_optimal_moe_config"
NAME = "get_config_file_name"


def patch(module, folder, recorder):
    """Hooks the look-up of `module`, and records what each (E, N, M) was served."""
    lookup = getattr(module, LOOKUP)
    is_compiling = sys.modules["torch"].compiler.is_compiling
    tables, seen = {}, set()

    signature = inspect.signature(lookup)  # 0.5.5 has no `per_channel_quant`

    @functools.wraps(lookup)
    def tuned_or_shipped(*args, **kwargs):
        if is_compiling():
            return lookup(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        asked = bound.arguments
        experts, _, n = (int(size) for size in asked["w2_shape"])
        dtype, block, m = asked["dtype"], tuple(asked["block_shape"] or ()), int(asked["M"])
        key = (experts, n, dtype, block, bool(asked.get("per_channel_quant")))
        both = asked["return_down_config"]
        if key not in tables:
            try:
                tables[key] = _read(module, folder, key, recorder)
            except Exception as error:
                recorder.error(f"MoE table E={experts} N={n}", error)
                tables[key] = None
        table = tables[key]
        if table is None:
            answer = lookup(*args, **kwargs)
        else:
            answer = _rows(table, m, both)
        if (key, m) not in seen:
            seen.add((key, m))
            try:
                recorder.rank(*graphs.tensor_parallel_rank(), expert=graphs.expert_parallel_rank())
                _record(key, asked["top_k"], m, table, answer, both, recorder)
            except Exception as error:
                recorder.error(LOOKUP, error)
        return answer

    setattr(module, LOOKUP, tuned_or_shipped)


def _read(module, folder, key, recorder):
    """The pair of tables for `key`, or None where the folder has none. A pair that cannot be right is an error."""
    experts, n, dtype, block, per_channel = key
    channel = {"per_channel_quant": True} if per_channel else {}
    pair = []
    for down in (False, True):
        name = getattr(module, NAME)(experts, n, dtype, list(block) or None, down_moe=down, **channel)
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            if pair:
                raise ValueError(f"{path} is missing beside the up projection's table")
            return None
        with open(path, encoding="utf-8") as file:
            pair.append({int(m): row for m, row in json.load(file).items()})
        # SGLang's own words for a table it takes.
        logger = getattr(module, "logger", None)
        if logger is not None:
            logger.info("Using MoE kernel config from %s.", path)
    up, down = pair
    if not up or list(up) != list(down):
        raise ValueError(f"{path} does not have the rows of the up projection's table")
    for m, row in up.items():
        if row["BLOCK_SIZE_M"] != down[m]["BLOCK_SIZE_M"]:
            raise ValueError(f"{path} has another BLOCK_SIZE_M than the up projection's table at M = {m}")
    recorder.once({"moe_table": {"E": experts, "N": n, "keys": list(up), "file": path}})
    # SGLang hands on the largest BLOCK_SIZE_M of the down table beside the row.
    return up, down, max(row["BLOCK_SIZE_M"] for row in down.values())


def _nearest(table, m):
    return min(table, key=lambda row: abs(row - m))  # SGLang's own rule: the first of equals


def _rows(table, m, return_down_config):
    """What the look-up answers; new dictionaries each time, because callers take `USE_TMA` out of them."""
    up, down, largest = table
    key = _nearest(up, m)
    if not return_down_config:
        return dict(up[key])
    return dict(up[key]), (dict(down[key]), largest)


def _record(key, top_k, m, table, answer, return_down_config, recorder):
    up, down = (answer[0], answer[1][0]) if return_down_config else (answer, None)
    served = {"E": key[0], "N": key[1], "topk": int(top_k), "M": int(m), "dtype": key[2], "block": list(key[3])}
    served["source"] = "sglang" if table is None else "injected"
    served["key"] = None if table is None else _nearest(table[0], m)
    served["up"], served["down"] = dict(up), None if down is None else dict(down)
    recorder.once({"served_moe": served})
