"""Triton's launchers are loaded once, whatever loads them."""

import sys
import types
import unittest
from unittest import mock

from gpu_worker.launchers import launcher_builder, share_launchers


class Launchers(unittest.TestCase):
    def setUp(self):
        self.loads = []
        self.driver = types.ModuleType("triton.backends.nvidia.driver")

        def compile_module_from_src(src, name, libraries=()):
            self.loads.append((name, src))
            return object()

        self.driver.compile_module_from_src = compile_module_from_src
        modules = {"triton": types.ModuleType("triton"), "triton.backends": types.ModuleType("triton.backends")}
        modules |= {
            "triton.backends.nvidia": types.ModuleType("triton.backends.nvidia"),
            self.driver.__name__: self.driver,
        }
        patched = mock.patch.dict(sys.modules, modules)
        patched.start()
        self.addCleanup(patched.stop)

    def test_equal_sources_are_loaded_once_and_others_are_not_confused_with_them(self):
        share_launchers("cuda")
        load = self.driver.compile_module_from_src
        first = load(src="a", name="launcher", libraries=["cuda"])
        self.assertIs(load(src="a", name="launcher", libraries=["cuda"]), first)
        self.assertIsNot(load(src="b", name="launcher", libraries=["cuda"]), first)
        self.assertEqual(self.loads, [("launcher", "a"), ("launcher", "b")])

    def test_a_triton_that_is_built_otherwise_is_left_as_it_is(self):
        share_launchers("a backend of tomorrow")
        del self.driver.compile_module_from_src
        share_launchers("cuda")
        self.assertFalse(hasattr(self.driver, "compile_module_from_src"))
        self.assertIsNone(launcher_builder("a backend of tomorrow")("compiled"))


if __name__ == "__main__":
    unittest.main()
