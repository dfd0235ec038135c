#!/bin/bash
# watching: ready
# reading: right
BASE_ENV=(SGLANG_USE_AITER=1 RCCL_MSCCL_ENABLE=0 TOKENIZERS_PARALLELISM=false)
for var in "${BASE_ENV[@]}"; do export "$var"; done
MORE="SGLANG_MOE_PADDING=1 HSA_NO_SCRATCH_RECLAIM=1"
export $MORE
python3 -m sglang.launch_server --model-path /m --tp 8 --port 30000
