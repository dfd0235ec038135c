#!/usr/bin/env python3
"""Gives every form of command that reads a file 31 inputs that are none of what it expects.

usage: hostile.py GEMMTUNE [FORM]

A command passes when it ends within the limit with a documented exit code other than "a bug", writes no character that
steers a terminal and no line longer than LONGEST, prints one JSON document under --json, stays below the memory limit,
and leaves its input and /dev/null as they were. Prints the figures as JSON; exits 1 if a command did not pass.
"""

import gzip
import json
import os
import pathlib
import random
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading

GEMMTUNE = os.path.abspath(sys.argv[1])
ONLY = sys.argv[2] if len(sys.argv) > 2 else None
ROOT = pathlib.Path(__file__).parents[2]
LIMIT_S = 60
LIMIT_MB = 1024
LONGEST = 1200
# docs/reference/commands.md, without 1: a bug.
EXIT_CODES = {0, 2, 10, 11, 12, 13, 14, 15, 16, 17}

SHAPES = "op,M,N,K,dtype,records\ngemm_a8w8_blockscale,16,512,1024,fp8,3\n"
TABLE = (
    "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n"
    "gfx942,304,16,512,1024,ck,1,0,5.0,name,1,1,0.0\n"
)
RUN = '{"output_throughput": 100.0, "completed": 8, "median_tpot_ms": 5.0}\n'
HEADER = TABLE.splitlines()[0]


def inputs(folder):
    """31 inputs by name: bytes, or a function that makes the path."""
    chance = random.Random(7)
    some = bytes(chance.randrange(256) for _ in range(4096))
    long = 8 << 20
    gz = gzip.compress(SHAPES.encode() * 1000)
    return {
        "empty": b"",
        "newline": b"\n",
        "nul": b"\0" * 4096,
        "noise": some,
        "noise-1mb": some * 256,
        "not-utf8": b"\xff\xfe\xfd" * 100,
        "utf16": SHAPES.encode("utf-16"),
        "bom": b"\xef\xbb\xbf" + HEADER.encode() + b"\n",
        "latin1": "caf\xe9,M,N,K\n1,2,3,4\n".encode("latin-1"),
        "cr-only": HEADER.encode() + b"\r1,2,3\r",
        "one-line-8mb": b"x" * long,
        "quotes-8mb": b'"' * long,
        "commas-8mb": b"," * long,
        "assignments-2mb": b"A=1 " * (long // 16),
        "nested-list": b"[" * 100_000,
        "nested-object": b'{"a":' * 100_000,
        "big-number": b'{"a": ' + b"9" * 5000 + b"}",
        "not-finite": b'{"output_throughput": NaN, "a": Infinity, "b": -Infinity}\n',
        "escapes": b"\x1b]0;owned\x07\x1b[2J\x9b31m,\x1b[31mM,N,K\n\x1b[1A,a,b,c\n",
        "bidi": "\u202e,M,N,K\u2066\n\u202emodel = 1\n".encode(),
        "shell": b"$(touch /tmp/owned) `touch /tmp/owned`; [a]\nb = '$(id)'\n",
        "header-only": HEADER.encode() + b"\n",
        "torn-row": TABLE.encode()[:-20],
        "negative": (HEADER + "\ngfx942,304,-1,-2,-3,ck,-1,-1,-5.0,n,1,1,0\n").encode(),
        "overflow": (HEADER + "\ngfx942,304,99999999999999999999,1,1,ck,1,0,1e999,n,1,1,0\n").encode(),
        "torn-gzip": gz[: len(gz) // 2],
        "fifo": lambda path: os.mkfifo(path),
        "dev-zero": lambda path: os.symlink("/dev/zero", path),
        "folder": lambda path: path.mkdir(),
        "dead-link": lambda path: os.symlink(folder / "nowhere", path),
        "link-loop": lambda path: os.symlink(path, path),
    }


def forms(good):
    """22 forms: arguments, with F for the input; a name ending in '/' wants F inside a run folder under that name."""
    aiter = ["--gfx", "gfx942", "--cu", "304"]
    return {
        "shapes": ("x.log", ["shapes", "F"]),
        "shapes -o": ("x.log", ["shapes", "F", "-o", "OUT.csv"]),
        "plan --shapes": ("x.csv", ["plan", "--shapes", "F", *aiter]),
        "plan --model": ("x.json", ["plan", "--model", "F", "--tp", "1", *aiter]),
        "plan --table": ("x.csv", ["plan", "--shapes", good["shapes"], "--table", "F", *aiter]),
        "plan --thin": ("x.csv", ["plan", "--thin", "64", "--table", "F", *aiter]),
        "lookup --table": ("x.csv", ["lookup", "--table", "F", "--shapes", good["shapes"], *aiter]),
        "lookup --table JSON": (
            "N=512,K=1024,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
            ["lookup", "--table", "F", "--shapes", good["shapes"], "--op", "gemm_a8w8_blockscale"],
        ),
        "lookup --shapes": ("x.csv", ["lookup", "--table", good["table"], "--shapes", "F", *aiter]),
        "lint CSV": ("x.csv", ["lint", "F"]),
        "lint JSON": ("N=512,K=1024,device_name=NVIDIA_H200.json", ["lint", "F"]),
        "merge": ("x.csv", ["merge", "F", good["table"], "-o", "OUT.csv"]),
        "tune --shapes": ("x.csv", ["tune", "--backend", "reference", "--shapes", "F", "-o", "OUT", "--dry-run"]),
        "tune --table": (
            "x.csv",
            ["tune", "--backend", "reference", "--shapes", good["shapes"], "--table", "F", "-o", "OUT", "--dry-run"],
        ),
        "compare --baseline": ("x.jsonl", ["compare", "--baseline", "F", "--tuned", good["run"]]),
        "compare --tuned": ("x.jsonl", ["compare", "--baseline", good["run"], "--tuned", "F"]),
        "run --dry-run": ("gemmtune.toml", ["run", "--dry-run", "F"]),
        "init": ("launch.sh", ["init", "F", "-o", "OUT.toml"]),
        "report": ("run/report.json", ["report", "RUN"]),
        "status": ("run/journal.jsonl", ["status", "RUN"]),
        "undo": ("run/run.toml", ["undo", "RUN"]),
        "trace": ("sglang/srt/layers/quantization/fp8_utils.py", ["trace", "ROOT"]),
    }


def run(arguments, folder):
    """Exit code (None after the limit), output, and the most memory it held, in MB."""
    held = []

    def limits():
        # What is above these cannot be an honest answer to any of these inputs, and would take the machine down.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    child = subprocess.Popen(
        [GEMMTUNE, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=limits,
    )
    done = threading.Event()

    def watch():
        while not done.wait(0.02):
            try:
                status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    held.append(int(line.split()[1]) / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, err = child.communicate(timeout=LIMIT_S)
        code = child.returncode
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        code = None
    done.set()
    watcher.join()
    return code, out, err, max(held, default=0.0)


def steers(text):
    return any(
        (ord(c) < 32 and c not in "\n\t")
        or 0x7F <= ord(c) <= 0x9F
        or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        for c in text
    )


def state(path):
    try:
        data = path.lstat()
    except OSError:
        return None
    if stat.S_ISREG(data.st_mode):
        return path.read_bytes()
    return stat.S_IFMT(data.st_mode)


def wrong(code, out, err, held, before, path):
    found = []
    if code is None:
        found.append(f"no end within {LIMIT_S} s")
    elif code not in EXIT_CODES:
        found.append(f"exit code {code}")
    said = err.decode(errors="replace")
    if steers(said):
        found.append("standard error steers the terminal")
    longest = max((len(line) for line in said.splitlines()), default=0)
    if longest > LONGEST:
        found.append(f"a line of {longest} characters")
    if "panicked" in said:
        found.append("a panic")
    try:
        json.loads(out)
    except ValueError:
        if code is not None:
            found.append("no JSON document")
    if steers(out.decode(errors="replace")):
        found.append("standard output steers the terminal")
    if held > LIMIT_MB:
        found.append(f"{held:.0f} MB")
    if state(path) != before:
        found.append("the input was changed")
    if not stat.S_ISCHR(os.stat("/dev/null").st_mode):
        found.append("/dev/null is no device any more")
    if pathlib.Path("/tmp/owned").exists():
        found.append("input was executed")
    return found


def main():
    figures = {"forms": 0, "inputs": 0, "commands": 0, "passed": 0, "exit_codes": {}, "most_mb": 0.0, "wrong": []}
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name).resolve()
        good = {}
        for kind, file, text in [
            ("shapes", "good.csv", SHAPES),
            ("table", "table.csv", TABLE),
            ("run", "run.jsonl", RUN),
        ]:
            (root / file).write_text(text)
            good[kind] = str(root / file)
        everything = inputs(root)
        for form, (place, arguments) in forms(good).items():
            if ONLY and form != ONLY:
                continue
            figures["forms"] += 1
            for kind, content in everything.items():
                folder = root / "case"
                folder.mkdir()
                path = folder / place
                path.parent.mkdir(parents=True, exist_ok=True)
                if place.startswith("run/"):
                    # A run folder is one by its journal.
                    (folder / "run/journal.jsonl").write_text("")
                    path.unlink(missing_ok=True)
                if callable(content):
                    content(path)
                else:
                    path.write_bytes(content)
                before = state(path)
                words = {"F": str(path), "RUN": str(folder / "run"), "ROOT": str(folder)}
                words |= {word: str(folder / word) for word in ["OUT", "OUT.csv", "OUT.toml"]}
                command = ["--json", *(words.get(word, word) for word in arguments)]
                code, out, err, held = run(command, folder)
                found = wrong(code, out, err, held, before, path)
                figures["commands"] += 1
                figures["passed"] += not found
                figures["exit_codes"][str(code)] = figures["exit_codes"].get(str(code), 0) + 1
                figures["most_mb"] = max(figures["most_mb"], round(held))
                if found:
                    print(f"{form}, {kind}: {', '.join(found)}", file=sys.stderr, flush=True)
                    figures["wrong"].append(
                        {"form": form, "input": kind, "what": found, "said": err.decode(errors="replace")[-400:]}
                    )
                shutil.rmtree(folder)
        figures["inputs"] = len(everything)
    print(json.dumps(figures, indent=1))
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
