"""The way replies leave the worker: whole lines on a descriptor of their own, from any thread."""

import json
import os
import threading

STDOUT_MARKER = "@gemmtune "
"""What a reply line starts with when it shares standard output with a launcher (src/tune/protocol.rs)."""


class Channel:
    """Writes one JSON line per reply; a lock keeps lines of different threads apart."""

    def __init__(self, descriptor, marker=""):
        self._descriptor = descriptor
        self._marker = marker
        self._lock = threading.Lock()

    @classmethod
    def open(cls, target):
        """The channel for `--reply-fd`: a number, or `stdout`, which is duplicated and marked."""
        if target == "stdout":
            return cls(os.dup(1), STDOUT_MARKER)
        descriptor = int(target)
        # Children must not inherit it: the worker's end of file would not be noticed while a grandchild holds it
        # open.
        os.set_inheritable(descriptor, False)
        return cls(descriptor)

    def reply(self, request, answer):
        """Sends `answer` to `request`; numbers must be finite, so that the line is JSON everywhere."""
        document = {"id": request["id"], "attempt": request["attempt"], "answer": answer}
        line = self._marker + json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n"
        data = memoryview(line.encode())
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]
