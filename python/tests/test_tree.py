"""Finding the kernel in a tree and lifting it out."""

import ast
import os
import tempfile
import unittest

from gpu_worker import tree

HEAD = "import torch\nfrom sglang.srt.utils import is_hip\n_is_hip = is_hip()\n\n"
PLAIN = "@triton.jit\ndef _w8a8_block_fp8_matmul(A, M, BLOCK_SIZE_M: tl.constexpr):\n    pid = tl.program_id(0)\n    tl.store(A + pid, M)\n\n"
TUNED = "@triton.jit\ndef _w8a8_block_fp8_matmul_hopper(A):\n    _store(A)\n\n"
REDUCE = "@triton.jit\ndef _reduce_block_fp8_split_k(Parts):\n    tl.store(Parts, 0)\n\n"
CALLED = "@triton.jit\ndef _store(A):\n    tl.store(A, 1)\n\n"
OTHER = "def w8a8_block_fp8_matmul_triton(A):\n    return torch.empty(1)\n"


def make(folder, files):
    """Writes a tree of files; returns its root."""
    for name, text in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return folder


class Trees(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name

    def kernels(self, files, root=None):
        make(self.folder, files)
        return tree.sglang_kernels(tree.package_folder(root or self.folder))

    def test_each_release_keeps_the_kernel_elsewhere(self):
        for location in tree.LOCATIONS:
            with tempfile.TemporaryDirectory() as folder:
                make(folder, {f"sglang/{location}": HEAD + PLAIN + OTHER})
                found = tree.sglang_kernels(tree.package_folder(folder))
                self.assertEqual((found.origin, found.tuned), (location, None))

    def test_a_file_of_the_old_name_without_the_kernel_is_passed_over(self):
        gemm, quantization = tree.LOCATIONS[0], tree.LOCATIONS[1]
        found = self.kernels({f"sglang/{quantization}": HEAD + OTHER, f"sglang/{gemm}": HEAD + PLAIN})
        self.assertEqual(found.origin, gemm)

    def test_the_package_itself_is_a_root_too(self):
        make(self.folder, {f"sglang/{tree.LOCATIONS[2]}": HEAD + PLAIN})
        self.assertTrue(tree.package_folder(os.path.join(self.folder, "sglang")).endswith("sglang"))

    def test_the_lifted_module_holds_kernels_and_what_they_call_and_nothing_else(self):
        found = self.kernels({f"sglang/{tree.LOCATIONS[0]}": HEAD + CALLED + PLAIN + TUNED + REDUCE + OTHER})
        names = [node.name for node in ast.parse(found.text).body if isinstance(node, ast.FunctionDef)]
        self.assertEqual(names, ["_store", tree.PLAIN, tree.TUNED, tree.REDUCE])
        self.assertNotIn("torch", found.text)
        self.assertEqual((found.tuned, found.reduce), (tree.TUNED, tree.REDUCE))

    def test_a_kernel_that_needs_its_module_is_refused(self):
        with self.assertRaisesRegex(tree.TreeError, "_is_hip"):
            self.kernels({f"sglang/{tree.LOCATIONS[0]}": HEAD + PLAIN.rstrip() + "\n    tl.store(A, _is_hip)\n"})

    def test_the_files_a_release_ships_are_found_beside_its_kernel(self):
        location = tree.LOCATIONS[0]
        found = self.kernels({f"sglang/{location}": HEAD + PLAIN})
        self.assertEqual(found.configs, "")
        found = self.kernels({f"sglang/{os.path.dirname(location)}/configs/N=1.json": "{}"})
        self.assertEqual(
            found.configs, os.path.realpath(os.path.join(self.folder, "sglang", os.path.dirname(location), "configs"))
        )

    def test_a_tree_without_the_kernel_is_named(self):
        with self.assertRaisesRegex(tree.TreeError, "no sglang package"):
            tree.package_folder(self.folder)
        with self.assertRaisesRegex(tree.TreeError, "defines"):
            self.kernels({f"sglang/{tree.LOCATIONS[0]}": HEAD + OTHER})

    def test_a_file_that_does_not_parse_is_named(self):
        with self.assertRaisesRegex(tree.TreeError, "does not parse"):
            self.kernels({f"sglang/{tree.LOCATIONS[0]}": "def _w8a8_block_fp8_matmul(:\n"})

    def test_clamping_of_block_k_is_read_off_the_release(self):
        never = "sanitized = {}\n"
        always = 'if cfg["BLOCK_SIZE_K"] < block_k:\n    log("Clamped BLOCK_SIZE_K up to %d")\n'
        not_on_cuda = (
            'if not _is_cuda or block_k % cfg["BLOCK_SIZE_K"] != 0:\n    log("Clamped BLOCK_SIZE_K up to %d")\n'
        )
        self.assertEqual([tree.clamps_block_k(text) for text in (never, always, not_on_cuda)], [False, True, False])

    def test_the_version_comes_from_metadata_else_from_the_version_file(self):
        make(self.folder, {"sglang/version.py": '__version__ = "0.5.6"\n'})
        package = os.path.join(self.folder, "sglang")
        self.assertEqual(tree.sglang_version(package), "0.5.6")
        make(self.folder, {"sglang-0.5.21.dist-info/METADATA": ""})
        self.assertEqual(tree.sglang_version(package), "0.5.21")

    def test_a_written_module_is_found_by_its_content(self):
        source = tree.own_kernels()
        first = source.write(self.folder)
        self.assertEqual(first, source.write(self.folder))
        with open(first, encoding="utf-8") as file:
            self.assertEqual(file.read(), source.text)
        self.assertEqual(os.listdir(self.folder), [os.path.basename(first)])


if __name__ == "__main__":
    unittest.main()
