"""Waiting for a device that a dead worker's kernel still holds."""

import unittest

from gpu_worker.idle import Disturbed, wait_until_idle


class Quiet(unittest.TestCase):
    def wait(self, spins, patience_s=60.0):
        now = [0.0]
        given = iter(spins)

        def sleep(seconds):
            now[0] += seconds

        return wait_until_idle(lambda: next(given), patience_s, lambda: now[0], sleep)

    def test_an_idle_device_is_taken_at_once(self):
        self.assertEqual(self.wait([1000.0] * 5), 0.0)

    def test_a_disturbed_spin_starts_the_count_again(self):
        self.assertEqual(self.wait([1000.0, 1000.0, 90_000.0, 90_000.0] + [1000.0] * 5), 1.0)

    def test_patience_ends(self):
        with self.assertRaises(Disturbed):
            self.wait([90_000.0] * 1000)


if __name__ == "__main__":
    unittest.main()
