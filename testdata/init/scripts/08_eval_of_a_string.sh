#!/bin/bash
# watching: ready
# reading: refused
export SGLANG_USE_AITER=1
CMD="python3 -m sglang.launch_server --model-path /m"
CMD="$CMD --tp 2 --port 30000"
echo "$CMD"
eval "$CMD"
