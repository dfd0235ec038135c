#!/bin/bash
# watching: elsewhere
# reading: refused
#SBATCH --gres=gpu:8
export SGLANG_USE_AITER=1
srun --ntasks=1 python3 -m sglang.launch_server --model-path /m --tp 8 --port 30000
sleep 0.2
