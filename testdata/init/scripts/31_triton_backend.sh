#!/bin/bash
# watching: ready
# reading: right
cd /tmp
export CUDA_VISIBLE_DEVICES=0
exec -a llm python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton --port 30000
