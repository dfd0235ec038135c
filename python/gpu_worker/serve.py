"""The request loop: reads lines, hands `prepare` to the compilers and everything else to the device, in order."""

import collections
import json
import queue
import sys
import threading
import time
import traceback

DEVICE_LOST = 70
"""Exit status after a fault that leaves the device unusable for this process (sysexits EX_SOFTWARE)."""


class DeviceLost(Exception):
    """The device answers no more in this process: the request is answered `failed` and the worker exits."""


def done(result):
    """The outcome of a candidate that ran."""
    return {"outcome": "done", "result": result}


def refused(reason, detail):
    """The outcome of a candidate that cannot run here; `reason` is one of `Refusal` in src/tune/protocol.rs."""
    return {"outcome": "refused", "reason": reason, "detail": detail}


def failed(error):
    """The answer to a request that could not be served."""
    return {"kind": "failed", "error": error}


UNDER_WAY = 2
"""Requests under way at once: one runs on the device while the host prepares the other."""


def serve(stream, channel, open_bench):
    """Serves requests from `stream` until `quit` or end of file; returns the exit status.

    A thread reads, so that `prepare` reaches the compilers while the device is busy; this thread owns
    the device. `open_bench(options)` is called once, by `hello`. What its `time` and `check` return is taken in
    turns (`turns`), so that answers may come in another order than their requests.
    """
    requests = queue.Queue()
    worker = _Worker(channel, open_bench)
    reader = threading.Thread(target=_read, args=(stream, channel, requests, worker), daemon=True)
    reader.start()
    under_way, last = collections.deque(), None
    is_open = True
    try:
        while is_open or under_way:
            if is_open and len(under_way) < UNDER_WAY and (not under_way or not requests.empty()):
                request = requests.get()
                is_open = request is not None and request["ask"]["kind"] != "quit"
                begun = worker.begin(request) if is_open else None
                last = request
            else:
                begun = under_way.popleft()
            if begun is not None and not worker.turn(begun):
                under_way.append(begun)
        worker.close()
        if last is not None:
            channel.reply(last, {"kind": "bye"})
        return 0
    except DeviceLost:
        return DEVICE_LOST
    finally:
        worker.close()


def _read(stream, channel, requests, worker):
    """Parses lines; `prepare` is started at once, the rest is queued for the device in order."""
    for line in stream:
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            kind = request["ask"]["kind"]
            request["id"], request["attempt"]
        except (ValueError, KeyError, TypeError) as error:
            channel.reply({"id": 0, "attempt": 0}, failed(f"not a request: {error!r}"))
            continue
        if kind == "prepare":
            worker.prepare(request)
        else:
            requests.put(request)
    requests.put(None)


class _Worker:
    """What is open between requests."""

    def __init__(self, channel, open_bench):
        self._channel = channel
        self._open_bench = open_bench
        self._bench = None
        self._ready = threading.Event()
        self._held_s = 0.0
        self._since_answer_s = 0.0
        self._sampled_s = 0.0
        self._first = None

    def prepare(self, request):
        """Starts compiling; replies from whichever thread finishes it. Waits for `hello` to be served."""

        def run():
            self._ready.wait()
            if self._bench is None:
                self._channel.reply(request, failed("prepare before a hello that succeeded"))
                return
            ask = request["ask"]
            try:
                self._bench.prepare(
                    ask["shape"],
                    ask["candidate"],
                    lambda outcome: self._channel.reply(request, {"kind": "prepared", "outcome": outcome}),
                )
            except Exception as error:
                self._channel.reply(request, failed(_words(error)))

        if self._ready.is_set():
            run()
        else:
            threading.Thread(target=run, daemon=True).start()

    def begin(self, request):
        """A request that holds the device, with what has been done of it: nothing yet."""
        return request, self._turns(request["ask"], request["id"])

    def turn(self, begun):
        """Does the next turn of a request and says whether it was the last, in which case it is answered."""
        request, turns = begun
        started = time.perf_counter()
        try:
            next(turns)
            return False
        except StopIteration as end:
            answer = end.value
        except DeviceLost as lost:
            self._channel.reply(request, failed(f"the device is lost: {lost}"))
            raise
        except Exception as error:
            traceback.print_exc()
            answer = failed(_words(error))
        finally:
            self._held(request["ask"]["kind"], started)
        if answer["kind"] in ("timed", "checked"):
            # Seconds the device was held since the last answer: those of two requests add up to no more than passed.
            answer["busy_s"], self._since_answer_s = self._since_answer_s, 0.0
        self._channel.reply(request, answer)
        return True

    def _turns(self, ask, number):
        """The turns of a request; a generator that returns its answer."""
        if ask["kind"] == "hello":
            try:
                if self._bench is None:
                    self._bench = self._open_bench(ask.get("options") or {})
            finally:
                self._ready.set()
            return {"kind": "hello", "device": self._bench.device()}
        if self._bench is None:
            return failed(f"{ask['kind']} before a hello that succeeded")
        if ask["kind"] == "time":
            answer = yield from self._bench.time(ask["shape"], ask["candidates"], ask["timing"])
            self._sampled_s += answer.get("device_s", 0.0)
            return answer
        if ask["kind"] == "check":
            return (yield from self._bench.check(ask["shape"], ask["candidates"], number))
        return failed(f"unknown kind of request `{ask['kind']}`")

    def _held(self, kind, started):
        """Books a turn of a request that holds the device."""
        if self._bench is None or kind not in ("time", "check"):
            return
        seconds = time.perf_counter() - started
        self._first = self._first or started
        self._held_s += seconds
        self._since_answer_s += seconds

    def close(self):
        """Ends the compile children and says in the log how busy the device was."""
        if self._bench is None:
            return
        bench, self._bench = self._bench, None
        bench.close()
        if self._first is not None:
            since = time.perf_counter() - self._first
            print(
                f"device: {self._sampled_s:.3f} s in samples, {self._held_s:.3f} s held by requests, {since:.3f} s since the first",
                file=sys.stderr,
            )


def _words(error):
    """An exception as one line for people."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:2000]
