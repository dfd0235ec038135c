"""Carries out a switch that gemmtune decided: which kernel the block-FP8 linears take.

The decision is a JSON file; this module only executes it, right after `fp8_utils` executed, so before weights are
loaded and before `fp8.py` copies the predicate. An action whose names are not all there changes nothing and is
recorded as refused.

    {"format": 1, "actions": [
        {"do": "rebind", "name": "triton_gemm_a8w8_blockscale", "to": "aiter:gemm_a8w8_blockscale"},
        {"do": "set_force_ck"},
        {"do": "predicate", "name": "use_aiter_triton_gemm_w8a8_tuned_gfx950", "value": true, "except": [[512, 7168]]},
        {"do": "route", "name": "triton_gemm_a8w8_blockscale", "to": "self:ck_gemm_a8w8_blockscale",
         "rules": [{"N": 512, "K": 7168, "min_M": 1, "max_M": 256}]}]}

`to` is `module:attribute`, `self` being `fp8_utils`. A route sends a GEMM that fits a rule to `to` and every other one to
what the name was bound to; a bound that a rule leaves out does not restrict. `except` lists the (N, K) that get the other
answer, and may be left out.
"""

import functools
import importlib
import json
import sys

FORMAT = 1


def apply(module, path, recorder):
    """Carries out the decision in the file `path` on `fp8_utils`."""
    for action in _decision(path)["actions"]:
        do = action.get("do")
        try:
            detail = _ACTIONS[do](module, action)
            recorder.once({"switch": {"do": do, "ok": True, "detail": detail}})
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            recorder.once({"switch": {"do": do, "ok": False, "detail": text}})
            recorder.error("switch", error)


def check_second_reader(module, path, recorder):
    """Says whether `fp8.py`, which decides at load time whether weights are shuffled, reads the same predicate."""
    utils = sys.modules["sglang.srt.layers.quantization.fp8_utils"]
    for action in _decision(path)["actions"]:
        if action.get("do") != "predicate":
            continue
        name = action["name"]
        if not hasattr(module, name):
            continue  # releases that shuffle no weight
        same = getattr(module, name) is getattr(utils, name)
        recorder.once({"switch": {"do": "predicate in fp8", "ok": same, "detail": name}})
        if not same:
            setattr(module, name, getattr(utils, name))


def _decision(path):
    with open(path, encoding="utf-8") as file:
        decision = json.load(file)
    if decision.get("format") != FORMAT:
        raise ValueError(f"{path} has format {decision.get('format')!r}, expected {FORMAT}")
    return decision


def _rebind(module, action):
    name, target = action["name"], _kernel(module, action["to"])
    _must_have(module, name)
    setattr(module, name, target)
    return f"{name} is {action['to']}"


def _route(module, action):
    name, target = action["name"], _kernel(module, action["to"])
    _must_have(module, name)
    rules, otherwise = action["rules"], getattr(module, name)
    chosen = {}

    @functools.wraps(otherwise)
    def routed(XQ, WQ, x_scale, w_scale, *args, **kwargs):
        problem = (XQ.shape[0], *WQ.shape)
        kernel = chosen.get(problem)
        if kernel is None:
            kernel = target if any(_fits(rule, *problem) for rule in rules) else otherwise
            chosen[problem] = kernel
        return kernel(XQ, WQ, x_scale, w_scale, *args, **kwargs)

    setattr(module, name, routed)
    return f"{name} goes to {action['to']} by {len(rules)} rules"


def _predicate(module, action):
    name, value = action["name"], bool(action["value"])
    _must_have(module, name)
    others = {(n, k) for n, k in action.get("except", [])}

    @functools.wraps(getattr(module, name))
    def answer(n, k, *_, **__):
        return value != ((n, k) in others)

    setattr(module, name, answer)
    return f"{name} is {value}" + (f" but for {sorted(others)}" if others else "")


def _set_force_ck(module, _action):
    _must_have(module, "set_force_ck_w8a8")
    module.set_force_ck_w8a8(True)
    return "set_force_ck_w8a8(True)"


_ACTIONS = {"rebind": _rebind, "route": _route, "predicate": _predicate, "set_force_ck": _set_force_ck}


#: Names of the plain CK GEMM: aiter's own, and SGLang's alias for it (0.5.13.post1 and later).
_PLAIN_CK = ("gemm_a8w8_blockscale", "ck_gemm_a8w8_blockscale")


def _row_major(kernel):
    """`kernel`, given activation scales whose memory is row-major.

    The compiled CK kernel reads the memory and ignores strides, while the Triton kernel it replaces honours them; some
    producers hand over a stride-swapped view. A copy of (M, K/128) floats makes both read the same numbers.
    """

    @functools.wraps(kernel)
    def given_row_major(XQ, WQ, x_scale, w_scale, *args, **kwargs):
        return kernel(XQ, WQ, x_scale.contiguous(), w_scale, *args, **kwargs)

    return given_row_major


def _fits(rule, m, n, k):
    return (
        rule.get("N") in (None, n)
        and rule.get("K") in (None, k)
        and (rule.get("min_M") or 0) <= m
        and (rule.get("max_M") is None or m <= rule["max_M"])
    )


def _kernel(module, to):
    owner, _, attribute = to.partition(":")
    kernel = getattr(module if owner == "self" else importlib.import_module(owner), attribute)
    return _row_major(kernel) if attribute in _PLAIN_CK and "triton" not in owner else kernel


def _must_have(module, name):
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name}")
