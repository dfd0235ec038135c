"""Loading ahead: when it happens, and that nothing depends on it."""

import contextlib
import io
import types
import unittest

from gpu_worker.ahead import TOGETHER, Ahead
from gpu_worker.launch import Launch, find_compiled, load
from gpu_worker.rotation import Rotation
from gpu_worker.timing import Timed, measure
from gpu_worker.turns import whole

TIMING = {"warmups": 1, "samples": 3, "min_sample_us": 200.0, "stop_above_us": None}


class FakeDevice:
    """Runs what was enqueued when it is waited for, or asked often enough; keeps what happened in order."""

    def __init__(self, asked_until_done=2):
        self.happened = []
        self.broken = False
        self._asked_until_done = asked_until_done
        device = self

        class Event:
            def __init__(self, enable_timing):
                self.asked = 0

            def record(self, _stream):
                device.happened.append("record")

            def query(self):
                if device.broken:
                    raise RuntimeError("an illegal memory access was encountered")
                self.asked += 1
                return self.asked > device._asked_until_done

            def synchronize(self):
                device.happened.append("wait")

            def elapsed_time(self, _end):
                return 1.0

        self.cuda = types.SimpleNamespace(
            Event=Event, _sleep=lambda _cycles: self.happened.append("spin"), current_stream=lambda: None
        )


class FakeLaunch:
    def __init__(self, device):
        self._device = device

    def load(self):
        self._device.happened.append("load")

    def run(self, _copy):
        self._device.happened.append("launch")


def timed(device, count):
    return [Timed(FakeLaunch(device), Rotation(2, 0, 10.0)) for _ in range(count)]


def reading(device):
    """Finds everything, and says what it found and loaded."""

    def find(wanted):
        device.happened.append(f"ahead: find {wanted}")
        return [wanted]

    return Ahead(find, lambda wanted, _found: device.happened.append(f"ahead: load {wanted}"))


def refuse(error):
    return "launch_failed", str(error)


class When(unittest.TestCase):
    def test_kernels_are_loaded_between_the_last_launch_of_a_burst_and_the_first_wait(self):
        device = FakeDevice()
        ahead = reading(device)
        for wanted in "abcdef":
            ahead.add(wanted)
        whole(measure(device, timed(device, 2), TIMING, refuse, ahead.run_while_busy))
        # Two bursts, and in each of them the device is asked twice before it says that it is done.
        self.assertEqual(
            [one for one in device.happened if one.startswith("ahead")], [f"ahead: find {one}" for one in "abcd"]
        )
        for at, what in enumerate(device.happened):
            if what.startswith("ahead"):
                before = [one for one in device.happened[:at] if not one.startswith("ahead")]
                after = [one for one in device.happened[at:] if not one.startswith("ahead")]
                self.assertEqual(before[-1], "record", "the end of a sample")
                self.assertEqual(before.count("record") % 2, 0, "no sample is open")
                self.assertEqual(after[0], "wait")

    def test_several_kernels_are_loaded_at_a_time_and_the_last_ones_when_nothing_is_left(self):
        device = FakeDevice()
        ahead = reading(device)
        for wanted in range(TOGETHER + 3):
            ahead.add(wanted)
        left = iter([True] * TOGETHER + [False] + [True] * 9)
        ahead.run_while_busy(lambda: next(left))
        self.assertEqual(device.happened[TOGETHER:], [f"ahead: load {one}" for one in range(TOGETHER)])
        ahead.run_while_busy(lambda: next(left))
        self.assertEqual(device.happened[-3:], [f"ahead: load {TOGETHER + one}" for one in range(3)])

    def test_samples_are_the_same_with_nothing_to_load_and_without_lending(self):
        runs = []
        for while_busy in (None, Ahead(None, None).run_while_busy):
            device = FakeDevice()
            entered = timed(device, 3)
            device_us = whole(measure(device, entered, TIMING, refuse, while_busy))
            runs.append((device.happened, [one.us for one in entered], device_us))
        self.assertEqual(runs[0], runs[1])

    def test_an_idle_device_lends_nothing(self):
        device = FakeDevice(asked_until_done=0)
        ahead = Ahead(lambda wanted: self.fail("it would have kept the device waiting"), None)
        ahead.add("a")
        whole(measure(device, timed(device, 1), TIMING, refuse, ahead.run_while_busy))

    def test_a_device_that_is_lost_meanwhile_is_lost_for_those_being_timed(self):
        device = FakeDevice()
        ahead = Ahead(lambda wanted: None, None)
        ahead.add("a")
        device.broken = True
        with self.assertRaisesRegex(RuntimeError, "illegal memory access"):
            whole(measure(device, timed(device, 1), TIMING, refuse, ahead.run_while_busy))


class Failures(unittest.TestCase):
    def test_a_load_that_fails_is_said_and_the_next_one_is_tried(self):
        loaded = []

        def load(wanted, found):
            if wanted == "bad":
                raise RuntimeError("no room")
            loaded.append((wanted, found))

        ahead = Ahead(lambda wanted: [f"compiled {wanted}"], load)
        for wanted in ("bad", "good"):
            ahead.add(wanted)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            ahead.run_while_busy(lambda: True)
        self.assertEqual(loaded, [("good", ["compiled good"])])
        self.assertIn("no room", said.getvalue())


class Function:
    """One of Triton's functions, as far as a launch needs it."""

    arg_names = ("A",)

    def __init__(self, can_load=True):
        self.launched = 0
        self.loads = 0
        self._can_load = can_load

    def warmup(self, grid, **_arguments):
        return self if self._can_load else object()

    def __getitem__(self, _grid):
        self.loads += 1

        def launcher(*_arguments, **_named):
            self.launched += 1
            return self

        return launcher


def plan(function="main", reduce="", key="k"):
    problem = types.SimpleNamespace(dtype="float8_e4m3fn", m=1, n=128, k=128)
    return types.SimpleNamespace(
        key=key,
        function=function,
        reduce=reduce,
        problem=problem,
        out_dtype="bfloat16",
        scalars=(),
        constants=(),
        grid=(1,),
        split_k=1,
        reduce_grid=(1,),
        reduce_constants={},
    )


def ahead(module, wanted, kept):
    """Finds and loads as `Ahead` does."""
    load(wanted, find_compiled(module, wanted, "bfloat16", kept), kept)


OPERANDS = types.SimpleNamespace(a=0, a_scale=0, out=0, weights=[(0, 0)], partial=lambda _split: 0)


class Loading(unittest.TestCase):
    def test_a_kernel_loaded_ahead_is_not_launched_to_load_it(self):
        module, kept = types.SimpleNamespace(main=Function()), {}
        ahead(module, plan(), kept)
        self.assertEqual((module.main.loads, module.main.launched), (1, 0))
        Launch(module, plan(), OPERANDS, kept).load()
        self.assertEqual(module.main.launched, 0)
        self.assertEqual(find_compiled(module, plan(), "bfloat16", kept), [])
        self.assertEqual(list(kept), [("k", "main")])

    def test_the_sum_of_a_split_is_loaded_with_it(self):
        module, kept = types.SimpleNamespace(main=Function(), add=Function()), {}
        ahead(module, plan(reduce="add"), kept)
        self.assertEqual(list(kept), [("k", "main"), ("k", "reduce")])

    def test_a_kernel_that_was_only_half_loaded_is_loaded_anew(self):
        class Half:
            """Triton's compiled kernel after its device refused the code."""

            module, _run = None, None

            def __getitem__(self, _grid):
                self._run = "a launcher without a kernel"
                raise RuntimeError("no room on the device")

        half = Half()
        module = types.SimpleNamespace(main=types.SimpleNamespace(warmup=lambda grid, **_arguments: half))
        with self.assertRaisesRegex(RuntimeError, "no room"):
            ahead(module, plan(), {})
        self.assertIsNone(half._run)

    def test_what_could_not_be_loaded_ahead_is_loaded_where_it_is_needed(self):
        module, kept = types.SimpleNamespace(main=Function(can_load=False)), {}
        with self.assertRaises(TypeError):
            ahead(module, plan(), kept)
        self.assertEqual(kept, {})
        Launch(module, plan(), OPERANDS, kept).load()
        self.assertEqual(module.main.launched, 1)


if __name__ == "__main__":
    unittest.main()
