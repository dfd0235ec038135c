#!/usr/bin/env bash
# How fast `gemmtune shapes` reads a server log, beside counting its lines and beside mawk and Python doing the same
# extraction. Makes the log first (1 GB; 1 dump line in 3). Usage: benches/shapes.sh [BYTES]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
log=$(mktemp -t gemmtune-bench.XXXXXX.log)
trap 'rm -f "$log"' EXIT
"$here/make_log.py" --bytes "${1:-1e9}" --out "$log"
cat "$log" >/dev/null # into the page cache

echo "$(nproc) cores, $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2-)"
(cd "$here/.." && cargo bench -q --no-default-features --bench shapes -- "$log" "${ROUNDS:-7}")

timed() { # NAME COMMAND...
    local name=$1 start end
    shift
    start=$(date +%s%N)
    "$@"
    end=$(date +%s%N)
    awk -v name="$name" -v ns=$((end - start)) -v bytes="$(stat -c %s "$log")" \
        'BEGIN { printf "%-22s %7.3f s %6.2f GB/s\n", name, ns / 1e9, bytes / ns }'
}
mawk_rows() {
    mawk '/\[GEMM_shape_dump\]/ { at = index($0, "csv_row: "); if (at) seen[substr($0, at + 9)]++ }
          END { for (row in seen) rows++; print "  mawk: " rows " distinct" }' "$log"
}
python_rows() {
    python3 - "$log" <<'PY'
import collections
import re
import sys

row = re.compile(rb"\[GEMM_shape_dump\].*?csv_row: (\d+),(\d+),(\d+),(torch\.float8_\w+)")
seen = collections.Counter()
with open(sys.argv[1], "rb") as log:
    for line in log:
        for match in row.finditer(line):
            seen[match.groups()] += 1
print(f"  Python: {len(seen)} distinct")
PY
}
command -v mawk >/dev/null && timed "mawk" mawk_rows
timed "Python re" python_rows
binary="$here/../target/release/gemmtune"
if [ -x "$binary" ] && [ -x /usr/bin/time ]; then
    echo "memory of the whole program:"
    /usr/bin/time -f "  %M KiB at most" "$binary" shapes "$log" 2>&1 >/dev/null | tail -1
fi
