"""The pool of compile children, with children that only pretend."""

import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from gpu_worker.compile_child import buffered_bytes
from gpu_worker.compilers import Compilers, Record

CHILD = """
import json, os, sys, time
sys.stdin.readline()
for line in sys.stdin:
    job = json.loads(line)
    if job == "die":
        os._exit(3)
    if job == "hang":
        time.sleep(60)
    time.sleep(job if isinstance(job, float) else 0)
    print(json.dumps({"seconds": 0.1, "shared": 1, "job": job}), flush=True)
"""


def start():
    """A child that speaks the line protocol and compiles nothing."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=dict(os.environ)
    )


class Pool(unittest.TestCase):
    def pool(self, slots=2, deadline_s=30.0):
        pool = Compilers({}, slots, deadline_s, start)
        self.addCleanup(pool.close)
        return pool

    def test_a_specialisation_is_compiled_once_whoever_asks(self):
        pool = self.pool()
        first, known_first = pool.compile("a", "x")
        second, known_second = pool.compile("a", "y")
        self.assertIs(first, second)
        self.assertEqual((known_first, known_second), (False, True))
        self.assertEqual(first.wait()["job"], "x")

    def test_what_the_device_waits_for_goes_first(self):
        pool = self.pool(slots=1)
        order, everything = [], threading.Event()

        def note(answer):
            order.append(answer["job"])
            if len(order) == 4:
                everything.set()

        # The first is under way (or next) when the others queue up; the last becomes urgent.
        pool.compile("slow", 0.5)[0].then(note)
        time.sleep(0.1)
        for key in ("a", "b", "c"):
            pool.compile(key, key)[0].then(note)
        pool.compile("c", "c", urgent=True)
        self.assertTrue(everything.wait(20))
        self.assertEqual(order, [0.5, "c", "a", "b"])

    def test_what_was_compiled_once_needs_no_child_in_the_next_worker(self):
        with tempfile.TemporaryDirectory() as parent:
            folder = os.path.join(parent, "cache")
            first = Compilers({}, 1, 30.0, start, Record(folder, {"target": "x"}))
            self.addCleanup(first.close)
            self.assertEqual(first.compile("a", "x")[0].wait()["job"], "x")
            first.compile("b", "die")[0].wait()
            with open(os.path.join(folder, os.listdir(folder)[0]), "a") as file:
                file.write('{"key": "torn')

            def nobody():
                raise AssertionError("a child was started")

            second = Compilers({}, 1, 30.0, nobody, Record(folder, {"target": "x"}))
            self.addCleanup(second.close)
            found, known = second.compile("a", "y")
            self.assertEqual((found.wait()["job"], known), ("x", True))
            # A child that died says nothing about the next try, nor does a worker of another set-up.
            self.assertEqual(list(Record(folder, {"target": "x"}).answers), ["a"])
            self.assertEqual(Record(folder, {"target": "y"}).answers, {})

    def test_a_child_that_dies_costs_its_job_only(self):
        pool = self.pool(slots=1)
        bad, _ = pool.compile("bad", "die")
        good, _ = pool.compile("good", "x")
        self.assertEqual(bad.wait()["refused"], "compile_failed")
        self.assertIn("3", bad.wait()["detail"])
        self.assertEqual(good.wait()["job"], "x")

    def test_a_compile_past_the_deadline_is_stopped_and_said(self):
        pool = self.pool(slots=1, deadline_s=1.0)
        late, _ = pool.compile("late", "hang")
        good, _ = pool.compile("good", "x")
        self.assertEqual(late.wait()["refused"], "compile_timed_out")
        self.assertEqual(good.wait()["job"], "x")


class PipelineBuffers(unittest.TestCase):
    def test_the_buffers_of_the_main_loop_are_added_up(self):
        text = (
            "%a = ttg.local_alloc : () -> !ttg.memdesc<5x256x128xf8E4M3FN, #shared, #smem, mutable>\n"
            "%b = ttg.local_alloc : () -> !ttg.memdesc<5x128x256xf8E4M3FN, #shared1, #smem, mutable>\n"
            "%c = ttg.local_alloc %x : (tensor<64x64xf8E4M3FN>) -> !ttg.memdesc<64x64xf8E4M3FN, #shared>\n"
        )
        self.assertEqual(buffered_bytes(text), 2 * 5 * 256 * 128)


if __name__ == "__main__":
    unittest.main()
