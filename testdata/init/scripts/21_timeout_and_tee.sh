#!/bin/bash
# watching: ready
# reading: right
SGLANG_USE_AITER=1 timeout 600 python3 -m sglang.launch_server --model-path /m --tp 1 --port 30000 2>&1 | tee -a log.txt
