#!/bin/bash
# watching: ready
# reading: refused
export SGLANG_USE_AITER=1
cat > serve.py <<EOF
from sglang import launch_server
launch_server.main(["--model-path", "/m", "--tp", "2", "--port", "30000"])
EOF
python3 serve.py
