"""Tries one of aiter's FP8 GEMMs as a server would call it: are its numbers right, and how long does it take.

Run as `python -c TEXT ORDER.json`, in the environment of the server. The order is
{"op": "gemm_a8w8_blockscale", "linear": null, "check": [[M, N, K], ...], "time": [[M, N, K], ...]}, `linear` being SGLang's
function that calls a per-channel operation, if it is known. Answers are lines on standard output, a
tag and a JSON object each, written as they come, so that earlier answers survive a kernel that ends the process:

    {"about": {...}}                            what was imported, once
    {"doing": "check", "M": 1, "N": 512, "K": 7168}
    {"check": {"M", "N", "K", "error": 0.0017 or null, "said": null or text}}
    {"time": {"M", "N", "K", "us": 6.2 or null, "clock": "device" or "wall", "kernel": "name on the device" or null, "said"}}
    {"modules": {"module_gemm_a8w8_blockscale": "/path/of/it.so", ...}}     what was loaded

With "serve" it times SGLang's own linear instead, including its quantiser, and writes the answers to a file that
survives the process:

    {"serve": [[M, N, K], ...], "ways": ["today", "tuned"], "switch": "switch.json" or null, "answers": "answers.jsonl"}
    {"served": {"M", "N", "K", "us": {"today": [6 times], ...}, "kernels": {"today": name}, "clock", "said"}}

To time both paths in one process, alternately, the switch is turned off and on.

A check goes through SGLang's own linear function where SGLang can be imported, so that quantiser, layouts and a switch
are the server's; its error is relative to the product of the same quantised operands in float64. A time is that of
aiter's operation alone, which is what aiter's tuner measures. Needs torch and aiter; nothing else.
"""

import hashlib
import json
import os
import sys
import time

TAG = "gemmtune-aiter-probe: "
BLOCK = 128
#: Rows whose error is measured; the kernel computes all of them.
ROWS = 64
#: Columns of the reference made at once: 4096 x 18432 in float64 is 0.6 GB.
COLUMNS = 4096
WARM_UP = 5
#: As aiter's tuner times (`aiter/test_common.py`, `run_perftest`).
ITERATIONS = 101
#: Operands are rotated so that weights come from memory, as between the layers of a model: twice MI300X's 256 MB of
#: Infinity Cache.
ROTATED_BYTES = 512 * 1024 * 1024
#: Times of a GEMM on each way, in turn where there are two: six pairs are the fewest whose interval reaches 95 %
#: (`src/stats/paired.rs`).
ROUNDS = 6
#: Calls of a round: as many together as aiter's tuner makes.
CALLS = -(-ITERATIONS // ROUNDS)


def tell(record):
    """One answer line, in one write, so that other output cannot tear it."""
    os.write(1, (TAG + json.dumps(record) + "\n").encode())


def failure(error):
    """An exception as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


class Bench:
    """The operation, its operands and how a server calls it."""

    def __init__(self, op):
        import torch

        self.torch = torch
        import aiter

        self.aiter = aiter
        self.op = op
        #: The way that is being timed.
        self.way = "today"
        self.device = self._device()
        self.kernel = getattr(aiter, op)
        self.preshuffled = op.endswith("_bpreshuffle")
        self.utils = self._sglang()
        self.leaf = self._leaf()
        self.quantise = self._quantiser()

    def about(self):
        """What was imported, for the record."""
        leaf = getattr(self.leaf, "func", self.leaf)
        return {
            "torch": str(self.torch.__version__),
            "aiter": getattr(self.aiter, "__file__", None),
            "through": getattr(leaf, "__qualname__", None) if leaf is not None else None,
            "device": str(self.device),
        }

    def _quantiser(self):
        return getattr(self.utils, "aiter_per1x128_quant", None) or self.aiter.get_hip_quant(
            self.aiter.QuantType.per_1x128
        )

    def _device(self):
        torch = self.torch
        if torch.cuda.is_available():
            try:
                torch.empty(1, device="cuda")
                return torch.device("cuda")
            except Exception as error:
                print(f"no device: {failure(error)}", file=sys.stderr)
        return torch.device("cpu")

    def _sglang(self):
        try:
            # This one first, because 0.5.6 has an import cycle otherwise.
            from sglang.srt.layers.quantization import fp8  # noqa: F401
        except ImportError as error:
            print(f"fp8.py: {failure(error)}", file=sys.stderr)
        try:
            from sglang.srt.layers.quantization import fp8_utils

            return fp8_utils
        except ImportError as error:
            print(f"without SGLang: {failure(error)}", file=sys.stderr)
            return None

    def _leaf(self):
        if self.utils is None:
            return None
        try:
            return self.utils.dispatch_w8a8_block_fp8_linear()
        except Exception as error:
            print(f"dispatch: {failure(error)}", file=sys.stderr)
            return self.utils.aiter_w8a8_block_fp8_linear

    def activation(self, m, k, seed):
        """A bf16 activation whose groups have maxima of very different sizes, row by row and group by group.

        With equal ones a scale read in a transposed layout would not be noticed.
        """
        torch = self.torch
        torch.manual_seed(seed)
        x = torch.randn(m, k, device=self.device)
        groups = k // BLOCK
        spread = torch.tensor(
            [[2.0 ** ((5 * row + 3 * group) % 7 - 3) for group in range(groups)] for row in range(m)],
            device=self.device,
        )
        return (x.view(m, groups, BLOCK) * spread.view(m, groups, 1)).view(m, k).to(torch.bfloat16)

    def weight(self, n, k, seed):
        """An FP8 weight with one scale per 128 x 128 block, as in a checkpoint."""
        torch, dtype = self.torch, self.aiter.dtypes.fp8
        torch.manual_seed(seed)
        rows, groups = -(-n // BLOCK), k // BLOCK
        w = torch.randn(rows * BLOCK, k, device=self.device).view(rows, BLOCK, groups, BLOCK)
        scale = w.abs().amax(dim=(1, 3)) / torch.finfo(dtype).max
        q = (w / scale.view(rows, 1, groups, 1)).view(rows * BLOCK, k)[:n].contiguous().to(dtype)
        return q, scale

    def laid_out(self, w):
        """The weight as the kernel reads it: what `process_weights_after_loading` does (0.5.11 to 0.5.23)."""
        n, k = (int(size) for size in w.shape)
        shuffles = getattr(self.utils, "_use_aiter_bpreshuffle_gfx95", False)
        if self.leaf is None:
            shuffles = self.preshuffled
        elif shuffles:
            shuffles = not self.utils.use_aiter_triton_gemm_w8a8_tuned_gfx950(n, k)
        if not shuffles:
            return w
        from aiter.ops.shuffle import shuffle_weight

        return shuffle_weight(w, (16, 16))

    def served(self, x, w, w_scale):
        """The result that the server would compute."""
        if self.leaf is None:
            return self._operation(x, w, w_scale)()
        return self.leaf(
            input=x, weight=w, block_size=[BLOCK, BLOCK], weight_scale=w_scale, input_scale=None, bias=None
        )

    def _operation(self, x, w, w_scale):
        """A call of aiter's operation alone, its operands ready; `w` is laid out for it."""
        dtype = self.aiter.dtypes.fp8
        if self.preshuffled:
            q, scale = self.quantise(x, quant_dtype=dtype, transpose_scale=True)
        else:
            q, scale = self.quantise(x, quant_dtype=dtype)
        return lambda: self.kernel(q, w, scale, w_scale, dtype=self.torch.bfloat16)

    def error(self, m, n, k):
        """The relative Frobenius error on some rows; None where an output is not finite."""
        torch = self.torch
        x, (w, w_scale) = self.activation(m, k, seed=m), self.weight(n, k, seed=n + k)
        out = self.served(x, self.laid_out(w), w_scale)
        rows = list(range(m)) if m <= ROWS else sorted({i * (m - 1) // (ROWS - 1) for i in range(ROWS)})
        out = out[rows].to(torch.float64)
        if not bool(torch.isfinite(out).all()):
            return None
        wide = self.wide_activation(x, rows)
        wrong = right = 0.0
        for start in range(0, n, COLUMNS):
            end = min(n, start + COLUMNS)
            expected = wide @ self.wide_weight(w, w_scale, start, end).t()
            difference = out[:, start:end] - expected
            wrong += float((difference * difference).sum())
            right += float((expected * expected).sum())
        return (wrong / right) ** 0.5

    def wide_activation(self, x, rows):
        """Rows of the activation as it was quantised, in float64."""
        torch = self.torch
        q, scale = self.quantise(x, quant_dtype=self.aiter.dtypes.fp8)
        groups = int(q.shape[1]) // BLOCK
        scale = scale[rows].to(torch.float64).view(len(rows), groups, 1)
        return (q[rows].to(torch.float64).view(len(rows), groups, BLOCK) * scale).view(len(rows), groups * BLOCK)

    def wide_weight(self, w, w_scale, start, end):
        """Rows of the weight, from the beginning of a block on, in float64."""
        torch = self.torch
        rows, groups = end - start, int(w.shape[1]) // BLOCK
        blocks = w_scale[start // BLOCK : -(-end // BLOCK)].to(torch.float64)
        per_row = blocks.repeat_interleave(BLOCK, 0)[:rows].view(rows, groups, 1)
        return (w[start:end].to(torch.float64).view(rows, groups, BLOCK) * per_row).view(rows, groups * BLOCK)

    def microseconds(self, m, n, k):
        """Time of one call, which clock it is from, and the kernel that took longest."""
        x = self.activation(m, k, seed=m)
        w, w_scale = self.weight(n, k, seed=n + k)
        if self.preshuffled:
            from aiter.ops.shuffle import shuffle_weight

            w = shuffle_weight(w, (16, 16))
        calls = [self._operation(x, copy, w_scale) for copy in self._copies(w)]
        for i in range(WARM_UP):
            calls[i % len(calls)]()
        if self.device.type == "cuda":
            us, kernel = device_time(self.torch, calls, ITERATIONS)
            return us, "device", kernel
        # On a CPU there is nothing to wait for, and a few calls are enough.
        times = []
        for _ in range(5):
            started = time.perf_counter()
            calls[0]()
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2] * 1e6, "wall", None

    def _copies(self, w):
        """Enough copies of the weight that each call reads it from memory and not from a cache."""
        copies, size = 1, int(w.shape[0]) * int(w.shape[1])
        if self.device.type == "cuda":
            free = self.torch.cuda.mem_get_info()[0] // 2
            copies = max(1, min(ITERATIONS, ROTATED_BYTES // size + 1, free // size))
        return [w] + [w.clone() for _ in range(copies - 1)]

    def serving(self, m, n, k, ways):
        """Times of SGLang's linear on each path, alternately, the kernel that took longest, and the clock used.

        `ways` has a function for each name that switches this process to that path.
        """
        x = self.activation(m, k, seed=m)
        w, w_scale = self.weight(n, k, seed=n + k)
        copies, calls = self._copies(w), {}
        times, kernels = {way: [] for way in ways}, {}
        for way, turn in ways.items():
            self.way = way
            turn()
            self.leaf = self._leaf()
            laid_out = [self.laid_out(copy) for copy in copies]
            calls[way] = [lambda w=copy: self.served(x, w, w_scale) for copy in laid_out]
        clock = "device" if self.device.type == "cuda" else "wall"
        for number in range(-1, ROUNDS):
            for way in reversed(ways) if number % 2 else ways:
                self.way = way
                ways[way]()
                self.leaf = self._leaf()
                if number < 0:
                    for i in range(WARM_UP):
                        calls[way][i % len(copies)]()
                elif clock == "device":
                    us, kernels[way] = device_time(self.torch, calls[way], CALLS)
                    times[way].append(us)
                else:
                    started = time.perf_counter()
                    calls[way][0]()
                    times[way].append((time.perf_counter() - started) * 1e6)
        return times, kernels, clock


def device_time(torch, calls, iterations):
    """Device time of one call, us, and the name of the kernel that took most of it."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for i in range(iterations):
            calls[i % len(calls)]()
        torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.elapsed_us(), event.name)
        for event in profiler.events()
        if str(event.device_type).endswith("CUDA") and event.time_range.elapsed_us() > 0
    ]
    spans.sort()
    durations = [duration for _, duration, _ in spans]
    if not durations:
        raise RuntimeError("the profiler saw nothing on the device")
    kernels = {}
    for _, duration, name in spans:
        kernels[name] = kernels.get(name, 0.0) + duration
    longest = shortened(max(kernels, key=kernels.get))
    each, rest = divmod(len(durations), iterations)
    if rest:  # calls of different numbers of kernels
        return sum(durations) / iterations, longest
    return without_outliers([sum(durations[i * each : (i + 1) * each]) for i in range(iterations)]), longest


def shortened(name):
    """A kernel's name, or its beginning and a digest: CK's are whole template instances that differ only far behind."""
    if len(name) <= 120:
        return name
    return f"{name[:100]}… {hashlib.sha256(name.encode()).hexdigest()[:12]}"


def loaded_modules():
    """Compiled GEMM modules of this process by name: those Python imported, and those that were opened as libraries."""
    found = {}
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        files = [line.split(None, 5)[5].strip() for line in maps if line.rstrip().endswith(".so")]
    imported = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    for path in files + [path for path in imported if path]:
        name = os.path.basename(path).split(".")[0]
        if name.startswith("module_gemm"):
            found[name] = os.path.abspath(path)
    return found


class Switch:
    """The decision of `switch`, to be turned on and off in this process: names of `fp8_utils` and what they are bound to."""

    def __init__(self, utils, path):
        from gemmtune_overlay import switch

        self.utils, self.refused = utils, []
        before = dict(vars(utils))
        switch.apply(utils, path, self)
        if self.refused:
            raise RuntimeError(f"the switch is refused: {self.refused[0]}")
        after = vars(utils)
        self.bound = {name: (value, after[name]) for name, value in before.items() if after[name] is not value}

    def once(self, record):
        """The overlay's recorder: what it reports about each action."""
        if not record["switch"]["ok"]:
            self.refused.append(record["switch"]["detail"])

    def error(self, *_):
        """It was in the record."""

    def turn(self, on):
        """Switches this process to the tuned path or back to today's."""
        for name, both in self.bound.items():
            setattr(self.utils, name, both[on])


class ChannelBench(Bench):
    """The same for one scale per token and one per output channel: `gemm_a8w8_bpreshuffle`, and `gemm_a8w8` by itself."""

    def __init__(self, op, linear):
        self.linear = linear
        #: The quantised activation and its scales, as the operation was last given them.
        self.given = None
        super().__init__(op)
        for holder in (self.aiter, self.utils):
            if getattr(holder, op, None) is self.kernel:
                setattr(holder, op, self._noting)

    def _noting(self, XQ, WQ, x_scale, *rest, **named):
        self.given = XQ, x_scale
        return self.kernel(XQ, WQ, x_scale, *rest, **named)

    def _quantiser(self):
        return self.aiter.per_token_quant_hip

    def _leaf(self):
        # No release of SGLang calls the operation whose weight is plain.
        if self.utils is None or not self.preshuffled:
            return None
        names = [self.linear] if self.linear else ["apply_fp8_ptpc_linear", "apply_fp8_linear"]
        return next((getattr(self.utils, name) for name in names if hasattr(self.utils, name)), None)

    def activation(self, m, k, seed):
        """A bf16 activation whose rows have very different magnitudes, because a scale of another row would not be noticed otherwise."""
        torch = self.torch
        torch.manual_seed(seed)
        x = torch.randn(m, k, device=self.device)
        return (x * self._spread(m, 5)).to(torch.bfloat16)

    def weight(self, n, k, seed):
        """An FP8 weight with one scale per row, as in a checkpoint; rows have very different magnitudes."""
        torch, dtype = self.torch, self.aiter.dtypes.fp8
        torch.manual_seed(seed)
        w = torch.randn(n, k, device=self.device) * self._spread(n, 3)
        scale = w.abs().amax(dim=(1,)).view(n, 1) / torch.finfo(dtype).max
        return (w / scale).to(dtype), scale

    def _spread(self, rows, step):
        return self.torch.tensor([[2.0 ** ((step * row) % 7 - 3)] for row in range(rows)], device=self.device)

    def laid_out(self, w):
        """The weight as the kernel reads it: what layers do when they are loaded (0.5.6 to 0.5.23)."""
        if not self.preshuffled:
            return w
        from aiter.ops.shuffle import shuffle_weight

        return shuffle_weight(w, (16, 16))

    def served(self, x, w, w_scale):
        """The result that the server would compute, as compressed-tensors layers and `Fp8LinearMethod` call the two linears."""
        if self.leaf is None:
            return self._operation(x, w, w_scale)()
        self.given = None
        same = {
            "input": x,
            "weight_scale": w_scale,
            "input_scale": None,
            "bias": None,
            "use_per_token_if_dynamic": True,
        }
        if self.leaf.__name__ == "apply_fp8_ptpc_linear":
            return self.leaf(weight=w, compressed_tensor_quant=True, **same)
        return self.leaf(weight=w.t(), cutlass_fp8_supported=False, **same)

    def _operation(self, x, w, w_scale):
        """A call of aiter's operation alone, its operands ready; `w` is laid out for it."""
        q, scale = self.given = self.quantise(x, quant_dtype=self.aiter.dtypes.fp8)
        return lambda: self.kernel(q, w, scale, w_scale, None, self.torch.bfloat16)

    def wide_activation(self, x, rows):
        """Rows of the activation as the operation was given it, in float64."""
        torch = self.torch
        # From 0.5.22 on, SGLang has a kernel of its own for few rows of some weights.
        q, scale = self.given or self.quantise(x, quant_dtype=self.aiter.dtypes.fp8)
        return q[rows].to(torch.float64) * scale.view(-1, 1)[rows].to(torch.float64)

    def wide_weight(self, w, w_scale, start, end):
        """Rows of the weight, in float64."""
        torch = self.torch
        return w[start:end].to(torch.float64) * w_scale[start:end].to(torch.float64)


def bench_of(order):
    """The bench for what an order tries."""
    op = order["op"]
    return Bench(op) if "blockscale" in op else ChannelBench(op, order.get("linear"))


def without_outliers(times):
    """The mean of the values within one and a half interquartile ranges of the quartiles."""
    times = sorted(times)
    low, high = times[len(times) // 4], times[3 * len(times) // 4]
    reach = 1.5 * (high - low)
    kept = [one for one in times if low - reach <= one <= high + reach]
    return sum(kept) / len(kept)


def serve(order):
    """Times what serves each GEMM; every answer is on disk before the next GEMM begins."""
    file = os.open(order["answers"], os.O_WRONLY | os.O_APPEND)

    def answer(record):
        os.write(file, (json.dumps(record) + "\n").encode())
        os.fsync(file)

    bench = bench_of(order)
    if bench.leaf is None:
        raise RuntimeError("SGLang's linear cannot be imported")
    answer({"about": bench.about()})
    ways = dict.fromkeys(order["ways"], lambda: None)
    if order["switch"]:
        switch = Switch(bench.utils, order["switch"])
        ways = {way: lambda on=way == "tuned": switch.turn(on) for way in ways}
    for m, n, k in order["serve"]:
        problem = {"M": m, "N": n, "K": k}
        answer({"doing": problem})
        us, kernels, clock, said = {}, {}, "device", None
        try:
            us, kernels, clock = bench.serving(m, n, k, ways)
        except Exception as raised:
            said = f"{bench.way}: {failure(raised)}"
        answer({"served": {**problem, "us": us, "kernels": kernels, "clock": clock, "said": said}})


def main(path):
    with open(path, encoding="utf-8") as file:
        order = json.load(file)
    if "serve" in order:
        serve(order)
        return
    bench = bench_of(order)
    tell({"about": bench.about()})
    for m, n, k in order["check"]:
        tell({"doing": "check", "M": m, "N": n, "K": k})
        error = said = None
        try:
            error = bench.error(m, n, k)
            said = None if error is not None else "an output is not finite"
        except Exception as raised:
            said = failure(raised)
        tell({"check": {"M": m, "N": n, "K": k, "error": error, "said": said}})
    for m, n, k in order["time"]:
        tell({"doing": "time", "M": m, "N": n, "K": k})
        us, clock, kernel, said = None, "device", None, None
        try:
            us, clock, kernel = bench.microseconds(m, n, k)
        except Exception as raised:
            said = failure(raised)
        tell({"time": {"M": m, "N": n, "K": k, "us": us, "clock": clock, "kernel": kernel, "said": said}})
    tell({"modules": loaded_modules()})


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        tell({"failed": failure(error)})
        raise
