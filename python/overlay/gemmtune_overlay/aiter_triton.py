"""Serves aiter's Triton GEMM from rows in a folder of ours, because aiter reads no folder but the one beside its own code.

The folder holds files under aiter's own names (`gfx942-GEMM-A8W8_BLOCKSCALE-N=2112-K=7168.json`); each replaces the file of that
name and every other one is read as before. The hook stands where aiter opens a file, so that the look-up by M, its caches and
the copies it hands out stay aiter's own: `load_config_json` from v0.1.20 on, `_load_config_file` from v0.1.9 on. v0.1.7 and v0.1.8
read their files elsewhere and are refused.
"""

import functools
import json
import os
import sys

LOOKUP = "get_gemm_config"
READERS = ("load_config_json", "_load_config_file")


def patch(module, folder, recorder):
    """Hooks the reader of `module`, and the look-up, to record what each (M, N, K) was served."""
    reader = next((name for name in READERS if callable(getattr(module, name, None))), None)
    if reader is None or not callable(getattr(module, LOOKUP, None)):
        raise ValueError(
            f"{module.__file__} reads its files in a way that is not known: it has none of {', '.join(READERS)}"
        )
    read = getattr(module, reader)
    files = _Files(folder, recorder)
    # `load_config_json(path, …)`, `_load_config_file(cache, key, path, …)`.
    place = 0 if reader == READERS[0] else 2

    @functools.wraps(read)
    def ours_or_aiters(*args, **named):
        path = args[place] if len(args) > place else named.get("fpath")
        ours = files.instead_of(path)
        if ours is None:
            return read(*args, **named)
        recorder.once({"aiter_table": {"file": ours, "instead_of": path}})
        if len(args) > place:
            return read(*args[:place], ours, *args[place + 1 :], **named)
        return read(*args, **{**named, "fpath": ours})

    for name in ("cache_clear", "cache_info"):
        if hasattr(read, name):
            setattr(ours_or_aiters, name, getattr(read, name))
    setattr(module, reader, ours_or_aiters)
    setattr(module, LOOKUP, _recorded(module, getattr(module, LOOKUP), files, recorder))


class _Files:
    """The files of ours. One that cannot be right is an error, and aiter's own serves."""

    def __init__(self, folder, recorder):
        self._folder = folder
        self._recorder = recorder
        self._known = {}

    def instead_of(self, path):
        """The file of ours that goes in front of the one at `path`, or None."""
        if not isinstance(path, str):
            return None
        name = os.path.basename(path)
        if name not in self._known:
            self._known[name] = self._find(os.path.join(self._folder, name))
        return self._known[name]

    def _find(self, ours):
        if not os.path.isfile(ours):
            return None
        try:
            with open(ours, encoding="utf-8") as file:
                rows = json.load(file)
            # Without a row for any M, or without its tile, aiter would stop the server at its first call.
            if not rows.get("any") or not all(row.get("BLOCK_SIZE_M") for row in rows.values()):
                raise ValueError("it is no file of rows with one for `any`")
        except Exception as error:
            self._recorder.error(ours, error)
            return None
        return ours


def _recorded(module, lookup, files, recorder):
    is_compiling = sys.modules["torch"].compiler.is_compiling if "torch" in sys.modules else lambda: False
    seen = set()

    @functools.wraps(lookup)
    def recorded(config_name, M, N=None, K=None, *args, **named):
        answer = lookup(config_name, M, N, K, *args, **named)
        if (config_name, M, N, K) not in seen and not is_compiling():
            seen.add((config_name, M, N, K))
            try:
                _record(module, files, (config_name, M, N, K), answer, recorder)
            except Exception as error:
                recorder.error(LOOKUP, error)
        return answer

    return recorded


def _record(module, files, asked, answer, recorder):
    name, m, n, k = asked
    if n is None or k is None or name != "GEMM-A8W8_BLOCKSCALE":
        return
    row = answer[0] if isinstance(answer, tuple) else answer  # v0.1.9 answers with the row alone
    file = f"{module.arch_info.get_arch()}-{name}-N={n}-K={k}.json"
    ours = files.instead_of(file)
    served = {"M": int(m), "N": int(n), "K": int(k), "source": "injected" if ours else "aiter", "key": None}
    recorder.once({"served": {**served, "config": dict(row)}})
