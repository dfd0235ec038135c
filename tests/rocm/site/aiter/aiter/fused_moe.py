"""aiter's fused MoE on the stand-in torch, looked up as 303a583c does (`aiter/fused_moe.py`): key, duplicates, default, lines."""

import functools

import torch

from aiter import ActivationType, QuantType, _fused_moe
from aiter._fused_moe import CU_NUM, log

AITER_CONFIGS = _fused_moe.Configs()
INDEX = (
    "cu_num token model_dim inter_dim expert topk act_type dtype q_dtype_a q_dtype_w q_type use_g1u1 doweight_stage1"
).split()
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
        getattr(w1, "is_shuffled", False),
    )  # fmt: skip
    return _fused_moe.run(
        metadata, hidden_states, w1, w2, topk_weight, topk_ids, expert_mask, w1_scale, w2_scale, token
    )


def get_padded_M(M):
    return 1 << (M - 1).bit_length() if M < 32768 else 32768


def get_cfg_2stages(tune_file):
    rows = {}
    for row in _fused_moe.read(tune_file):
        if row.get("_tag", ""):
            continue
        key = tuple(_fused_moe.cell(row[name]) for name in INDEX)
        if key in rows:
            raise ValueError("DataFrame index must be unique for orient='index'.")
        rows[key] = {name: _fused_moe.cell(text) for name, text in row.items()}
    return rows


@functools.lru_cache(maxsize=2048)
def get_2stage_cfgs(
    token, model_dim, inter_dim, expert, topk, dtype, q_dtype_a, q_dtype_w, q_type, use_g1u1, activation,
    doweight_stage1, hidden_pad, intermediate_pad, is_shuffled=True,
):  # fmt: skip
    global cfg_2stages
    if cfg_2stages is None:
        cfg_2stages = get_cfg_2stages(AITER_CONFIGS.AITER_CONFIG_FMOE_FILE)
    keys = (
        CU_NUM, token, model_dim, inter_dim, expert, topk, str(activation), str(dtype), str(q_dtype_a), str(q_dtype_w),
        str(q_type), use_g1u1, doweight_stage1,
    )  # fmt: skip
    cfg = cfg_2stages.get(keys)
    if cfg is None:
        run_1stage, kernelName1, kernelName2 = token > 32 and inter_dim % 128 == 0, "", ""
        block_m = 32 if run_1stage else 64 if token > 32 else 16
        log(f"run_1stage = {run_1stage}, ksplit = 0 q_type = {q_type} block_m = {block_m} use_nt = True, "
            f"estimated_m_per_expert = {token * topk // expert}")  # fmt: skip
    else:
        block_m, run_1stage = cfg["block_m"], bool(cfg["run_1stage"])
        kernelName1, kernelName2 = cfg["kernelName1"], cfg["kernelName2"]
        if not is_shuffled and not run_1stage:
            log(f"[fused_moe] tuned config found for {keys} but is_shuffled=False. Tuned kernels are optimized for "
                "preshuffled weights (preshuffle_on). Running with preshuffle_off may produce incorrect results.")  # fmt: skip
    tag = f"({kernelName1=}, {kernelName2=})"
    log(
        f"[fused_moe] using {'1stage' if run_1stage else '2stage'} {'default' if cfg is None else tag} for {keys} "
    )
    metadata = _fused_moe.stages(run_1stage, kernelName1, kernelName2)
    metadata.block_m = block_m
    return metadata
