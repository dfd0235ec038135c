//! Scripts as people write them, and what is told of each.

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
    };
    read(text, Utf8Path::new("launch.sh"), &surroundings).unwrap()
}

fn read_plain(text: &str) -> Facts {
    read_with(text, &[], &[("HOME", "/home/me"), ("PATH", "/usr/bin")])
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
            "python3 -m sglang.launch_server --n $((1 + 2))",
            "an arithmetic expression",
        ),
        (
            "python3 -m sglang.launch_server ${X%.json}",
            "is not evaluated",
        ),
    ] {
        let facts = read_plain(text);
        let server = only(&facts, Role::Server);
        let unknown: Vec<_> = server
            .argv
            .iter()
            .filter_map(|word| match word {
                Word::Unknown { why, .. } => Some(why.clone()),
                Word::Known(_) => None,
            })
            .collect();
        assert_eq!(unknown.len(), 1, "{text}: {server:?}");
        assert!(unknown[0].contains(reason), "{text}: {}", unknown[0]);
    }
}

#[test]
fn a_loop_over_values_names_them_and_a_loop_over_one_is_decided() {
    let facts = read_plain(
        "for c in 1 8 32; do\n  python3 -m sglang.bench_serving --max-concurrency $c\ndone",
    );
    let benchmark = only(&facts, Role::Benchmark);
    let Some(Word::Unknown { why, .. }) = benchmark.argv.last() else {
        panic!("{benchmark:?}")
    };
    assert_eq!(why, "the loop at line 1, which takes 1, 8, 32");
    assert_eq!(benchmark.depends_on.as_deref(), Some("the loop at line 1"));
    let facts =
        read_plain("for c in 8; do python3 -m sglang.bench_serving --max-concurrency $c; done");
    assert_eq!(
        only(&facts, Role::Benchmark).argv.last().unwrap().known(),
        Some("8")
    );
}

#[test]
fn a_condition_on_known_text_is_decided() {
    let text = "MODE=fast\nif [ \"$MODE\" = fast ]; then TP=2; else TP=4; fi\nif [[ -z \"$MODE\" ]]; then TP=9; fi\npython3 -m sglang.launch_server --tp $TP";
    assert!(line(only(&read_plain(text), Role::Server)).ends_with("--tp 2"));
    let text = text.replace("MODE=fast", "MODE=slow");
    assert!(line(only(&read_plain(&text), Role::Server)).ends_with("--tp 4"));
}

#[test]
fn functions_sources_and_scripts_are_followed() {
    let files = [
        ("/job/lib/env.sh", "export SGLANG_USE_AITER=1\nTP=8"),
        (
            "/job/serve.sh",
            "exec python3 -m sglang.launch_server --tp-size \"$1\" ${MODEL:+--model-path $MODEL}",
        ),
    ];
    let text = "source lib/env.sh\nserve() {\n  local tp=$1\n  bash ./serve.sh $tp\n}\nexport MODEL=/m\nserve $TP\n. missing.sh";
    let facts = read_with(text, &files, &[]);
    let server = only(&facts, Role::Server);
    assert_eq!(
        line(server),
        "python3 -m sglang.launch_server --tp-size 8 --model-path /m"
    );
    assert_eq!(env(server, "SGLANG_USE_AITER"), Some("1"));
    assert_eq!(
        facts.notes,
        ["line 8 sources `/job/missing.sh`, which cannot be read"]
    );
}

#[test]
fn a_command_in_a_function_is_told_by_its_line_in_the_file() {
    let facts = read_plain("\nserve() {\n  python3 -m sglang.launch_server --tp 1\n}\nserve");
    assert_eq!(only(&facts, Role::Server).line, 3);
}

#[test]
fn wrappers_are_named_and_not_entered() {
    let facts = read_plain(
        "docker exec -it box bash -lc 'python3 -m sglang.launch_server'\nsrun -N1 python3 -m sglang.launch_server",
    );
    assert_eq!(
        facts.wrappers,
        [("docker exec".to_owned(), 1), ("srun".to_owned(), 2)]
    );
    assert_eq!(facts.of(Role::Server).count(), 0);
}

#[test]
fn a_shell_on_a_text_is_read_and_keeps_its_changes_to_itself() {
    let facts = read_plain(
        "bash -c 'export A=1; python3 -m sglang.launch_server'\npython3 -m sglang.bench_serving\n(export B=2; cd /x)\npython3 -m sglang.bench_serving",
    );
    assert_eq!(env(only(&facts, Role::Server), "A"), Some("1"));
    for benchmark in facts.of(Role::Benchmark) {
        assert!(benchmark.env.is_empty(), "{benchmark:?}");
        assert_eq!(benchmark.folder.known(), Some("/job"));
    }
}

#[test]
fn what_is_unset_or_exported_for_all_reaches_the_server_so() {
    let facts = read_plain(
        "unset HSA_OVERRIDE_GFX_VERSION\nset -a\nX=1\nset +a\nY=1\npython3 -m sglang.launch_server",
    );
    let server = only(&facts, Role::Server);
    assert_eq!(server.unset, ["HSA_OVERRIDE_GFX_VERSION"]);
    assert_eq!((env(server, "X"), env(server, "Y")), (Some("1"), None));
}

#[test]
fn what_is_no_bash_is_refused_with_the_line_and_endless_recursion_ends() {
    let surroundings = Surroundings {
        read: &|_| None,
        variable: &|_| None,
        folder: "/".into(),
    };
    let error = read(
        "echo ok\nif true; then (",
        Utf8Path::new("x"),
        &surroundings,
    )
    .unwrap_err();
    assert!(error.to_string().contains("is not bash"), "{error}");
    let facts = read_plain("f() { f; }\nf\npython3 -m sglang.launch_server");
    assert_eq!(facts.of(Role::Server).count(), 1);
    assert!(facts.notes[0].contains("nest too deeply"));
}

#[test]
fn env_in_front_of_the_server_is_part_of_its_environment() {
    let facts = read_plain(
        "export A=1 B=2\nC=3 env -u B SGLANG_USE_AITER=1 D=\"x y\" python3 -m sglang.launch_server",
    );
    let server = only(&facts, Role::Server);
    assert_eq!(line(server), "python3 -m sglang.launch_server");
    let of = |name| env(server, name);
    assert_eq!(
        (of("A"), of("C"), of("D")),
        (Some("1"), Some("3"), Some("x y"))
    );
    assert_eq!(of("SGLANG_USE_AITER"), Some("1"));
    assert!(server.unset.contains(&"B".to_owned()));
    assert!(facts.notes.is_empty());

    let facts = read_plain("export A=1\nexec env -i PATH=/bin E=2 python3 -m sglang.launch_server");
    let server = only(&facts, Role::Server);
    assert_eq!((env(server, "A"), env(server, "E")), (None, Some("2")));
    assert!(facts.notes[0].contains("empty environment"), "{facts:?}");
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
    ] {
        let text = format!("HERE={folder}\npython3 -m sglang.launch_server --model-path $HERE");
        assert_eq!(
            server_of(&text),
            format!("python3 -m sglang.launch_server --model-path {read}"),
            "{folder}"
        );
    }
}

#[test]
fn variables_that_commands_fill_or_functions_hide_are_not_taken_for_what_they_were() {
    for (text, port) in [
        ("P=1\nread -r P < port.txt", "???"),
        ("P=1\nprintf -v P %d 31000", "???"),
        ("P=1\n((P++))", "???"),
        ("P=1\nlet P=P+1", "???"),
        ("P=1\nfor ((P=0; P<3; P++)); do :; done", "???"),
        ("P=1\nnvidia-smi -L && P=2", "???"),
        ("P=1\ncd /x && P=2", "2"),
        ("P=1\nf() { local P=2; }\nf", "1"),
        ("P=1\nf() { P=2; }\nf", "2"),
        (": \"${P:=31000}\"", "31000"),
        ("P=1\n: ${P:=2}", "1"),
        ("P=${1:-30000}", "???"),
        ("f() { P=${1:-30000}; }\nf 31000", "31000"),
        ("f() { P=${1:-30000}; }\nf", "30000"),
        ("f() { shift; P=$1; }\nf 1 2", "2"),
        ("f() { shift 5; P=$1; }\nf 1 2", ""),
        ("set -- 7 8\nP=$2", "8"),
        ("if [ -e x ]; then set -- 7; fi\nP=$1", "???"),
        ("eval P=3", "3"),
    ] {
        let text = format!("{text}\npython3 -m sglang.launch_server --port \"$P\"");
        let expected = format!("python3 -m sglang.launch_server --port {port}");
        assert_eq!(server_of(&text), expected, "{text}");
    }
}

#[test]
fn comments_between_the_elements_of_an_array_are_none_of_them() {
    let text = "A=(\n  --tp 2 # two\n  # --tp 8\n  --port 1\n)\npython3 -m sglang.launch_server \"${A[@]}\"";
    assert_eq!(
        server_of(text),
        "python3 -m sglang.launch_server --tp 2 --port 1"
    );
}

#[test]
fn a_command_in_a_variable_is_read_and_one_that_is_not_known_is_named() {
    let text = "CMD=\"python3 -m sglang.launch_server\"\nCMD+=\" --tp 2\"";
    for start in ["$CMD", "eval $CMD", "eval \"$CMD\" &"] {
        assert_eq!(
            server_of(&format!("{text}\n{start}")),
            "python3 -m sglang.launch_server --tp 2",
            "{start}"
        );
    }
    for (text, note) in [
        (
            "CMD=x\n[ -e f ] && CMD=y\n$CMD",
            "line 3 runs `$CMD`, which depends on the condition at line 2",
        ),
        (
            "bash <<'EOF'\npython3 -m sglang.launch_server\nEOF",
            "line 1 starts a shell on what it is fed with, which was not read",
        ),
        (
            "eval \"$(cat x)\"",
            "line 1 evaluates `\"$(cat x)\"`, which was not followed",
        ),
        (
            "export $(grep -v '^#' .env | xargs)",
            "line 1 sets variables from the output of `$(grep -v '^#' .env | xargs)`, which was not run",
        ),
    ] {
        assert_eq!(read_plain(text).notes, [note], "{text}");
    }
    assert!(
        read_plain("eval \"$(conda shell.bash hook)\"")
            .notes
            .is_empty()
    );
}
