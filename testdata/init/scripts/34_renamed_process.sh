#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1 STANDIN_RENAME=1
python3 -m sglang.launch_server --model-path /m --tp 1 --port 30000
