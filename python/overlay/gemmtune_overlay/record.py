"""One append-only record file per process, JSON Lines; the format is that of gemmtune's `log/record.rs`, version 1.

Calls are counted in memory. A key that is seen for the first time is written at once, the rest is flushed
about once a second and at exit, so a SIGKILL loses a second of counts and never a shape. Each line is one `write`.
"""

import atexit
import json
import os
import socket
import sys
import threading
import time

FLUSH_SECONDS = 1.0
FORMAT_VERSION = 1


class Recorder:
    """Writes records of this process into `folder`; without a folder it counts nothing."""

    def __init__(self, folder):
        self._folder = folder
        self._lock = threading.RLock()  # re-entrant: a signal handler may run a hooked function
        self._start_over()
        if folder is not None:
            atexit.register(self.flush)
            os.register_at_fork(after_in_child=self._start_over)

    def _start_over(self):
        """State of a process that has written nothing yet; a forked child must not share its parent's file."""
        self._lock = threading.RLock()
        self._descriptor = None
        self._broken = False
        self._pending = {}
        self._seen = set()
        self._said = set()
        self._flusher = None
        self._rank = (None, None, None)

    def once(self, record):
        """Writes `record` unless this process has written the very same one."""
        if self._folder is None or self._broken:
            return
        text = json.dumps(record)
        with self._lock:
            if text not in self._said:
                self._said.add(text)
                self._write(text)

    def count(self, key):
        """Counts one more of `key`, a tuple of (name, value) pairs that becomes the record's fields."""
        if self._folder is None or self._broken:
            return
        with self._lock:
            if key in self._seen:
                self._pending[key] = self._pending.get(key, 0) + 1
                if self._flusher is None:
                    self._flusher = threading.Thread(target=self._flush_for_ever, name="gemmtune-overlay", daemon=True)
                    self._flusher.start()
            else:
                self._seen.add(key)
                self._write(json.dumps({**dict(key), "count": 1}))

    def error(self, where, error):
        """Says that a hook failed, in the record or else on standard error; each kind of failure once."""
        text = f"{type(error).__name__}: {error}"[:1000]
        if self._folder is not None and not self._broken:
            self.once({"error": text, "where": where})
        elif (where, text) not in self._said:
            self._said.add((where, text))
            print(f"gemmtune overlay: {where}: {text}", file=sys.stderr)

    def rank(self, rank, world, expert=None):
        """Says which rank this process is, once it is known; `expert` is (rank, size) of expert parallelism."""
        expert = expert or self._rank[2]
        if rank is None or self._rank == (rank, world, expert):
            return
        self._rank = (rank, world, expert)
        if self._descriptor is not None:
            self.once(self._hello())

    def flush(self):
        """Writes the counts gathered since the last flush."""
        with self._lock:
            pending, self._pending = self._pending, {}
            for key, count in pending.items():
                self._write(json.dumps({**dict(key), "count": count}))

    def _flush_for_ever(self):
        while True:
            time.sleep(FLUSH_SECONDS)
            self.flush()

    def _hello(self):
        rank, world, expert = self._rank
        hello = {"gemmtune": "hello", "pid": os.getpid(), "rank": rank, "world": world, "version": FORMAT_VERSION}
        if expert is not None:
            hello["ep_rank"], hello["ep_world"] = expert
        hello["ppid"] = os.getppid()
        hello["host"] = socket.gethostname()
        hello["python"] = sys.version.split()[0]
        return hello

    def _write(self, text):
        try:
            if self._descriptor is None:
                self._open()
            os.write(self._descriptor, text.encode() + b"\n")
        except OSError as error:
            self._broken = True  # a full disk or a missing folder must not slow the server down
            print(f"gemmtune overlay: no more records: {error}", file=sys.stderr)

    def _open(self):
        os.makedirs(self._folder, exist_ok=True)
        name = f"gemmtune-records-{os.getpid()}-{time.time_ns()}.jsonl"
        path = os.path.join(self._folder, name)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        hello = json.dumps(self._hello())
        self._said.add(hello)
        os.write(self._descriptor, hello.encode() + b"\n")
