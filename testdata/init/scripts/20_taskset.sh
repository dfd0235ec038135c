#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
taskset -c 0 python3 -m sglang.launch_server --model-path /m --tp 1 --port 30000
