"""How long a GEMM takes here: a function of its configuration, so that tuning has something to find."""

DEVICE = "NVIDIA Stand-in"


def microseconds(config, m, n, k):
    """Tiles of 16 rows are right up to M = 16, larger ones above; each doubling too many costs half as much again."""
    wanted = 16 if m <= 16 else 64
    block = config["BLOCK_SIZE_M"]
    steps = 0
    while min(wanted, block) << steps < max(wanted, block):
        steps += 1
    return (30.0 + 3.0 * (config["num_stages"] == 2)) * 1.5**steps
