"""What a row of aiter's means, on a small tree whose wrapper has the lines of aiter's that matter: splits, strides, a second
kernel, an assertion. `tests/realtrees` asks the real ones."""

import os
import sys
import tempfile
import types
import unittest
import unittest.mock

from gpu_worker import software
from gpu_worker.aiter import plan as planning
from gpu_worker.aiter import tree
from gpu_worker.plan import Problem, Unsupported
from gpu_worker.tree import TreeError

KERNELS = """
import fake_triton
from aiter.ops.triton.utils.gemm_config_utils import STANDARD_M_BOUNDS

main = fake_triton.Heuristics(
    fake_triton.Kernel(__name__, "main", ["x", "w", "y", "M", "N", "K", "stride_k"], ["BLOCK_SIZE_M", "NUM_KSPLIT", "EVEN_K"]),
    {"EVEN_K": lambda named: named["K"] % 128 == 0},
)
add = fake_triton.Kernel(__name__, "add", ["parts", "y"], ["PARTS"])
"""

WRAPPER = """
import torch
from aiter.ops.triton._triton_kernels.gemm import add, main


def gemm_a8w8_blockscale(
    x: torch.Tensor, w: torch.Tensor, x_scale, w_scale, dtype: torch.dtype = torch.bfloat16, y: torch.Tensor | None = None, config=None
):
    M, K = x.shape
    N = w.shape[0]
    w, w_scale = w.T, w_scale.T
    assert config["BLOCK_SIZE_K"] == K // w_scale.shape[0], "GROUP_K must equal BLOCK_SIZE_K"
    config.pop("BLOCK_SIZE_K")
    parts = torch.empty((config["NUM_KSPLIT"], M, N), dtype=torch.float32, device=x.device) if config["NUM_KSPLIT"] > 1 else None
    main[lambda named: (named["NUM_KSPLIT"] * M,)](x, w, y if parts is None else parts, M, N, K, w.stride(0), **config)
    if parts is not None:
        add[(M, 1)](parts, y, config["NUM_KSPLIT"])
    return y
"""

BOUNDS = "STANDARD_M_BOUNDS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)\n"

ROW = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_K": 128, "NUM_KSPLIT": 1, "num_warps": 4, "waves_per_eu": 2}


class Kernel:
    """A kernel as far as the recorder looks at one."""

    def __init__(self, module, name, arguments, constants):
        self.arg_names = arguments + constants
        self.params = [types.SimpleNamespace(name=one, is_constexpr=one in constants) for one in self.arg_names]
        self.fn = types.SimpleNamespace(__module__=module, __name__=name)

    def run(self):
        """There to be recognised by."""


class Heuristics:
    """`triton.heuristics`."""

    def __init__(self, fn, values):
        self.fn, self.values, self.arg_names = fn, values, fn.arg_names

    def run(self):
        """There to be recognised by."""


class Place:
    """A tree on disk, imported; forgotten afterwards."""

    def __init__(self, test, **files):
        self.root = (
            test.enterContext(tempfile.TemporaryDirectory()) if hasattr(test, "enterContext") else tempfile.mkdtemp()
        )
        written = {
            "ops/triton/_triton_kernels/gemm.py": KERNELS,
            "ops/triton/gemm/basic/gemm_a8w8_blockscale.py": WRAPPER,
            "ops/triton/utils/gemm_config_utils.py": BOUNDS,
            "__init__.py": "raise RuntimeError('needs ROCm')\n",
            **files,
        }
        for name, text in written.items():
            if text is not None:
                path = os.path.join(self.root, "aiter", name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
        fake = types.ModuleType("fake_triton")
        fake.Kernel, fake.Heuristics = Kernel, Heuristics
        sys.modules["fake_triton"] = fake
        finders = list(sys.meta_path)

        def forget():
            sys.meta_path[:] = finders
            for name in [name for name in sys.modules if name.split(".")[0] in ("aiter", "fake_triton")]:
                del sys.modules[name]

        test.addCleanup(forget)


def role(call, name):
    return dict(call.tensors)[name]


class Plans(unittest.TestCase):
    def plan(self, row=None, rocm=True, k=1024, **files):
        found = tree.open_tree(Place(self, **files).root)
        return planning.plan(found, Problem(8, 256, k, "float8_e4m3fn"), {**ROW, **(row or {})}, (128, 128), rocm)

    def test_the_wrappers_own_launch_is_the_plan(self):
        (call,) = self.plan().calls
        arguments = dict(call.arguments)
        self.assertEqual((role(call, "x"), role(call, "w"), role(call, "y")), ("a", "b", "out"))
        # The wrapper transposes the weight, and what the heuristics compute is among the arguments.
        self.assertEqual((arguments["stride_k"], arguments["EVEN_K"], arguments["M"]), (1, True, 8))
        self.assertEqual((call.grid, call.options), ((8,), (("num_warps", 4), ("waves_per_eu", 2))))
        self.assertNotIn("torch", sys.modules)

    def test_parts_of_k_are_added_up_by_the_wrappers_second_kernel(self):
        plan = self.plan({"NUM_KSPLIT": 4})
        main, add = plan.calls
        self.assertEqual((role(main, "y"), role(add, "parts"), role(add, "y")), ("partial", "partial", "out"))
        self.assertEqual((plan.planes, add.grid, dict(add.arguments)["PARTS"]), (4, (8, 1), 4))
        self.assertEqual(dict(main.dtypes)["partial"], "float32")

    def test_parts_that_are_not_alike_are_refused(self):
        with self.assertRaisesRegex(Unsupported, "equal parts"):
            self.plan({"NUM_KSPLIT": 3})

    def test_what_the_wrapper_asserts_is_said(self):
        with self.assertRaisesRegex(Unsupported, "GROUP_K must equal"):
            self.plan({"BLOCK_SIZE_K": 64})

    def test_amds_options_are_left_out_elsewhere(self):
        self.assertEqual(self.plan(rocm=False).calls[0].options, (("num_warps", 4),))

    def test_programs_differ_in_constants_and_not_in_sizes_of_one_kind(self):
        found = tree.open_tree(Place(self).root)

        def key(m, **row):
            return planning.plan(found, Problem(m, 256, 1024, "float8_e4m3fn"), {**ROW, **row}, (128, 128), True).key

        self.assertEqual(key(8), key(9))
        self.assertEqual(len({key(8), key(1), key(16), key(8, BLOCK_SIZE_M=32), key(8, num_warps=8)}), 5)

    def test_the_kernels_are_back_after_a_recording(self):
        found = tree.open_tree(Place(self).root)
        before = found.wrapper.main, found.wrapper.torch
        with self.assertRaises(Unsupported):
            planning.plan(found, Problem(8, 256, 1024, "float8_e4m3fn"), {**ROW, "BLOCK_SIZE_K": 64}, (128, 128), True)
        self.assertEqual((found.wrapper.main, found.wrapper.torch), before)


class Trees(unittest.TestCase):
    def test_packages_stay_empty_and_modules_are_the_trees(self):
        found = tree.open_tree(Place(self).root)
        self.assertEqual(found.origin, "aiter/ops/triton/gemm/basic/gemm_a8w8_blockscale.py")
        self.assertEqual(found.bounds[0], 4)

    def test_a_change_to_what_is_imported_is_another_digest(self):
        digests = set()
        for kernels in (KERNELS, KERNELS + "# changed\n"):
            case = unittest.TestCase()
            digests.add(tree.open_tree(Place(case, **{"ops/triton/_triton_kernels/gemm.py": kernels}).root).digest)
            case.doCleanups()
        self.assertEqual(len(digests), 2)

    def test_trees_that_are_not_known_are_refused_by_name(self):
        for name, text, words in (
            ("ops/triton/utils/gemm_config_utils.py", None, "before v0.1.9"),
            ("ops/triton/utils/gemm_config_utils.py", "STANDARD_M_BOUNDS = (2, 3)\n", "not known"),
            ("ops/triton/gemm/basic/gemm_a8w8_blockscale.py", None, "no Triton GEMM"),
            ("ops/triton/gemm/basic/gemm_a8w8_blockscale.py", "import no_such_module\n", "no_such_module"),
        ):
            case = unittest.TestCase()
            place = Place(case, **{name: text})
            with self.assertRaisesRegex(TreeError, words):
                tree.open_tree(place.root)
            case.doCleanups()
        with self.assertRaisesRegex(TreeError, "holds no aiter"):
            tree.open_tree("/nowhere")

    def test_a_layout_without_the_architecture_in_its_names_is_refused(self):
        place = Place(self, **{"ops/triton/configs/gfx942/triton/gemm/gemm_a8w8_blockscale/DEFAULT.json": "{}"})
        kernels = software.software({"problem": "aiter_gemm", "aiter_root": place.root})
        with self.assertRaisesRegex(TreeError, "layout"):
            kernels.on("gfx942", (128, 128), "bfloat16", "")


class Software(unittest.TestCase):
    def test_another_makes_device_needs_to_be_told_whose_rows_are_todays(self):
        place = Place(self)
        options = {"problem": "aiter_gemm", "aiter_root": place.root}
        with self.assertRaisesRegex(TreeError, "--config-for"):
            software.software(options).on("sm_90", (128, 128), "bfloat16", "")
        kernels = software.software({**options, "config_for": "gfx942"})
        kernels.on("sm_90", (128, 128), "bfloat16", "")
        self.assertEqual(kernels.capabilities[:2], ["bound:4", "drops:waves_per_eu"])

    def test_cdna3_computes_with_its_own_fp8(self):
        kernels = software.software({"problem": "aiter_gemm", "aiter_root": Place(self).root})
        kernels.on("gfx942", (128, 128), "bfloat16", "")
        shape = {"op": "gemm_a8w8_blockscale", "m": 8, "n": 256, "k": 1024, "dtype": "torch.float8_e4m3fn"}
        self.assertEqual(kernels.read(shape).dtype, "float8_e4m3fnuz")
        with self.assertRaisesRegex(Unsupported, "gemm_a8w8_blockscale"):
            kernels.read({**shape, "op": "w8a8_block_fp8_matmul"})
