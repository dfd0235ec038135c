#!/usr/bin/env bash
# The server as it runs today. gemmtune starts it with variables of its own on top, so extend PYTHONPATH, do not replace it.
set -euo pipefail
exec /opt/venv/bin/python3 -m sglang.launch_server \
    --model-path "${MODEL:-/models/Qwen3-235B-A22B-FP8}" \
    --tensor-parallel-size 4 \
    --mem-fraction-static 0.85 \
    --random-seed 1 \
    --port 30000
