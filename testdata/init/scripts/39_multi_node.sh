#!/bin/bash
# watching: asked
# reading: asked
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /m --tp 32 --dist-init-addr 10.0.0.4:20000 --nnodes 4 --node-rank 2 --port 30000
