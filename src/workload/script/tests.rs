//! Scripts as people write them, and what is read from each.

use super::*;

/// Reads `text` as `/job/launch.sh`, started in `/job`, with files and variables as given.
fn read_with(text: &str, files: &[(&str, &str)], variables: &[(&str, &str)]) -> Facts {
    let find = |pairs: &[(&str, &str)], wanted: &str| {
        pairs
            .iter()
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| (*value).to_owned())
    };
    let read_file = |path: &Utf8Path| find(files, path.as_str());
    let variable = |name: &str| find(variables, name);
    let surroundings = Surroundings {
        read: &read_file,
        variable: &variable,
        folder: "/job".into(),
        path_is_real: true,
        arguments: None,
    };
    read(text, Utf8Path::new("launch.sh"), &surroundings).unwrap()
}

const ACTIVATE: (&str, &str) = (
    "/home/me/venv/bin/activate",
    "deactivate () {\n    unset VIRTUAL_ENV\n}\nVIRTUAL_ENV=\"/home/me/venv\"\nexport VIRTUAL_ENV\n",
);

fn read_plain(text: &str) -> Facts {
    let variables = [("HOME", "/home/me"), ("PATH", "/usr/bin")];
    read_with(text, &[ACTIVATE], &variables)
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

#[test]
fn a_realistic_script_is_read_whole() {
    let facts = read_plain(
        r#"#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
source ~/venv/bin/activate
export SGLANG_USE_AITER=1 HIP_VISIBLE_DEVICES=0,1
MODEL=${MODEL:-/models/Qwen3-14B-FP8}
PORT=31000
ARGS=(--tp-size 2 --mem-fraction-static "0.8")
ARGS+=(--port "$PORT")
NCCL_DEBUG=WARN nohup python3 -m sglang.launch_server \
  --model-path "$MODEL" "${ARGS[@]}" --served-name "a b" > server.log 2>&1 &
SERVER=$!
until curl -sf "http://127.0.0.1:$PORT/health" > /dev/null; do sleep 2; done
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
    assert_eq!(env(server, "VIRTUAL_ENV"), Some("/home/me/venv"));
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
    let probe = only(&facts, Role::Probe);
    assert!(line(probe).ends_with("http://127.0.0.1:31000/health"));
}

/// The words of a command that are not known, by their reasons.
fn reasons(found: &Found) -> Vec<String> {
    let unknown = found.argv.iter().filter_map(|word| match word {
        Word::Unknown { why, .. } => Some(why.clone()),
        Word::Known(_) => None,
    });
    unknown.collect()
}

#[test]
fn what_depends_on_something_else_is_unknown_with_the_reason() {
    for (text, reason) in [
        (
            "python3 -m sglang.launch_server --tp $1",
            "argument 1 of the script",
        ),
        (
            "python3 -m sglang.launch_server $EXTRA",
            "the variable `EXTRA`, which nothing sets",
        ),
        (
            "python3 -m sglang.launch_server --port $(pick_port)",
            "the output of `$(pick_port)`",
        ),
        (
            "if [ \"$(hostname)\" = a ]; then TP=2; else TP=4; fi\npython3 -m sglang.launch_server --tp $TP",
            "the condition at line 1",
        ),
        (
            "case $(uname) in a) TP=2;; *) TP=4;; esac\npython3 -m sglang.launch_server --tp $TP",
            "the choice at line 1",
        ),
        (
            "[ -d /x ] && TP=2\npython3 -m sglang.launch_server --tp $TP",
            "the condition at line 1",
        ),
        (
            "python3 -m sglang.launch_server ${X%.json}",
            "an expansion that is not evaluated",
        ),
        (
            "python3 -m sglang.launch_server --x $'a\\tb'",
            "an escaped string",
        ),
        (
            "while grep -q x y; do TP=8; done\npython3 -m sglang.launch_server --tp $TP",
            "the loop at line 1",
        ),
        (
            "for f in *.sh; do TP=$f; done\npython3 -m sglang.launch_server --tp $TP",
            "the loop at line 1",
        ),
        (
            "A[1]=3\npython3 -m sglang.launch_server --tp $A",
            "an element of an array",
        ),
    ] {
        let facts = read_plain(text);
        let reasons = reasons(only(&facts, Role::Server));
        assert_eq!(reasons.len(), 1, "{text}: {reasons:?}");
        assert!(reasons[0].contains(reason), "{text}: {}", reasons[0]);
    }
}

#[test]
fn after_what_cannot_be_followed_nothing_is_certain() {
    for (text, reason) in [
        (
            "source missing.sh",
            "`missing.sh`, sourced at line 1, which cannot be read",
        ),
        ("eval \"$(cat x)\"", "line 1 evaluates"),
        ("$CMD", "line 1 runs `"),
        ("declare -n X=Y", "`declare -n` at line 1"),
        (
            "for var in $(cat env); do export \"$var\"; done",
            "line 1 declares",
        ),
        ("if grep -q x y; then f() { :; }; fi\nf", "line 2 calls `f`"),
        ("shopt -s expand_aliases", "`shopt` at line 1"),
        ("for c in 1 2; do break; done", "`break` at line 1"),
        ("case x in x) ;& y) ;; esac", "the fall-through at line 1"),
        ("coproc cat", "the coprocess at line 1"),
        ("read -r TP", "what `read` at line 1 finds"),
        ("P=1; let P=P+1", "what `let` at line 1 finds"),
        ("printf -v P %d 3", "what `printf -v` at line 1 writes"),
    ] {
        let facts = read_plain(&format!("{text}\npython3 -m sglang.launch_server --tp 8"));
        let clouded = only(&facts, Role::Server)
            .clouded
            .clone()
            .unwrap_or_default();
        assert!(clouded.contains(reason), "{text}: {clouded}");
    }
    // Environments whose variables only running tells.
    for (text, reason) in [
        ("module load rocm", "`module` at line 1"),
        ("conda activate sgl", "`conda activate` at line 1"),
        ("source activate sgl", "`activate`, sourced at line 1"),
        (
            "source /opt/conda/bin/activate sgl",
            "`/opt/conda/bin/activate`, sourced at line 1",
        ),
    ] {
        let facts = read_plain(&format!("{text}\npython3 -m sglang.launch_server --tp 8"));
        let server = only(&facts, Role::Server);
        let Some(Word::Unknown { why, .. }) = &server.venv else {
            panic!("{text}: {server:?}")
        };
        assert!(why.contains(reason), "{text}: {why}");
    }
}

#[test]
fn known_values_are_reckoned_with() {
    for (text, port) in [
        ("P=$((30000 + 2 * 3))", "30006"),
        ("A=4 B=8\nP=$((A * B + $A))", "36"),
        ("P=1\n((P++))", "???"),
        (
            "N=16\nif [[ $N -ge 16 && \"$N\" != 8 ]]; then P=30; else P=10; fi",
            "30",
        ),
        ("N=8\nif [ $N -gt 4 ] && ((N < 10)); then P=1; fi", "1"),
        ("case \"8\" in 4|8) P=2 ;; *) P=1 ;; esac", "2"),
        ("case \"abc-x\" in abc*) P=2 ;; *) P=1 ;; esac", "2"),
        ("P=1\nf() { local P=2; }\nf", "1"),
        ("P=1\nf() { P=2; }\nf", "2"),
        ("P=1\nf() { P=2; }\nf &", "1"),
        (": \"${P:=31000}\"", "31000"),
        ("P=1\n: ${P:=2}", "1"),
        ("P=${1:-30000}", "???"),
        ("f() { P=${1:-30000}; }\nf 31000", "31000"),
        ("f() { P=${1:-30000}; }\nf", "30000"),
        ("f() { shift; P=$1; }\nf 1 2", "2"),
        ("set -- 7 8\nP=$2", "8"),
        ("if [ -e x ]; then set -- 7; fi\nP=$1", "???"),
        ("if [ -e x ]; then echo usage; exit 1; fi\nP=3", "3"),
        ("cd /x || exit 1\nP=3", "3"),
        ("eval P=3", "3"),
        ("for i in 1 2 3; do P=$i; done", "3"),
        ("P=$((08))", "???"),
        ("P=$((1 / 0))", "???"),
        ("A=(5 6)\nP=${A[1]}", "6"),
        ("P=1\nP+=2", "12"),
        ("P=1 | cat\nP=2", "2"),
        ("P=1\n(P=2)", "1"),
        ("P=1\nfalse && P=2", "1"),
        ("P=1\ntrue || P=2", "1"),
        ("P=1\n! false && P=2", "2"),
    ] {
        let text = format!("{text}\npython3 -m sglang.launch_server --port \"$P\"");
        let expected = format!("python3 -m sglang.launch_server --port {port}");
        assert_eq!(server_of(&text), expected, "{text}");
    }
}

#[test]
fn words_are_cut_as_bash_cuts_them() {
    for (text, expected) in [
        (
            "python3 -m sglang.launch_server --model  /a/\\\nb/  --tp 1",
            "--model /a/b/ --tp 1",
        ),
        (
            "python3 -m sglang.launch_server --model /m 2>&1 --tp 8 >> log --port 9",
            "--model /m --tp 8 --port 9",
        ),
        (
            "X=\"${X:-'a b'}\"\npython3 -m sglang.launch_server \"$X\"",
            "'a b'",
        ),
        (
            "X=\"${1:-real|lossy}\"\npython3 -m sglang.launch_server --tp 8",
            "--tp 8",
        ),
        (
            "A=(--x \"a b\" # c\n --y)\npython3 -m sglang.launch_server \"${A[@]}\"",
            "--x a b --y",
        ),
        (
            "export A=/x:~/y\npython3 -m sglang.launch_server $A",
            "/x:/home/me/y",
        ),
        (
            "M=\npython3 -m sglang.launch_server ${M:+--model $M} --tp 1",
            "--tp 1",
        ),
        (
            "M=/m\npython3 -m sglang.launch_server ${M:+--model $M} --tp 1",
            "--model /m --tp 1",
        ),
        (
            "M=\"a b\"\npython3 -m sglang.launch_server x$M'c d'",
            "xa bc d",
        ),
        (
            "timeout -k 5 1h python3 -m sglang.launch_server --tp 1",
            "--tp 1",
        ),
        (
            "exec -a title python3 -m sglang.launch_server --tp 1",
            "--tp 1",
        ),
    ] {
        let facts = read_plain(text);
        let line = line(only(&facts, Role::Server));
        let rest = line
            .strip_prefix("python3 -m sglang.launch_server ")
            .unwrap_or_else(|| panic!("{text}: {line}"));
        assert_eq!(rest, expected, "{text}");
    }
}

#[test]
fn the_environment_is_what_the_script_exports() {
    let facts = read_plain(
        "ENV=(A=1 B=2)\nfor v in \"${ENV[@]}\"; do export \"$v\"; done\nMORE=\"C=3 D=4\"\nexport $MORE\nN=E; export \"$N=5\"\n\
         export F=6; export -n F\nG=7\nset -a\nH=8\nset +a\ndeclare -x I=9\nunset PATH\n\
         J=10 env -u K L=11 python3 -m sglang.launch_server",
    );
    let server = only(&facts, Role::Server);
    let set: Vec<String> = server
        .env
        .iter()
        .map(|(name, word)| format!("{name}={}", word.text()))
        .collect();
    assert_eq!(set.join(" "), "A=1 B=2 C=3 D=4 E=5 H=8 I=9 J=10 L=11");
    assert_eq!(server.unset, ["K", "PATH"]);
}

#[test]
fn a_condition_that_is_not_known_leaves_what_it_would_change_unknown() {
    let facts = read_plain(
        "if grep -q x y; then export A=1; B=2; fi\nunset C\nif grep -q x y; then unset D; fi\npython3 -m sglang.launch_server --b $B",
    );
    let server = only(&facts, Role::Server);
    assert_eq!(
        (env(server, "A"), env(server, "D")),
        (Some("???"), Some("???"))
    );
    assert_eq!(line(server), "python3 -m sglang.launch_server --b ???");
}

#[test]
fn loops_over_known_values_are_walked_value_by_value() {
    let facts = read_plain(
        "for c in 1 8 32; do\n  python3 -m sglang.bench_serving --max-concurrency $c\ndone",
    );
    let lines: Vec<_> = facts.of(Role::Benchmark).map(line).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[2].ends_with("--max-concurrency 32"));
    assert_eq!(facts.found[0].depends_on, None);
    let facts = read_plain(
        "for c in $(seq 4); do python3 -m sglang.bench_serving --max-concurrency $c; done",
    );
    let benchmark = only(&facts, Role::Benchmark);
    assert_eq!(benchmark.depends_on.as_deref(), Some("the loop at line 1"));
}

#[test]
fn a_command_in_several_branches_stands_under_each() {
    let facts =
        read_plain("l() { python3 -m sglang.launch_server; }\ncase $1 in a) l ;; *) l ;; esac");
    assert_eq!(facts.of(Role::Server).count(), 2);
    assert_eq!(
        facts.found[0].depends_on.as_deref(),
        Some("the choice at line 2")
    );
    assert_eq!(facts.found[0].line, 1);
}

#[test]
fn sourced_files_are_followed_and_other_shells_are_named() {
    let files = [("/job/lib/env.sh", "export SGLANG_USE_AITER=1\nTP=8")];
    let facts = read_with(
        "source lib/env.sh\npython3 -m sglang.launch_server --tp $TP",
        &files,
        &[],
    );
    let server = only(&facts, Role::Server);
    assert_eq!(line(server), "python3 -m sglang.launch_server --tp 8");
    assert_eq!(env(server, "SGLANG_USE_AITER"), Some("1"));
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
fn a_line_that_names_the_server_and_was_not_followed_is_missed() {
    let facts = read_plain(
        "CMD='sglang.launch_server'\n# python3 -m sglang.launch_server\necho python3 -m sglang.launch_server\n",
    );
    assert_eq!(facts.missed, [1, 3]);
    let facts = read_plain("env A=1 \\\n  python3 \\\n  -m sglang.launch_server \\\n --tp 8\n");
    assert!(facts.missed.is_empty(), "{facts:?}");
}

#[test]
fn arguments_that_are_given_are_known() {
    let surroundings = Surroundings {
        read: &|_| None,
        variable: &|_| None,
        folder: "/".into(),
        path_is_real: true,
        arguments: Some(vec!["/m".to_owned()]),
    };
    let text = "python3 -m sglang.launch_server --model-path $1 --tp ${2:-4} \"$@\" $#";
    let facts = read(text, Utf8Path::new("x"), &surroundings).unwrap();
    assert_eq!(
        line(only(&facts, Role::Server)),
        "python3 -m sglang.launch_server --model-path /m --tp 4 /m 1"
    );
}

#[test]
fn what_is_no_script_is_refused_soon_and_endless_recursion_ends() {
    let surroundings = Surroundings {
        read: &|_| None,
        variable: &|_| None,
        folder: "/".into(),
        path_is_real: true,
        arguments: None,
    };
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
        let read = read(&text, Utf8Path::new("x"), &surroundings);
        let refused = read.map_or_else(|error| error.to_string(), |facts| format!("{facts:?}"));
        assert!(
            refused.len() < 400 && !refused.contains('\u{1b}'),
            "{shown}"
        );
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(40));
    let facts = read_plain("f() { f; }\nf\npython3 -m sglang.launch_server");
    let clouded = only(&facts, Role::Server).clouded.clone();
    assert!(clouded.unwrap().contains("nest too deeply"));
}

/// The one server of a script as it would be started, `???` for each word that is not known.
fn server_of(text: &str) -> String {
    line(only(&read_plain(text), Role::Server))
}

#[test]
fn what_bash_would_make_other_words_of_is_not_taken_as_it_stands() {
    const START: &str = "python3 -m sglang.launch_server";
    for (arguments, read) in [
        ("--model-path /m/*/x", "--model-path ???"),
        ("--bs {1,2,4}", "--bs ???"),
        ("--bs {1..4}", "--bs ???"),
        ("--model-path ~bob/m", "--model-path ???"),
        ("--model-path ~/m", "--model-path /home/me/m"),
        ("--json '{\"a\": [1, 2]}'", "--json {\"a\": [1, 2]}"),
        (
            "--json \"{\\\"a\\\": 1, \\\"b\\\": 2}\"",
            "--json {\"a\": 1, \"b\": 2}",
        ),
        ("--chat 'a*b?'", "--chat a*b?"),
        ("--chat a\\*b", "--chat a*b"),
    ] {
        let text = format!("{START} {arguments}");
        assert_eq!(server_of(&text), format!("{START} {read}"), "{arguments}");
    }
    assert_eq!(
        server_of("X=/models/*\nY=a,b\nIFS=,\npython3 -m sglang.launch_server \"$X\" $Y"),
        "python3 -m sglang.launch_server /models/* ???"
    );
    assert_eq!(
        server_of("X=/models/*\npython3 -m sglang.launch_server $X"),
        "python3 -m sglang.launch_server ???"
    );
}

#[test]
fn a_folder_is_reckoned_from_the_script_only_where_all_of_it_is_understood() {
    for (folder, read) in [
        ("$(cd \"$(dirname \"$0\")\" && pwd)", "/job"),
        ("$(cd \"$(dirname \"${BASH_SOURCE[0]}\")/..\" && pwd)", "/"),
        ("$(cd $(dirname $0)/sub && pwd)", "/job/sub"),
        ("$(dirname \"$(readlink -f \"$0\")\")", "/job"),
        ("$(realpath \"$0\")", "/job/launch.sh"),
        ("$(realpath --relative-to=/ \"$0\")", "???"),
        ("$(cd \"$(dirname \"$0\")/$X\" && pwd)", "???"),
        ("$(cd \"$(dirname \"$1\")\" && pwd)", "???"),
        ("$(cd - && pwd)", "???"),
        ("$(pwd)", "/job"),
    ] {
        let text = format!("HERE={folder}\npython3 -m sglang.launch_server --model-path $HERE");
        assert_eq!(
            server_of(&text),
            format!("python3 -m sglang.launch_server --model-path {read}"),
            "{folder}"
        );
    }
}
