"""Runs `run_tree.py` again and again, each time in a fork of this process, which has imported what takes long.

Of the ten seconds that a run takes, seven go into importing torch, transformers and others, the same for every
release and every change. SGLang itself, the overlay and the stand-ins are imported by the fork alone, from the
PYTHONPATH of its request; the device is that of this process, since torch's answers are read at import.

One JSON line on standard input asks for a run: {"env": {...}, "reply": FILE, "log": FILE}, where the files get its
standard output and error. One line on standard output answers: how it ended, 0 for well. Ends with its input.
"""

import gc
import importlib
import json
import os
import sys

import rocm_look  # noqa: F401  first: what follows asks torch for the device

#: What any release imports, and what takes longest of it.
HEAVY = """
    torch._dynamo torch._inductor.compile_fx torchvision
    transformers.modeling_utils transformers.processing_utils transformers.models.llama
    openai.types.responses aiohttp fastapi IPython.display compressed_tensors gguf pkg_resources psutil xgrammar
""".split()


def run(request):
    """The run of `request` in this process, a fork, which ends after it as an interpreter does."""
    for stream, name in ((1, "reply"), (2, "log")):
        file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    os.environ.update(request["env"])
    sys.path[:0] = request["env"]["PYTHONPATH"].split(os.pathsep)
    importlib.invalidate_caches()
    if importlib.util.find_spec("sitecustomize"):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")  # as the interpreter would have at its start
    importlib.import_module("run_tree")


def main():
    gc.disable()
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # a fork that looked through all these objects would copy their pages, and take twice as long
    gc.enable()
    for line in sys.stdin:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            run(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


main()
