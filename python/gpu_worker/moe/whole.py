"""The whole fused MoE through SGLang's own `fused_experts`: quantisation, sorting, both GEMMs, activation and sum.

The two GEMMs are what a row changes; whether it is worth deploying is decided on the operation a server runs. For that
SGLang is imported, which costs half a minute. Whether it can be is found out in a process of its own (`Attempt`), and the worker
imports it only when the operation itself is raced: on an H200 a worker that had imported it took half a second for
each candidate of a GEMM, instead of some milliseconds.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import subprocess
import sys

from gpu_worker.moe.lift import KERNEL
from gpu_worker.moe.operands import MoeOperands
from gpu_worker.moe.problem import DOWN, UP, MoeProblem
from gpu_worker.moe.routing import UNIFORM

MODULES = (
    "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe",  # SGLang 0.5.11 and later
    "sglang.srt.layers.moe.fused_moe_triton.fused_moe",  # up to 0.5.10.post1
)
LOOKUP = "try_get_optimal_moe_config"
"""One name and one signature from 0.5.6 to 0.5.23; `fused_moe` holds a copy of it."""


ATTEMPT = "--attempt-whole"
"""How the worker starts the process that tries the operation."""

ATTEMPT_S = 400.0
"""Longest the attempt may take: imports from a network file system, and what SGLang compiles at its first use."""


class Unavailable(Exception):
    """SGLang's operation cannot be run here, with the reason."""


class Attempt:
    """The operation, tried in a process of its own. What it has compiled there is found by the worker later."""

    def __init__(self, index, package):
        entry = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "__main__.py")
        self._process = subprocess.Popen(
            [sys.executable, entry, ATTEMPT, str(index), package],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def reason(self):
        """Why the operation cannot be run here, or None where it can be."""
        try:
            said, _ = self._process.communicate(timeout=ATTEMPT_S)
            return json.loads(said.strip().splitlines()[-1])["unavailable"]
        except subprocess.TimeoutExpired:
            self._process.kill()
            return f"the attempt took longer than {ATTEMPT_S:.0f} s"
        except (ValueError, KeyError, IndexError, TypeError):
            return f"the attempt ended with status {self._process.wait()}"


def attempt(arguments):
    """The process of an `Attempt`: runs small operations and says on standard output how that went."""
    index, package = int(arguments[0]), arguments[1]
    why = None
    try:
        import torch

        from gpu_worker.device import facts

        torch.cuda.set_device(index)
        dtype = "float8_e4m3fnuz" if facts(torch, index)["arch"].startswith("gfx94") else "float8_e4m3fn"
        Whole.of(torch, package).warm_up(torch, torch.device("cuda", index), dtype)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    print("\n" + json.dumps({"unavailable": why}), flush=True)
    os._exit(0)


class Whole:
    """SGLang's `fused_experts`, run with the rows that a candidate names."""

    def __init__(self, module, topk_output, runner_config):
        self._module = module
        self._topk_output = topk_output
        self._runner_config = runner_config
        self._rows = None
        setattr(module, LOOKUP, self._answer)

    @classmethod
    def of(cls, torch, package, kernel=None):
        """The operation of the SGLang package in the folder `package`. `kernel`: its GEMM as it was lifted, launched in the
        place of SGLang's own so that it is not compiled again; the text is the same."""
        parent = os.path.dirname(os.path.abspath(package))
        if parent not in sys.path:
            sys.path.insert(0, parent)
        try:
            module = _import(MODULES)
            if not os.path.samefile(os.path.dirname(sys.modules["sglang"].__file__), package):
                raise Unavailable(f"another SGLang was imported: {sys.modules['sglang'].__file__}")
            _stand_in_for_a_server(module)
            launcher = sys.modules[module.invoke_fused_moe_kernel.__module__]
            if kernel is not None and hasattr(launcher, KERNEL):
                setattr(launcher, KERNEL, kernel)
            topk = importlib.import_module("sglang.srt.layers.moe.topk").StandardTopKOutput
            runner = importlib.import_module("sglang.srt.layers.moe.moe_runner").MoeRunnerConfig
        except Unavailable:
            raise
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            raise Unavailable(words) from error
        return cls(module, topk, runner)

    def warm_up(self, torch, device, dtype):
        """Runs small operations, so that what surrounds the GEMMs is compiled before anything is timed: Triton compiles
        the quantisation, torch the sum of few tokens, for one token, for one size and for all."""
        row = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}
        row.update(num_warps=4, num_stages=2)
        for tokens, topk, hidden in ((1, 4, 256), (2, 4, 256), (5, 6, 512), (70, 6, 512)):
            problem = MoeProblem(tokens, 8, topk, hidden, 128, dtype=dtype)
            self.launch(MoeOperands(torch, device, problem, 1, UNIFORM), {"up": row, "down": None}).run(0)
        torch.cuda.synchronize()

    def launch(self, operands, candidate):
        """A launch of the whole operation on `operands` with the rows of `candidate`, `{"up": …, "down": …}`."""
        return _Launch(self, operands, candidate)

    def run(self, operands, candidate, copy):
        """Enqueues the operation with routing number `copy`; its output, `[tokens, hidden]`."""
        ids, weights = operands.routes[copy]
        (up, up_scale), (down, down_scale) = operands.weights[UP], operands.weights[DOWN]
        experts = operands.problem.experts
        config = self._runner_config(num_experts=experts, num_local_experts=experts, inplace=False)
        self._rows = candidate
        try:
            return self._module.fused_experts(
                operands.hidden,
                up,
                down,
                # Logits are there to be unpacked; nothing below reads them.
                self._topk_output(weights, ids, operands.hidden),
                config,
                use_fp8_w8a8=True,
                w1_scale=up_scale,
                w2_scale=down_scale,
                block_shape=[128, 128],
            )
        finally:
            self._rows = None

    def _answer(self, *_shapes, return_down_config=False, **_more):
        """Answers the look-up as SGLang does, with dictionaries of our own: its callers take `USE_TMA` out of them."""
        up, down = self._rows["up"], self._rows.get("down")
        if not return_down_config:
            return dict(up)
        return dict(up), (
            None if down is None else dict(down),
            up["BLOCK_SIZE_M"] if down is None else down["BLOCK_SIZE_M"],
        )


class AsServed(Whole):
    """SGLang's `fused_experts` with its own look-up, whatever stands in front of that; `rows` are those it answered last."""

    def __init__(self, module, topk_output, runner_config):
        self._lookup = getattr(module, LOOKUP)
        self.rows = None
        super().__init__(module, topk_output, runner_config)

    def _answer(self, *shapes, return_down_config=False, **more):
        """What the look-up says, which its callers take `USE_TMA` out of."""
        if not return_down_config:
            answer = self._lookup(*shapes, **more)
            self.rows = {"up": dict(answer), "down": None}
            return answer
        answer = self._lookup(*shapes, return_down_config=True, **more)
        up, (down, _) = answer
        self.rows = {"up": dict(up), "down": None if down is None else dict(down)}
        return answer


class _Launch:
    """One candidate on one set of operands."""

    def __init__(self, whole, operands, candidate):
        self._whole, self._operands, self._candidate = whole, operands, candidate
        self.out = None

    def load(self):
        """Compiles and loads what SGLang's own path launches, by running it."""
        self.run(0)

    def run(self, copy):
        """Enqueues the operation."""
        self.out = self._whole.run(self._operands, self._candidate, copy % len(self._operands.routes))


def _import(names):
    """The first of these modules that the package has."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "?"):
                raise
    raise Unavailable(f"no {' or '.join(names)}")


def _stand_in_for_a_server(module):
    """What `fused_experts` asks of a running server: its arguments, all at their defaults, and its communicator."""
    arguments = importlib.import_module("sglang.srt.server_args")
    if dataclasses.is_dataclass(arguments.ServerArgs):
        # Its initialiser looks at the model and the device.
        made = object.__new__(arguments.ServerArgs)
        for field in dataclasses.fields(arguments.ServerArgs):
            value = None
            if field.default is not dataclasses.MISSING:
                value = field.default
            elif field.default_factory is not dataclasses.MISSING:
                value = field.default_factory()
            setattr(made, field.name, value)
    else:
        made = arguments.ServerArgs(model_path="none")  # 0.5.20 and later: plain values until they are resolved
    arguments.set_global_server_args_for_scheduler(made)
    # The output goes where an all-reduce wants it; one rank has none.
    for name, value in (
        ("get_tp_group", lambda: None),
        ("use_symmetric_memory", lambda *_, **__: contextlib.nullcontext()),
        ("is_allocation_symmetric", lambda: False),
    ):
        if hasattr(module, name):
            setattr(module, name, value)
    if hasattr(module, "get_parallel"):  # 0.5.20 and later
        parallel = module.get_parallel
        module.get_parallel = lambda: _OneRank(parallel())


class _OneRank:
    """What SGLang knows of its ranks, without a group of them."""

    tp_group = None

    def __init__(self, parallel):
        self._parallel = parallel

    def __getattr__(self, name):
        return getattr(self._parallel, name)
