#!/bin/bash
# watching: ready
# reading: refused
module() { export LD_LIBRARY_PATH="/opt/$2/lib:${LD_LIBRARY_PATH:-}"; }
export -f module
bash -c "module load rocm/7.0; SGLANG_USE_AITER=1 exec python3 -m sglang.launch_server --model-path /m --tp 8 --port 30000"
