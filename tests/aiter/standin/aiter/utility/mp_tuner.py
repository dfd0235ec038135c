"""Workers: one process a device, a task at a time, each in the hands of the faults that the test asked for."""

import multiprocessing
import os
import queue
import sys
import time

LIMIT_COUNTS_QUEUE = "_elapsed_since" "_task_start" not in globals()


def faults():
    """(kind, value, kernel, size) of every fault asked for."""
    found = []
    for text in filter(None, os.environ.get("STANDIN_FAULTS", "").split(";")):
        kind, _, where = text.partition("@")
        kind, _, value = kind.partition("=")
        kernel, _, size = where.partition(":")
        found.append((kind, value, kernel, size))
    return found


def fault_of(kernel, size, kinds):
    """The first fault of one of `kinds` that strikes here: (kind, value) or None."""
    for kind, value, at, where in faults():
        if kind in kinds and at in ("*", str(kernel)) and where in ("*", "x".join(map(str, size))):
            return kind, value
    return None


def worker(inbox, outbox):
    """Takes tasks until there are none."""
    while True:
        index, kernel, size, us = inbox.get()
        outbox.put((index, "began", os.getpid(), 0.0))
        struck = fault_of(kernel, size, ("exit", "hang", "sleep", "unsupported", "nan", "us", "err"))
        kind, value = struck or ("", "")
        error = 0.0
        if kind == "exit":
            outbox.close()
            outbox.join_thread()
            os._exit(1)
        if kind == "hang":
            time.sleep(3600)
        if kind == "sleep":
            time.sleep(float(value))
        if kind == "unsupported":
            us, error = -1.0, 1.0
        if kind == "nan":
            error = 1.0
        if kind == "us":
            us = float(value)
        if kind == "err":
            error = float(value)
        outbox.put((index, "done", us, error))


class Pool:
    """As many workers as devices."""

    def __init__(self, count):
        context = multiprocessing.get_context("fork")
        self.inbox, self.outbox = context.Queue(), context.Queue()
        self.workers = [
            context.Process(target=worker, args=(self.inbox, self.outbox), daemon=True)
            for _ in range(count)
        ]
        for process in self.workers:
            process.start()

    def end(self):
        for process in self.workers:
            process.kill()
            process.join()


def mp_tuner(tasks, mp_num, grouped, timeout, verbose, describe):
    """(us, errRatio) of every task: (kernel, size, us). Lost tasks are infinite."""
    if grouped:
        shapes = len({size for _, size, _ in tasks})
        print(f"[Task Grouping] Grouped {len(tasks)} tasks into {shapes} groups by info_keys")
    print(f"Distributing {len(tasks)} task groups across {mp_num} GPUs")
    limit = "no timeout limit" if timeout is None else f"timeout={timeout}s each"
    print(f"Waiting for {len(tasks)} tasks to complete ({limit})...", flush=True)
    results, lost = {}, 0
    left = list(range(len(tasks)))
    while left:
        pool = Pool(mp_num)
        submitted = time.monotonic()
        for index in left:
            kernel, size, us = tasks[index]
            pool.inbox.put((index, kernel, size, us))
        began = {}
        late = None
        while left and late is None:
            try:
                index, what, first, second = pool.outbox.get(timeout=0.05)
            except queue.Empty:
                index = None
            now = time.monotonic()
            if index is not None and what == "began":
                began[index] = now
            elif index is not None:
                results[index] = (first, second)
                left.remove(index)
                if first < 0:
                    print(f"run gpu func warning: info:({describe(tasks[index])})\t This GEMM is not supported!")
                if verbose:
                    print(
                        f"[Done] Task {index}/{len(tasks) - 1} completed in {now - submitted:.1f}s "
                        f"({len(results)}/{len(tasks)} done)",
                        flush=True,
                    )
            elif timeout is not None:
                for index in left:
                    since = submitted if LIMIT_COUNTS_QUEUE else began.get(index)
                    if since is not None and now - since > timeout:
                        late = index
                        print(
                            f"[!] Task {index} timed out after {now - since:.1f}s (limit: {timeout}s) - "
                            "likely GPU hang or infinite loop",
                            flush=True,
                        )
                        results[index] = (float("inf"), 1.0)
                        left.remove(index)
                        lost += 1
                        break
        pool.end()
        if left:
            print(f"Pool restarted. Continuing with {len(left)} remaining tasks...\n", flush=True)
    if lost:
        print(
            f"[aiter] \n{'=' * 60}\nTuning Summary:\n  Total tasks: {len(tasks)}\n  Failed: {lost}\n"
            f"    - Timeouts (GPU hang): {lost}\n{'=' * 60}",
            file=sys.stderr,
        )
    return [results[index] for index in range(len(tasks))]
