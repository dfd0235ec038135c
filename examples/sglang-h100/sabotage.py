"""Makes a copy of a finished run in which the deployed table is slow on purpose, with its comparison still to be made.

    python3 sabotage.py runs/RUN runs/COPY [--load decode-8] && gemmtune run runs/COPY

Every row for M up to 64 becomes a configuration that is far too large for so few rows. Only one load is
kept, so that a trial is short. With `--before verify` the table is left as it is and the copy stops after deploy.
"""

import hashlib
import json
import pathlib
import re
import shutil
import sys

SLOW = {"BLOCK_SIZE_M": 128, "BLOCK_SIZE_N": 128, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 2}


def main(arguments):
    before_verify = "--before" in arguments
    source, copy = (pathlib.Path(path).absolute() for path in arguments[:2])
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("tune", "lock", "report.*", "compare.json"))
    last = "deploy" if before_verify else "verify"
    lines = []
    for line in (source / "journal.jsonl").read_text().splitlines():
        lines.append(line)
        event = json.loads(line)["event"]
        if event["kind"] == "stage_finished" and event["stage"] == last:
            break
    kept = "".join(lines).count('"trial_started"')
    for trial in copy.glob("trials/*"):
        if int(trial.name.split("-")[0]) > kept:
            shutil.rmtree(trial)
    for path in copy.glob("*.json"):
        path.write_text(path.read_text().replace(str(source), str(copy)))
    if not before_verify:
        for table in (copy / "deploy").glob("*/*.json"):
            rows = json.loads(table.read_text())
            rows = {m: SLOW if int(m) <= 64 else row for m, row in rows.items()}
            table.write_text(json.dumps(rows, indent=2))
        record = copy / "in-place.json"  # or the loop refuses tables that are not those it deployed
        files = {path: digest((copy / path).read_bytes()) for path in json.loads(record.read_text())}
        record.write_text(json.dumps(files))
        load = arguments[arguments.index("--load") + 1] if "--load" in arguments else "decode-8"
        lines[0] = with_one_load(copy / "run.toml", lines[0], load)
    (copy / "journal.jsonl").write_text("".join(line + "\n" for line in lines).replace(str(source), str(copy)))


def with_one_load(config, header, name):
    """Keeps one load; the journal's header records the digest of the configuration."""
    before = config.read_bytes()
    head, *loads = re.split(rb"(?m)^(?=\[\[benchmark\.loads\]\])", before)
    kept = [load for load in loads if f'name = "{name}"'.encode() in load]
    rest = re.split(rb"(?m)^(?=\[(?!\[))", loads[-1], maxsplit=1)[1:]
    one = re.split(rb"(?m)^(?=\[(?!\[))", kept[0], maxsplit=1)[0]
    after = head + one + b"".join(rest)
    config.write_bytes(after)
    return header.replace(digest(before), digest(after))


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    main(sys.argv[1:])
