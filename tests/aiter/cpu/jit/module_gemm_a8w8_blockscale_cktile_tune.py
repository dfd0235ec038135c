"""CKTile's candidates."""

import standins


def gemm_a8w8_blockscale_cktile_tune(XQ, WQ, x_scale, w_scale, Out, kernelId=0, splitK=0, preshuffleB=False):
    """gemm_a8w8_blockscale_cktile_tune(XQ: torch.Tensor, WQ: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor, Out: torch.Tensor, kernelId: int = 0, splitK: int = 0, preshuffleB: bool = False) -> torch.Tensor"""
    return standins.run("cktile", XQ, WQ, x_scale, w_scale, Out, kernelId, splitK)
