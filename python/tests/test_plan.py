"""What a candidate means on a shape, and which candidates share a compile."""

import unittest

from gpu_worker.plan import Kernels, Problem, Unsupported, plan

DEFAULT = {
    "BLOCK_SIZE_M": 64,
    "BLOCK_SIZE_N": 128,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 32,
    "num_warps": 4,
    "num_stages": 3,
}


def kernels(**changed):
    settings = {
        "path": "",
        "plain": "plain",
        "plain_takes": ("needs_masking",),
        "tuned": "tuned",
        "reduce": "reduce",
        "clamps_block_k": False,
        "block_n": 128,
        "block_k": 128,
        "out_dtype": "bfloat16",
    }
    return Kernels(**{**settings, **changed})


def problem(m, n=4096, k=4096):
    return Problem(m, n, k, "float8_e4m3fn")


class Plans(unittest.TestCase):
    def test_the_default_is_launched_as_sglang_launches_it(self):
        wanted = plan(kernels(), problem(100, 6144, 4096), DEFAULT)
        self.assertEqual(wanted.function, "plain")
        self.assertEqual(wanted.grid, (2 * 48,))
        scalars = dict(wanted.scalars)
        self.assertEqual((scalars["stride_bn"], scalars["stride_As_m"], scalars["stride_Bs_n"]), (4096, 32, 32))
        self.assertIs(dict(wanted.constants)["needs_masking"], False)

    def test_a_release_without_masking_gets_no_such_argument(self):
        wanted = plan(kernels(plain_takes=()), problem(1), DEFAULT)
        self.assertNotIn("needs_masking", dict(wanted.constants))

    def test_a_k_that_is_no_whole_number_of_tiles_is_masked(self):
        self.assertTrue(dict(plan(kernels(), problem(1, 4096, 4160), DEFAULT).constants)["needs_masking"])

    def test_split_k_writes_float32_planes_and_adds_them(self):
        wanted = plan(kernels(), problem(3, 512, 4096), {**DEFAULT, "SPLIT_K": 4})
        self.assertEqual((wanted.function, wanted.grid, wanted.out_dtype), ("tuned", (4, 4), "float32"))
        self.assertEqual(wanted.reduce_grid, (6,))
        self.assertEqual(wanted.reduce_constants, {"ELEMENTS": 1536, "SPLITS": 4, "BLOCK": 256})

    def test_settings_that_mean_nothing_new_are_the_plain_kernel(self):
        same = plan(kernels(), problem(1), {**DEFAULT, "SPLIT_K": 1, "SWAP_AB": False})
        self.assertEqual(same, plan(kernels(), problem(1), DEFAULT))

    def test_a_compile_serves_every_shape_of_the_same_divisibility(self):
        keys = {m: plan(kernels(), problem(m), DEFAULT).key for m in (1, 4, 8, 24, 16, 32, 4096)}
        self.assertEqual(keys[4], keys[8])
        self.assertEqual(keys[8], keys[24])
        self.assertEqual(keys[16], keys[4096])
        self.assertEqual(len(set(keys.values())), 3)
        self.assertEqual(keys[16], plan(kernels(), problem(16, 24576, 4096), DEFAULT).key)
        # K = 7168 has 56 scale columns, which 16 does not divide.
        self.assertNotEqual(keys[16], plan(kernels(), problem(16, 24576, 7168), DEFAULT).key)

    def test_what_the_kernel_does_not_take_is_refused_with_a_reason(self):
        cases = [
            (kernels(), {**DEFAULT, "BLOCK_SIZE_K": 256}, "does not divide"),
            (kernels(), {**DEFAULT, "BLOCK_SIZE_M": 48}, "power of two"),
            (kernels(), {**DEFAULT, "SPLIT_K": 3}, "power of two"),
            (kernels(), {**DEFAULT, "num_warps": "4"}, "whole number"),
            (kernels(), {**DEFAULT, "GROUP_SIZE_M": 0}, "GROUP_SIZE_M"),
            (kernels(), {**DEFAULT, "STREAM_K": 1}, "STREAM_K"),
            (kernels(), {"BLOCK_SIZE_M": 64}, "missing"),
            (kernels(), [], "object"),
            (kernels(tuned=""), {**DEFAULT, "SWAP_AB": True}, "SWAP_AB"),
            (kernels(clamps_block_k=True), {**DEFAULT, "BLOCK_SIZE_K": 64}, "raises BLOCK_SIZE_K"),
        ]
        for at_hand, candidate, words in cases:
            with self.assertRaisesRegex(Unsupported, words):
                plan(at_hand, problem(16), candidate)

    def test_a_shape_of_another_operation_is_refused(self):
        with self.assertRaises(Unsupported):
            Problem.read({"op": "gemm_a8w8_blockscale", "m": 1, "n": 1, "k": 1, "dtype": "torch.float8_e4m3fn"})


if __name__ == "__main__":
    unittest.main()
