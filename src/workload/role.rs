//! The role of a command line: an SGLang server, a serving benchmark, a readiness probe, a wrapper that starts
//! something elsewhere.

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Server,
    Benchmark,
    /// A request to a URL, with which a script checks whether the server is up.
    Probe,
    /// A server that gemmtune does not tune.
    OtherServer,
}

/// A benchmark client, which determines its flags and result files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// SGLang's `bench_serving` (0.5.5 to 0.5.23): `--output-file` gets a JSON line a run.
    Sglang,
    /// vLLM's `benchmark_serving.py` and `vllm bench serve`, and InferenceX's copy of them: `--save-result` writes a JSON file.
    Vllm,
    /// One whose results gemmtune does not read.
    Other,
}

/// Programs that run the rest of their line through `execve` with CPUs, memory or priorities set: what they start is
/// only the same if they precede it. Each is listed with its options that take a value.
pub(super) const KEPT: [(&str, &[&str]); 8] = [
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
    ("chrt", &["-T", "-P", "-D"]),
    ("prlimit", &[]),
];

/// Commands that run the rest of their line elsewhere: in a container, on another node, as a batch job, in an
/// environment of their own.
const ELSEWHERE: [&str; 14] = [
    "docker",
    "docker-compose",
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
];

/// Interpreter options that take a value (CPython 3.8 to 3.14).
const PYTHON_VALUED: [&str; 3] = ["-X", "-W", "--check-hash-based-pycs"];

/// The last part of a path.
pub(super) fn name_of(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// `argv` without leading [`KEPT`] wrappers.
pub fn looked_through<'a, 'b>(argv: &'a [&'b str]) -> &'a [&'b str] {
    match wrapper(argv) {
        0 => argv,
        taken => looked_through(&argv[taken..]),
    }
}

/// How many words of `argv` are a [`KEPT`] wrapper and its options.
pub(super) fn wrapper(argv: &[&str]) -> usize {
    let first = argv.first().map_or("", |first| name_of(first));
    let Some((wrapper, valued)) = KEPT.iter().find(|(wrapper, _)| *wrapper == first) else {
        return 0;
    };
    let is_option = |word: &str| word.starts_with('-') && word != "-";
    let mut positional = match *wrapper {
        "timeout" | "chrt" => 1, // the time; the priority
        "taskset" => usize::from(!argv.get(1).is_some_and(|word| is_option(word))), // the mask
        _ => 0,
    };
    let mut at = 1;
    while let Some(&word) = argv.get(at) {
        if is_option(word) {
            at += if valued.contains(&word) { 2 } else { 1 };
        } else if positional > 0 {
            positional -= 1;
            at += 1;
        } else {
            break;
        }
    }
    at.min(argv.len())
}

/// What a Python command line runs.
enum Runs<'a> {
    Module(&'a str, &'a [&'a str]),
    Script(&'a str, &'a [&'a str]),
}

/// What an interpreter runs: `-m MODULE` or a file, with its arguments.
fn runs<'a>(argv: &'a [&'a str]) -> Option<Runs<'a>> {
    let mut at = 1;
    while let Some(&word) = argv.get(at) {
        if !word.starts_with('-') {
            return Some(Runs::Script(name_of(word), argv.get(at + 1..)?));
        }
        let cluster = !word.starts_with("--") && word.len() > 1;
        if cluster && word.ends_with('m') {
            return Some(Runs::Module(argv.get(at + 1)?, argv.get(at + 2..)?));
        }
        if cluster && word.ends_with('c') || word == "-" {
            return None;
        }
        at += if PYTHON_VALUED.contains(&word) { 2 } else { 1 };
    }
    None
}

/// The role of the command, if it is a relevant one. Wrappers are not skipped.
pub fn role(argv: &[&str]) -> Option<Role> {
    let program = name_of(argv.first()?);
    let (what, arguments) = if program.starts_with("python") || program == "pypy3" {
        match runs(argv)? {
            Runs::Module(module, arguments) | Runs::Script(module, arguments) => {
                (module, arguments)
            }
        }
    } else {
        (program, &argv[1..])
    };
    let first = arguments.first().copied().unwrap_or_default();
    let second = arguments.get(1).copied().unwrap_or_default();
    match what {
        "curl" | "wget" => arguments
            .iter()
            .any(|word| word.contains("/health") || word.contains("/v1/models"))
            .then_some(Role::Probe),
        "sglang.launch_server" | "launch_server.py" => Some(Role::Server),
        "sglang" | "sglang.cli.main" => (first == "serve").then_some(Role::Server),
        "vllm" | "vllm.entrypoints.cli.main" => match (first, second) {
            ("serve", _) => Some(Role::OtherServer),
            ("bench", "serve") => Some(Role::Benchmark),
            _ => None,
        },
        "trtllm-serve"
        | "vllm.entrypoints.openai.api_server"
        | "sglang_router.launch_server"
        | "sglang_router.launch_router"
        | "sglang::router" => Some(Role::OtherServer),
        "sglang.bench_serving"
        | "sglang.benchmark.serving"
        | "bench_serving.py"
        | "bench_serving"
        | "benchmark_serving.py" => Some(Role::Benchmark),
        "genai-bench" | "genai-perf" | "aiperf" | "guidellm" | "evalscope" => {
            (!first.starts_with('-')).then_some(Role::Benchmark)
        }
        _ => None,
    }
}

/// Which benchmark a command line of [`Role::Benchmark`] is.
pub fn client(argv: &[&str]) -> Client {
    let argv = looked_through(argv);
    let names = |wanted: &str| argv.iter().take(4).any(|word| name_of(word) == wanted);
    if names("benchmark_serving.py") || names("vllm") || names("vllm.entrypoints.cli.main") {
        return Client::Vllm;
    }
    let sglang = [
        "sglang.bench_serving",
        "sglang.benchmark.serving",
        "bench_serving.py",
        "bench_serving",
    ];
    if sglang.iter().any(|name| names(name)) {
        Client::Sglang
    } else {
        Client::Other
    }
}

/// The wrapper that runs this command elsewhere, if there is one: `docker run`, `srun`, `ssh`.
pub fn elsewhere(argv: &[&str]) -> Option<String> {
    let argv = looked_through(argv);
    let name = name_of(argv.first()?);
    if name == "docker-compose" {
        return argv.contains(&"up").then(|| "docker compose".to_owned());
    }
    if !ELSEWHERE.contains(&name) {
        return None;
    }
    // Options of the program itself may precede its verb: `docker --context x run`.
    let has = |verbs: &[&str]| {
        argv.iter()
            .take(6)
            .copied()
            .find(|word| verbs.contains(word))
    };
    match name {
        "docker" | "podman" | "nerdctl" => {
            if has(&["compose"]).is_some() {
                return argv.contains(&"up").then(|| format!("{name} compose"));
            }
            has(&["run", "exec", "create"]).map(|verb| format!("{name} {verb}"))
        }
        "kubectl" => has(&["exec", "run", "apply", "create"]).map(|verb| format!("{name} {verb}")),
        "singularity" | "apptainer" => {
            has(&["exec", "run", "instance"]).map(|verb| format!("{name} {verb}"))
        }
        "enroot" => has(&["start", "exec"]).map(|verb| format!("{name} {verb}")),
        _ => Some(name.to_owned()),
    }
}

/// The value of a flag: `--name value` or `--name=value`; the last one counts, and as in argparse an unambiguous
/// prefix of the name is accepted.
pub fn flag<'a>(argv: &[&'a str], names: &[&str]) -> Option<&'a str> {
    let mut found = None;
    for (at, &word) in argv.iter().enumerate() {
        if is_meant(word, names) {
            found = argv.get(at + 1).copied();
        } else if let Some((name, value)) = word.split_once('=')
            && is_meant(name, names)
        {
            found = Some(value);
        }
    }
    found
}

/// Whether a flag is present, with or without a value.
pub fn has_flag(argv: &[&str], names: &[&str]) -> bool {
    argv.iter()
        .any(|word| is_meant(word.split('=').next().unwrap_or(word), names))
}

/// argparse refuses ambiguous prefixes, so a command that works has none.
fn is_meant(text: &str, names: &[&str]) -> bool {
    let is_beginning = text.len() > 3 && text.starts_with("--");
    names
        .iter()
        .any(|name| *name == text || is_beginning && name.starts_with(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn servers_and_benchmarks_are_recognised() {
        for (line, expected) in [
            ("python3 -m sglang.launch_server --tp 8", Some(Role::Server)),
            (
                "/opt/venv/bin/python3.12 -u -X dev -m sglang.launch_server",
                Some(Role::Server),
            ),
            ("python3 -um sglang.launch_server", Some(Role::Server)),
            ("python python/sglang/launch_server.py", Some(Role::Server)),
            ("sglang serve --model-path m", Some(Role::Server)),
            ("/v/bin/python /v/bin/sglang serve m", Some(Role::Server)),
            ("python3 -m sglang.bench_serving", Some(Role::Benchmark)),
            ("python3 -m sglang.benchmark.serving", Some(Role::Benchmark)),
            (
                "python3 utils/bench_serving/benchmark_serving.py",
                Some(Role::Benchmark),
            ),
            ("python3 /v/bin/vllm bench serve", Some(Role::Benchmark)),
            ("genai-bench benchmark", Some(Role::Benchmark)),
            ("curl -sf http://127.0.0.1:30000/health", Some(Role::Probe)),
            ("vllm serve m", Some(Role::OtherServer)),
            ("python3 train.py -m sglang.launch_server", None),
            ("python3 -c import -m sglang.launch_server", None),
            ("sglang version", None),
            ("echo sglang.launch_server", None),
            ("grep launch_server.py log", None),
        ] {
            assert_eq!(role(&words(line)), expected, "{line}");
        }
        assert_eq!(
            client(&words("python3 -m sglang.bench_serving")),
            Client::Sglang
        );
        assert_eq!(client(&words("vllm bench serve")), Client::Vllm);
        assert_eq!(client(&words("genai-perf profile")), Client::Other);
    }

    #[test]
    fn wrappers_that_set_cpus_or_priorities_are_looked_through() {
        for line in [
            "numactl -N 0 --membind 0 taskset -c 0-7 python3 a",
            "timeout -k 5 1h python3 a",
            "taskset 0xff nice -n 5 chrt -f 50 python3 a",
            "python3 a",
        ] {
            assert_eq!(looked_through(&words(line)), words("python3 a"), "{line}");
        }
    }

    #[test]
    fn only_commands_that_start_things_elsewhere_are_elsewhere() {
        for (line, expected) in [
            ("docker exec -it c bash -c x", Some("docker exec")),
            ("docker --context far run --rm image", Some("docker run")),
            ("docker compose -f a.yml up -d", Some("docker compose")),
            ("docker-compose up", Some("docker compose")),
            ("docker ps", None),
            ("kubectl apply -f pod.yaml", Some("kubectl apply")),
            ("srun --gpus 8 python3", Some("srun")),
            ("ssh node2 python3", Some("ssh")),
            ("conda run -n x python3", None),
            ("python3 x", None),
        ] {
            assert_eq!(elsewhere(&words(line)).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn the_last_of_two_equal_flags_counts_and_a_beginning_stands_for_its_name() {
        let argv = words("x --tp-size 4 --port=30001 --tp=8");
        assert_eq!(flag(&argv, &["--tp-size", "--tp"]), Some("8"));
        assert_eq!(flag(&argv, &["--port"]), Some("30001"));
        assert_eq!(flag(&argv, &["--host"]), None);
        let argv = words("x --tensor-parallel 8 --model-pa=/m --mo x");
        assert_eq!(
            flag(&argv, &["--tp-size", "--tensor-parallel-size"]),
            Some("8")
        );
        assert_eq!(flag(&argv, &["--model-path"]), Some("x"));
        assert!(has_flag(&argv, &["--model-path"]) && !has_flag(&argv, &["--port"]));
    }
}
