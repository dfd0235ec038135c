"""The overlay's rows for aiter's Triton GEMM, on modules that read files as aiter's two generations do."""

import functools
import json
import os
import sys
import tempfile
import types
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "overlay"))

from gemmtune_overlay import aiter_triton

NAME = "GEMM-A8W8_BLOCKSCALE"
FILE = f"gfx942-{NAME}-N=512-K=7168.json"


def row(block_m):
    return {"BLOCK_SIZE_M": block_m, "NUM_KSPLIT": 1}


class Recorder:
    def __init__(self):
        self.records, self.errors = [], []

    def once(self, record):
        if record not in self.records:
            self.records.append(record)

    def error(self, where, error):
        self.errors.append((where, str(error)))


def new_module(configs):
    """v0.1.20 and later: `load_config_json(fpath, required)`, cached by path."""
    module = types.ModuleType("gemm_config_utils")

    @functools.lru_cache
    def load_config_json(fpath, required=True):
        try:
            with open(fpath) as file:
                return json.load(file)
        except FileNotFoundError:
            if required:
                raise
            return None

    def get_gemm_config(config_name, M, N=None, K=None, bounds=None, specialized_filename=None, backend=None, B=None):
        found = module.load_config_json(f"{configs}/gfx942-{config_name}.json", required=False)
        own = module.load_config_json(f"{configs}/gfx942-{config_name}-N={N}-K={K}.json", required=False)
        rows = own or found
        return dict(rows["M_LEQ_16"] if M <= 16 and "M_LEQ_16" in rows else rows["any"]), own is not None

    module.load_config_json, module.get_gemm_config = load_config_json, get_gemm_config
    return module


def old_module(configs):
    """v0.1.9 to v0.1.19: `_load_config_file(cache, key, fpath, …)` fills a cache."""
    module = types.ModuleType("gemm_config_utils")

    def _load_config_file(cache_dict, cache_key, fpath, config_key, fpath_should_exist=False):
        if os.path.exists(fpath):
            with open(fpath) as file:
                cache_dict[cache_key][config_key] = json.load(file)
            return True
        return False

    def get_gemm_config(config_name, M, N=None, K=None, bounds=None, specialized_filename=None):
        cache, key = {"k": {}}, "default"
        module._load_config_file(cache, "k", f"{configs}/gfx942-{config_name}.json", "default", fpath_should_exist=True)
        if module._load_config_file(cache, "k", f"{configs}/gfx942-{config_name}-N={N}-K={K}.json", "nk"):
            key = "nk"
        rows = cache["k"][key]
        return dict(rows["M_LEQ_16"] if M <= 16 and "M_LEQ_16" in rows else rows["any"])

    module._load_config_file, module.get_gemm_config = _load_config_file, get_gemm_config
    return module


class Rows(unittest.TestCase):
    def setUp(self):
        keep = tempfile.TemporaryDirectory()
        self.addCleanup(keep.cleanup)
        self.recorder = Recorder()
        self.configs, self.ours = os.path.join(keep.name, "configs"), os.path.join(keep.name, "ours")
        for folder in (self.configs, self.ours):
            os.makedirs(folder)
        self.put(self.configs, f"gfx942-{NAME}.json", {"any": row(128)})
        self.put(self.configs, f"gfx942-{NAME}-N=64-K=128.json", {"any": row(64)})

    def put(self, folder, name, rows):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(rows, file)

    def patched(self, make):
        module = make(self.configs)
        module.__file__ = "gemm_config_utils.py"
        module.arch_info = types.SimpleNamespace(get_arch=lambda: "gfx942")
        aiter_triton.patch(module, self.ours, self.recorder)
        return module

    def served(self):
        return [(one["served"]["M"], one["served"]["source"], one["served"]["config"]["BLOCK_SIZE_M"])
                for one in self.recorder.records if "served" in one]  # fmt: skip

    def test_rows_of_ours_serve_their_weight_and_aiters_every_other(self):
        for make in (new_module, old_module):
            with self.subTest(make.__name__):
                self.recorder = Recorder()
                self.put(self.ours, FILE, {"M_LEQ_16": row(16), "any": row(32)})
                module = self.patched(make)
                for m, n, k in ((1, 512, 7168), (1, 512, 7168), (17, 512, 7168), (8, 64, 128), (8, 4096, 512)):
                    module.get_gemm_config(NAME, m, n, k)
                self.assertEqual(
                    self.served(), [(1, "injected", 16), (17, "injected", 32), (8, "aiter", 64), (8, "aiter", 128)]
                )
                self.assertEqual(self.recorder.errors, [])
                (table,) = [one["aiter_table"] for one in self.recorder.records if "aiter_table" in one]
                self.assertEqual(table["file"], os.path.join(self.ours, FILE))

    def test_a_file_that_cannot_be_right_is_named_and_aiters_own_serves(self):
        for text in ('{"M_LEQ_16": {"BLOCK_SIZE_M": 16}}', '{"any": 3}', "[]", "no JSON"):
            with self.subTest(text):
                self.recorder = Recorder()
                with open(os.path.join(self.ours, FILE), "w") as file:
                    file.write(text)
                self.patched(new_module).get_gemm_config(NAME, 1, 512, 7168)
                self.assertEqual(self.served(), [(1, "aiter", 128)])
                self.assertEqual(len(self.recorder.errors), 1)

    def test_an_aiter_that_reads_its_files_otherwise_is_refused(self):
        module = types.ModuleType("gemm_config_utils")
        module.__file__ = "elsewhere.py"
        module.get_gemm_config = lambda *_: None
        with self.assertRaisesRegex(ValueError, "elsewhere.py reads its files in a way"):
            aiter_triton.patch(module, self.ours, self.recorder)

    def test_the_readers_cache_can_still_be_cleared(self):
        self.assertTrue(callable(self.patched(new_module).load_config_json.cache_clear))
