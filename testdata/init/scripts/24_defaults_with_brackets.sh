#!/bin/bash
# watching: ready
# reading: right
X="${2:-real|lossy}"
MODEL="${MODEL:-/models/a (b)}"
SGLANG_USE_AITER=1 python3 -m sglang.launch_server --model-path "$MODEL" --tp 8 --port 30000 --served-model-name "a;b"
