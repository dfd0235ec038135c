#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
python3 -m sglang.launch_server --model-path /m --tp 1 --port 30000 --api-key sk-not-for-a-file
