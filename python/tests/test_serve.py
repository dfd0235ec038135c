"""The request loop against a fake device."""

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import unittest

from gpu_worker import channel
from gpu_worker.serve import DEVICE_LOST, serve

from tests.fakes import FakeBench

SHAPE = {"op": "w8a8_block_fp8_matmul", "m": 1, "n": 4096, "k": 4096, "dtype": "torch.float8_e4m3fn"}
TIMING = {"warmups": 1, "samples": 2, "min_sample_us": 200.0, "stop_above_us": None}
HELLO = {"kind": "hello", "options": {}}


def lines(*asks):
    """Request lines with ids 1, 2, …"""
    return "".join(json.dumps({"id": number, "attempt": 1, "ask": ask}) + "\n" for number, ask in enumerate(asks, 1))


def talk(text, stream=None, bench=FakeBench):
    """Serves `text`; the exit status and the replies in the order they came."""
    reading, writing = os.pipe()
    answers = []
    collector = threading.Thread(target=lambda: answers.extend(json.loads(line) for line in os.fdopen(reading)))
    collector.start()
    try:
        status = serve(stream or io.BytesIO(text.encode()), channel.Channel(writing), bench)
    finally:
        os.close(writing)
        collector.join()
    return status, answers


class Serve(unittest.TestCase):
    def test_a_session_is_answered_in_order_and_ends_with_bye(self):
        time = {"kind": "time", "shape": SHAPE, "candidates": [{"us": 3}, {"us": 4}], "timing": TIMING}
        check = {"kind": "check", "shape": SHAPE, "candidates": [{}]}
        status, answers = talk(lines(HELLO, time, check, {"kind": "quit"}))
        self.assertEqual(status, 0)
        self.assertEqual([one["answer"]["kind"] for one in answers], ["hello", "timed", "checked", "bye"])
        self.assertEqual([one["id"] for one in answers], [1, 2, 3, 4])
        self.assertEqual(answers[1]["answer"]["outcomes"][1], {"outcome": "done", "result": {"us": [4.0, 4.0]}})
        self.assertGreaterEqual(answers[1]["answer"]["busy_s"], 0.0)

    def test_a_second_request_is_begun_before_the_first_is_waited_for_and_a_third_is_not(self):
        time = {"kind": "time", "shape": SHAPE, "candidates": [{}], "timing": TIMING}
        happened = []

        class Bench(FakeBench):
            count = 0

            def time(self, shape, candidates, timing):
                Bench.count += 1
                number = Bench.count
                for turn in ("enqueue", "again"):
                    happened.append(f"{turn} {number}")
                    yield
                happened.append(f"done {number}")
                return {"kind": "timed", "outcomes": [], "clocks_mhz": []}

        requests = lines(HELLO, time, time, time, {"kind": "quit"})
        # All is there before anything is served, so that the order is nobody's luck.
        waiting = threading.Event()
        opened = lambda options: waiting.wait(10) and Bench(options)

        def stream():
            yield from requests.encode().splitlines(keepends=True)
            waiting.set()

        _, answers = talk("", stream(), opened)
        self.assertEqual(happened[:5], ["enqueue 1", "enqueue 2", "again 1", "again 2", "done 1"])
        self.assertLess(happened.index("done 1"), happened.index("enqueue 3"))
        self.assertEqual([one["id"] for one in answers], [1, 2, 3, 4, 5])

    def test_timing_goes_on_while_a_candidate_compiles(self):
        prepare = {"kind": "prepare", "shape": SHAPE, "candidate": {"slow": True}}
        time = {"kind": "time", "shape": SHAPE, "candidates": [{}], "timing": TIMING}
        reading, writing = os.pipe()
        os.write(writing, lines(HELLO, prepare, time).encode())
        with os.fdopen(reading, "rb") as stream:
            # The stream stays open until both are answered: the slow compile waits for the timing.
            closer = threading.Timer(1.0, lambda: os.close(writing))
            closer.start()
            _, answers = talk("", stream)
        self.assertEqual([one["id"] for one in answers], [1, 3, 2])

    def test_a_refusal_is_an_outcome_not_a_failure(self):
        prepare = {"kind": "prepare", "shape": SHAPE, "candidate": {"too_big": True}}
        reading, writing = os.pipe()
        os.write(writing, lines(HELLO, prepare).encode())
        with os.fdopen(reading, "rb") as stream:
            threading.Timer(0.5, lambda: os.close(writing)).start()
            status, answers = talk("", stream)
        self.assertEqual(status, 0)
        self.assertEqual(answers[1]["answer"]["outcome"]["reason"], "out_of_resources")

    def test_a_lost_device_is_said_and_ends_the_worker_with_a_status(self):
        time = {"kind": "time", "shape": SHAPE, "candidates": [{"lost": True}], "timing": TIMING}
        status, answers = talk(lines(HELLO, time, time))
        self.assertEqual(status, DEVICE_LOST)
        self.assertEqual(len(answers), 2)
        self.assertIn("illegal memory access", answers[1]["answer"]["error"])

    def test_a_bug_fails_one_request_only(self):
        time = {"kind": "time", "shape": SHAPE, "candidates": [{"bug": True}], "timing": TIMING}
        check = {"kind": "check", "shape": SHAPE, "candidates": [{}]}
        with open(os.devnull, "w") as quiet:
            stderr, sys.stderr = sys.stderr, quiet
            try:
                _, answers = talk(lines(HELLO, time, check))
            finally:
                sys.stderr = stderr
        self.assertEqual([one["answer"]["kind"] for one in answers], ["hello", "failed", "checked"])

    def test_what_is_no_request_is_answered_and_skipped(self):
        _, answers = talk("{\n[1]\n\n" + lines(HELLO))
        self.assertEqual([one["answer"]["kind"] for one in answers], ["failed", "failed", "hello"])

    def test_nothing_but_hello_is_served_before_hello(self):
        _, answers = talk(lines({"kind": "check", "shape": SHAPE, "candidates": [{}]}, {"kind": "dance"}))
        self.assertEqual([one["answer"]["kind"] for one in answers], ["failed", "failed"])

    def test_the_transcript_of_the_protocol_is_served(self):
        path = os.path.join(os.path.dirname(__file__), "..", "..", "testdata", "tune", "protocol.jsonl")
        with open(path, encoding="utf-8") as file:
            documents = [json.loads(line) for line in file]
        asked = [one for one in documents if "ask" in one and one["ask"]["kind"] != "prepare"]
        status, answers = talk("".join(json.dumps(one) + "\n" for one in asked))
        self.assertEqual(status, 0)
        wanted = {one["id"]: one["answer"] for one in documents if "answer" in one}
        for answer in answers:
            self.assertEqual(answer["answer"]["kind"], wanted[answer["id"]]["kind"])
            if answer["answer"]["kind"] != "hello":
                self.assertLessEqual(set(wanted[answer["id"]]), set(answer["answer"]))


class Replies(unittest.TestCase):
    def test_a_nan_is_never_written(self):
        reading, writing = os.pipe()
        with self.assertRaises(ValueError):
            channel.Channel(writing).reply({"id": 1, "attempt": 1}, {"us": float("nan")})
        os.close(writing)
        os.close(reading)

    def test_replies_on_standard_output_are_marked_and_stray_prints_kept_out(self):
        program = (
            "import os, sys; sys.path.insert(0, sys.argv[1]);"
            "from gpu_worker.channel import Channel;"
            "channel = Channel.open('stdout'); os.dup2(2, 1); print('stray', flush=True);"
            "channel.reply({'id': 1, 'attempt': 1}, {'kind': 'bye'})"
        )
        parent = os.path.join(os.path.dirname(__file__), "..")
        ran = subprocess.run([sys.executable, "-c", program, parent], capture_output=True, text=True, check=True)
        self.assertEqual(ran.stdout, '@gemmtune {"id":1,"attempt":1,"answer":{"kind":"bye"}}\n')
        self.assertEqual(ran.stderr, "stray\n")

    def test_the_folder_starts_as_a_program_and_says_that_torch_is_missing(self):
        parent = os.path.join(os.path.dirname(__file__), "..")
        with tempfile.TemporaryDirectory() as cache:
            ran = subprocess.run(
                [sys.executable, "-S", os.path.join(parent, "gpu_worker"), "--reply-fd", "stdout"],
                input=lines({"kind": "hello", "options": {"sglang_root": "", "cache_dir": cache}}, {"kind": "quit"}),
                capture_output=True,
                text=True,
                timeout=60,
            )
        self.assertEqual(ran.returncode, 0, ran.stderr)
        answers = [json.loads(line.removeprefix(channel.STDOUT_MARKER)) for line in ran.stdout.splitlines()]
        self.assertEqual([one["answer"]["kind"] for one in answers], ["failed", "bye"])
        self.assertIn("torch", answers[0]["answer"]["error"])


if __name__ == "__main__":
    unittest.main()
