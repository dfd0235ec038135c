"""aiter's Triton GEMM: its own wrapper and kernels, out of the user's aiter tree."""
