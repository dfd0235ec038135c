"""The family `stream-wg`: gemmtune's kernel for up to 32 rows of A on Hopper (`stream_wg.cu`)."""

from gpu_worker.families import Unavailable
from gpu_worker.families.stream import Stream, buffers


class StreamWg(Stream):
    """As `stream`, with Hopper's own FP8 matrix instruction."""

    name = "stream-wg"
    source_file = "stream_wg.cu"
    function = "block_fp8_stream_wg"

    names = ("GROUPS_K", "GROUPS_N", "CLUSTER", "DEPTH", "BLOCKS", "PERSISTENT")
    """As `stream`'s, with warpgroups of four warps and 64 rows of B in place of warps; of the scale blocks under way one is
    being multiplied."""

    most_tokens = 32
    """Rows of A it takes. At 48 the four GEMMs of Qwen3-8B took 66.9 us on an H200, with DeepGEMM 63.8."""

    @staticmethod
    def _check_arch(arch):
        if arch != "sm_90":
            raise Unavailable(f"wgmma is for sm_90, this is {arch}")

    @staticmethod
    def target(arch):
        """wgmma is left out of what is compiled for plain sm_90."""
        return arch + "a"

    @staticmethod
    def warps(setting):
        """Warps of a block."""
        return 4 * setting["GROUPS_K"] * setting["GROUPS_N"]

    @staticmethod
    def block_rows(setting):
        """Rows of B that a block multiplies."""
        return 64 * setting["GROUPS_N"]

    @classmethod
    def shared_bytes(cls, setting, tiles):
        """Dynamic shared memory of a block."""
        groups, tokens, depth = setting["GROUPS_K"] * setting["GROUPS_N"], 8 * tiles, setting["DEPTH"]
        ring = -(-depth * ((64 + tokens) * 128 + (tokens + 1) * 4) // 1024) * 1024
        return groups * (ring + buffers(setting) * tokens * 68 * 4)

    @staticmethod
    def macros(setting, tiles):
        """What the source is compiled with, but for EARLY."""
        names = {name: setting[name] for name in ("GROUPS_K", "GROUPS_N", "CLUSTER", "DEPTH")}
        return {**names, "TOKEN_TILES": tiles, "MIN_BLOCKS": setting["BLOCKS"], "BUFFERS": buffers(setting)}
