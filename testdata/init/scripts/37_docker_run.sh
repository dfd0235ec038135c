#!/bin/bash
# watching: elsewhere
# reading: refused
docker run -d --name sglang --device=/dev/kfd --device=/dev/dri -e SGLANG_USE_AITER=1 -e HF_TOKEN=hf_nobody -p 30000:30000 \
  lmsysorg/sglang:v0.5.9-rocm720-mi30x \
  python3 -m sglang.launch_server --model-path Qwen/Qwen3.6-27B-FP8 --tp 1 --port 30000
sleep 0.2
