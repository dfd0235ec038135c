"""Starts the worker: `python3 gpu_worker --device 0 --reply-fd 3` (a folder or `-m gpu_worker`)."""

import os
import sys

if not __package__:
    # Started as a folder: its modules would be top-level and could shadow others. Make it a package again.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(here)] + [entry for entry in sys.path if os.path.abspath(entry or ".") != here]

from gpu_worker.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
