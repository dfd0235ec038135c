"""The pool of compile children: every specialisation is compiled once, however many requests need it, while the device times others."""

import hashlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time

URGENT, ORDINARY = 0, 1
"""A candidate the device is waiting for goes before those that are only being prepared."""


class Compiled:
    """A specialisation that is being compiled, or has been."""

    def __init__(self):
        self._done = threading.Event()
        self._waiting = []
        self._lock = threading.Lock()
        self.taken = False
        """Whether a child is compiling it; guarded by the pool's lock."""
        self.answer = None
        """`{"seconds":, "shared":}`, or `{"refused": reason, "detail":, "seconds":}`."""

    def finish(self, answer):
        """Sets the answer and calls the waiting callbacks."""
        with self._lock:
            self.answer = answer
            waiting, self._waiting = self._waiting, []
        self._done.set()
        for call in waiting:
            call(answer)

    def then(self, call):
        """Calls `call(answer)`: now if it is there, else from the thread that finds it."""
        with self._lock:
            if self.answer is None:
                self._waiting.append(call)
                return
        call(self.answer)

    def wait(self):
        """The answer, once it is there."""
        self._done.wait()
        return self.answer


class Record:
    """What was compiled into a disk cache before, so that a later worker need not ask a child for it again: a child's
    first answer takes seconds (importing Triton), also when all is in the cache.

    The file lies inside the cache folder, so that emptying the cache removes it too. It is only ever appended
    to, a line at a time, by any number of workers; a torn line is ignored.
    """

    def __init__(self, folder, setup):
        digest = hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()[:16]
        self._path = os.path.join(folder, f"gemmtune-compiled-{digest}.jsonl")
        self.answers = {}
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                        entry["answer"]["seconds"]
                        self.answers[entry["key"]] = entry["answer"]
                    except (ValueError, KeyError, TypeError):
                        continue
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)

    def add(self, key, answer):
        """Stores an answer that another worker would get too, but not that a child was late or died."""
        if answer.get("refused") in (None, "out_of_resources"):
            line = json.dumps({"key": key, "answer": answer}) + "\n"
            try:
                with open(self._path, "ab", buffering=0) as file:
                    file.write(line.encode())
            except OSError as error:
                print(f"not recorded as compiled: {error}", file=sys.stderr)


class Compilers:
    """`slots` children, each fed by a thread of its own; a child that is late or dies is replaced."""

    def __init__(self, setup, slots, deadline_s, start=None, record=None):
        self._setup = json.dumps(setup) + "\n"
        self._record = record
        self._deadline_s = deadline_s
        self._start = start or start_child
        self._jobs = queue.PriorityQueue()
        self._known = {}
        for key, answer in (record.answers if record else {}).items():
            self._known[key] = Compiled()
            self._known[key].finish(answer)
        self._lock = threading.Lock()
        self._count = 0
        self._closed = False
        self._children = set()
        # One child is started at once: usually only a few programs are missing, and starting a child takes seconds.
        self._threads = [threading.Thread(target=self._feed, args=(slot == 0,), daemon=True) for slot in range(slots)]
        for thread in self._threads:
            thread.start()

    def compile(self, key, job, urgent=False):
        """The specialisation `key`; `job` describes how to compile it if it has not been requested before. The second value is whether it had."""
        with self._lock:
            known = self._known.get(key)
            fresh = known is None
            if fresh:
                known = self._known[key] = Compiled()
            # A job that becomes urgent while it waits is queued again; the second copy is skipped.
            if fresh or (urgent and known.answer is None):
                self._count += 1
                self._jobs.put((URGENT if urgent else ORDINARY, self._count, key, job))
        return known, not fresh

    def close(self):
        """Ends the children."""
        with self._lock:
            self._closed = True
            children = list(self._children)
            for number, _ in enumerate(self._threads):
                # Before every job; numbered, so that the queue never compares further.
                self._jobs.put((-1, number, None, None))
        for child in children:
            child.kill()

    def _feed(self, at_once):
        """Takes jobs in order and has this thread's child do them."""
        child = None
        if at_once:
            try:
                child = self._begin()
            except OSError as error:
                print(f"a compile child could not be started: {error}", file=sys.stderr)
        while True:
            _, _, key, job = self._jobs.get()
            if key is None or self._closed:
                break
            with self._lock:
                known = self._known[key]
                if known.answer is not None or known.taken:
                    continue
                known.taken = True
            begun = time.perf_counter()
            try:
                if child is None:
                    child = self._begin()
                child.stdin.write((json.dumps(job) + "\n").encode())
                child.stdin.flush()
                line = _line_within(child.stdout, self._deadline_s)
            except OSError as error:
                line = b"" if not self._closed else None
                print(f"a compile child could not be fed: {error}", file=sys.stderr)
            seconds = time.perf_counter() - begun
            if line:
                answer = json.loads(line)
                if self._record is not None:
                    self._record.add(key, answer)
            else:
                if line is None:
                    answer = {"refused": "compile_timed_out", "detail": f"stopped after {seconds:.0f} s"}
                else:
                    answer = {"refused": "compile_failed", "detail": f"the compiler died ({_status(child)})"}
                answer["seconds"] = seconds
                if child is not None:
                    child.kill()
                    child.wait()
                    with self._lock:
                        self._children.discard(child)
                child = None
            known.finish(answer)
        if child is not None:
            child.kill()
            child.wait()

    def _begin(self):
        """A child that has been told its set-up."""
        child = self._start()
        with self._lock:
            self._children.add(child)
        child.stdin.write(self._setup.encode())
        return child


def start_child(binary_only="1"):
    """Starts a compile child; it sees no device, so that it can never open one. `binary_only`: whether Triton keeps the
    program alone (a fifth of the bytes) or its assembly too, "1" or "0"."""
    entry = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    unseen = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **unseen, "TRITON_STORE_BINARY_ONLY": binary_only}
    return subprocess.Popen(
        [sys.executable, entry, "--compile-child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        bufsize=0,
    )


def _line_within(stream, seconds):
    """One line from a child; b"" when it ends first, None when it takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    data = b""
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            return None
        piece = os.read(stream.fileno(), 65536)
        if not piece:
            return b""
        data += piece
    return data


def _status(child):
    """How a child ended, for people."""
    if child is None:
        return "it did not start"
    try:
        return f"status {child.wait(timeout=5)}"
    except subprocess.TimeoutExpired:
        return "its output closed"
