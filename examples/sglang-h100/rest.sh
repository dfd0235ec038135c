#!/usr/bin/env bash
# A wrong kernel that has to be stopped at verify, and Qwen3-14B's shapes measured over six pairs, in one go. What came of it on
# an H200: docs/evidence/sglang-h200-qwen3-14b.
#
#     ./rest.sh [SECONDS]
#
# For machines that are lent for minutes: after SECONDS (540) it stops cleanly, and goes on when it is called again in
# the same folder at the same path, also on another machine. Exit codes: 0 all done and as it has to be, 75 time is up,
# call again; anything else is gemmtune's own, or 1 where the wrong kernel was not stopped.
set -euo pipefail
cd "$(dirname "$0")"
until=$((SECONDS + ${1:-540}))
runs=qwen3-14b/runs
wrong=$runs/wrong

# gemmtune for what is left of the time; one Ctrl-C, as a person would.
go() {
    local left=$((until - SECONDS)) code=0
    ((left > 0)) || exit 75
    timeout --foreground --signal=INT "$left" gemmtune run "$@" || code=$?
    case $code in
        124 | 130) exit 75 ;;
        *) return "$code" ;;
    esac
}

[ -f qwen3-14b/model/config.json ] || python3 make_model.py qwen3-14b/model qwen3-14b

if [ ! -f $runs/latest/report.json ]; then
    go qwen3-14b/gemmtune.toml --until deploy
fi

if [ ! -f $wrong/stopped ]; then
    if [ ! -f $wrong/made ]; then
        rm -rf $wrong # half a copy
        python3 sabotage.py wrong $runs/latest $wrong
        touch $wrong/made
    fi
    code=0
    PYTHONPATH=$PWD/sabotage${PYTHONPATH:+:$PYTHONPATH} go $wrong || code=$?
    if [ $code != 16 ] || ! grep -q '"kind":"undone"' $wrong/journal.jsonl || grep -q '"stage":"compare"' $wrong/journal.jsonl; then
        echo "the wrong kernel was NOT stopped at verify (exit code $code)" >&2
        exit 1
    fi
    gemmtune status $wrong > $wrong/stopped 2>&1
    echo "the wrong kernel was stopped at verify and taken back" >&2
fi

code=0
[ -f $runs/latest/report.json ] || go $runs/latest || code=$?
gemmtune status $runs/latest
case $code in
    0 | 16) ;; # 16: worse or inconclusive, which is a result too
    *) exit $code ;;
esac
