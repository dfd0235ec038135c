"""Runs aiter's fused-MoE tuner, `python fused_moe.py CANDIDATES SCRIPT ARGUMENT...`, without letting it modify the tree.

Whatever `-o2` is, `post_process` of `gemm_moe_tune.py` (303a583c to e4048607) writes every candidate to
`aiter/configs/profile_fmoe.csv` below the tree, and fails where that cannot be written. Here that one file is CANDIDATES; the script
itself runs unchanged, as `__main__`, and so do its workers, which import it by its path. Python 3.8 on.
"""

import os
import runpy
import sys

IN_THE_TREE = os.path.join("aiter", "configs", "profile_fmoe.csv")


def redirect(pandas, candidates):
    """Redirects tables that would be written to the tree to `candidates`."""
    write = pandas.DataFrame.to_csv

    def to_csv(self, path_or_buf=None, *arguments, **named):
        if isinstance(path_or_buf, str) and path_or_buf.endswith(IN_THE_TREE):
            path_or_buf = candidates
        return write(self, path_or_buf, *arguments, **named)

    pandas.DataFrame.to_csv = to_csv


def main():
    """Runs the script as Python would have run it."""
    candidates, script = sys.argv[1:3]
    import pandas

    redirect(pandas, candidates)
    sys.argv = sys.argv[2:]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
