"""The same as e4048607 looks it up: the card's name in the key, activations not matched, one expert less under an expert mask.

It takes the place of `fused_moe.py` where a newer tree is played. Texts by which gemmtune tells that look-up stand in it as they do
there: `_ACT_TYPE_DISABLED`, `topk -= int(is_ep)`, `["_tag"].fillna("") != "flydsl_fallback"`, `is_opus_a8w4_stage2_kernel`, and that
"both w1 and w2 must be marked is_shuffled=True".
"""

import functools

import torch

from aiter import ActivationType, QuantType, _fused_moe
from aiter._fused_moe import CU_NUM, GFX, log

AITER_CONFIGS = _fused_moe.Configs()
INDEX = (
    "gfx cu_num token model_dim inter_dim expert topk act_type dtype q_dtype_a q_dtype_w q_type use_g1u1 doweight_stage1"
).split()
_ACT_TYPE_DISABLED_KEY = "__ignore__"
_PADDED_M_TIERS = (32768, 131072)
cfg_2stages = None


def fused_moe(
    hidden_states, w1, w2, topk_weight, topk_ids, expert_mask=None, activation=ActivationType.Silu,
    quant_type=QuantType.No, doweight_stage1=False, w1_scale=None, w2_scale=None,
):  # fmt: skip
    assert quant_type == QuantType.per_128x128 and hidden_states.dtype is torch.bfloat16
    tokens, topk = topk_ids.shape
    token = get_padded_M(tokens)
    metadata = get_2stage_cfgs(
        token, int(w2.shape[1]), int(w2.shape[2]), int(w1.shape[0]), topk, hidden_states.dtype, w1.dtype, w1.dtype,
        QuantType.per_1x128, w1.shape[1] == 2 * w2.shape[2], activation, doweight_stage1, 0, 0,
        getattr(w1, "is_shuffled", False), is_ep=expert_mask is not None,
    )  # fmt: skip
    return _fused_moe.run(
        metadata, hidden_states, w1, w2, topk_weight, topk_ids, expert_mask, w1_scale, w2_scale, token
    )


def get_padded_M(M):
    if M < 32768:
        return 1 << (M - 1).bit_length()
    return 32768 if M < 131072 else 131072


def get_cfg_2stages(tune_file):
    primary, fallback = {}, {}
    for row in _fused_moe.read(tune_file):
        if row.get("_tag", "") == "flydsl_fallback":
            continue
        row = {**row, "gfx": row.get("gfx") or {"256": "gfx950", "80": "gfx942", "304": "gfx942"}.get(row["cu_num"])}
        cfg = {name: _fused_moe.cell(text) for name, text in row.items()}
        # The enumeration in the key never equals the text of the file.
        primary.setdefault(tuple(cfg[name] for name in INDEX), cfg)
        disabled = {**cfg, "act_type": _ACT_TYPE_DISABLED_KEY}
        fallback.setdefault(tuple(disabled[name] for name in INDEX), cfg)
    return primary, fallback


@functools.lru_cache(maxsize=2048)
def get_2stage_cfgs(
    token, model_dim, inter_dim, expert, topk, dtype, q_dtype_a, q_dtype_w, q_type, use_g1u1, activation,
    doweight_stage1, hidden_pad, intermediate_pad, is_shuffled=True, is_ep=False, config_file=None,
):  # fmt: skip
    global cfg_2stages
    if cfg_2stages is None:
        cfg_2stages = get_cfg_2stages(AITER_CONFIGS.AITER_CONFIG_FMOE_FILE)
    topk -= int(is_ep)
    keys = (
        GFX, CU_NUM, token, model_dim, inter_dim, expert, topk, activation, str(dtype), str(q_dtype_a), str(q_dtype_w),
        str(q_type), use_g1u1, doweight_stage1,
    )  # fmt: skip
    primary, fallback = cfg_2stages
    cfg = primary.get(keys) or fallback.get(keys[:7] + (_ACT_TYPE_DISABLED_KEY,) + keys[8:])
    if cfg is None:
        run_1stage, kernelName1, kernelName2 = token > 32 and inter_dim % 128 == 0, "", ""
        block_m = 32 if run_1stage else 64 if token > 32 else 16
        log(f"run_1stage = {run_1stage}, xbf16 = False, ksplit = 0 q_type = {q_type} block_m = {block_m} use_nt = True, "
            f"estimated_m_per_expert = {token * topk // expert}")  # fmt: skip
    else:
        block_m, run_1stage = cfg["block_m"], bool(cfg["run_1stage"])
        kernelName1, kernelName2 = cfg["kernelName1"], cfg["kernelName2"]
        if run_1stage:
            int(cfg["xbf16"])  # an empty cell raises
    tag = f"({kernelName1=}, {kernelName2=})"
    log(
        f"[fused_moe] using {'1stage' if run_1stage else '2stage'} {'default' if cfg is None else tag} for {keys} "
    )
    metadata = _fused_moe.stages(run_1stage, kernelName1, kernelName2)
    metadata.block_m = block_m
    return metadata
