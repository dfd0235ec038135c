"""The command line of the worker and of its compile children."""

import argparse
import os
import sys

from gpu_worker.channel import Channel
from gpu_worker.serve import serve

COMPILE_CHILD = "--compile-child"
"""How the worker starts its own compile children."""

ATTEMPT_WHOLE = "--attempt-whole"
"""How a fused-MoE worker has SGLang's operation tried (`gpu_worker.moe.whole`)."""

OFFLINE = "offline"
"""Compiles for a device that is not present, and exits."""


def main(arguments):
    """Runs the worker (or one compile child) until `quit` or end of file."""
    if arguments[:1] == [COMPILE_CHILD]:
        from gpu_worker.compile_child import run

        return run()
    if arguments[:1] == [OFFLINE]:
        from gpu_worker.offline import main as compile_only

        return compile_only(arguments[1:])
    if arguments[:1] == [ATTEMPT_WHOLE]:
        from gpu_worker.moe.whole import attempt

        return attempt(arguments[1:])
    parser = argparse.ArgumentParser(prog="gpu_worker", description="Time block-FP8 kernels on one GPU.")
    parser.add_argument("--device", type=int, default=0, help="index among the devices visible to this process")
    parser.add_argument(
        "--reply-fd", default="stdout", help="descriptor for replies, or `stdout` to share it with a launcher"
    )
    options = parser.parse_args(arguments)
    channel = Channel.open(options.reply_fd)
    # A library's own output goes to the log, never between replies.
    os.dup2(2, 1)

    def open_bench(settings):
        if settings.get("problem") == "fused_moe":
            from gpu_worker.moe.serving import MoeServing

            return MoeServing(options.device, settings)
        from gpu_worker.bench import Bench

        return Bench(options.device, settings)

    status = serve(_lines(0), channel, open_bench)
    sys.stderr.flush()
    # Exit without cleanup: a thread is still reading, and a driver that has lost its device aborts on shutdown.
    os._exit(status)


def _lines(descriptor):
    """Lines of a descriptor, unbuffered: a reader left blocked holds no lock of the interpreter."""
    rest = b""
    while piece := os.read(descriptor, 1 << 16):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest
