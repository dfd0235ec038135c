#!/usr/bin/env bash
# SGLang (0.5.16) with random weights, its block-FP8 linears on whatever it takes by itself: DeepGEMM on Hopper.
# Only the sizes this workload needs are captured, and no prefix is reused: every start then does the same work.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec python3 -m sglang.launch_server --model-path "$here/model" --load-format dummy --host 127.0.0.1 --port 30000 \
    --attention-backend triton --sampling-backend pytorch --grammar-backend none \
    --cuda-graph-bs-decode 1 2 4 8 16 32 --cuda-graph-bs-prefill 128 256 512 1024 2048 4096 8192 \
    --mem-fraction-static 0.7 --disable-radix-cache --skip-server-warmup --random-seed 1 "$@"
