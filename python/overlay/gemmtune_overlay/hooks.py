"""Places the hooks: a finder that lets the import system do its work and patches a module right after it executed.

At that moment nobody can have copied a name out of the module yet, so every importer (the dispatcher, `fp8.py`,
compressed-tensors) gets the same, hooked object and SGLang's own identity tests keep holding.

The hook is at import time in all releases, rather than an AROUND hook of the plugin registry where there is
one: a kernel must be switched before weights are loaded and before `fp8.py` copies the predicate, and the registry
applies its hooks only after those imports. The registry is the second door (`plugin.py`).
"""

import os
import sys
import threading

from . import settings as settings_module
from .record import Recorder

FP8_UTILS = "sglang.srt.layers.quantization.fp8_utils"
FP8 = "sglang.srt.layers.quantization.fp8"
#: Where SGLang's Triton block-FP8 kernel lives: up to 0.5.15.post1, 0.5.16 to 0.5.20, 0.5.21 and later.
FP8_KERNEL = (
    "sglang.srt.layers.quantization.fp8_kernel",
    "sglang.kernels.ops.quantization.fp8_kernel",
    "sglang.kernels.ops.gemm.fp8_kernel",
)
#: Graph runners: (module, class, method that replays or None).
RUNNERS = {
    "sglang.srt.model_executor.cuda_graph_runner": ("CudaGraphRunner", "replay"),  # to 0.5.13.post1
    "sglang.srt.model_executor.runner.decode_cuda_graph_runner": ("DecodeCudaGraphRunner", "execute"),
    "sglang.srt.model_executor.runner.prefill_cuda_graph_runner": ("PrefillCudaGraphRunner", None),
    "sglang.srt.model_executor.piecewise_cuda_graph_runner": ("PiecewiseCudaGraphRunner", None),
    "sglang.srt.model_executor.breakable_cuda_graph_runner": ("BreakableCudaGraphRunner", None),
}
#: Where SGLang's fused MoE looks its rows up: up to 0.5.10.post1, 0.5.11 and later.
MOE_CONFIG = (
    "sglang.srt.layers.moe.fused_moe_triton.fused_moe_triton_config",
    "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe_triton_config",
)
#: Where aiter's Triton GEMMs look their rows up: v0.1.9 and later, and the kernel's module before.
AITER_CONFIG = "aiter.ops.triton.utils.gemm_config_utils"
AITER_CONFIG_BEFORE = "aiter.ops.triton._triton_kernels.gemm_a8w8_blockscale"
#: aiter's fused MoE, in every release.
AITER_MOE = "aiter.fused_moe"
TORCH_GRAPHS = "torch.cuda.graphs"

_installed = None


class Hooks:
    """The hooks of this process and what they share."""

    def __init__(self, settings):
        self.settings = settings
        self.recorder = Recorder(settings.record_dir)
        self.patched = set()
        self.via = "sitecustomize"
        wanted = {}
        if settings.dump_shapes or settings.log_dispatch or settings.switch:
            wanted[FP8_UTILS] = self._patch_fp8_utils
        if settings.switch:
            wanted[FP8] = self._check_fp8
        if settings.dump_shapes or settings.triton_tables or settings.route:
            wanted.update((name, self._patch_fp8_kernel) for name in FP8_KERNEL)
            wanted[TORCH_GRAPHS] = self._patch_torch_graphs
        if settings.dump_shapes or settings.moe_tables:
            wanted.update((name, self._patch_moe_config) for name in MOE_CONFIG)
        if settings.aiter_triton:
            wanted[AITER_CONFIG] = self._patch_aiter_config
            wanted[AITER_CONFIG_BEFORE] = self._check_aiter_kernel
        if settings.dump_shapes:
            wanted.update((name, self._patch_runner) for name in RUNNERS)
            wanted[AITER_MOE] = self._patch_aiter_moe
        self.wanted = wanted

    def patch(self, module):
        """Patches `module` once. A failure is recorded and leaves the module as it is."""
        name = module.__name__
        if name in self.patched or name not in self.wanted:
            return
        self.patched.add(name)
        try:
            if name.startswith("sglang."):
                self._say_hello(module)
            self.wanted[name](module)
        except Exception as error:
            self.recorder.error(name, error)

    def _say_hello(self, module):
        package = sys.modules.get("sglang")
        self.recorder.once(
            {
                "module": module.__name__,
                "file": getattr(module, "__file__", None),
                "sglang": str(getattr(package, "__version__", None)),
                "process": _process_name(),
                "via": self.via,
            }
        )

    def _patch_fp8_utils(self, module):
        from . import capture, switch

        # Kernels first: what is observed must be what runs.
        if self.settings.switch:
            switch.apply(module, self.settings.switch, self.recorder)
        if self.settings.dump_shapes or self.settings.log_dispatch:
            capture.patch_fp8_utils(module, self.settings, self.recorder)

    def _check_fp8(self, module):
        from . import switch

        switch.check_second_reader(module, self.settings.switch, self.recorder)

    def _patch_fp8_kernel(self, module):
        from . import capture, route, tables

        if self.settings.triton_tables:
            tables.patch(module, self.settings.triton_tables, self.recorder)
        if self.settings.route:
            route.patch(module, self.settings.route, self.recorder)
        capture.patch_fp8_kernel(module, self.settings, self.recorder)

    def _patch_moe_config(self, module):
        from . import capture_moe, moe_tables

        # Tables first: what is observed must be what is served.
        if self.settings.moe_tables:
            moe_tables.patch(module, self.settings.moe_tables, self.recorder)
        if self.settings.dump_shapes:
            # Rows that were injected are recorded where they are.
            capture_moe.patch(module, self.recorder, served=not self.settings.moe_tables)

    def _patch_aiter_config(self, module):
        from . import aiter_triton

        self._say_hello(module)
        aiter_triton.patch(module, self.settings.aiter_triton, self.recorder)

    def _check_aiter_kernel(self, module):
        # v0.1.9 has this module too, and imports the look-up before it is executed.
        if AITER_CONFIG not in self.patched:
            raise ValueError(
                f"{module.__file__} looks rows up by names of sizes (aiter before v0.1.9): no row is put in place"
            )

    def _patch_aiter_moe(self, module):
        from . import capture_aiter_moe

        capture_aiter_moe.patch(module, self.recorder)

    def _patch_torch_graphs(self, module):
        from . import graphs

        graphs.patch_torch(module, self.recorder)

    def _patch_runner(self, module):
        from . import graphs

        graphs.patch_runner(module, *RUNNERS[module.__name__], self.recorder)


class Finder:
    """A meta-path finder that finds nothing itself: it patches what the other finders find."""

    def __init__(self, hooks):
        self._hooks = hooks
        self._asking = threading.local()

    def find_spec(self, name, path=None, target=None):
        """The spec another finder gives for a hooked module, its loader made to patch after execution."""
        if name not in self._hooks.wanted or getattr(self._asking, "now", False):
            return None
        self._asking.now = True  # another finder of this kind asks all the others too, this one included
        try:
            return self._found(name, path, target)
        finally:
            self._asking.now = False

    def _found(self, name, path, target):
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    self._patch_after(spec.loader)
                return spec
        return None

    def _patch_after(self, loader):
        hooks = self._hooks
        execute = loader.exec_module

        def execute_and_patch(module):
            execute(module)
            hooks.patch(module)

        try:
            loader.exec_module = execute_and_patch  # a loader belongs to one module
        except AttributeError as error:
            hooks.recorder.error("loader", error)


def install(via):
    """Places the finder if the environment asks for anything; a second call does nothing."""
    global _installed
    if _installed is not None:
        return
    wanted = settings_module.from_environment()
    if not wanted.anything:
        return
    _installed = Hooks(wanted)
    _installed.via = via
    sys.meta_path.insert(0, Finder(_installed))


def catch_up(via):
    """Patches hooked modules that were imported before the finder stood, and every copy of their names."""
    if _installed is None:
        return
    _installed.via = via
    for name in _installed.wanted:
        module = sys.modules.get(name)
        if module is None or name in _installed.patched:
            continue
        before = dict(vars(module))
        _installed.patch(module)
        changed = {
            key: (before[key], value)
            for key, value in vars(module).items()
            if key in before and before[key] is not value
        }
        for other in list(sys.modules.values()):
            if not getattr(other, "__name__", "").startswith(("sglang.", "aiter.")):
                continue
            for key, (old, new) in changed.items():
                if vars(other).get(key) is old:
                    setattr(other, key, new)


def _process_name():
    process = sys.modules.get("multiprocessing.process")
    return process.current_process().name if process else os.path.basename(sys.argv[0] if sys.argv else "")
