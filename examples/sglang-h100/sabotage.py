"""Makes a copy of a run in which something is wrong on purpose, for gemmtune to find.

    python3 sabotage.py slow|wrong|unfair runs/RUN runs/COPY [--load decode-8] && gemmtune run runs/COPY

slow    every row for M up to 64 of the deployed table becomes a configuration far too large for so few rows: `worse`
wrong   sabotage/, which has to be put in front of PYTHONPATH, breaks the deployed kernel: stopped at verify, taken back
unfair  the tuned arm gets another chunk size: no verdict, stopped after the first pair

The run has to be past verify (`wrong`: deploy). `slow` and `unfair` keep one load, so that a trial is short.
"""

import hashlib
import json
import pathlib
import re
import shutil
import sys

SLOW = {
    "BLOCK_SIZE_M": 128,
    "BLOCK_SIZE_N": 128,
    "BLOCK_SIZE_K": 128,
    "GROUP_SIZE_M": 1,
    "num_warps": 4,
    "num_stages": 2,
}
UNFAIR = """#!/usr/bin/env bash
exec bash {script} ${{GEMMTUNE_TRITON_TABLES:+--chunked-prefill-size 2048}} "$@"
"""


def main(arguments):
    how = arguments[0]
    source, copy = (pathlib.Path(path).absolute() for path in arguments[1:3])
    source = source.resolve()  # `runs/latest` is a link, and the files name the folder behind it
    copy = copy.parent.resolve() / copy.name  # the copy is to take itself for the run that began there
    load = arguments[arguments.index("--load") + 1] if "--load" in arguments else "decode-8"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("tune", "lock", "report.*", "compare.json"))
    journal = journal_until(source, "deploy" if how == "wrong" else "verify")
    kept = "".join(journal).count('"trial_started"')
    for trial in copy.glob("trials/*"):
        if int(trial.name.split("-")[0]) > kept:
            shutil.rmtree(trial)
    for path in copy.glob("*.json"):
        path.write_text(path.read_text().replace(str(source), str(copy)))
    if how == "slow":
        slow_down(copy)
    config = (copy / "run.toml").read_bytes()
    changed = config if how == "wrong" else with_one_load(config, load)
    if how == "unfair":
        changed = with_another_chunk(changed, copy / "unfair.sh")
    (copy / "run.toml").write_bytes(changed)
    # The journal's header records the digest of the configuration.
    journal[0] = journal[0].replace(digest(config), digest(changed))
    (copy / "journal.jsonl").write_text("".join(line + "\n" for line in journal).replace(str(source), str(copy)))
    if how == "wrong":
        look_through_sabotage(copy)


def journal_until(run, stage):
    lines = []
    for line in (run / "journal.jsonl").read_text().splitlines():
        lines.append(line)
        event = json.loads(line)["event"]
        if event["kind"] == "stage_finished" and event["stage"] == stage:
            return lines
    sys.exit(f"{run} has not finished {stage} yet")


def slow_down(run):
    for table in (run / "deploy").glob("*/*.json"):
        rows = json.loads(table.read_text())
        table.write_text(json.dumps({m: SLOW if int(m) <= 64 else row for m, row in rows.items()}, indent=2))
    record = run / "in-place.json"  # or the loop refuses tables that are not those it deployed
    record.write_text(json.dumps({path: digest((run / path).read_bytes()) for path in json.loads(record.read_text())}))


def look_through_sabotage(run):
    """A run keeps to the PYTHONPATH it began with, so the copy has to have begun with ours in front."""
    ours = str(pathlib.Path(__file__).absolute().parent / "sabotage")
    journal = (run / "journal.jsonl").read_text()
    (run / "journal.jsonl").write_text(re.sub(r'"PYTHONPATH":"(?=[^"])', f'"PYTHONPATH":"{ours}:', journal))
    deployed = json.loads((run / "deploy.json").read_text())
    overlay, path = deployed["env"]["PYTHONPATH"].split(":", 1)
    deployed["env"]["PYTHONPATH"] = f"{overlay}:{ours}:{path}"
    (run / "deploy.json").write_text(json.dumps(deployed))


def with_one_load(config, name):
    head, *loads = re.split(rb"(?m)^(?=\[\[benchmark\.loads\]\])", config)
    rest = re.split(rb"(?m)^(?=\[(?!\[))", loads[-1], maxsplit=1)[1:]
    kept = next(load for load in loads if f'name = "{name}"'.encode() in load)
    return head + re.split(rb"(?m)^(?=\[(?!\[))", kept, maxsplit=1)[0] + b"".join(rest)


def with_another_chunk(config, script):
    right = re.search(rb'(?m)^script = "(.*)"$', config).group(1).decode()
    script.write_text(UNFAIR.format(script=right))
    return config.replace(f'"{right}"'.encode(), f'"{script}"'.encode())


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    main(sys.argv[1:])
