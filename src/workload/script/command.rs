//! What a command line is: the server, the benchmark, a readiness probe, a wrapper around one of them.

use super::Word;

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An SGLang server.
    Server,
    /// SGLang's serving benchmark.
    Benchmark,
    /// A request to a URL, as a script makes it to see whether the server is up.
    Probe,
    /// A server that gemmtune does not tune.
    OtherServer,
}

/// Commands that run the rest of their line in a way that does not matter here. gemmtune starts processes itself.
const DROPPED: [&str; 5] = ["exec", "nohup", "time", "command", "setsid"];

/// Commands that run the rest of their line in a way that does matter: kept in front, looked through.
/// With each, the options that take a value of their own.
const KEPT: [(&str, &[&str]); 7] = [
    ("env", &["-u", "--unset", "-C", "--chdir"]),
    (
        "numactl",
        &[
            "-N",
            "-m",
            "-C",
            "-i",
            "-p",
            "--cpunodebind",
            "--membind",
            "--physcpubind",
            "--interleave",
            "--preferred",
        ],
    ),
    ("taskset", &["-c", "-p"]),
    ("nice", &["-n"]),
    ("stdbuf", &["-i", "-o", "-e"]),
    ("timeout", &["-k", "-s", "--kill-after", "--signal"]),
    ("ionice", &["-c", "-n"]),
];

/// Commands that run the rest of their line somewhere else: in a container, on another node, as a batch job, in an
/// environment of their own making.
const ELSEWHERE: [&str; 17] = [
    "docker",
    "podman",
    "nerdctl",
    "kubectl",
    "srun",
    "sbatch",
    "mpirun",
    "mpiexec",
    "ssh",
    "pdsh",
    "singularity",
    "apptainer",
    "enroot",
    "conda",
    "mamba",
    "micromamba",
    "pixi",
];

/// The same of commands that scripts use for much else: they are wrappers where SGLang is in their line.
const OFTEN_ELSE: [&str; 9] = [
    "uv",
    "poetry",
    "sudo",
    "su",
    "tmux",
    "screen",
    "systemd-run",
    "xargs",
    "parallel",
];

/// `argv` without [`DROPPED`] in front.
pub(super) fn stripped(mut argv: &[Word]) -> &[Word] {
    while let Some(first) = argv.first().and_then(Word::known) {
        if !DROPPED.contains(&name_of(first)) {
            break;
        }
        argv = &argv[1..];
        // Options of the wrapper itself, as in `exec -a name`.
        while argv
            .first()
            .and_then(Word::known)
            .is_some_and(|word| word.starts_with('-'))
        {
            argv = &argv[1..];
        }
    }
    argv
}

/// What `env` in front of a command does to its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment<'a> {
    /// `-i`: nothing is inherited.
    pub(super) cleared: bool,
    /// `-u NAME`.
    pub(super) unset: Vec<String>,
    /// `NAME=VALUE`.
    pub(super) set: Vec<(String, Word)>,
    /// The command it starts.
    pub(super) rest: &'a [Word],
}

/// `env` and its arguments taken apart; `None` where `argv` is no `env`, or one with other options.
pub(super) fn environment(argv: &[Word]) -> Option<Environment<'_>> {
    let (first, mut rest) = argv.split_first()?;
    if name_of(first.known()?) != "env" {
        return None;
    }
    let mut found = Environment::default();
    while let Some((word, after)) = rest.split_first() {
        rest = after;
        match word.text() {
            "-i" | "-" | "--ignore-environment" => found.cleared = true,
            "-u" | "--unset" => {
                let (name, after) = rest.split_first()?;
                found.unset.push(name.known()?.to_owned());
                rest = after;
            }
            text => {
                if let Some(name) = text.strip_prefix("--unset=") {
                    found.unset.push(name.to_owned());
                } else if text.starts_with('-') {
                    return None;
                } else if let Some((name, value)) =
                    text.split_once('=').filter(|(name, _)| is_name(name))
                {
                    let value = match word {
                        Word::Known(_) => Word::Known(value.to_owned()),
                        Word::Unknown { why, .. } => Word::unknown(value, why.clone()),
                    };
                    found.set.push((name.to_owned(), value));
                } else {
                    found.rest = &argv[argv.len() - rest.len() - 1..];
                    return Some(found);
                }
            }
        }
    }
    Some(found)
}

/// `argv` from the program on that [`KEPT`] wrappers start.
fn looked_through(argv: &[Word]) -> &[Word] {
    let Some(first) = argv.first().and_then(Word::known) else {
        return argv;
    };
    let Some((wrapper, valued)) = KEPT.iter().find(|(wrapper, _)| *wrapper == name_of(first))
    else {
        return argv;
    };
    let mut rest = &argv[1..];
    let mut positional = usize::from(*wrapper == "timeout");
    if *wrapper == "taskset"
        && !rest
            .first()
            .and_then(Word::known)
            .is_some_and(|word| word.starts_with('-'))
    {
        positional = 1; // the mask
    }
    while let Some(word) = rest.first() {
        let text = word.text();
        if text.starts_with('-') && text != "-" {
            let takes_value = valued.contains(&text);
            rest = rest
                .get(if takes_value { 2 } else { 1 }..)
                .unwrap_or_default();
        } else if *wrapper == "env" && text.split_once('=').is_some_and(|(name, _)| is_name(name)) {
            rest = &rest[1..];
        } else if positional > 0 {
            positional -= 1;
            rest = &rest[1..];
        } else {
            break;
        }
    }
    looked_through(rest)
}

/// Whether `name` can name a variable.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
}

/// The wrapper that takes this command elsewhere, if one does.
pub(super) fn elsewhere(argv: &[Word]) -> Option<String> {
    let argv = looked_through(stripped(argv));
    let name = name_of(argv.first()?.known()?);
    let names_sglang = || argv.iter().any(|word| word.text().contains("sglang"));
    if !(ELSEWHERE.contains(&name) || OFTEN_ELSE.contains(&name) && names_sglang()) {
        return None;
    }
    let second = argv.get(1).and_then(Word::known).unwrap_or_default();
    match (name, second) {
        (
            "docker" | "podman" | "nerdctl" | "kubectl" | "singularity" | "apptainer",
            "exec" | "run",
        ) => Some(format!("{name} {second}")),
        ("conda" | "mamba" | "micromamba" | "pixi" | "uv" | "poetry", "run") => {
            Some(format!("{name} run"))
        }
        (
            "docker" | "podman" | "nerdctl" | "kubectl" | "singularity" | "apptainer" | "conda"
            | "mamba" | "micromamba" | "pixi" | "uv" | "poetry",
            _,
        ) => None,
        _ => Some(name.to_owned()),
    }
}

/// What the command is for, if it matters.
pub(super) fn role(argv: &[Word]) -> Option<Role> {
    let argv = looked_through(argv);
    let known: Vec<&str> = argv
        .iter()
        .map(|word| word.known().unwrap_or_default())
        .collect();
    let program = name_of(known.first()?);
    if matches!(program, "curl" | "wget") {
        return known
            .iter()
            .any(|word| word.contains("/health") || word.contains("/v1/models"))
            .then_some(Role::Probe);
    }
    if program == "sglang" {
        return (known.get(1) == Some(&"serve")).then_some(Role::Server);
    }
    if (program == "vllm" && known.get(1) == Some(&"serve")) || program == "trtllm-serve" {
        return Some(Role::OtherServer);
    }
    let what = if program.starts_with("python") {
        let module = known
            .iter()
            .position(|word| *word == "-m")
            .and_then(|at| known.get(at + 1));
        let script = known
            .iter()
            .skip(1)
            .find(|word| !word.starts_with('-'))
            .map(|word| name_of(word));
        module.copied().or(script)?
    } else {
        program
    };
    match what {
        "sglang.launch_server" | "launch_server.py" | "sglang_router.launch_server" => {
            Some(Role::Server)
        }
        "sglang.bench_serving"
        | "sglang.benchmark.serving"
        | "bench_serving.py"
        | "bench_serving" => Some(Role::Benchmark),
        "vllm.entrypoints.openai.api_server" => Some(Role::OtherServer),
        _ => None,
    }
}

/// The value of a flag: `--name value` or `--name=value`; the last one counts, and a beginning that is nothing else
/// stands for the name, as in argparse.
pub fn flag<'a>(argv: &'a [Word], names: &[&str]) -> Option<std::borrow::Cow<'a, Word>> {
    use std::borrow::Cow;
    // What argparse cannot tell apart it refuses, so a script that works has no ambiguous ones.
    let is_meant = |text: &str| {
        let is_beginning = text.len() > 3 && text.starts_with("--");
        names
            .iter()
            .any(|name| *name == text || is_beginning && name.starts_with(text))
    };
    let mut found = None;
    for (at, word) in argv.iter().enumerate() {
        let text = word.text();
        if is_meant(text) {
            found = argv.get(at + 1).map(Cow::Borrowed);
        } else if let Some((name, value)) = text.split_once('=')
            && is_meant(name)
        {
            found = Some(Cow::Owned(match word {
                Word::Known(_) => Word::Known(value.to_owned()),
                Word::Unknown { why, .. } => Word::unknown(value, why.clone()),
            }));
        }
    }
    found
}

/// The last part of a path.
pub(super) fn name_of(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Word> {
        line.split_whitespace()
            .map(|word| Word::Known(word.to_owned()))
            .collect()
    }

    #[test]
    fn servers_and_benchmarks_are_recognised_behind_wrappers() {
        for (line, expected) in [
            ("python3 -m sglang.launch_server --tp 8", Some(Role::Server)),
            (
                "/opt/venv/bin/python3.12 -u -m sglang.launch_server",
                Some(Role::Server),
            ),
            ("python python/sglang/launch_server.py", Some(Role::Server)),
            ("sglang serve --model-path m", Some(Role::Server)),
            (
                "env A=1 -u B numactl -N 0 --membind 0 taskset -c 0-7 python3 -m sglang.launch_server",
                Some(Role::Server),
            ),
            (
                "timeout -k 5 1h python3 -m sglang.bench_serving",
                Some(Role::Benchmark),
            ),
            ("python3 -m sglang.benchmark.serving", Some(Role::Benchmark)),
            ("curl -sf http://127.0.0.1:30000/health", Some(Role::Probe)),
            ("vllm serve m", Some(Role::OtherServer)),
            ("sglang version", None),
            ("echo sglang.launch_server", None),
            ("grep launch_server.py log", None),
        ] {
            assert_eq!(role(&words(line)), expected, "{line}");
        }
        assert_eq!(
            stripped(&words("exec nohup -x python3 a")),
            words("python3 a")
        );
    }

    #[test]
    fn env_is_taken_apart_unless_it_does_more() {
        let argv = words("/usr/bin/env -i -u B A=1 PATH= python3 -i X=2");
        let found = environment(&argv).unwrap();
        assert!(found.cleared);
        assert_eq!(found.unset, ["B"]);
        assert_eq!(
            found.set[1],
            ("PATH".to_owned(), Word::Known(String::new()))
        );
        assert_eq!(found.rest, words("python3 -i X=2"));
        assert_eq!(environment(&words("env -C /tmp python3")), None);
        assert_eq!(environment(&words("env A=1")).unwrap().rest, []);
        assert_eq!(environment(&words("python3 env")), None);
    }

    #[test]
    fn only_commands_that_start_things_elsewhere_are_wrappers() {
        for (line, expected) in [
            ("docker exec -it c bash -c x", Some("docker exec")),
            ("nohup docker run --rm image python3", Some("docker run")),
            ("docker ps", None),
            ("srun --gpus 8 python3", Some("srun")),
            ("conda activate x", None),
            ("conda run -n x python3", Some("conda run")),
            ("ssh node2 python3", Some("ssh")),
            ("uv run python3 -m sglang.launch_server", Some("uv run")),
            ("sudo -E python3 -m sglang.launch_server", Some("sudo")),
            ("sudo nvidia-smi -pm 1", None),
            ("uv pip install sglang", None),
            ("tmux kill-server", None),
            ("python3 x", None),
        ] {
            assert_eq!(elsewhere(&words(line)).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn the_last_of_two_equal_flags_counts() {
        let argv = words("x --tp-size 4 --port=30001 --tp=8");
        let value =
            |names: &[&str]| flag(&argv, names).and_then(|word| word.known().map(str::to_owned));
        assert_eq!(value(&["--tp-size", "--tp"]).as_deref(), Some("8"));
        assert_eq!(value(&["--port"]).as_deref(), Some("30001"));
        assert_eq!(value(&["--host"]), None);
        let argv = words("x --tensor-parallel 8 --model-pa=/m --mo x");
        let value =
            |names: &[&str]| flag(&argv, names).and_then(|word| word.known().map(str::to_owned));
        assert_eq!(
            value(&["--tp-size", "--tensor-parallel-size"]).as_deref(),
            Some("8")
        );
        assert_eq!(value(&["--model-path"]).as_deref(), Some("x"));
        assert_eq!(value(&["--port"]), None);
    }
}
