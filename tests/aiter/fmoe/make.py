"""Makes testdata/lookup/aiter-fmoe-*: what trees of aiter answer to look-ups of fused MoE, each by its own code (`ask.py`).

    tests/aiter/fmoe/make.py TREES OUT [cases|lines]        TREES/<revision>/{aiter,csrc} as `git archive REVISION aiter csrc` unpacks them

Runs with an interpreter that has tests/aiter/requirements.txt. The tables asked are those that the trees at 303a583c and HEAD
ship, cut to the columns that a look-up reads and to every fifth row outside block-scaled FP8, and two tables of traps. Kernel names are
shortened and end in `~LINE`, so that the line aiter logs says which row it took.
"""

import csv
import glob
import itertools
import json
import os
import random
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
REVISIONS = ("v0.1.7", "v0.1.9", "303a583c", "v0.1.13", "v0.1.14", "v0.1.16", "v0.1.18", "HEAD")
MANY = {"303a583c", "v0.1.16", "HEAD"}
COLUMNS = (
    "gfx,cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,"
    "doweight_stage1,block_m,ksplit,kernelName1,kernelName2,run_1stage,xbf16,_tag"
).split(",")
KEY = COLUMNS[1:14]
FNUZ, FN = "torch.float8_e4m3fnuz", "torch.float8_e4m3fn"
TOKENS = (1, 2, 3, 5, 8, 16, 17, 31, 32, 33, 48, 64, 100, 128, 255, 256, 513, 1023, 1024, 1025, 2047, 2048, 3000, 4096)
LARGE = (8192, 8193, 16383, 16384, 20000, 32767, 32768, 40000, 65536, 131071, 131072, 200000)


def short(name):
    if not name or name.startswith("opus_"):
        return name
    if name.startswith("flydsl_"):
        return "_".join(name.split("_")[:3])
    tile = re.search(r"\d+x\d+", name)
    kind = "_ZN5aiter" if name.startswith("_ZN5aiter") else "_".join(name.split("_")[:3])
    return kind + ("_blockscaleBf16" if "blockscaleBf16" in name else "") + (f"_{tile.group()}" if tile else "")


def numbered(rows):
    for line, row in enumerate(rows, 2):
        for name in ("kernelName1", "kernelName2"):
            if row.get(name) and not row[name].startswith("opus_"):
                row[name] += f"~{line}"
    return rows


def shipped(tree):
    files = [f"{tree}/aiter/configs/tuned_fmoe.csv"]
    files += sorted(glob.glob(f"{tree}/aiter/configs/model_configs/*tuned_fmoe*"))
    rows = []
    for path in files:
        if "untuned" in path:
            continue
        for index, row in enumerate(csv.DictReader(open(path))):
            if row["q_type"] == "QuantType.per_1x128" and index % 2 == 0 or index % 7 == 0 or row.get("_tag"):
                # As aiter's own merge fills it.
                rows.append({name: row.get(name) or ("0" if name == "xbf16" else "") for name in COLUMNS})
    for row in rows:
        row["kernelName1"], row["kernelName2"] = short(row["kernelName1"]), short(row["kernelName2"])
    return rows


def without_repeats(rows):
    seen, kept = set(), []
    for row in rows:
        key = tuple(row[name] for name in KEY) + (row["_tag"],)
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def traps(tags=()):
    rows = []

    def row(
        token,
        weight=(7168, 256, 256, 8),
        act="Silu",
        cu=304,
        fp8=FNUZ,
        first="moe_ck2stages_gemm1",
        second="moe_ck2stages_gemm2",
        **more,
    ):
        model, inter, expert, topk = weight
        rows.append(
            dict.fromkeys(COLUMNS, "")
            | {
                "gfx": "",
                "cu_num": cu,
                "token": token,
                "model_dim": model,
                "inter_dim": inter,
                "expert": expert,
                "topk": topk,
            }
            | {"act_type": f"ActivationType.{act}", "dtype": "torch.bfloat16", "q_dtype_a": fp8, "q_dtype_w": fp8}
            | {"q_type": "QuantType.per_1x128", "use_g1u1": 1, "doweight_stage1": 0, "block_m": 32, "ksplit": 0}
            | {"kernelName1": first, "kernelName2": second, "run_1stage": 0}
            | more
        )

    for token in (1, 2, 4, 16, 24, 32, 48, 64, 100, 1024, 2048, 16384):
        row(token)
    for token in (1, 8, 64, 512, 2048):  # the other activation stands first
        row(token, (6144, 256, 257, 9), "Gelu")
        row(token, (6144, 256, 257, 9), "Silu")
    for token in (8, 64):
        row(token, (6144, 512, 257, 9), "Silu")
        row(token, (6144, 512, 257, 9), "Gelu")
        row(token, (6144, 1024, 257, 9), "Gelu")  # the other one only
    for token in (4, 64, 256):  # under EP the looked-up topk is another
        row(token, (4096, 1536, 16, 8))
        row(token, (4096, 1536, 32, 7))
        row(token, (4096, 1536, 64, 8))
        row(token, (4096, 1536, 64, 7))
    row(16384, (3072, 384, 256, 8))  # beyond the powers of two
    row(32768, (3072, 384, 256, 8))
    row(131072, (3072, 384, 256, 8))
    row(32768, (3072, 768, 256, 8))
    row(131072, (3072, 1536, 256, 8))
    for token, tag, name in tags:  # tags and libraries that may be missing
        row(token, (2048, 512, 512, 10), first=name, _tag=tag)
    row(64, (2048, 512, 512, 10), first="moe_ck2stages_gemm1", second="opus_moe2_x")
    row(128, (2048, 512, 512, 10), first="moe_ck2stages_gemm1", second="flydsl_moe2_x")
    for token in (8, 64):  # another card's, another spelling's
        row(token, (7168, 512, 256, 8), cu=80)
        row(token, (7168, 1024, 256, 8), fp8="dtypes.fp8")
        row(token, (7168, 2048, 256, 8), fp8=FN)
        row(token, (7168, 384, 256, 8), act_type="Silu")
        row(token, (7168, 640, 256, 8), gfx="gfx942")
        row(token, (7168, 896, 256, 8), gfx="gfx950")
        row(token, (7168, 1152, 256, 8), gfx="0")
        row(token, (7168, 1280, 256, 8), cu=228)
    for token in (16, 64, 256):  # one stage: no second name
        row(token, (5120, 256, 160, 8), first="_ZN5aiter_fmoe", second="", run_1stage=1)
        row(token, (5120, 384, 160, 8), first="_ZN5aiter_fmoe_blockscaleBf16", second="", run_1stage=1)
        row(token, (5120, 512, 160, 8), first="_ZN5aiter_fmoe", second="", run_1stage=1, xbf16=1)
        row(token, (5120, 768, 160, 8), first="", second="", run_1stage=0)
        row(token, (5120, 1536, 160, 8), use_g1u1=0)
        row(token, (5120, 1024, 160, 8), doweight_stage1=1)
    for token in (8, 64):  # with and without a fused shared expert
        row(token, (7168, 128, 257, 9))
        row(token, (7168, 192, 256, 8))
    return rows


TAGS = (
    (1, "", "flydsl_moe1_x"),
    (2, "", "flydsl_moe1_x"),
    (2, "flydsl_fallback", "moe_ck2stages_gemm1"),
    (4, "flydsl_fallback", "moe_ck2stages_gemm1"),
    (8, "exact-m8-a", "moe_ck2stages_gemm1"),
    (16, "exact-m16-a", "moe_ck2stages_gemm1"),
    (16, "", "moe_ck2stages_gemm1"),
    (32, "", "opus_moe1_x"),
)


def tagged():
    rows = [row for row in traps(TAGS) if row["model_dim"] in (2048, 3072)]
    rows[0]["gfx"] = "gfx942"  # a column of nothing is one of numbers to pandas
    return rows


def repeats():
    rows = [row for row in traps() if row["model_dim"] in (6144, 4096)]
    rows[0]["gfx"] = "gfx942"
    return rows + [dict(row) for row in rows[:4]]


def questions(rows, chance, many):
    """Questions near the rows of a table: (card, flags) -> list."""
    groups = {}
    weights = {}
    for row in rows:
        name = tuple(
            row[name]
            for name in (
                "cu_num",
                "model_dim",
                "inter_dim",
                "expert",
                "topk",
                "dtype",
                "q_dtype_w",
                "q_type",
                "use_g1u1",
                "doweight_stage1",
            )
        )
        entry = weights.setdefault(name, (set(), set()))
        entry[0].add(int(row["token"]))
        entry[1].add(row["act_type"].rsplit(".")[-1])
    for (cu, model, inter, expert, topk, dtype, wdtype, quant, gated, weighted), (tokens, acts) in weights.items():
        wdtype = {"dtypes.fp8": FNUZ, FN: FN}.get(wdtype, wdtype)
        asked = set(tokens) | {token - 1 for token in tokens if token > 1} | {token + 1 for token in tokens}
        asked |= set(chance.sample(TOKENS, 6)) | set(chance.sample(LARGE, 4))
        for tokens_now in sorted(chance.sample(sorted(asked), min(len(asked), 14 if many else 7))):
            for more, ep in ((0, 0), (0, 1), (1, 1), (1, 0)):
                if chance.random() > (0.8, 0.35, 0.35, 0.08)[more * 3 if not ep else 1 + more]:
                    continue
                act = chance.choice(sorted(acts) + ["Silu", "Gelu"])
                card = int(cu) if chance.random() < 0.92 else chance.choice((80, 256, 304))
                flags = (card, chance.random() < 0.35, chance.random() < 0.05)
                groups.setdefault(flags, []).append(
                    {
                        "M": tokens_now,
                        "model_dim": int(model),
                        "inter_dim": int(inter),
                        "expert": int(expert),
                        "topk": int(topk) + more,
                        "act": act,
                        "dtype": dtype,
                        "q_dtype_w": wdtype,
                        "q_type": quant.rsplit(".")[-1],
                        "g1u1": int(gated),
                        "doweight": int(weighted),
                        "ep": ep,
                        "shuffled": int(chance.random() < 0.8),
                    }
                )
    return groups


def write(path, rows, columns=COLUMNS):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run(tree, gfx, cu, groups):
    env = os.environ | {
        "PYTHONPATH": tree,
        "AITER_JIT_DIR": os.path.join(HERE, "../cpu/jit"),
        "PATH": os.pathsep.join([os.path.join(HERE, "../cpu/bin"), os.environ["PATH"]]),
        "ROCM_HOME": os.path.join(HERE, "../cpu"),
        "GPU_ARCHS": gfx,
        "CU_NUM": str(cu),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    text = "".join(json.dumps(group) + "\n" for group in groups)
    done = subprocess.run(
        [sys.executable, os.path.join(HERE, "ask.py")], input=text, env=env, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[{")]


def key_of(line):
    text = line[line.rindex(" for (") + 6 :].strip()[:-1]
    parts = [part.strip("'") for part in text.split(", ")]
    return parts[1:] if parts[0].startswith("gfx") else parts


def main():
    trees, out, *only = sys.argv[1:]
    if only != ["lines"]:
        cases(trees, out)
    if only != ["cases"]:
        lines(trees, out)


def cases(trees, out):
    tables = {"traps": numbered(traps()), "tags": numbered(tagged()), "repeats": numbered(repeats())}
    tables["shipped-p"] = numbered(without_repeats([row for row in shipped(f"{trees}/303a583c") if not row["_tag"]]))
    tables["shipped-h"] = numbered(without_repeats(shipped(f"{trees}/HEAD")))
    for name, rows in tables.items():
        columns = [one for one in COLUMNS if one not in ("gfx", "xbf16")] if name == "shipped-p" else COLUMNS
        write(f"{out}/aiter-fmoe-{name}.csv", rows, columns)
    problems, vectors = {}, []
    for revision, gfx in itertools.product(REVISIONS, ("gfx942", "gfx950")):
        fp8 = FNUZ if gfx == "gfx942" else FN
        jobs = []
        for name, rows in tables.items():
            chance = random.Random(f"{revision} {gfx} {name}")
            if name == "repeats":
                rows = rows[:8]
            if name == "shipped-h" and revision in ("v0.1.7", "v0.1.9", "v0.1.13"):
                continue
            mine = (
                [row for row in rows if int(row["cu_num"]) == 256]
                if gfx == "gfx950"
                else [row for row in rows if int(row["cu_num"]) != 256]
            )
            if gfx == "gfx950" and name == "traps":
                mine = [row for row in rows if chance.random() < 0.3]
            for (cu, flydsl, bypass), asked in questions(mine, chance, revision in MANY).items():
                for question in asked:
                    if "float8" in question["q_dtype_w"] and chance.random() < 0.95:
                        question["q_dtype_w"] = fp8
                jobs.append(
                    {
                        "name": name,
                        "table": f"{out}/aiter-fmoe-{name}.csv",
                        "gfx": gfx,
                        "cu": cu,
                        "flydsl": flydsl,
                        "bypass": bypass,
                        "questions": asked,
                    }
                )
        answers = run(f"{trees}/{revision}", gfx, 304 if gfx == "gfx942" else 256, jobs)
        assert len(answers) == len(jobs), (revision, gfx, len(answers), len(jobs))
        for job, replies in zip(jobs, answers):
            for question, reply in zip(job["questions"], replies):
                if reply.get("raises", "").startswith(("AttributeError: type object", "NotImplementedError")):
                    continue  # an activation that the release does not have, or a combination it refuses before any look-up
                if "raises" in reply:
                    key = [
                        question[name]
                        for name in (
                            "model_dim",
                            "inter_dim",
                            "expert",
                            "dtype",
                            "q_dtype_w",
                            "q_dtype_w",
                            "q_type",
                            "g1u1",
                            "doweight",
                        )
                    ]
                    key[6] = "QuantType." + key[6]
                    answer, block, split, stage = "raises", "", "", ""
                    reply["row"] = (reply["raises"] or "").partition(":")[0]
                else:
                    parts = key_of(reply["line"])
                    key = parts[2:5] + parts[7:11] + [int(part == "True") for part in parts[11:]]
                    answer, stage = reply["answer"], reply["stage"][0] + ("x" if reply["xbf16"] else "")
                    block, split = reply.get("block_m", ""), reply.get("ksplit", "")
                    if answer == "default" and block == "":
                        block = (reply.get("then") or [""])[0] if question["q_type"] != "per_1x32" else ""
                        split = (reply.get("then") or ["", ""])[1] if question["q_type"] != "per_1x32" else ""
                problem = problems.setdefault(tuple(str(part) for part in key), len(problems) + 1)
                vectors.append(
                    [
                        revision,
                        job["name"],
                        job["gfx"],
                        job["cu"],
                        int(job["flydsl"]),
                        int(job["bypass"]),
                        question["shuffled"],
                    ]
                    + [
                        question["ep"],
                        question["M"],
                        problem,
                        question["topk"],
                        question["act"],
                        answer,
                        reply.get("row", ""),
                        stage,
                        block,
                        split,
                    ]
                )
        print(revision, gfx, len(vectors), file=sys.stderr)
    os.makedirs(f"{out}/all", exist_ok=True)
    write_cases(f"{out}/all", vectors)
    chance = random.Random("kept")
    share = {"row": 0.6, "bypass": 0.6, "unnamed": 1, "default": 0.3, "raises": 0.2}
    write_cases(out, [one for one in vectors if chance.random() < share[one[12]]])
    with open(f"{out}/aiter-fmoe-problems.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            "problem,model_dim,inter_dim,expert,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,doweight_stage1".split(",")
        )
        writer.writerows([number, *key] for key, number in problems.items())


def write_cases(out, vectors):
    """Groups are of one process and table; a case has the letters below."""
    groups = {}
    with open(f"{out}/aiter-fmoe-cases.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow("group,shuffled,ep,M,problem,topk,act,answer,row,stage,block_m,ksplit".split(","))
        for vector in vectors:
            number = groups.setdefault(tuple(vector[:6]), len(groups) + 1)
            answer = {"row": "r", "default": "d", "bypass": "b", "unnamed": "u", "raises": "!"}[vector[12]]
            writer.writerow([number, *vector[6:12], answer, *vector[13:]])
    with open(f"{out}/aiter-fmoe-groups.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow("group,revision,table,gfx,cu,flydsl,bypass".split(","))
        writer.writerows([number, *group] for group, number in groups.items())


def lines(trees, out):
    """What the trees log about their own tables, names whole: one of each kind."""
    with open(f"{out}/aiter-fmoe-lines.log", "w") as file:
        for revision, gfx in itertools.product(REVISIONS, ("gfx942", "gfx950")):
            configs = f"{trees}/{revision}/aiter/configs"
            chance = random.Random(f"lines {revision} {gfx}")
            models = [
                path for path in sorted(glob.glob(f"{configs}/model_configs/*tuned_fmoe*")) if "untuned" not in path
            ]
            found = [f"{configs}/tuned_fmoe.csv", *chance.sample(models, min(len(models), 4))]
            seen = {}
            jobs = []
            for path in found:
                rows = [dict.fromkeys(COLUMNS, "") | row for row in csv.DictReader(open(path))]
                rows = [row for row in rows if (row["cu_num"] == "256") == (gfx == "gfx950")]
                for (cu, flydsl, bypass), asked in questions(
                    chance.sample(rows, min(len(rows), 8)), chance, False
                ).items():
                    jobs.append(
                        {
                            "table": path,
                            "gfx": gfx,
                            "cu": cu,
                            "flydsl": flydsl,
                            "bypass": bypass,
                            "questions": asked[:12],
                        }
                    )
            for replies in run(f"{trees}/{revision}", gfx, 304, jobs) if jobs else ():
                for reply in replies:
                    for line in reply["lines"]:
                        line = line.replace(trees, "/aiter")
                        kind = re.sub(r"\d+", "0", re.sub(r"='[^']*'|\(.*\)", "", line))
                        if seen.setdefault(kind, 0) < 2:
                            seen[kind] += 1
                            file.write(f"{revision} {gfx}\t{line}\n")


if __name__ == "__main__":
    main()
