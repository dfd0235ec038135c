"""The device side of the worker: one GPU, its kernels, and the operations that `serve` needs."""

import collections
import concurrent.futures
import os
import platform
import sys
import time

from gpu_worker import PROTOCOL, numerics
from gpu_worker.ahead import Ahead
from gpu_worker.compilers import Compilers, Record
from gpu_worker.device import Clocks, facts, refusal, taken_bytes
from gpu_worker.families import TRITON, Families, Unavailable
from gpu_worker.faults import Faults, FaultyLaunch
from gpu_worker.idle import spinner, wait_until_idle
from gpu_worker.launch import load
from gpu_worker.launchers import share_launchers
from gpu_worker.plan import Problem, Unsupported
from gpu_worker.rotation import rotation
from gpu_worker.serve import DeviceLost, done, refused
from gpu_worker.software import software
from gpu_worker.timing import Timed, measure

FAMILIES_BACKEND = "sglang-families"

COMPILE_DEADLINE_S = 60.0
"""Longest a compile may take. The slowest of SGLang's 1,280 settings takes a few seconds with Triton 3.6."""


KEPT_SHAPES, KEPT_BYTES = 8, 1 << 30
"""Shapes whose operands are kept for their next request, and bytes of their activations and outputs together. Each may
hold on to a set of weights that no other has, so their number is limited too: as many as are raced side by side."""

PATIENCE_S = 120.0
"""How long a worker waits for a device that another process uses before it gives up."""


class Bench:
    """Opens the device on creation; `options` are those of `hello`:

    `block` ([128, 128]), `out_dtype` ("bfloat16"), `sglang_root` (folder that holds the package; default: what this
    interpreter would import; "" for gemmtune's own kernel) or, for `problem` "aiter_gemm", `aiter_root` (the folder that holds
    that package) and `config_for` (whose rows are today's where the device has none), `families` (names of kernel families to
    race beside it; those that are here are named in `hello`), `cache_dir`, `prepare_slots`, `compile_deadline_s`,
    `load_ahead` (false: kernels are loaded when they are needed, to measure what the other is worth).
    """

    def __init__(self, index, options):
        self._software = software(options)
        cache = options.get("cache_dir") or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gemmtune", self._software.backend
        )
        os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(cache, "triton"))
        import torch
        import triton

        from gpu_worker.operands import Store

        self._torch = torch
        torch.cuda.set_device(index)
        self._facts = facts(torch, index)
        self._taken_bytes = taken_bytes(torch, index)
        self._block = tuple(options.get("block") or (128, 128))
        out_dtype = (options.get("out_dtype") or "bfloat16").removeprefix("torch.")
        self._software.on(self._facts["arch"], self._block, out_dtype, cache)
        self._versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
        self._versions.update(self._software.versions)
        self._families = Families(torch, self._facts, os.path.join(cache, "families"))
        self._offered, self._wants_families = [], bool(options.get("families"))
        for name, said in self._families.document(options.get("families") or []).items():
            if "version" in said:
                self._offered.append(name)
                self._versions[name] = said["version"]
            else:
                print(f"{name} does not race: {said['unavailable']}", file=sys.stderr)
        runtime = torch.version.hip or torch.version.cuda
        self._versions["hip" if torch.version.hip else "cuda"] = str(runtime)
        # Streams other than the default one can be captured into a graph.
        self._stream = torch.cuda.Stream()
        torch.cuda.set_stream(self._stream)
        waited = wait_until_idle(spinner(torch), PATIENCE_S)
        if waited > 1.0:
            print(f"waited {waited:.0f} s until nobody else computed on the device", file=sys.stderr)
        load_ahead = bool(options.get("load_ahead", True))
        self._store = Store(torch, torch.device("cuda", index), *self._block, out_dtype)
        if load_ahead:
            from gpu_worker.warm_up import warm_up

            warm_up(torch, self._store, *self._block)
        self._clocks = Clocks(str(getattr(torch.cuda.get_device_properties(index), "uuid", "")))
        self._faults = Faults.from_environment()
        self._kept = collections.OrderedDict()
        self._loaded = {}
        self._ahead = None
        if load_ahead:
            self._ahead = Ahead(
                lambda wanted: self._software.find_compiled(wanted, self._loaded),
                lambda wanted, compiled: load(wanted, compiled, self._loaded),
            )
        target = triton.runtime.driver.active.get_current_target()
        share_launchers(target.backend)
        self._pool = concurrent.futures.ThreadPoolExecutor(4, "family")
        self._slots = int(options.get("prepare_slots") or max(1, len(os.sched_getaffinity(0)) - 1))
        setup = {
            "target": [target.backend, target.arch, target.warp_size],
            **self._software.setup,
            "smem_bytes": self._facts["smem_bytes"],
            "build_launchers": load_ahead,
        }
        deadline = float(options.get("compile_deadline_s") or COMPILE_DEADLINE_S)
        record = Record(os.environ["TRITON_CACHE_DIR"], {**setup, "versions": self._versions})
        self._compilers = Compilers(setup, self._slots, deadline, record=record)

    def device(self):
        """The document of `hello`."""
        return {
            "protocol": PROTOCOL,
            "backend": FAMILIES_BACKEND if self._wants_families else self._software.backend,
            **self._facts,
            "taken_bytes": self._taken_bytes,
            "versions": self._versions,
            "kernel_hash": f"sha256:{self._software.digest}",
            "capabilities": self._software.capabilities + [f"family:{name}" for name in self._offered],
            "prepare_slots": self._slots,
            "candidates": [],
            "shipped": self._software.shipped,
        }

    def prepare(self, shape, candidate, reply):
        """Compiles a candidate; `reply(outcome)` is called from whichever thread finishes it."""
        name, setting = family_of(candidate)
        if name != TRITON:
            self._pool.submit(lambda: reply(self._prepare_family(name, shape, setting)))
            return
        try:
            wanted = self._software.plan(self._software.read(shape), candidate)
        except Unsupported as error:
            reply(refused("unsupported", str(error)))
            return
        compiled, known = self._compile(wanted, candidate, urgent=False)

        def heard(answer):
            outcome = self._prepared(answer, known)
            # Before the reply, because the request that times it follows.
            if outcome["outcome"] == "done" and self._ahead is not None:
                self._ahead.add(wanted)
            reply(outcome)

        compiled.then(heard)

    def time(self, shape, candidates, timing):
        """Measures candidates, interleaved. In turns."""
        problem = self._software.read(shape)
        # The same method for all that are compared, whichever request they are in.
        libraries = self._wants_families or any(family_of(one)[0] != TRITON for one in candidates)
        turn = self._rotation(problem, timing["min_sample_us"], libraries)
        operands = self._operands(problem, turn.copies)
        clock_before = self._clocks.sm_mhz()
        launches = self._launches(problem, candidates, operands)
        timed = [None if isinstance(one, dict) else Timed(one, turn) for one in launches]
        entered = [one for one in timed if one is not None]
        while_busy = None if self._ahead is None else self._ahead.run_while_busy
        try:
            device_us = yield from measure(self._torch, entered, timing, self._refusal, while_busy)
        except DeviceLost:
            raise
        except Exception as error:
            self._refusal(error)
            raise
        clock_after = self._clocks.sm_mhz()
        outcomes = []
        for launch, one in zip(launches, timed):
            if one is None:
                outcomes.append(launch)
            elif one.refusal is not None:
                outcomes.append(refused(*one.refusal))
            else:
                outcomes.append(done({"us": one.us}))
        return {
            "kind": "timed",
            "outcomes": outcomes,
            "clocks_mhz": [clock for clock in (clock_before, clock_after) if clock is not None],
            "device_s": device_us / 1e6,
            "throttle_reasons": self._clocks.throttle_reasons(),
        }

    def check(self, shape, candidates, seed):
        """Compares candidates with float32 on inputs drawn anew for `seed`. In turns."""
        torch = self._torch
        problem = self._software.read(shape)
        operands = self._store.operands(problem, 1, seed=seed + 1)
        wanted = numerics.reference(torch, operands, *self._block)
        compared = []
        for one in self._launches(problem, candidates, operands):
            if not isinstance(one, dict):
                try:
                    one.load()
                    one = numerics.compare(torch, wanted, operands.out, lambda one=one: one.run(0), one.poison)
                except Exception as error:
                    one = refused(*self._refusal(error))
            compared.append(one)
        yield
        outcomes = []
        for one in compared:
            try:
                outcomes.append(one if isinstance(one, dict) else done(numerics.found(one)))
            except Exception as error:
                outcomes.append(refused(*self._refusal(error)))
        return {"kind": "checked", "outcomes": outcomes}

    def close(self):
        """Ends the compile children."""
        self._pool.shutdown(wait=False)
        self._compilers.close()

    def _compile(self, wanted, candidate, urgent):
        return self._compilers.compile(wanted.key, self._software.job(wanted, candidate), urgent)

    def _prepared(self, answer, known):
        """The outcome of a compile: a refusal, also where a block needs more shared memory than there is."""
        if "refused" in answer:
            return refused(answer["refused"], answer["detail"])
        limit = self._facts["smem_bytes"]
        if limit and answer["shared"] > limit:
            return refused("out_of_resources", f"shared memory {answer['shared']} > {limit}")
        return done({"seconds": answer["seconds"], "cached": known})

    def _launches(self, problem, candidates, operands):
        """For each candidate a launch, or the outcome that says why there is none. Compiles what is missing."""
        jobs = []
        for candidate in candidates:
            name, setting = family_of(candidate)
            if name != TRITON:
                jobs.append((name, setting))
                continue
            try:
                wanted = self._software.plan(problem, candidate)
                jobs.append((wanted, *self._compile(wanted, candidate, urgent=True)))
            except Unsupported as error:
                jobs.append(refused("unsupported", str(error)))
        launches = []
        for candidate, job in zip(candidates, jobs):
            if isinstance(job, tuple) and len(job) == 2:
                launches.append(
                    self._faulty(candidate, operands, lambda given, job=job: self._family_launch(*job, problem, given))
                )
            elif isinstance(job, tuple):
                wanted, compiled, known = job
                outcome = self._prepared(compiled.wait(), known)
                if outcome["outcome"] == "refused":
                    launches.append(outcome)
                    continue
                made = lambda given, wanted=wanted: self._software.launch(wanted, given, self._loaded)
                launches.append(self._faulty(candidate, operands, made))
            else:
                launches.append(job)
        return launches

    def _faulty(self, candidate, operands, make):
        """`make(operands)`, with the fault that a test asked for in this candidate."""
        fault = self._faults.of(candidate)
        # The one fault that must not cost time: a wrong kernel that is fast leads, and only its numbers tell.
        launch = make(operands.with_nan_scales() if fault == "nan" else operands)
        if fault in (None, "nan") or isinstance(launch, dict):
            return launch
        return FaultyLaunch(launch, fault, self._torch)

    def _family_launch(self, name, setting, problem, operands):
        """A launch of another family, or the outcome that says why there is none."""
        from gpu_worker.families.launch import FamilyLaunch

        try:
            return FamilyLaunch(self._families.open(name).launch(problem, operands, setting, self._block), operands.out)
        except (Unsupported, Unavailable) as why:
            return refused("unsupported", f"{name}: {why}")
        except Exception as error:
            return refused(*self._refusal(error))

    def _prepare_family(self, name, shape, setting):
        """Has a family compile what it compiles itself; a library's own compiler runs at its first launch."""
        begun = time.perf_counter()
        try:
            prepare = getattr(self._families.open(name), "prepare", None)
            if prepare is not None:
                prepare(Problem.read(shape), setting)
        except (Unsupported, Unavailable) as why:
            return refused("unsupported", f"{name}: {why}")
        except Exception as error:
            return refused("compile_failed", " ".join(f"{type(error).__name__}: {error}".split())[:2000])
        return done({"seconds": time.perf_counter() - begun, "cached": prepare is None})

    def _rotation(self, problem, min_sample_us, always_graph):
        weights = problem.n * problem.k
        others = problem.m * problem.k + 2 * problem.m * problem.n
        flops = 2 * problem.m * problem.n * problem.k
        return rotation(weights, others, flops, self._facts["l2_bytes"], min_sample_us, always_graph)

    def _operands(self, problem, copies):
        """The timing operands of a shape; those of the latest shapes are kept between requests."""
        key = (problem, copies)
        operands = self._kept.pop(key, None)
        if operands is None:
            try:
                operands = self._store.operands(problem, copies)
            except self._torch.cuda.OutOfMemoryError:
                self._kept.clear()
                self._store.forget()
                self._torch.cuda.empty_cache()
                operands = self._store.operands(problem, copies)
        self._kept[key] = operands
        while len(self._kept) > KEPT_SHAPES or sum(one.own_bytes for one in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return operands

    def _refusal(self, error):
        """`(reason, detail)` for a launch that failed on a device that still works; else raises DeviceLost."""
        return refusal(self._torch, error, DeviceLost)


def family_of(candidate):
    """A candidate's family and the settings that are the family's own."""
    if not isinstance(candidate, dict) or "family" not in candidate:
        return TRITON, candidate
    return candidate["family"], {name: value for name, value in candidate.items() if name != "family"}
