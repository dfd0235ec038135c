"""CKTile's candidates for shuffled weights."""

import standins


def gemm_a8w8_blockscale_bpreshuffle_cktile_tune(XQ, WQ, x_scale, w_scale, Out, kernelId=0, splitK=0, preshuffleB=True):
    """gemm_a8w8_blockscale_bpreshuffle_cktile_tune(XQ: torch.Tensor, WQ: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor, Out: torch.Tensor, kernelId: int = 0, splitK: int = 0, preshuffleB: bool = True) -> torch.Tensor"""
    return standins.run_shuffled("cktile", XQ, WQ, x_scale, w_scale, Out, kernelId, splitK)
