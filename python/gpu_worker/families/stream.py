"""The family `stream`: gemmtune's kernel for few rows of A (`stream.cu`), on NVIDIA GPUs with FP8 (sm_89 and later)."""

import ctypes
import functools
import hashlib
import os

from gpu_worker.families import Unavailable
from gpu_worker.families.nvrtc import Kernel, compile_cubin
from gpu_worker.plan import Unsupported


class Stream:
    """`cache_dir` keeps compiled kernels."""

    name = "stream"
    source_file = "stream.cu"
    function = "block_fp8_stream"

    names = ("ROW_TILES", "WARPS_K", "WARPS_N", "CLUSTER", "DEPTH", "BLOCKS", "PERSISTENT")
    """What a candidate sets: rows of B per warp in sixteens; warps that share a K, and that share a row of A; blocks that
    share a K (more than 1 needs sm_90); scale blocks under way per warp; blocks resident on a multiprocessor; whether a
    block takes one tile after another (1) or one (0). EARLY may be added: 1 for programmatic dependent launch. Which are
    worth racing says src/tune/backends/families/space.rs."""

    most_tokens = 16
    """Rows of A it takes. With more, turning B into half precision takes longer than reading it (31 us at 16 and 54 us at
    32 rows for 24576 x 4096 on an H200, where reading takes 22)."""

    def __init__(self, torch, facts, cache_dir):
        if torch.version.hip or not facts["arch"].startswith("sm_"):
            raise Unavailable("written for NVIDIA GPUs")
        self._check_arch(facts["arch"])
        self._torch = torch
        self._facts = facts
        self._cache_dir = cache_dir
        self._kernels = {}
        self.version = hashlib.sha256(_source(self.source_file).encode()).hexdigest()[:12]

    def prepare(self, problem, setting):
        """Compiles a candidate into the cache."""
        self._cubin(*self._read(problem, setting))

    def launch(self, problem, operands, setting, block):
        """A function of a copy of the weights that enqueues the product into `operands.out`."""
        settings, early, tiles = self._read(problem, setting)
        if tuple(block) != (128, 128) or operands.out.dtype != self._torch.bfloat16:
            raise Unsupported(f"`{self.name}` takes blocks of 128 x 128 and writes bfloat16")
        kernel = self._kernel(settings, early, tiles)
        row_tiles = -(-problem.n // self.block_rows(settings))
        clusters = (
            settings["BLOCKS"] * self._facts["cu_num"] // settings["CLUSTER"] if settings["PERSISTENT"] else row_tiles
        )
        blocks = min(row_tiles, clusters) * settings["CLUSTER"]
        a_scale = operands.a_scale
        calls = []
        for b, b_scale in operands.weights:
            pointers = [ctypes.c_void_p(one.data_ptr()) for one in (operands.a, b, operands.out, a_scale, b_scale)]
            numbers = [problem.m, problem.n, problem.k, a_scale.stride(0), a_scale.stride(1), row_tiles]
            calls.append(kernel.bind(blocks, pointers + [ctypes.c_int(one) for one in numbers]))
        stream_of = self._torch.cuda.current_stream
        return lambda copy: calls[copy % len(calls)](stream_of().cuda_stream)

    def _read(self, problem, setting):
        """A candidate's settings, whether it starts early, and the eights of rows of A; raises for what it does not take."""
        settings = dict(setting)
        early = bool(settings.pop("EARLY", 0))
        if sorted(settings) != sorted(self.names):
            raise Unsupported(f"a candidate of `{self.name}` sets {', '.join(self.names)}")
        if problem.m > self.most_tokens or problem.k % 128 or problem.dtype != "float8_e4m3fn":
            raise Unsupported(f"`{self.name}` takes float8_e4m3fn, K in 128s and up to {self.most_tokens} rows of A")
        if settings["CLUSTER"] > 1 and self._facts["arch"] == "sm_89":
            raise Unsupported("sm_89 has no clusters")
        tiles = self.token_tiles(problem.m)
        shared = self.shared_bytes(settings, tiles)
        if shared > self._facts["smem_bytes"]:
            raise Unsupported(f"shared memory {shared} > {self._facts['smem_bytes']}")
        return settings, early, tiles

    def _cubin(self, settings, early, tiles):
        defined = {**self.macros(settings, tiles), "EARLY": int(early)}
        return compile_cubin(_source(self.source_file), defined, self.target(self._facts["arch"]), self._cache_dir)

    def _kernel(self, settings, early, tiles):
        key = (*settings.items(), early, tiles)
        if key not in self._kernels:
            threads, shared = 32 * self.warps(settings), self.shared_bytes(settings, tiles)
            cubin = self._cubin(settings, early, tiles)
            self._kernels[key] = Kernel(cubin, self.function, threads, shared, early, settings["CLUSTER"])
        return self._kernels[key]

    @staticmethod
    def _check_arch(arch):
        if int(arch[3:]) < 89:
            raise Unavailable(f"{arch} has no FP8 (sm_89 and later have)")

    # What one setting means. The layout of shared memory is in the source.

    @staticmethod
    def target(arch):
        """What to compile for."""
        return arch

    @staticmethod
    def token_tiles(m):
        """Eights of rows of A that are multiplied."""
        return -(-m // 8)

    @staticmethod
    def warps(setting):
        """Warps of a block."""
        return setting["WARPS_K"] * setting["WARPS_N"]

    @staticmethod
    def block_rows(setting):
        """Rows of B that a block multiplies."""
        return 16 * setting["ROW_TILES"] * setting["WARPS_N"]

    @classmethod
    def shared_bytes(cls, setting, tiles):
        """Dynamic shared memory of a block."""
        rows, warps = setting["ROW_TILES"], cls.warps(setting)
        stage = 32 * warps * (16 * (4 * rows + 2 * tiles) + 4 * ((3 if rows == 3 else 1) + 2 * tiles))
        return setting["DEPTH"] * stage + buffers(setting) * warps * 8 * tiles * (16 * rows + 4) * 4

    @staticmethod
    def macros(setting, tiles):
        """What the source is compiled with, but for EARLY."""
        names = {name: setting[name] for name in ("ROW_TILES", "WARPS_K", "WARPS_N", "CLUSTER", "DEPTH")}
        return {**names, "TOKEN_TILES": tiles, "MIN_BLOCKS": setting["BLOCKS"], "BUFFERS": buffers(setting)}


def buffers(setting):
    """Buffers of sums: a block that takes several tiles needs two."""
    return 1 + setting["PERSISTENT"]


@functools.lru_cache(maxsize=None)
def _source(name):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), encoding="utf-8") as file:
        return file.read()
