#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
nohup setsid python3 -m sglang.launch_server --model-path /m --tp 1 --port 30000 > log 2>&1 &
echo started
