#!/usr/bin/env bash
# Tunes through a real Slurm: a one-node cluster on loopback, made in a temporary folder and taken down
# again. One run goes through; in another a worker is killed with SIGKILL while it works. Both must end with
# a row for every shape and nothing quarantined.
#
# Needs slurmctld, slurmd, srun, munged (Debian: slurm-wlm, munge) and root, which slurmd wants. It installs
# nothing, and ends only the daemons it started.
#
#   cargo build && tests/slurm/run.sh target/debug/gemmtune
set -euo pipefail
gemmtune=$(realpath "${1:?usage: run.sh PATH_OF_GEMMTUNE}")
for program in slurmctld slurmd srun munged; do
    command -v "$program" >/dev/null || { echo "$program is missing: install slurm-wlm and munge"; exit 2; }
done
folder=$(mktemp -d)
chmod 755 "$folder"
pids=()
stop() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT

mkdir -m 700 "$folder/munge" "$folder/ctld" "$folder/slurmd"
mkdir -m 755 "$folder/socket"
head -c 1024 /dev/urandom >"$folder/munge/key"
chmod 400 "$folder/munge/key"
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/socket/munge" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" >"$folder/munge/output" 2>&1 &
pids+=($!)

cores=$(nproc)
host=$(hostname -s)
cat >"$folder/slurm.conf" <<CONF
ClusterName=gemmtune
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/socket/munge
StateSaveLocation=$folder/ctld
SlurmdSpoolDir=$folder/slurmd
SlurmctldPidFile=$folder/ctld/pid
SlurmdPidFile=$folder/slurmd/pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$folder/slurm.conf"
slurmctld -D -f "$SLURM_CONF" >"$folder/ctld/log" 2>&1 &
pids+=($!)
slurmd -D -f "$SLURM_CONF" -N "$host" >"$folder/slurmd/log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do
    state=$(sinfo -h -o %T 2>/dev/null || true)
    [ "$state" = idle ] && break
    sleep 0.2
done
[ "$state" = idle ] || { echo "the node is '$state', not idle"; tail "$folder"/*/log; exit 1; }
echo "slurm $(srun --version | cut -d' ' -f2): node $host is idle with $cores cores"

printf 'M,N,K\n' >"$folder/s.csv"
for m in 1 4 16 64; do printf '%s,512,512\n%s,256,1024\n' "$m" "$m"; done >>"$folder/s.csv"
tune() { # OUTPUT
    "$gemmtune" tune --backend reference --shapes "$folder/s.csv" -o "$folder/$1" \
        --launcher "srun --ntasks=1 --cpus-per-task=1 --quiet" --workers "$(( cores < 2 ? 1 : 2 ))" --json
}
rows() { tail -n +2 "$folder/$1/table.csv" | cut -d, -f3-5 | sort; }

tune whole >"$folder/whole.json" 2>"$folder/whole.log" || { cat "$folder/whole.log"; exit 1; }
grep -v '^$' "$folder/whole.log" | tail -2

tune killed >"$folder/killed.json" 2>"$folder/killed.log" &
running=$!
for _ in $(seq 300); do
    grep -q '^\[1/' "$folder/killed.log" && break
    sleep 0.1
done
# The worker under slurmstepd, not its keeper and not srun.
victim=$(pgrep -f "^$gemmtune reference-worker" | head -1)
[ -n "$victim" ] || { echo "no worker to kill"; cat "$folder/killed.log"; exit 1; }
kill -9 "$victim"
wait "$running" || { cat "$folder/killed.log"; exit 1; }
grep -v '^$' "$folder/killed.log" | tail -2

expected=$(tail -n +2 "$folder/s.csv" | sort)
for run in whole killed; do
    [ "$(rows "$run")" = "$expected" ] || { echo "$run: other rows than asked for"; rows "$run"; exit 1; }
done
python=$(command -v python3 || true)
[ -z "$python" ] || "$python" - "$folder/whole.json" "$folder/killed.json" <<'PY'
import json, sys
whole, killed = (json.load(open(path)) for path in sys.argv[1:])
assert killed["restarts"] >= 1, "the kill was not noticed"
assert not killed["quarantined"], killed["quarantined"]
same = sum(a["candidate"] == b["candidate"] for a, b in zip(whole["rows"], killed["rows"]))
print(f"worker killed: {killed['restarts']} started anew, {len(killed['rows'])} rows, "
      f"{same} with the same kernel as the run that was left alone")
PY
echo "passed"
