#!/bin/bash
# watching: ready
# reading: right
SGLANG_USE_AITER=1 python3 -m sglang.launch_server --model-path /m 2>&1 --tp 8 --port 30000
