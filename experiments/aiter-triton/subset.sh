#!/usr/bin/env bash
# The few files of an aiter checkout that its Triton block-FP8 GEMM needs, into a folder: 1 MB that travels to another machine.
#
#   experiments/aiter-triton/subset.sh CHECKOUT REVISION FOLDER
#
# CHECKOUT is a clone of github.com/ROCm/aiter; a bare one will do.
set -euo pipefail
checkout=${1:?the checkout is missing} revision=${2:?the revision is missing} folder=${3:?the folder is missing}
mkdir -p "$folder"
git -C "$checkout" ls-tree -r --name-only "$revision" aiter/ops/triton |
    grep -E '^aiter/ops/triton/(_triton_kernels/(gemm/basic|common)/.*py|(_triton_kernels/|gemm/basic/)?gemm_a8w8_blockscale.py|utils/.*py|configs/gemm/gfx9.*-A8W8_BLOCKSCALE.*json)$' |
    xargs git -C "$checkout" archive "$revision" | tar -x -C "$folder"
git -C "$checkout" rev-parse "$revision^{commit}" > "$folder/revision"
