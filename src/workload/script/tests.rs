//! Typical scripts, and what is read from each.

use super::*;

const START: &str = "python3 -m sglang.launch_server";

/// Reads `text` as `/job/launch.sh`, started in `/job` with these arguments.
fn read_as(text: &str, arguments: Option<&[&str]>) -> Result<Facts, ScriptError> {
    let variable = |name: &str| match name {
        "HOME" => Some("/home/me".to_owned()),
        "PATH" => Some("/usr/bin".to_owned()),
        "OLDPWD" => Some("/before".to_owned()),
        _ => None,
    };
    let surroundings = Surroundings {
        read: &|_| None,
        variable: &variable,
        folder: "/job".into(),
        arguments: arguments.map(|words| words.iter().map(|word| (*word).to_owned()).collect()),
    };
    read(text, Utf8Path::new("launch.sh"), &surroundings)
}

fn read_plain(text: &str) -> Facts {
    read_as(text, None).unwrap()
}

/// Rows of the form `text => expectation`; `\\n` in a text is a line break.
fn rows(table: &'static str) -> impl Iterator<Item = (String, &'static str)> {
    let lines = table.lines().filter(|line| !line.is_empty());
    lines.map(|line| {
        let (text, expected) = line.split_once("  =>  ").unwrap();
        (text.replace("\\n", "\n").replace("\\\\", "\\"), expected)
    })
}

fn only(facts: &Facts, role: Role) -> &Found {
    let found: Vec<_> = facts.of(role).collect();
    assert_eq!(found.len(), 1, "{facts:#?}");
    found[0]
}

fn line(found: &Found) -> String {
    found
        .argv
        .iter()
        .map(|word| word.known().unwrap_or("???"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn env<'a>(found: &'a Found, name: &str) -> Option<&'a str> {
    found
        .env
        .get(name)
        .map(|word| word.known().unwrap_or("???"))
}

/// The one server of a script as it would be started, with `???` for each unknown word.
fn server_of(text: &str) -> String {
    let facts = read_plain(text);
    let server = only(&facts, Role::Server);
    assert_eq!(server.clouded, None, "{text}");
    line(server)
}

/// Why a server that a script starts after `text` is uncertain.
fn clouded_after(text: &str) -> String {
    let facts = read_plain(&format!("{text}\n{START} --tp 8"));
    let last = facts.of(Role::Server).last();
    last.and_then(|server| server.clouded.clone())
        .unwrap_or_else(|| panic!("{text}: {facts:#?}"))
}

#[test]
fn a_realistic_script_is_read_whole() {
    let facts = read_plain(
        r#"#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")" || exit 1
export SGLANG_USE_AITER=1 HIP_VISIBLE_DEVICES=0,1 PATH="/home/me/venv/bin:$PATH"
MODEL=${MODEL:-/models/Qwen3-14B-FP8}
PORT=31000
ARGS=(--tp-size 2 --mem-fraction-static "0.8")
ARGS+=(--port "$PORT")
pkill -f sglang.launch_server || true
NCCL_DEBUG=WARN nohup python3 -m sglang.launch_server \
  --model-path "$MODEL" "${ARGS[@]}" --served-name "a b" > server.log 2>&1 &
SERVER=$!
trap 'kill $SERVER' EXIT
until curl -sf "http://127.0.0.1:$PORT/health" > /dev/null; do
  kill -0 $SERVER || { echo "it died"; exit 1; }
  sleep 2
done
python3 -m sglang.bench_serving --port $PORT --max-concurrency 32 --num-prompts 256 \
  --output-file out.jsonl | tee bench.log
kill $SERVER
"#,
    );
    let server = only(&facts, Role::Server);
    assert_eq!(
        line(server),
        "python3 -m sglang.launch_server --model-path /models/Qwen3-14B-FP8 --tp-size 2 --mem-fraction-static 0.8 --port 31000 --served-name a b"
    );
    assert_eq!(
        server.argv.last().unwrap().known(),
        Some("a b"),
        "quotes keep words whole"
    );
    assert_eq!(env(server, "SGLANG_USE_AITER"), Some("1"));
    assert_eq!(env(server, "NCCL_DEBUG"), Some("WARN"));
    assert_eq!(env(server, "PATH"), Some("/home/me/venv/bin:/usr/bin"));
    assert_eq!(env(server, "MODEL"), None, "not exported");
    assert_eq!(server.folder.known(), Some("/job"));
    assert_eq!(server.line, 10);
    let benchmark = only(&facts, Role::Benchmark);
    assert!(
        line(benchmark).ends_with("--num-prompts 256 --output-file out.jsonl"),
        "{}",
        line(benchmark)
    );
    assert_eq!(
        env(benchmark, "NCCL_DEBUG"),
        None,
        "a prefix is for one command"
    );
    assert_eq!((&benchmark.clouded, &facts.clouded), (&None, &None));
    assert!(facts.missed.is_empty(), "{facts:#?}");
}

/// The reasons of a command's unknown words.
fn reasons(found: &Found) -> Vec<String> {
    let unknown = found.argv.iter().filter_map(|word| match word {
        Word::Unknown { why, .. } => Some(why.clone()),
        Word::Known(_) => None,
    });
    unknown.collect()
}

#[test]
fn what_depends_on_something_else_is_unknown_with_the_reason() {
    for (words, reason) in rows(
        r#"
--tp $1  =>  argument 1 of the script
$EXTRA  =>  the variable `EXTRA`, which nothing sets
--port $(pick_port)  =>  the output of `$(pick_port)`
--port `pick_port`  =>  the output of `$(pick_port)`
${X%.json}  =>  an expansion that is not evaluated
${HOME:+x}  =>  an expansion that is not evaluated
--x $'a\\tb'  =>  an escaped or translated string
--x $RANDOM  =>  `RANDOM`, which only bash knows
--x $OLDPWD/m  =>  `OLDPWD`, which only bash knows
--x ${A[1]}  =>  `${A[1]}`, which only bash knows
"${A[@]}"  =>  the array `A`, which nothing sets
"$@"  =>  the arguments of the script
--x <(cat y)  =>  a process substitution
--seed $((NOPE + 1))  =>  the arithmetic `NOPE + 1`
--seed $((1 << 2))  =>  the arithmetic `1 << 2`
"#,
    ) {
        let facts = read_plain(&format!("{START} {words}"));
        let reasons = reasons(only(&facts, Role::Server));
        assert_eq!(reasons, [reason], "{words}");
    }
    let facts = read_plain(&format!("cd \"$NOPE\"\n{START}"));
    assert_eq!(only(&facts, Role::Server).folder.known(), None);
}

#[test]
fn after_what_cannot_be_followed_nothing_is_certain() {
    for (text, reason) in rows(
        r#"
source env.sh  =>  line 1 runs `source env.sh`, which only running it follows
source ~/venv/bin/activate  =>  line 1 runs `source /home/me/venv/bin/activate`, which only running it follows
. ./env.sh  =>  line 1 runs `. ./env.sh`, which only running it follows
conda activate sgl  =>  line 1 runs `conda activate`, which only running it follows
module load rocm  =>  line 1 runs `module load`, which only running it follows
eval "$(cat x)"  =>  line 1 runs `eval "$(cat x)"`, which only running it follows
eval P=3  =>  line 1 runs `eval P=3`, which only running it follows
f() { export A=1; }\nf  =>  line 2 calls the function `f`, which only running it follows
if grep -q x y; then f() { :; }; fi\nf  =>  line 2 calls the function `f`, which only running it follows
$CMD  =>  line 1 runs `$CMD`, which is not known, which only running it follows
set -- 7 8  =>  line 1 has `set` change the shell, which only running it follows
set -a  =>  line 1 has `set` change the shell, which only running it follows
shift  =>  line 1 runs `shift`, which only running it follows
while getopts m: o; do :; done  =>  line 1 runs `getopts m:`, which only running it follows
declare -x A=1  =>  line 1 runs `declare -x`, which only running it follows
readonly A=1  =>  line 1 runs `readonly A=1`, which only running it follows
shopt -s expand_aliases  =>  line 1 runs `shopt -s`, which only running it follows
alias python3=python4  =>  line 1 runs `alias python3=python4`, which only running it follows
pushd /x  =>  line 1 runs `pushd /x`, which only running it follows
builtin cd /x  =>  line 1 runs `builtin cd`, which only running it follows
read -r TP  =>  line 1 runs `read -r`, which only running it follows
let P=P+1  =>  line 1 runs `let P=P+1`, which only running it follows
printf -v P %d 3  =>  line 1 has `printf` set a variable, which only running it follows
((P++))  =>  line 1 has arithmetic that may set a variable, which only running it follows
X=$((P += 1))  =>  line 1 has arithmetic that may set a variable, which only running it follows
for ((i = 0; i < 3; i++)); do :; done  =>  line 1 counts in a loop, which only running it follows
for c in 1 2; do break; done  =>  line 1 leaves a loop early, which only running it follows
case x in x) ;& y) ;; esac  =>  line 1 falls from one case into the next, which only running it follows
coproc cat  =>  line 1 starts a coprocess, which only running it follows
A[1]=3  =>  line 1 sets an element of an array, which only running it follows
A=([2]=x)  =>  line 1 has an array with indices, which only running it follows
X=$(sglang serve m & echo $!)  =>  line 1 starts something for what it prints, which only running it follows
IFS=,  =>  line 1 sets `IFS`, which only running it follows
trap 'X=9' ERR  =>  line 1 has `trap` run commands in between, which only running it follows
export -n A  =>  line 1 exports `-n`, which only running it follows
export "$NOPE"  =>  line 1 exports `"$NOPE"`, which only running it follows
unset -f f  =>  line 1 unsets `-f`, which only running it follows
A=1 export B=2  =>  line 1 sets variables for a builtin that sets others, which only running it follows
X=aa; for i in $(echo) 1 2; do X=$X$X; done  =>  how often the loop at line 1 runs is not known
"#,
    ) {
        let clouded = clouded_after(&text);
        assert_eq!(clouded, reason, "{text}");
    }
    let doubling = format!("X=ab\nfor i in {}; do X=$X$X; done", "1 ".repeat(60));
    assert_eq!(
        clouded_after(&doubling),
        "line 2 sets `X`, which only running it follows"
    );
    // Effects in a subshell, a pipe and the background stay there.
    for text in ["(source env.sh)", "source env.sh | cat", "f() { :; }\nf &"] {
        let facts = read_plain(&format!("{text}\n{START} --tp 8"));
        assert_eq!(only(&facts, Role::Server).clouded, None, "{text}");
        assert!(facts.clouded.is_some(), "{text}: it is said all the same");
    }
}

#[test]
fn what_may_run_or_not_may_talk_wait_and_leave_and_else_nothing_is_certain() {
    for text in [
        "if [ -e x ]; then echo usage; exit 1; fi",
        "[ -d /m ] || exit 1",
        "cd /job || { echo no; exit 1; }",
        "[ $# -lt 1 ] && echo usage",
        "if [ -e x ]; then exit 1; elif [ -e y ]; then exit 2; else sleep 1; fi",
        "while grep -q x y; do sleep 1; done",
        "for i in $(seq 9); do if curl -s localhost; then break; fi; sleep 1; done",
        "case $1 in start) ;; *) echo usage; exit 1 ;; esac",
        "mkdir -p logs && cd /job",
        "! grep -q x y || rm -f z",
    ] {
        assert_eq!(
            server_of(&format!("{text}\n{START} --tp 8")),
            format!("{START} --tp 8"),
            "{text}"
        );
    }
    for (text, reason) in rows(
        r"
if grep -q x y; then export A=1; fi  =>  the condition at line 1 is not decided by reading
[ -d /x ] && TP=2  =>  the condition at line 1 is not decided by reading
cd /a || cd /b  =>  the condition at line 1 is not decided by reading
if cd /a; then :; fi  =>  the condition at line 1 is not decided by reading
if mkdir lock; then TP=1; fi  =>  the condition at line 1 is not decided by reading
if X=$(cat y); then TP=1; fi  =>  the condition at line 1 is not decided by reading
X=$(cat y) || TP=1  =>  the condition at line 1 is not decided by reading
if [ -e x ]; then :; elif [ -e y ]; then unset A; fi  =>  the condition at line 1 is not decided by reading
if [ -e x ]; then exit 1; elif [ -e y ]; then unset A; fi  =>  the condition at line 1 is not decided by reading
case $1 in a) TP=2 ;; esac  =>  the choice at line 1 is not decided by reading
case abc in a*) TP=2 ;; esac  =>  the choice at line 1 is not decided by reading
while grep -q x y; do i=1; done  =>  how often the loop at line 1 runs is not known
for f in *.sh; do TP=$f; done  =>  how often the loop at line 1 runs is not known
for i in 1 2; do [ -e $i ] && break; done  =>  line 1 leaves a loop early, which only running it follows
for i in 1 2; do while true; do break 2; done; done  =>  line 1 leaves a loop early, which only running it follows
",
    ) {
        let clouded = clouded_after(&text);
        assert_eq!(clouded, reason, "{text}");
    }
    // So is what runs in there.
    for (text, reason) in rows(
        r"
if [ -e x ]; then python3 -m sglang.launch_server; fi  =>  the condition at line 1 is not decided by reading
while true; do python3 -m sglang.launch_server; sleep 5; done  =>  how often the loop at line 1 runs is not known
case $1 in start) python3 -m sglang.launch_server ;; esac  =>  the choice at line 1 is not decided by reading
[ -e x ] && exec python3 -m sglang.launch_server  =>  the condition at line 1 is not decided by reading
",
    ) {
        let facts = read_plain(&text);
        let clouded = only(&facts, Role::Server).clouded.as_deref();
        assert_eq!(clouded, Some(reason), "{text}");
    }
}

#[test]
fn known_values_are_reckoned_with() {
    for (text, port) in rows(
        r#"
P=$((30000 + 2 * 3))  =>  30006
A=4 B=8\nP=$((A * B + $A))  =>  36
P=$((010))  =>  8
A=08\nP=$((A))  =>  ???
P=$((1 / 0))  =>  ???
N=16\nif [[ $N -ge 16 && "$N" != 8 ]]; then P=30; else P=10; fi  =>  30
N=8\nif [ $N -gt 4 ]; then P=1; fi  =>  1
P=1\nif [ -n "$P" ] && ! [ -z "$P" ]; then P=2; fi  =>  2
if [[ a == b || ! ( -z x ) ]]; then P=3; fi  =>  3
case "8" in 4|8) P=2 ;; *) P=1 ;; esac  =>  2
case x in 4) P=2 ;; *) P=1 ;; esac  =>  1
: "${P:=31000}"  =>  31000
P=1\n: ${P:=2}  =>  1
P=\nP=${P:-7}${P-8}  =>  7
P=${1:-30000}  =>  ???
cd /x && P=3  =>  3
for i in 1 2 3; do P=$i; done  =>  3
A=(5 6)\nP=$A  =>  5
P=1\nP+=2  =>  12
P=1 | cat\nP=2  =>  2
P=1\n(P=2)  =>  1
P=1\nP=2 &  =>  1
P=1\nfalse && P=2  =>  1
P=1\ntrue || P=2  =>  1
P=1\n! false && P=2  =>  2
P=1\nP=2 true  =>  1
f() { P=2; }\nP=1  =>  1
"#,
    ) {
        let text = format!("{text}\n{START} --port \"$P\"");
        assert_eq!(server_of(&text), format!("{START} --port {port}"), "{text}");
    }
}

#[test]
fn words_are_cut_as_bash_cuts_them() {
    for (before, arguments, read) in [
        ("", "--model  /a/\\\nb/  --tp 1", "--model /a/b/ --tp 1"),
        (
            "",
            "--model /m 2>&1 --tp 8 >> log --port 9",
            "--model /m --tp 8 --port 9",
        ),
        ("X=\"${X:-'a b'}\"", "\"$X\"", "'a b'"),
        ("X=\"${1:-real|lossy}\"", "--tp 8", "--tp 8"),
        ("A=(--x \"a b\" # c\n --y)", "\"${A[@]}\"", "--x a b --y"),
        ("A=()", "\"${A[@]}\" --y", "--y"),
        ("export A=/x:~/y", "$A", "/x:/home/me/y"),
        ("M=\"a b\"", "x$M'c d'", "xa bc d"),
        ("M=\" a \"", "x${M}y", "x a y"),
        ("", "--model-path /m/*/x", "--model-path ???"),
        ("X=/m/*", "\"$X\" $X", "/m/* ???"),
        ("", "--bs {1,2,4} {1..4}", "--bs ??? ???"),
        ("", "--model-path ~bob/m ~/m", "--model-path ??? /home/me/m"),
        ("", "--json '{\"a\": [1, 2]}'", "--json {\"a\": [1, 2]}"),
        (
            "",
            "--json \"{\\\"a\\\": 1}\" a\\*b",
            "--json {\"a\": 1} a*b",
        ),
    ] {
        let text = format!("{before}\n{START} {arguments}");
        assert_eq!(server_of(&text), format!("{START} {read}"), "{arguments}");
    }
    for front in [
        "timeout -k 5 1h",
        "exec -a title",
        "nohup setsid",
        "command",
        "time",
    ] {
        assert_eq!(
            server_of(&format!("{front} {START} --tp 1")),
            format!("{START} --tp 1"),
            "{front}"
        );
    }
}

#[test]
fn the_environment_is_what_the_script_exports() {
    let facts = read_plain(
        "ENV=(A=1 B=2)\nfor v in \"${ENV[@]}\"; do export \"$v\"; done\nMORE=\"C=3 D=4\"\nexport $MORE\nN=E; export \"$N=5\"\n\
         G=7\nI=9\nexport I\nunset PATH\nJ=10 L=$J PATH+=x python3 -m sglang.launch_server",
    );
    let server = only(&facts, Role::Server);
    let set: Vec<String> = server
        .env
        .iter()
        .map(|(name, word)| format!("{name}={}", word.text()))
        .collect();
    assert_eq!(set.join(" "), "A=1 B=2 C=3 D=4 E=5 I=9 J=10 L=10 PATH=x");
    let facts = read_plain("unset PATH HOME\nHOME=/x\npython3 -m sglang.launch_server");
    let server = only(&facts, Role::Server);
    assert_eq!(
        (server.unset.as_slice(), env(server, "HOME")),
        (&["HOME", "PATH"].map(str::to_owned)[..], None)
    );
    let facts = read_plain("PATH+=:/x python3 -m sglang.launch_server");
    assert_eq!(env(only(&facts, Role::Server), "PATH"), Some("/usr/bin:/x"));
}

#[test]
fn loops_over_known_values_are_walked_value_by_value() {
    let facts = read_plain(
        "for c in 1 8 32; do\n  python3 -m sglang.bench_serving --max-concurrency $c --num-prompts $((c * 4))\ndone",
    );
    let lines: Vec<_> = facts.of(Role::Benchmark).map(line).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[2].ends_with("--max-concurrency 32 --num-prompts 128"));
    assert_eq!(facts.found[2].clouded, None);
    let facts = read_plain(
        "for c in $(seq 4); do python3 -m sglang.bench_serving --max-concurrency $c; done",
    );
    let clouded = only(&facts, Role::Benchmark).clouded.clone();
    assert_eq!(
        clouded.as_deref(),
        Some("how often the loop at line 1 runs is not known")
    );
}

#[test]
fn other_shells_and_wrappers_are_named_and_not_entered() {
    for (text, tool) in [
        ("bash -c 'python3 -m sglang.launch_server'", "bash"),
        ("bash <<'EOF'\npython3 -m sglang.launch_server\nEOF", "bash"),
        (
            "loadTracer.sh python3 -m sglang.launch_server",
            "loadTracer.sh",
        ),
        (
            "rocprofv3 --stats -- python3 -m sglang.launch_server",
            "rocprofv3",
        ),
        (
            "docker exec -it box python3 -m sglang.launch_server",
            "docker exec",
        ),
        ("srun -N1 python3 -m sglang.launch_server", "srun"),
        ("sudo -E python3 -m sglang.launch_server", "sudo"),
        ("conda run -n x python3 -m sglang.launch_server", "conda"),
        ("env -i A=1 python3 -m sglang.launch_server", "env"),
        ("exec -c python3 -m sglang.launch_server", "exec"),
        ("eval 'python3 -m sglang.launch_server'", "eval"),
    ] {
        let facts = read_plain(text);
        assert_eq!(facts.of(Role::Server).count(), 0, "{text}");
        let tools: Vec<_> = facts
            .elsewhere
            .iter()
            .map(|elsewhere| elsewhere.tool.as_str())
            .collect();
        assert_eq!(tools, [tool], "{text}");
    }
}

#[test]
fn a_line_that_names_a_server_or_a_benchmark_and_was_not_followed_is_missed() {
    let facts = read_plain(
        "CMD='sglang.launch_server'\n# python3 -m sglang.launch_server\necho python3 -m sglang.launch_server\n\
         run() {\n  python3 -m sglang.bench_serving\n  pkill -f sglang.launch_server\n}\nrun\n",
    );
    assert_eq!((facts.missed, facts.missed_benchmarks), (vec![1], vec![5]));
    let facts = read_plain("A=1 \\\n  python3 \\\n  -m sglang.launch_server \\\n --tp 8\n");
    assert!(facts.missed.is_empty(), "{facts:?}");
}

#[test]
fn arguments_that_are_given_are_known() {
    let text = format!("{START} --model-path $1 --tp ${{2:-4}} \"$@\"\nfor m; do {START} $m; done");
    let facts = read_as(&text, Some(&["/m"])).unwrap();
    let lines: Vec<_> = facts.of(Role::Server).map(line).collect();
    assert_eq!(
        lines,
        [
            format!("{START} --model-path /m --tp 4 /m"),
            format!("{START} /m")
        ]
    );
}

#[test]
fn what_is_no_script_is_refused_soon_and_endless_walks_end() {
    let started = std::time::Instant::now();
    for text in [
        "echo ok\nif true; then (".to_owned(),
        "((".repeat(20),
        "(".repeat(5_000),
        "$(".repeat(5_000),
        "if ".repeat(20_000),
        "\"${a:-".repeat(5_000),
        "x".repeat(8 << 20),
        "a && ".repeat(60_000),
        "\0\u{1b}[2J".to_owned(),
    ] {
        let shown: String = text.chars().take(12).collect();
        let read = read_as(&text, None);
        let refused = read.map_or_else(|error| error.to_string(), |facts| format!("{facts:?}"));
        assert!(
            refused.len() < 400 && !refused.contains('\u{1b}'),
            "{shown}"
        );
    }
    let values = "1 ".repeat(60);
    let nested = format!("for i in {values}; do ").repeat(6) + ":; " + &"done; ".repeat(6);
    let clouded = read_plain(&nested).clouded.unwrap();
    insta::assert_snapshot!(clouded, @"the script runs more commands than are followed");
    assert!(started.elapsed() < std::time::Duration::from_secs(40));
}

#[test]
fn a_folder_is_reckoned_from_the_script_only_where_all_of_it_is_understood() {
    for (folder, read) in [
        ("$(cd \"$(dirname \"$0\")\" && pwd)", "/job"),
        ("$(cd \"$(dirname \"${BASH_SOURCE[0]}\")\" && pwd)", "/job"),
        ("$(dirname \"$0\")", "/job"),
        ("$(pwd)", "/job"),
        ("$PWD", "/job"),
        ("$(cd \"$(dirname \"$0\")/..\" && pwd)", "???"),
        ("$(dirname \"$(readlink -f \"$0\")\")", "???"),
        ("$(cd - && pwd)", "???"),
        ("$0", "???"),
    ] {
        let text = format!("HERE={folder}\n{START} --model-path $HERE");
        assert_eq!(
            server_of(&text),
            format!("{START} --model-path {read}"),
            "{folder}"
        );
    }
    for (moved, read) in [
        ("cd ../x/./y\nHERE=$PWD", "/x/y"),
        ("cd\nHERE=$(pwd)", "/home/me"),
        ("cd -\nHERE=$PWD", "???"),
        ("cd /x\nHERE=$(dirname \"$0\")", "???"),
    ] {
        let text = format!("{moved}\n{START} --model-path $HERE");
        assert_eq!(
            server_of(&text),
            format!("{START} --model-path {read}"),
            "{moved}"
        );
    }
}
