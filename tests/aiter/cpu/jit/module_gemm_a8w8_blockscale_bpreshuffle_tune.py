"""CK's candidates for shuffled weights."""

import standins


def gemm_a8w8_blockscale_bpreshuffle_tune(XQ, WQ, x_scale, w_scale, Out, kernelId=0, splitK=0):
    """gemm_a8w8_blockscale_bpreshuffle_tune(XQ: torch.Tensor, WQ: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor, Out: torch.Tensor, kernelId: int = 0, splitK: int = 0) -> torch.Tensor"""
    return standins.run_shuffled("ck", XQ, WQ, x_scale, w_scale, Out, kernelId, splitK)
