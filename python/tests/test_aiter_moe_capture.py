"""The overlay's records of aiter's fused MoE, on a module with the two functions as aiter's releases have them."""

import functools
import os
import sys
import types
import unittest
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "overlay"))
from gemmtune_overlay import capture_aiter_moe


class Tensor:
    def __init__(self, *shape):
        self.shape = shape

    def numel(self):
        return self.shape[0]


class Recorder:
    def __init__(self):
        self.counted, self.records, self.errors, self.ranks = [], [], [], []

    def count(self, key):
        self.counted.append(dict(key))

    def once(self, record):
        self.records.append(record)

    def rank(self, rank, world, expert=None):
        self.ranks.append((rank, world))

    def error(self, where, error):
        self.errors.append(f"{where}: {error}")


def aiter_module(newer):
    """Both functions with the parameters of 303a583c, or those that e4048607 has besides."""
    module = types.ModuleType("aiter.fused_moe")
    module.AITER_CONFIGS = types.SimpleNamespace(AITER_CONFIG_FMOE_FILE="/deployed.csv")
    module.raises = None

    def answer(token):
        if token > 32:
            return types.SimpleNamespace(
                run_1stage=True, stage1=functools.partial(print, kernelName="fmoe"), stage2=None, block_m=32
            )
        stages = [functools.partial(print, kernelName=name) for name in ("gemm1", float("nan"))]
        return types.SimpleNamespace(run_1stage=False, stage1=stages[0], stage2=stages[1], block_m=16.0)

    if newer:

        @functools.lru_cache
        def get_2stage_cfgs(
            token, model_dim, inter_dim, expert, topk, dtype, q_dtype_a, q_dtype_w, q_type, use_g1u1, activation,
            doweight_stage1, hidden_pad, intermediate_pad, is_shuffled=True, gate_mode=0, is_ep=False,
            has_stage2_bias=False, opus_weights_shuffled=None, config_file=None,
        ):  # fmt: skip
            return answer(token)
    else:

        @functools.lru_cache
        def get_2stage_cfgs(
            token, model_dim, inter_dim, expert, topk, dtype, q_dtype_a, q_dtype_w, q_type, use_g1u1, activation,
            doweight_stage1, hidden_pad, intermediate_pad, is_shuffled=True,
        ):  # fmt: skip
            return answer(token)

    def operator(topk_ids, expert_mask, **more):
        tokens, topk = topk_ids.shape
        padded = 1 << (tokens - 1).bit_length()
        key = (padded, 7168, 256, 33, topk, "torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e4m3fn")
        key += ("QuantType.per_1x128", True, "ActivationType.Silu", False, 0, 0, False)
        found = module.get_2stage_cfgs(*key, **more, **({"is_ep": expert_mask is not None} if newer else {}))
        if module.raises:
            raise module.raises
        if not found.run_1stage:
            module.get_2stage_cfgs(*key, **more, **({"is_ep": expert_mask is not None} if newer else {}))
        return "out"

    def fused_moe(hidden_states, w1, w2, topk_weight, topk_ids, expert_mask=None, activation=None, quant_type=None):
        return operator(topk_ids, expert_mask)

    module.fused_moe, module.get_2stage_cfgs, module.operator = fused_moe, get_2stage_cfgs, operator
    return module


class Captures(unittest.TestCase):
    def setUp(self):
        self.compiling = False
        compiler = types.SimpleNamespace(is_compiling=lambda: self.compiling)
        patched = mock.patch.dict(sys.modules, {"torch": types.SimpleNamespace(compiler=compiler)})
        patched.start()
        self.addCleanup(patched.stop)

    def module(self, newer=True):
        self.recorder = Recorder()
        module = aiter_module(newer)
        capture_aiter_moe.patch(module, self.recorder)
        return module

    def call(self, module, tokens, mask=None):
        return module.fused_moe(None, None, None, None, Tensor(tokens, 9), expert_mask=mask)

    def test_a_call_is_counted_once_with_its_own_tokens_however_often_its_key_is_looked_up(self):
        for newer in (False, True):
            module = self.module(newer)
            for _ in range(3):
                self.assertEqual(self.call(module, 5), "out")
            self.call(module, 33)
            tokens = [one["M"] for one in self.recorder.counted]
            self.assertEqual((tokens, self.recorder.errors), ([5, 5, 5, 33], []))
            first = self.recorder.counted[0]
            self.assertEqual((first["fused_moe"], first["topk"], first["expert"]), ("fused_moe_aiter", 9, 33))
            self.assertEqual((first["act_type"], first["q_type"], first["is_shuffled"]), ("Silu", "per_1x128", False))
            self.assertEqual((first["experts_of_all"], first["kind"]), (None, "eager"))
            self.assertTrue(self.recorder.ranks)

    def test_what_a_look_up_was_answered_with_is_said_once(self):
        module = self.module()
        for tokens in (5, 5, 33):
            self.call(module, tokens)
        said = [record["served_aiter_moe"] for record in self.recorder.records]
        self.assertEqual([one["kernels"] for one in said], [["gemm1", ""], ["fmoe", ""]])
        self.assertEqual([one["one_stage"] for one in said], [False, True])
        self.assertEqual((said[0]["block_m"], said[0]["table"]), (16, "/deployed.csv"))

    def test_an_expert_mask_is_recorded_with_its_length(self):
        module = self.module()
        self.call(module, 5, mask=Tensor(256))
        self.assertEqual(self.recorder.counted[0]["experts_of_all"], 256)

    def test_an_operator_that_runs_by_itself_is_counted_by_its_key(self):
        module = self.module()
        self.compiling = True
        self.call(module, 33, mask=Tensor(256))
        only = self.recorder.counted[0]
        self.assertEqual((only["M"], only["experts_of_all"]), (64, -1))

    def test_a_table_of_its_own_is_no_call_of_this_one(self):
        module = self.module()
        module.operator(Tensor(33, 9), None, config_file="/tuned_fhmoe.csv")
        self.assertEqual((self.recorder.counted, self.recorder.errors), ([], []))

    def test_what_the_operation_raises_goes_through_and_the_next_call_is_counted(self):
        module = self.module()
        module.raises = ValueError("no device")
        with self.assertRaises(ValueError):
            self.call(module, 5)
        module.raises = None
        self.call(module, 4)
        self.assertEqual([one["M"] for one in self.recorder.counted], [5, 4])

    def test_the_cache_can_be_cleared_through_the_hook(self):
        module = self.module()
        self.call(module, 5)
        self.assertEqual(module.get_2stage_cfgs.cache_info().currsize, 1)
        module.get_2stage_cfgs.cache_clear()
        self.assertEqual(module.get_2stage_cfgs.cache_info().currsize, 0)

    def test_another_release_is_refused_whole(self):
        module = types.ModuleType("aiter.fused_moe")
        module.fused_moe = print
        with self.assertRaises(AttributeError):
            capture_aiter_moe.patch(module, Recorder())
        self.assertIs(module.fused_moe, print)


if __name__ == "__main__":
    unittest.main()
