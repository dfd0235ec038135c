"""CKTile's candidates for shuffled weights and a scale a row."""

import standins


def gemm_a8w8_bpreshuffle_cktile_tune(XQ, WQ, x_scale, w_scale, out, kernelId, splitK=0):
    """gemm_a8w8_bpreshuffle_cktile_tune(XQ: torch.Tensor, WQ: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor, out: torch.Tensor, kernelId: int, splitK: int = 0) -> torch.Tensor"""
    return standins.run_per_token("cktile", XQ, WQ, x_scale, w_scale, out, kernelId, splitK)
