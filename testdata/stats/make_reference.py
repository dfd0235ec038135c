#!/usr/bin/env python3
"""Writes reference.json beside itself: what numpy and scipy say about a few seeded samples.

Needs numpy and scipy; run by hand when a case is added. The tests read the file, not this script.
"""
import json
import pathlib

import numpy
import scipy
from scipy import stats

generator = numpy.random.default_rng(20260101)
samples = [generator.normal(10, 2, n).tolist() for n in (1, 2, 3, 6, 7, 20)]
samples += [generator.lognormal(0, 1.5, n).tolist() for n in (5, 12, 101)]
samples += [[1.0] * 8, [3.0, 1.0, 1.0, 1.0, 2.0]]

document = {
    "made_by": f"numpy {numpy.__version__}, scipy {scipy.__version__}, testdata/stats/make_reference.py",
    "samples": [
        {
            "values": values,
            "median": float(numpy.median(values)),
            "mad": float(stats.median_abs_deviation(values)),
            "mean": float(numpy.mean(values)),
            "std": float(numpy.std(values)),
            "p90": float(numpy.percentile(values, 90)),
            "p99": float(numpy.percentile(values, 99)),
        }
        for values in samples
    ],
    "ranks": [],
    "intervals": [],
}

for n in list(range(1, 41)) + [100, 1000]:
    # Largest rank whose symmetric interval still has 95 %; rank 1 where none has.
    tails = [(k, 1 - 2 * float(stats.binom.cdf(k - 1, n, 0.5))) for k in range(1, n // 2 + 2)]
    good = [pair for pair in tails if pair[1] >= 0.95] or [(1, max(tails[0][1], 0.0))]
    document["ranks"].append({"n": n, "rank": good[-1][0], "confidence": good[-1][1]})

for n in range(6, 41):
    values = generator.normal(0, 1, n)
    found = stats.quantile_test(values, q=0, p=0.5).confidence_interval(confidence_level=0.95)
    document["intervals"].append(
        {"values": values.tolist(), "low": float(found.low), "high": float(found.high)}
    )

path = pathlib.Path(__file__).with_name("reference.json")
path.write_text(json.dumps(document, indent=1) + "\n")
