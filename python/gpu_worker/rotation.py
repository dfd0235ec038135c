"""How many copies of the weights are rotated, and how launches are grouped into samples. Pure."""

import math
from dataclasses import dataclass

CACHES = 3.2
"""Copies add up to this many last-level caches: 160 MB on an H100 with 50 MB. The copies between two uses of the
same one are then at least twice the cache, so that a launch finds no weight left in it."""

SLOWEST_EXPECTED_TB_S = 2.0
"""Rate at which a launch is first expected to move its operands; sets the size of a graph, nothing else."""

SHORTEST_EXPECTED_US = 8.0
"""No launch of this kernel is expected below this (12 µs is the best seen at 4096 x 4096 on an H100)."""

GRAPH_BELOW_US = 100.0
"""A launch expected to be longer is timed without a graph: the host's 5 to 20 µs per launch hide behind it."""


@dataclass(frozen=True)
class Rotation:
    """How one shape is timed."""

    copies: int
    """Copies of the weights, at different addresses."""
    per_graph: int
    """Launches in one device graph, a whole number of turns through the copies; 0 for direct launches."""
    expected_us: float


def rotation(weight_bytes, other_bytes, flops, cache_bytes, min_sample_us, always_graph=False):
    """The rotation for a GEMM that reads `weight_bytes` of weights and moves `other_bytes` of the rest.

    `always_graph`: the host call of a library's kernel can take longer than the kernel, however long that is.

    Only the weights rotate: in a server the activations were written by the kernel before and the output is read
    by the one after, while each layer's weights were last touched a whole model ago.
    """
    copies = max(2, math.ceil(CACHES * cache_bytes / weight_bytes))
    # 500 TFLOP/s: half of what FP8 matrix kernels reach on an H100 (the matrix term only matters for large M).
    expected = max(SHORTEST_EXPECTED_US, (weight_bytes + other_bytes) / (SLOWEST_EXPECTED_TB_S * 1e6), flops / 500e6)
    if expected > GRAPH_BELOW_US and not always_graph:
        return Rotation(copies, 0, expected)
    turns = max(1, math.ceil(min_sample_us / (expected * copies)))
    return Rotation(copies, copies * turns, expected)


def launches_for(min_sample_us, launch_us, group):
    """Launches of one sample: at least `min_sample_us` of device time, in whole groups of `group` launches."""
    if launch_us <= 0:
        return group
    return group * max(1, math.ceil(min_sample_us / (launch_us * group)))


def sample_order(count, sample):
    """The order in which `count` candidates take their sample number `sample` (0-based): A B C, C B A, A B C, …"""
    forward = list(range(count))
    return forward if sample % 2 == 0 else forward[::-1]
