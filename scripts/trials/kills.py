#!/usr/bin/env python3
"""Kills a run with its keepers and its servers at a random moment, goes on at once, and does so again.

usage: kills.py GEMMTUNE [KILLS [SEED]]

Each kill is a SIGKILL of gemmtune and of every process it started, sent in one go, and the next process is started
without a pause: the port, the lock and the folders of the killed one are met as it left them. A run that comes to its
end is checked and the next one begun. Prints the figures as JSON; exits 1 if anything was lost, undone or left alive.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

GEMMTUNE = os.path.abspath(sys.argv[1])
KILLS = int(sys.argv[2]) if len(sys.argv) > 2 else 30
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else 1
MODEL = pathlib.Path(__file__).parents[2] / "testdata/models/tiny/config.json"
STAGES = ["inspect", "baseline", "capture", "plan", "tune", "deploy", "verify", "compare", "report"]
# One pair gives no verdict, which is exit code 16.
ENDED_WELL = 16


def site(folder):
    (folder / "model").mkdir()
    (folder / "model/config.json").write_bytes(MODEL.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [GEMMTUNE, "reference-server", "--model", str(folder / "model"), "--port", str(port)]
    (folder / "gemmtune.toml").write_text(
        f"""[workload]
name = "kills"
[server]
command = {json.dumps(command)}
port = {port}
[benchmark]
builtin = {{ concurrency = 3, prompts = 6, input_len = 9, output_len = 5 }}
[backend]
kind = "reference"
[compare]
pairs = 1
[budget]
tune = "20s"
"""
    )


def started_here(folder):
    mark = f"GEMMTUNE_RUN={folder}".encode()
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(variable.startswith(mark) for variable in environ.split(b"\0")):
                found.append(int(entry.name))
    return found


def servers(pids):
    """Those of the processes that serve; a keeper has the same words in its command line."""
    found = []
    for pid in pids:
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:2] == [b"reference-server"]:
            found.append(pid)
    return found


def wait(child, folder, chance):
    """Waits for the moment of a kill: three of four fall within a second after a server was started."""
    if chance.random() < 0.75:
        until = time.monotonic() + 120
        while time.monotonic() < until and child.poll() is None and not servers(started_here(folder)):
            time.sleep(0.01)
        until = time.monotonic() + chance.uniform(0.0, 1.0)
    else:
        until = time.monotonic() + chance.uniform(0.05, 5.0)
    while time.monotonic() < until and child.poll() is None:
        time.sleep(0.005)


def kill(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def journal(folder):
    path = folder / "runs/latest/journal.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line)["event"] for line in lines[:-1]]


def main():
    chance = random.Random(SEED)
    figures = {"kills": 0, "with_a_server": 0, "during": {}, "runs_complete": 0, "trials_cut_off": 0, "wrong": []}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        site(folder)
        arguments = ["run"]
        while figures["kills"] < KILLS:
            log = open(folder / "stderr", "wb")
            child = subprocess.Popen([GEMMTUNE, *arguments], cwd=folder, stdout=log, stderr=log)
            arguments = ["run"]
            wait(child, folder, chance)
            if child.poll() is None:
                tree = started_here(folder)
                serving = servers(tree)
                kill([child.pid, *tree])
                child.wait()
                figures["kills"] += 1
                figures["with_a_server"] += bool(serving)
                events = journal(folder)
                begun = [event["stage"] for event in events if event["kind"] == "stage_started"]
                last = begun[-1] if begun else "nothing"
                figures["during"][last] = figures["during"].get(last, 0) + 1
                continue
            events = journal(folder)
            said = (folder / "stderr").read_text(errors="replace")
            finished = [event["stage"] for event in events if event["kind"] == "stage_finished"]
            if child.returncode != ENDED_WELL or finished != STAGES:
                figures["wrong"].append({"exit": child.returncode, "finished": finished, "said": said[-2000:]})
            if any(event["kind"] == "undone" for event in events):
                figures["wrong"].append({"undone": [event for event in events if event["kind"] == "undone"]})
            starts = sum(event["kind"] == "trial_started" for event in events)
            ends = sum(event["kind"] == "trial_finished" for event in events)
            figures["trials_cut_off"] += starts - ends
            figures["runs_complete"] += 1
            arguments = ["run", "--new"]
        # The last killed run is gone on with to its end.
        last = subprocess.run([GEMMTUNE, "run"], cwd=folder, capture_output=True)
        finished = [event["stage"] for event in journal(folder) if event["kind"] == "stage_finished"]
        if last.returncode != ENDED_WELL or finished != STAGES:
            figures["wrong"].append({"exit": last.returncode, "said": last.stderr.decode(errors="replace")[-2000:]})
        figures["runs_complete"] += 1
        figures["left_alive"] = len(started_here(folder))
    print(json.dumps(figures, indent=1))
    return 1 if figures["wrong"] or figures["left_alive"] else 0


if __name__ == "__main__":
    sys.exit(main())
