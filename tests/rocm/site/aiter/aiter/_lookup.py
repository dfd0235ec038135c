"""How the stand-in finds a tuned row, and the modules it pretends to compile: the rules of aiter 303a583c and e4048607.

Only what a deployment depends on: which file is read, the three probes, the log lines in aiter's words, and that a module
is built from the table once, from the table of that moment, and never again. A "module" is a text file that holds its
kernels' names. Which revision is played stands in `REVISION`: at P a module chooses the kernel itself from the table it was
built from; at H the kernel is asked for by name.
"""

import csv
import functools
import os
import re
import sys
import time
import types

from torch import profiler

from aiter.utility.times import us_of

HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, "REVISION"), encoding="ascii") as file:
    REVISION = file.read().strip()

#: The operation with one scale per token and channel: its rows have a dtype, its table is compiled in at every revision.
CHANNEL = "gemm_a8w8_bpreshuffle"
OPS = {
    "gemm_a8w8_blockscale": ("AITER_CONFIG_GEMM_A8W8_BLOCKSCALE", "a8w8_blockscale_tuned_gemm", "default_16x128x256"),
    "gemm_a8w8_blockscale_bpreshuffle": (
        "AITER_CONFIG_GEMM_A8W8_BLOCKSCALE_BPRESHUFFLE", "a8w8_blockscale_bpreshuffle_tuned_gemm", "default_64x64x128",
    ),
    CHANNEL: ("AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE", "a8w8_bpreshuffle_tuned_gemm", "default_heuristic"),
}  # fmt: skip
GFX = os.environ.get("PLAYED_ARCH", "gfx942")
CU_NUM = {"gfx942": 304, "gfx950": 256}[GFX]
Q_DTYPE_W = {"gfx942": "torch.float8_e4m3fnuz", "gfx950": "torch.float8_e4m3fn"}[GFX]


#: A real torch (`tests/rocm/real`) has a clock of its own.
LAUNCHED = getattr(profiler, "launched", lambda *_: None)


def log(text):
    print(f"[aiter] {text}", file=sys.stderr, flush=True)


@functools.lru_cache
def tuned_file(op):
    """The one file that is read, as `AITER_CONFIG.get_config_file` finds it."""
    variable, stem, _ = OPS[op]
    named = os.environ.get(variable)
    default = os.path.join(HERE, "configs", f"{stem}.csv")
    models = os.path.join(HERE, "configs", "model_configs")
    if named:
        paths = named.split(":")
    else:
        names = sorted(name for name in os.listdir(models) if stem in name and "untuned" not in name)
        paths = [default] + [os.path.join(models, name) for name in names]
        if len(paths) > 1:
            log(f"merge tuned file under model_configs/ and configs/ {':'.join(paths)}")
    if len(paths) == 1:
        return paths[0]
    rows, columns = {}, None
    for path in paths:
        for row in read(path):
            columns = columns or list(row)
            key = tuple(row[name] for name in ("cu_num", "M", "N", "K"))
            if key in rows and rows[key] != row:
                raise RuntimeError(f"Found 1 duplicate shape entries during merge of '{stem}'. Please re-run.")
            rows[key] = row
    merged = os.path.join(os.environ["HOME"], f"{stem}.csv")
    with open(merged, "w", encoding="ascii") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows.values())
    return merged


def read(path):
    with open(path, encoding="ascii", newline="") as file:
        return list(csv.DictReader(file))


@functools.lru_cache
def table(path):
    """Rows by key; two of one key end the process, as pandas does."""
    rows = {}
    for row in read(path):
        by_gfx = REVISION == "H" and "gfx" in row
        if by_gfx and row["gfx"] != GFX or row.get("q_dtype_w", Q_DTYPE_W) != Q_DTYPE_W:
            continue
        key = tuple(int(row[name]) for name in ("cu_num", "M", "N", "K"))
        if key in rows:
            raise ValueError("DataFrame index must be unique for orient='index'.")
        rows[key] = row
    return rows


def padded_m(m, n, gl):
    """`getPaddedM`."""
    if gl is None:
        return m
    if gl == 0:
        step = 16 if m <= 256 else 32 if m <= 1024 else 64 if m <= 4096 else 128
        return -(-m // step) * step
    return 8192 if m > 8192 and n > 4096 else 1 << (m - 1).bit_length()


def find(rows, m, n, k):
    for gl in (None, 0, 1):
        at = padded_m(m, n, gl)
        if (CU_NUM, at, n, k) in rows:
            return at, rows[CU_NUM, at, n, k]
    return None, None


@functools.lru_cache
def looked_up(op, m, n, k):
    """The row for a GEMM, and the log line about it: once per problem and process."""
    path = tuned_file(op)
    at, row = find(table(path), m, n, k)
    if op == CHANNEL:
        log_channel(path, (m, n, k), at, row)
    elif row is None:
        log(f"shape is M:{m}, N:{n}, K:{k}, not found tuned config in {path}, will use default config!")
    elif os.environ.get("AITER_LOG_TUNED_CONFIG") == "1":
        log(
            f"shape is M:{m}, N:{n}, K:{k}, found padded_M: {at}, N:{n}, K:{k} is tuned on cu_num = {CU_NUM} in {path} , "
            f"kernel name is {row['kernelName']}!"
        )
    return row


def log_channel(path, problem, at, row):
    """The words of `get_GEMM_config_with_quant_type`."""
    m, n, k = problem
    if row is None:
        log(
            f"shape is M:{m}, N:{n}, K:{k}, q_dtype_w:{Q_DTYPE_W}, not found tuned config in {path}, will use default "
            "config!"
        )
    elif os.environ.get("AITER_LOG_TUNED_CONFIG") == "1":
        kernel = f" kernelName is {row['kernelName']} (kernelId {row['kernelId']})!" if REVISION == "H" else ""
        log(
            f"shape M:{m}, N:{n}, K:{k} q_dtype_w:{Q_DTYPE_W}, found padded_M: {at}, N:{n}, K:{k} is tuned, in {path}! "
            f"libtype is {row['libtype']}!{kernel}"
        )


def jit_folder():
    return os.environ.get("AITER_JIT_DIR") or os.path.join(HERE, "jit")


@functools.lru_cache
def module(op, libtype):
    """The kernels of a module, which is built from the table of this moment if it is not there."""
    name = "module_" + op + ("_cktile" if libtype == "cktile" else "")
    built = os.path.join(jit_folder(), f"{name}.so")
    if not os.path.exists(built):
        build(op, libtype, name, built)
    log(f"import [{name}] under {built}")
    sys.modules[f"aiter.jit.{name}"] = loaded = types.ModuleType(f"aiter.jit.{name}")
    loaded.__file__ = built
    with open(built, encoding="ascii") as file:
        return [line.split() for line in file.read().splitlines()[1:]]


def build(op, libtype, name, built):
    folder = os.path.join(jit_folder(), "build", name)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    lock = os.path.join(jit_folder(), "build", f"lock_{name}")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        log(f"waiting for baton release at {lock}")
        while os.path.exists(lock):
            time.sleep(0.05)
        return
    try:
        log(f"start build [{name}] under {folder}")
        os.makedirs(folder, exist_ok=True)
        rows = [row for row in read(tuned_file(op)) if row["libtype"] == libtype and int(row["cu_num"]) == CU_NUM]
        lines = [" ".join(row[name] for name in ("M", "N", "K", "splitK", "kernelName")) for row in rows]
        with open(os.path.join(folder, "gemm.cu"), "w", encoding="ascii") as file:
            file.write("\n".join(lines))
        with open(built + ".new", "w", encoding="ascii") as file:
            file.write("\n".join(["ELF, as it were", *lines]) + "\n")
        os.replace(built + ".new", built)
        log(f"\x1b[32mfinish build [{name}], cost 0.1s \x1b[0m")
    finally:
        os.remove(lock)


#: What an operation's default kernel is said to take, us: more than any candidate of the tuner.
DEFAULT_US = 60.0


def kernel(op, m, n, k):
    """The kernel that runs: its name, and the time it is said to take.

    With STANDIN_ANSWERS modules answer with the kernel of that name, whatever is asked of them.
    """
    row = looked_up(op, m, n, k)
    libtype = row["libtype"] if row else "ck"
    assert libtype in ("ck", "cktile"), f"Unsupported libtype {libtype} for {op}"
    held = module(op, libtype)
    if os.environ.get("STANDIN_ANSWERS"):
        return os.environ["STANDIN_ANSWERS"], DEFAULT_US
    default = OPS[op][2]
    if REVISION == "P" or op == CHANNEL:
        rows = {(CU_NUM, int(one), int(two), int(three)): (int(split), name) for one, two, three, split, name in held}
        at, found = find(rows, m, n, k)
        return (found[1], time_of(found[1], (at, n, k), found[0])) if found else (default, DEFAULT_US)
    if row is None:
        return default, DEFAULT_US
    name = row["kernelName"]
    if name not in [name for *_, name in held]:
        raise RuntimeError(f"{op} kernel '{name}' is not present in the compiled registry.")
    return name, time_of(name, (int(row["M"]), n, k), int(row["splitK"]))


def time_of(name, problem, split):
    """What the tuner was told that the kernel takes; rows that came with the tree have kernels it knows nothing of."""
    known = re.fullmatch(r"a8w8_(blockscale|bpreshuffle)_(cktile|1x128x128)_standin_(\d+)", name)
    if known is None:
        return DEFAULT_US
    library = "cktile" if known[2] == "cktile" else "ck"
    shape = dict(zip("MNK", problem))
    if known[1] == "bpreshuffle":
        shape["q_dtype_w"] = Q_DTYPE_W
    return us_of(library, int(known[3]), shape, split)


def is_wrong(name):
    """Whether the kernel computes wrong numbers: its name holds STANDIN_WRONG."""
    wrong = os.environ.get("STANDIN_WRONG")
    return bool(wrong) and wrong in name


def misreads(name):
    """Whether the kernel reads a tiled weight as if it were plain: its name holds STANDIN_MISREADS."""
    misreads = os.environ.get("STANDIN_MISREADS")
    return bool(misreads) and misreads in name


def tuned(op, compute):
    """`compute` by the kernel that the table names."""

    @functools.wraps(compute)
    def called(XQ, WQ, x_scale, w_scale, dtype=None, **options):
        if dtype is not None:
            options["dtype"] = dtype
        name, us = kernel(op, int(XQ.shape[0]), int(WQ.shape[0]), int(XQ.shape[1]))
        LAUNCHED(name, us)
        out = compute(XQ, WQ, x_scale, w_scale, **options)
        return out * 1.5 if is_wrong(name) else out

    return called
