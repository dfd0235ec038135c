"""How long the stand-in's kernels are said to take: what the tuner measures, and what the played runtime takes."""

import zlib


def us_of(library, kernel, shape, split=0):
    """Microseconds of a candidate; the deepest split wins where splits are searched."""
    text = f"{library}/{kernel}/{shape}"
    return round(20 + zlib.crc32(text.encode()) % 10000 / 500 - 3 * split, 4)
