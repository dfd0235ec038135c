#!/usr/bin/env bash
# Tries `gemmtune init` in the layout of lmsysorg/sglang's ROCm images, without a container engine: a root folder of its own in
# mount, process and network namespaces. Needs root. GEMMTUNE names the binary (target/debug/gemmtune unless set).
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
binary=$(realpath "${GEMMTUNE:-$here/target/debug/gemmtune}")
[ "$(id -u)" = 0 ] || { echo "root is needed for chroot and namespaces"; exit 77; }
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
python=$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')
prefix=$(python3 -c 'import sys; print(sys.base_prefix)')

mkdir -p "$root"/{proc,dev,etc,tmp,work,models,root,usr,"$prefix",opt/venv/bin,usr/local/bin,sgl-workspace/sglang/python,sgl-workspace/aiter/aiter}
cp -r "$here/testdata/init/site/sglang" "$root/sgl-workspace/sglang/python/"
touch "$root/sgl-workspace/aiter/aiter/__init__.py" "$root/usr/local/bin/gemmtune"
ln -s "$python" "$root/opt/venv/bin/python3"
for link in bin lib lib64 sbin; do [ -L "/$link" ] && cp -P "/$link" "$root/$link"; done
# As the images do it: for interactive shells only.
echo 'export PYTHONPATH=/sgl-workspace/aiter:${PYTHONPATH}' > "$root/etc/bash.bashrc"
cat > "$root/work/launch.sh" <<'S'
#!/bin/bash
python3 -m sglang.launch_server --model-path /models/M --tp 8 --port 30000
S

cat > "$root/work/inside.sh" <<'S'
set -euo pipefail
cd /work
check() { grep -q "$2" "$1" || { echo "$1 lacks: $2"; cat "$1"; exit 1; }; }
gemmtune init --until ready -o watched.toml -- bash launch.sh 2> watched.log
check watched.toml 'command = \["/opt/venv/bin/python3", "-m", "sglang.launch_server"'
check watched.toml 'kind = "aiter"'
check watched.toml 'cwd = "/work"'
check watched.log "PYTHONPATH"
gemmtune init -o read.toml launch.sh 2> read.log
check read.toml 'python = "/opt/venv/bin/python3"'
python3 -m sglang.launch_server --model-path /models/M --tp 8 --port 30000 2> server.log &
until grep -q fired server.log; do sleep 0.1; done
gemmtune init --pid $! -o pid.toml 2> pid.log
check pid.toml 'tp = 8'
check pid.toml 'PYTHONPATH = "/sgl-workspace/aiter'
kill $!
wait || true
S

unshare --mount --pid --net --fork bash -euc '
  root=$1 binary=$2 prefix=$3
  ip link set lo up 2> /dev/null || python3 - <<P
import fcntl, socket, struct
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 0x41 | 1))
P
  mount --bind /usr "$root/usr" 2> /dev/null
  mount --bind "$prefix" "$root$prefix" 2> /dev/null || true
  mount -t tmpfs none "$root/usr/local/bin"
  touch "$root/usr/local/bin/gemmtune"
  mount --bind "$binary" "$root/usr/local/bin/gemmtune"
  mount -t proc proc "$root/proc"
  mount --bind /dev "$root/dev"
  env -i HOME=/root TERM=dumb SGLANG_USE_AITER=1 PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/sgl-workspace/sglang/python PYTHONDONTWRITEBYTECODE=1 \
    /usr/sbin/chroot "$root" bash -c "source /etc/bash.bashrc; bash /work/inside.sh"
  if env -i HOME=/root PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONPATH=/sgl-workspace/sglang/python PYTHONDONTWRITEBYTECODE=1 \
    /usr/sbin/chroot "$root" bash -c "cd /work && gemmtune init --until ready -o plain.toml -- bash launch.sh" 2> "$root/work/plain.log"; then
    grep -q "? kind" "$root/work/plain.toml" || { echo "without the image'"'"'s variables the kind has to be asked"; exit 1; }
  fi
' - "$root" "$binary" "$prefix"
echo "init by watching, reading and --pid works in the image layout"
