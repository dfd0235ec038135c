#!/bin/bash
# watching: ready
# reading: refused
source "$HOME/conda/bin/activate" sgl
SGLANG_USE_AITER=1 python3 -m sglang.launch_server --model-path /m --tp 8 --port 30000
