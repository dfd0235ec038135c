"""Settings of gemmtune's streaming kernels worth racing, as `tune` chooses them (src/tune/backends/families/space.rs)."""

import itertools
import math

IN_FLIGHT = (40 << 10, 136 << 10)
LEAST_BUSY = 0.7
REGISTERS = 65536

VALUES = {
    "stream": {
        "ROW_TILES": (1, 2, 3, 4),
        "WARPS_K": (1, 2, 4, 8, 16),
        "WARPS_N": (1, 2, 4),
        "CLUSTER": (1, 2, 4, 8),
        "DEPTH": (1, 2, 3),
        "BLOCKS": (1, 2, 3),
        "PERSISTENT": (0, 1),
    },
    "stream-wg": {
        "GROUPS_K": (1, 2, 4),
        "GROUPS_N": (1, 2, 4),
        "CLUSTER": (1, 2, 4, 8),
        "DEPTH": (2, 3, 4, 6),
        "BLOCKS": (1, 2, 3),
        "PERSISTENT": (0, 1),
    },
}


def candidates(family, m, n, k, facts):
    """The settings of a streaming family worth racing at C of m x n with K = k on the device of `facts`."""
    if m > family.most_tokens:
        return []
    values = VALUES[family.name]
    everything = (dict(zip(values, chosen)) for chosen in itertools.product(*values.values()))
    return [one for one in everything if _worth(family, one, m, n, k, facts)]


def _worth(family, setting, m, n, k, facts):
    warps, tiles, resident = family.warps(setting), family.token_tiles(m), setting["BLOCKS"]
    if not 4 <= warps <= 16 or not 8 <= warps * resident <= 24 or (setting["CLUSTER"] > 1 and facts["arch"] == "sm_89"):
        return False
    shares = setting.get("WARPS_K", setting.get("GROUPS_K")) * setting["CLUSTER"]
    blocks = -(-n // family.block_rows(setting)) * setting["CLUSTER"]
    waves = blocks / facts["cu_num"]
    steps = -(-k // (128 * shares))
    if resident > math.ceil(waves) or setting["DEPTH"] > steps + 1:
        return False
    if setting["PERSISTENT"] and blocks < 2 * resident * facts["cu_num"]:
        return False
    if waves < LEAST_BUSY * math.ceil(waves) or k < LEAST_BUSY * 128 * shares * steps:
        return False
    if family.name == "stream":
        rows = setting["ROW_TILES"]
        registers, flying = 40 + 8 * rows * tiles + 16 * rows + 8 * tiles, warps * setting["DEPTH"] * rows * 2048
    else:
        registers, flying = 56 + 10 * tiles, warps // 4 * (setting["DEPTH"] - 1) * 8192
    if registers * warps * resident * 32 > REGISTERS:
        return False
    shared = resident * (family.shared_bytes(setting, tiles) + 1024)
    least = min(IN_FLIGHT[0], n * k / facts["cu_num"] / 2)
    return least <= min(resident, waves) * flying <= IN_FLIGHT[1] and shared <= facts["smem_bytes"]
