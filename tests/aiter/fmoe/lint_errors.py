"""Asks a tree of aiter about rows that `lint` says no look-up gives out: each must be given to none of the calls that could ask for it.

    gemmtune --json lint --revision H TABLE... > FINDINGS.json; tests/aiter/fmoe/lint_errors.py TREE FINDINGS.json

Runs in the folder that the tables' names begin in, with an interpreter that has tests/aiter/requirements.txt. For comparison
every row of the same files that has no such finding is asked for too.
"""

import collections
import csv
import json
import sys
import tempfile

import make

UNREACHED = ("moe-activation-shadowed", "moe-token-unreachable")


def question(row, tokens):
    return {
        "M": tokens,
        "model_dim": int(row["model_dim"]),
        "inter_dim": int(row["inter_dim"]),
        "expert": int(row["expert"]),
        "topk": int(row["topk"]),
        "act": row["act_type"].rsplit(".")[-1],
        "dtype": row["dtype"],
        "q_dtype_w": row["q_dtype_w"],
        "q_type": row["q_type"].rsplit(".")[-1],
        "g1u1": row["use_g1u1"] == "1",
        "doweight": row["doweight_stage1"] == "1",
        "shuffled": True,
        "ep": False,
    }


def main():
    tree, findings = sys.argv[1:]
    said = {}
    with open(findings) as file:
        for finding in json.load(file)["findings"]:
            if finding["severity"] == "error" and finding["rule"] in UNREACHED:
                said[finding["file"], finding["line"]] = finding["rule"]
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        jobs = collections.defaultdict(list)
        for name in sorted({name for name, _ in said}):
            with open(name) as file:
                rows = [dict.fromkeys(make.COLUMNS, "") | row for row in csv.DictReader(file)]
            for row in rows:
                # As aiter's own merge fills them.
                row["xbf16"] = row["xbf16"] or "0"
                row["gfx"] = row["gfx"] or ("gfx950" if row["cu_num"] == "256" else "gfx942")
            path = f"{folder}/{len(jobs)}-{name.replace('/', '-')}"
            make.write(path, make.numbered([dict(row) for row in rows]), make.COLUMNS)
            for line, row in enumerate(rows, 2):
                gfx = row["gfx"]
                fp8 = make.FNUZ if gfx == "gfx942" else make.FN
                if row["q_dtype_w"].startswith("torch.float8") and row["q_dtype_w"] != fp8:
                    continue
                jobs[gfx, int(row["cu_num"]), path].append((name, line, question(row, int(row["token"]))))
        for (gfx, cu, path), asked in jobs.items():
            group = {"table": path, "gfx": gfx, "cu": cu, "flydsl": True, "bypass": False}
            group["questions"] = [one for _, _, one in asked]
            (replies,) = make.run(tree, gfx, cu, [group])
            for (name, line, _), reply in zip(asked, replies):
                taken = "raises" if "raises" in reply else reply["answer"]
                if taken == "row":
                    taken = "its own row" if reply["row"] == line else "another row"
                rule = said.get((name, line), "no such finding")
                counts[rule, taken] += 1
                if (rule in UNREACHED) == (taken == "its own row"):
                    print(f"{name} line {line}: {rule}, and the look-up gives {taken} {reply.get('raises', '')}")
    for (rule, taken), count in sorted(counts.items()):
        print(f"{rule}: {taken} {count}")


if __name__ == "__main__":
    main()
