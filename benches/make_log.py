#!/usr/bin/env python3
"""Writes a synthetic SGLang server log of a given size: one line in three is a shape dump.

The lines have the form real servers write (prefixes with ranks, tqdm bars redrawn with carriage
returns, access lines, batch lines, aiter's miss lines); 4 % of the dump lines stand behind a bar on the same
physical line, as measured on redirected logs. Seeded: the same arguments give the same bytes.

    make_log.py [--bytes N] [--seed S] [--out FILE]
    make_log.py --every-m [--out FILE]
"""

import argparse
import random
import sys

# (N, K) and layer of DeepSeek-V3 at tensor-parallel 8.
WEIGHTS = [
    (2112, 7168, "self_attn.fused_qkv_a_proj_with_mqa"),
    (3072, 1536, "self_attn.q_b_proj"),
    (4096, 512, "self_attn.kv_b_proj"),
    (7168, 2048, "self_attn.o_proj"),
    (4608, 7168, "mlp.gate_up_proj"),
    (7168, 2304, "mlp.down_proj"),
]
DECODE = [1, 2, 4, 8, 12] + list(range(16, 257, 8)) + list(range(272, 497, 16)) + [512]
DTYPE = "torch.float8_e4m3fnuz"


def stamp(rng, rank=True):
    tokens = f" TP{rng.randrange(8)}" if rank else ""
    return (
        f"[2026-09-{rng.randrange(1, 29):02d} {rng.randrange(24):02d}:"
        f"{rng.randrange(60):02d}:{rng.randrange(60):02d}{tokens}] "
    )


def dump(rng):
    n, k, name = rng.choice(WEIGHTS)
    m = rng.choice(DECODE) if rng.random() < 0.8 else rng.randrange(1, 16385)
    return (
        f"{stamp(rng)}[GEMM_shape_dump] aiter FP8 block GEMM path "
        f"layer.prefix='model.layers.{rng.randrange(61)}.{name}' block_size=[128, 128] | "
        f"x.shape=({m}, {k}) weight.shape=({n}, {k}) | M={m} N={n} K={k} "
        f"(aiter gemm_a8w8_blockscale / bpreshuffle tune CSV) | csv_row: {m},{n},{k},{DTYPE}"
    )


def bar(rng):
    at, of = rng.randrange(53), 52
    done = "█" * (at * 10 // of)
    return (
        f"Capturing batches (bs={rng.choice(DECODE)} avail_mem={rng.uniform(2, 90):.2f} GB): "
        f"{at * 100 // of:3d}%|{done:<10}| {at}/{of} [00:{rng.randrange(60):02d}<00:"
        f"{rng.randrange(60):02d},  {rng.uniform(1, 9):.2f}it/s]"
    )


def junk(rng):
    kind = rng.random()
    if kind < 0.40:
        return "\r".join(bar(rng) for _ in range(rng.randrange(1, 4)))
    if kind < 0.60:
        return (
            f"{stamp(rng, False)}INFO:     10.0.{rng.randrange(256)}.{rng.randrange(256)}:"
            f'{rng.randrange(1024, 65536)} - "POST /v1/chat/completions HTTP/1.1" 200 OK'
        )
    if kind < 0.75:
        return (
            f"{stamp(rng)}Decode batch, #running-req: {rng.randrange(1, 513)}, #token: "
            f"{rng.randrange(1, 400000)}, token usage: {rng.random():.2f}, cuda graph: True, gen throughput "
            f"(token/s): {rng.uniform(10, 9000):.2f}, #queue-req: {rng.randrange(40)}"
        )
    if kind < 0.85:
        return (
            f"{stamp(rng)}Prefill batch, #new-seq: {rng.randrange(1, 9)}, #new-token: "
            f"{rng.randrange(1, 16385)}, #cached-token: {rng.randrange(9000)}, token usage: "
            f"{rng.random():.2f}, #running-req: {rng.randrange(512)}, #queue-req: {rng.randrange(40)}"
        )
    if kind < 0.90:
        n, k, _ = rng.choice(WEIGHTS)
        return (
            f"[aiter] shape is M:{rng.randrange(1, 16385)}, N:{n}, K:{k}, not found tuned config in "
            "/opt/aiter/aiter/configs/a8w8_blockscale_tuned_gemm.csv, will use default config!"
        )
    return (
        f"{stamp(rng)}Loading safetensors checkpoint shards: {rng.randrange(101)}% Completed | "
        f"{rng.randrange(163)}/163 [0{rng.randrange(10)}:{rng.randrange(60):02d}<00:00, 3.1it/s]"
    )


def every_m(out, rng):
    """Nine weights with every M up to 16384, each dumped and looked up three times: what costs memory, not time."""
    weights = [(n, k) for n, k, _ in WEIGHTS] + [(512, 7168), (1024, 7168), (24576, 4096)]
    rows = [(m, n, k) for n, k in weights for m in range(1, 16385)]
    for _ in range(3):
        rng.shuffle(rows)
        for at, (m, n, k) in enumerate(rows):
            out.write(
                f"{stamp(rng)}[GEMM_shape_dump] aiter FP8 | csv_row: {m},{n},{k},{DTYPE}\n"
                f"[aiter] shape is M:{m}, N:{n}, K:{k}, not found tuned config in "
                f"/opt/aiter/aiter/configs/table_{at % 97}.csv, will use default config!\n".encode()
            )


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    arguments.add_argument("--bytes", type=float, default=1e9, help="size to reach")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--every-m", action="store_true", help="147,456 distinct shapes instead")
    arguments.add_argument("--out", help="file to write (default: standard output)")
    given = arguments.parse_args()
    rng = random.Random(given.seed)
    if given.every_m:
        with open(given.out, "wb") if given.out else sys.stdout.buffer as out:
            every_m(out, rng)
        return
    # A pool of distinct lines, drawn from at random: making every line afresh takes minutes per GB.
    dumps = [dump(rng).encode() for _ in range(60_000)]
    junks = [junk(rng).encode() for _ in range(60_000)]
    bars = [bar(rng).encode() for _ in range(500)]
    written = 0
    with open(given.out, "wb") if given.out else sys.stdout.buffer as out:
        while written < given.bytes:
            lines = []
            for _ in range(20_000):
                lines.append(rng.choice(junks))
                lines.append(rng.choice(junks))
                glued = rng.random() < 0.04
                lines.append(rng.choice(bars) + rng.choice(dumps) if glued else rng.choice(dumps))
            block = b"\n".join(lines) + b"\n"
            out.write(block)
            written += len(block)


if __name__ == "__main__":
    main()
