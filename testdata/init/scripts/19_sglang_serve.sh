#!/bin/bash
# watching: ready
# reading: right
export SGLANG_USE_AITER=1
sglang serve /models/Qwen3-30B-A3B-FP8 --tp-size 2 --port 30000 --host 0.0.0.0
