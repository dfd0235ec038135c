"""Copies of the weights, launches in a sample, order of samples."""

import unittest

from gpu_worker.rotation import GRAPH_BELOW_US, launches_for, rotation, sample_order

H100_L2 = 50 << 20


class Rotations(unittest.TestCase):
    def test_between_two_uses_of_a_copy_twice_the_cache_goes_by(self):
        for n, k in ((512, 512), (4096, 4096), (6144, 4096), (4096, 12288), (24576, 4096), (24576, 16384)):
            turn = rotation(n * k, 0, 0, H100_L2, 200.0)
            self.assertGreaterEqual((turn.copies - 1) * n * k, min(2 * H100_L2, n * k))
            if n * k < H100_L2:
                self.assertGreaterEqual((turn.copies - 1) * n * k, 2 * H100_L2)

    def test_a_graph_is_whole_turns_so_that_its_end_and_its_start_do_not_meet_in_the_cache(self):
        turn = rotation(4096 * 4096, 4096, 0, H100_L2, 200.0)
        self.assertEqual(turn.per_graph % turn.copies, 0)
        self.assertGreaterEqual(turn.per_graph * turn.expected_us, 200.0)

    def test_a_long_kernel_is_launched_directly(self):
        turn = rotation(24576 * 4096, 4096 * 28672, 2 * 4096 * 24576 * 4096, H100_L2, 200.0)
        self.assertEqual(turn.per_graph, 0)
        self.assertGreater(turn.expected_us, GRAPH_BELOW_US)

    def test_a_sample_covers_the_time_asked_for_in_whole_groups(self):
        self.assertEqual(launches_for(200.0, 12.0, 10), 20)
        self.assertEqual(launches_for(200.0, 700.0, 1), 1)
        self.assertEqual(launches_for(200.0, 0.0, 7), 7)

    def test_samples_are_taken_there_and_back(self):
        self.assertEqual([sample_order(3, sample) for sample in range(3)], [[0, 1, 2], [2, 1, 0], [0, 1, 2]])


if __name__ == "__main__":
    unittest.main()
