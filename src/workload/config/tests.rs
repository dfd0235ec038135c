use super::*;

const SMALL: &str = r#"
        [workload]
        name = "demo"
        [server]
        command = ["gemmtune", "reference-server", "--port", "31000"]
        port = 31000
        [benchmark]
        builtin = { concurrency = 4, prompts = 16, input_len = 128, output_len = 64 }
        [backend]
        kind = "reference"
    "#;

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn a_small_configuration_gets_documented_defaults() {
    let config = Config::parse(SMALL).unwrap();
    assert_eq!(config.workload.tp, 1);
    assert_eq!(config.ready_url(), "http://127.0.0.1:31000/health");
    assert_eq!(config.server.ready_timeout_s, 1800);
    assert_eq!(config.compare.metric, "output_throughput");
    assert_eq!(config.compare.pairs, 6);
    assert_eq!(config.budget.tune, Span::seconds(1800));
    let Measure::Builtin(load) = config.measure().unwrap() else {
        panic!("the builtin load was asked for");
    };
    assert_eq!((load[0].warmup, load[0].seed), (1, 0));
}

#[test]
fn what_is_written_is_read_back_equal() {
    let config = Config::parse(SMALL).unwrap();
    assert_eq!(Config::parse(&config.to_toml()).unwrap(), config);
}

#[test]
fn an_unknown_name_is_refused_with_its_line() {
    let error = error(&SMALL.replace("port = 31000", "prot = 31000"));
    insta::assert_snapshot!(error, @"
        read the configuration: TOML parse error at line 6, column 9
          |
        6 |         prot = 31000
          |         ^^^^
        unknown field `prot`, expected one of `command`, `script`, `cwd`, `env`, `unset`, `port`, `ready_url`, `ready_log`, `ready_timeout_s`, `stop_timeout_s`
        ");
}

#[test]
fn exactly_one_way_to_start_and_to_measure_is_accepted() {
    let both = SMALL.replace("port = 31000", "script = \"launch.sh\"");
    let neither = SMALL.replace("builtin =", "# builtin =");
    let blind = SMALL.replace(
        "builtin = { concurrency = 4, prompts = 16, input_len = 128, output_len = 64 }",
        "command = [\"bench\"]",
    );
    let said = [both, neither, blind].map(|text| error(&text));
    insta::assert_snapshot!(said.join("\n"), @"
        accept the configuration: `[server]` needs exactly one of `command` and `script`, and has both
        accept the configuration: `[benchmark]` needs exactly one of `command` and `builtin`, and has neither
        accept the configuration: `benchmark.results` is missing: `benchmark.command` writes its results to a file, and only you know which
        ");
}

#[test]
fn values_no_run_could_work_with_are_refused_by_name() {
    let said = [
        ("\"demo\"", "\"../demo\""),
        ("\"demo\"", "\"\""),
        ("prompts = 16", "prompts = 0"),
        ("port = 31000", "port = 0"),
        ("port = 31000", "env = { \"A=B\" = \"1\" }"),
        ("port = 31000", "env = { A = \"1\" }\nunset = [\"A\"]"),
        ("kind = \"reference\"", "kind = \"aiter\""),
        ("kind = \"reference\"", "kind = \"cuda\""),
        (
            "\"gemmtune\", \"reference-server\", \"--port\", \"31000\"",
            "",
        ),
    ]
    .map(|(from, to)| error(&SMALL.replacen(from, to, 1)));
    // The toy exists in tests only.
    let said = said.join("\n").replace(", `toy`", "");
    insta::assert_snapshot!(said, @r#"
        accept the configuration: `workload.name = "../demo"`: letters, digits, `.`, `_` and `-`, and no `.` in front: it names a folder
        accept the configuration: `workload.name = ""`: letters, digits, `.`, `_` and `-`, and no `.` in front: it names a folder
        accept the configuration: `benchmark.builtin.prompts = 0`: at least 1 is expected
        accept the configuration: `server.port = 0`: at least 1 is expected
        accept the configuration: `server.env = "A=B"`: the name of an environment variable is expected
        accept the configuration: `server.unset = "A"`: the same variable is set in `server.env`
        accept the configuration: `backend.python` is missing: the interpreter that runs the server decides which trees are used
        read the configuration: TOML parse error at line 10, column 16
           |
        10 |         kind = "cuda"
           |                ^^^^^^
        unknown variant `cuda`, expected one of `reference`, `sglang-triton`, `sglang-families`, `sglang-moe`, `aiter`, `aiter-triton`

        accept the configuration: `server.command = []`: a program is expected
        "#);
}

#[test]
fn an_operation_is_named_as_the_runtime_names_it() {
    let text = SMALL.replace(
        "kind = \"reference\"",
        "kind = \"reference\"\nop = \"gemm_a8w8_blockscale\"",
    );
    assert_eq!(
        Config::parse(&text).unwrap().backend.op,
        Some(Op::Blockscale)
    );
}
