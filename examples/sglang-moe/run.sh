#!/usr/bin/env bash
# Makes FOLDER unless it is there and runs gemmtune in it; called again it goes on where it was ended.
#
#     ./run.sh FOLDER [arguments of make.py]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
shift
[ -f "$folder/gemmtune.toml" ] || python3 "$here/make.py" "$folder" "$@"
exec "${GEMMTUNE:-gemmtune}" run "$folder/gemmtune.toml"
