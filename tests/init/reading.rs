//! Scripts that are read, and what is never written.

use std::process::Command;

use camino::Utf8Path;
use gemmtune::store::file::write_atomic;
use gemmtune::workload::config::{BackendKind, Config, Measure};
use serde_json::Value;

use crate::said::{line, plain};
use crate::support::{Job, WHOLE, text};

#[test]
fn a_whole_script_gives_a_configuration_that_is_accepted() {
    let job = Job::new(WHOLE);
    let output = job.init(&["launch.sh"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    let config = Config::parse(&job.written()).unwrap();
    let python = job.folder.join("venv/bin/python3");
    assert_eq!(config.workload.name, "launch");
    assert_eq!(
        (config.workload.tp, config.workload.concurrency),
        (2, Some(16))
    );
    assert_eq!(config.server.command.as_ref().unwrap()[0], python.as_str());
    assert_eq!(config.server.port, 31000);
    assert_eq!(config.server.cwd.as_deref(), Some(job.folder.as_path()));
    assert_eq!(config.server.env["SGLANG_USE_AITER"], "1");
    assert_eq!(
        (config.backend.kind, config.backend.python.as_deref()),
        (BackendKind::Aiter, Some(python.as_path()))
    );
    let Measure::Command { command, results } = config.measure().unwrap() else {
        panic!("a command was there")
    };
    assert_eq!(
        command[command.len() - 2..],
        ["--output-file", "bench.jsonl"]
    );
    assert_eq!(results, "bench.jsonl");
    assert!(
        !job.written().contains("hunter2"),
        "a secret is never copied"
    );
}

#[test]
fn what_could_not_be_told_is_asked_for_by_name_and_stands_in_the_file() {
    let job = Job::new("python9 -m sglang.launch_server --model-path $1 --tp 8\n");
    let output = job.init(&["launch.sh", "--json"]);
    assert!(output.status.success());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["complete"], false);
    let asked: Vec<_> = said["questions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|question| question["name"].as_str().unwrap())
        .collect();
    // Where there are GPUs they decide the kind.
    let asked: Vec<_> = asked
        .into_iter()
        .filter(|name| *name != "backend.kind")
        .collect();
    assert_eq!(
        asked,
        [
            "workload.model",
            "workload.concurrency",
            "server.command",
            "server.port",
            "benchmark.command",
            "backend.python"
        ]
    );
    let written = job.written();
    insta::assert_snapshot!(line(&written, "# ? command"), @"# ? command = … # `$1` depends on argument 1 of the script; as written: python9 -m sglang.launch_server --model-path $1 --tp 8");
    assert!(
        Config::parse(&written).is_err(),
        "an unfinished draft is not accepted by accident"
    );
}

#[test]
fn a_configuration_that_is_there_is_kept() {
    let job = Job::new(WHOLE);
    write_atomic(&job.folder.join("gemmtune.toml"), b"mine").unwrap();
    let output = job.init(&["launch.sh"]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(text(&output.stderr), @"
    error: `gemmtune.toml` is there already

    hint: use `--force` to replace it, or `-o OTHER.toml`
    ");
    assert_eq!(job.written(), "mine");
    assert!(job.init(&["launch.sh", "--force"]).status.success());
    assert!(job.written().contains("[server]"));
}

#[test]
fn secrets_of_a_script_are_neither_written_nor_printed() {
    let job = Job::new(
        "export HF_TOKEN=hunter2 TOKENIZERS_PARALLELISM=false SGLANG_USE_AITER=1 WANDB_API_KEY=hunter2\n\
         python3 -m sglang.launch_server --model-path /m --api-key hunter2 --admin-api-key=hunter2 --x $NOPE\n\
         docker run -e HF_TOKEN=hunter2 sglang python3 -m sglang.launch_server --api-key hunter2\n\
         OPENAI_API_KEY=hunter2 python3 -m sglang.bench_serving --header Authorization=hunter2-and-more --num-prompts 1\n",
    );
    let output = job.init(&["launch.sh", "--json"]);
    let all = format!(
        "{}{}{}",
        text(&output.stdout),
        text(&output.stderr),
        job.written()
    );
    assert!(!all.contains("hunter2"), "{all}");
    assert!(job.written().contains("TOKENIZERS_PARALLELISM = \"false\""));
}

#[test]
fn inputs_are_never_written_over_and_what_is_no_file_is_refused() {
    let job = Job::new(WHOLE);
    let before = fs_err::read(job.folder.join("launch.sh")).unwrap();
    fs_err::hard_link(job.folder.join("launch.sh"), job.folder.join("same.toml")).unwrap();
    for arguments in [
        &["launch.sh", "--force", "-o", "launch.sh"][..],
        &["launch.sh", "--force", "-o", "same.toml"],
        &["--force", "-o", "launch.sh", "--", "bash", "launch.sh"],
    ] {
        let output = job.init(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert_eq!(
            fs_err::read(job.folder.join("launch.sh")).unwrap(),
            before,
            "{arguments:?}"
        );
    }
    assert!(
        Command::new("mkfifo")
            .arg(job.folder.join("pipe"))
            .status()
            .unwrap()
            .success()
    );
    write_atomic(&job.folder.join("long.sh"), "x".repeat(8 << 20).as_bytes()).unwrap();
    write_atomic(
        &job.folder.join("wild.sh"),
        b"source '\x1b[2Jx'\n$Y\x1b[31m\n\x1b[0m if (\n",
    )
    .unwrap();
    for input in ["pipe", "/dev/zero", "/dev/stdin", ".", "long.sh", "wild.sh"] {
        let started = std::time::Instant::now();
        let output = job.init(&[input]);
        assert_eq!(output.status.code(), Some(2), "{input}: {output:?}");
        assert!(
            started.elapsed() < std::time::Duration::from_secs(8),
            "{input}"
        );
        assert!(!output.stderr.contains(&0x1b), "{input}: {output:?}");
        assert!(!job.folder.join("gemmtune.toml").exists());
    }
}

#[test]
fn what_stands_in_a_container_or_a_manifest_is_shown_with_the_way_to_go() {
    let job = Job::new(
        "docker run -d --device=/dev/kfd -e SGLANG_USE_AITER=1 lmsysorg/sglang:dev python3 -m sglang.launch_server --model-path Q/W --tp 1\n",
    );
    let output = job.init(&["launch.sh"]);
    insta::assert_snapshot!(line(&text(&output.stderr), "warning: "), @"warning: line 1 starts something with `docker run`, which was not entered: in `lmsysorg/sglang:dev` with SGLANG_USE_AITER=1: python3 -m sglang.launch_server --model-path Q/W --tp 1; gemmtune runs where the server runs: inside the container, `gemmtune init -- COMMAND` with that one (docs/guide/container.md says how to get it in and where things live)");
    assert!(
        !job.written().contains("SGLang's default"),
        "{}",
        job.written()
    );
    let pod = "spec:\n  containers:\n    - name: sglang\n      command: [\"/bin/bash\", \"-c\"]\n      args:\n        - |\n          exec python3 -m sglang.launch_server --tp-size 8\n";
    write_atomic(&job.folder.join("pod.yaml"), pod.as_bytes()).unwrap();
    let output = job.init(&["pod.yaml", "-o", "pod.toml"]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(plain(&text(&output.stderr), &job.folder), @"
    error: `pod.yaml` is a Kubernetes manifest, not a script, which runs
        python3 -m sglang.launch_server --tp-size 8

    hint: gemmtune runs where the server runs: inside the container, `gemmtune init -- COMMAND` with that one (docs/guide/container.md says how to get it in and where things live)
    ");
}

#[test]
fn a_rank_of_several_nodes_is_asked_for() {
    let job = Job::new(
        "SGLANG_USE_AITER=1 python3 -m sglang.launch_server --model-path /m --tp 32 --nnodes 4 --node-rank 2 --port 8000\n",
    );
    let output = job.init(&["launch.sh", "--json"]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let asked = said["questions"].as_array().unwrap().iter();
    let asked: Vec<&str> = asked.map(|asked| asked["why"].as_str().unwrap()).collect();
    insta::assert_snapshot!(line(&asked.join("\n"), "one of 4 nodes"), @"it is one of 4 nodes, and gemmtune starts a server on one: try a `--tp` that fits one node; as written: python3 -m sglang.launch_server --model-path /m --tp 32 --nnodes 4 --node-rank 2 --port 8000");
    assert_eq!(said["complete"], false);
}

#[test]
fn tables_and_dumps_that_go_into_the_baseline_are_named() {
    let job = Job::new(
        "export AITER_CONFIG_GEMM_A8W8_BLOCKSCALE=/t.csv AITER_LOG_TUNED_CONFIG=1 SGLANG_USE_AITER=1\npython3 -m sglang.launch_server --model-path /m\n",
    );
    let said = text(&job.init(&["launch.sh"]).stderr);
    let said = [
        "`AITER_CONFIG_GEMM_A8W8_BLOCKSCALE`",
        "`AITER_LOG_TUNED_CONFIG`",
    ]
    .map(|name| line(&said, name));
    insta::assert_snapshot!(said.join("\n"), @"
    warning: the baseline serves with the tables that `AITER_CONFIG_GEMM_A8W8_BLOCKSCALE` name: what is gained is gained over these
    warning: `AITER_LOG_TUNED_CONFIG` make the server log, dump or tune while it serves, in the baseline too: take them out of `[server.env]` unless production runs with them
    ");
}

#[test]
fn an_asked_variable_can_be_filled_in_where_it_stands() {
    let job = Job::new(
        "export SGLANG_USE_AITER=1\nexport HSA_NO_SCRATCH_RECLAIM=$(cat flag)\n\
         python3 -m sglang.launch_server --model-path /m --tp 8 &\npython3 -m sglang.bench_serving --num-prompts 10 --max-concurrency 4\n",
    );
    job.init(&["launch.sh"]);
    let written = job.written();
    insta::assert_snapshot!(line(&written, "HSA_NO_SCRATCH_RECLAIM"), @"# ? HSA_NO_SCRATCH_RECLAIM = … # it depends on the output of `$(cat flag)`");
    let filled: String = written
        .lines()
        .map(
            |line| match line.strip_prefix("# ? HSA_NO_SCRATCH_RECLAIM") {
                Some(_) => "HSA_NO_SCRATCH_RECLAIM = \"1\"\n".to_owned(),
                None => format!("{line}\n"),
            },
        )
        .collect();
    let config: toml::Table = filled.parse().unwrap();
    assert_eq!(
        config["server"]["env"].as_table().unwrap().len(),
        2,
        "{filled}"
    );
}

#[test]
fn several_benchmarks_become_loads_and_repeats_of_one_are_counted() {
    let start =
        "SGLANG_USE_AITER=1 python3 -m sglang.launch_server --model-path /m --port 31000 &\n";
    let bench = "python3 -m sglang.bench_serving --port 31000 --dataset-name random --random-input-len 512 --random-output-len 64";
    let job = Job::new(&format!(
        "{start}for c in 1 8; do {bench} --random-range-ratio 1 --num-prompts 16 --max-concurrency $c; done\n"
    ));
    job.init(&["launch.sh"]);
    let config: toml::Table = job.written().parse().unwrap();
    let loads = config["benchmark"]["loads"].as_array().unwrap();
    assert_eq!(loads.len(), 2);
    assert_eq!(loads[1]["name"].as_str(), Some("c8-512x64"));
    assert_eq!(
        (
            loads[1]["concurrency"].as_integer(),
            loads[1]["prompts"].as_integer()
        ),
        (Some(8), Some(16))
    );
    let job = Job::new(&format!(
        "{start}for i in 1 2 3; do {bench} --max-concurrency 4 --output-file out/$i.jsonl; done\n"
    ));
    job.init(&["launch.sh"]);
    let config: toml::Table = job.written().parse().unwrap();
    assert_eq!(config["benchmark"]["repeats"].as_integer(), Some(3));
    assert_eq!(
        config["benchmark"]["results"].as_str(),
        Some("1.jsonl"),
        "{}",
        job.written()
    );
    // Prompts that gemmtune's generator does not make stay the user's own commands.
    let job = Job::new(&format!(
        "{start}for c in 1 8; do python3 -m sglang.bench_serving --port 31000 --num-prompts 16 --max-concurrency $c; done\n"
    ));
    job.init(&["launch.sh"]);
    let config: toml::Table = job.written().parse().unwrap();
    let command = config["benchmark"]["command"].as_array().unwrap();
    assert_eq!(command[0].as_str(), Some("bash"));
    assert_eq!(
        command[2]
            .as_str()
            .unwrap()
            .matches("--output-file bench.jsonl")
            .count(),
        2
    );
}

#[test]
fn a_missing_script_a_script_that_is_none_and_a_dead_process_are_clear_errors() {
    let job = Job::new("if then fi (");
    let said = [
        (&["launch.sh"][..], 2),
        (&["missing.sh"], 2),
        (&["--pid", "999999999"], 10),
    ]
    .map(|(arguments, code)| {
        let output = job.init(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(!Utf8Path::new(&job.folder).join("gemmtune.toml").exists());
        text(&output.stderr).replace(job.folder.as_str(), "[folder]")
    });
    insta::assert_snapshot!(said.join("\n"), @"
    error: failed to understand the script: read the script: it does not seem to be bash: syntax error at line 1 col 9

    hint: let it run once instead: `gemmtune init -- bash SCRIPT ARGUMENTS` writes down what is really started

    error: failed to read the script: failed to query resolved metadata `missing.sh`: No such file or directory (os error 2)

    hint: let it run once instead: `gemmtune init -- bash SCRIPT ARGUMENTS` writes down what is really started

    error: failed to observe the server: look at process 999999999: failed to open file `/proc/999999999/cmdline`: No such file or directory (os error 2)

    hint: fix that, then run `gemmtune init` again
    ");
}

#[test]
fn what_may_stand_in_a_file_of_options_is_asked_for() {
    let job =
        Job::new("python3 -m sglang.launch_server --config server.yaml --fp8-gemm-backend triton");
    job.init(&["launch.sh"]);
    let written = job.written();
    let asked = ["model", "tp", "port"].map(|name| line(&written, &format!("# ? {name} = ")));
    insta::assert_snapshot!(asked.join("\n"), @"
    # ? model = … # it may stand in `server.yaml` (`--config`)
    # ? tp = … # it may stand in `server.yaml` (`--config`)
    # ? port = … # it may stand in `server.yaml` (`--config`)
    ");
}

#[test]
fn of_a_model_with_experts_it_is_said_that_their_fused_moe_is_tuned_too() {
    let said = |experts: u32, flags: &str| {
        let job = Job::new(&format!(
            "venv/bin/python3 -m sglang.launch_server --model-path model --fp8-gemm-backend triton {flags}\n"
        ));
        let config = format!("{{\"num_experts\": {experts}}}");
        fs_err::create_dir(job.folder.join("model")).unwrap();
        fs_err::write(job.folder.join("model/config.json"), config).unwrap();
        text(&job.init(&["launch.sh"]).stderr).contains("backend.fused_moe")
    };
    assert!(said(128, ""));
    assert!(said(128, "--moe-runner-backend triton"));
    assert!(
        !said(128, "--moe-runner-backend cutlass"),
        "which reads no table"
    );
    assert!(!said(1, ""));
}

#[test]
fn of_experts_on_aiter_it_is_said_whether_their_fused_moe_is_tuned() {
    let init = |config: &str, flags: &str| {
        let job = Job::new(&format!(
            "export SGLANG_USE_AITER=1\nvenv/bin/python3 -m sglang.launch_server --model-path model {flags}\n"
        ));
        fs_err::create_dir(job.folder.join("model")).unwrap();
        fs_err::write(job.folder.join("model/config.json"), config).unwrap();
        let said = text(&job.init(&["launch.sh"]).stderr);
        let written: toml::Table = job.written().parse().unwrap();
        (
            written["backend"]["kind"].as_str().unwrap().to_owned(),
            said,
        )
    };
    let of = |quantization: &str| {
        format!("{{\"num_experts\": 128, \"quantization_config\": {quantization}}}")
    };
    let blocks = of("{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]}");
    let (kind, said) = init(&blocks, "");
    assert_eq!(kind, "aiter");
    assert!(
        said.contains("aiter's fused MoE of them is tuned in the same run"),
        "{said}"
    );
    let (_, said) = init(&blocks, "--moe-runner-backend triton");
    assert!(said.contains("sglang-moe"), "{said}");
    let channel = of(
        "{\"quant_method\": \"compressed-tensors\", \"config_groups\": {\"g\": {\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"channel\"}}}}",
    );
    for (config, named) in [
        (channel, "one scale per token and channel"),
        (of("{\"quant_method\": \"mxfp4\"}"), "FP4 experts"),
    ] {
        let (kind, said) = init(&config, "");
        assert_eq!(kind, "aiter");
        assert!(
            said.contains("nothing is tuned") && said.contains(named),
            "{said}"
        );
    }
    let (_, said) = init("{\"num_experts\": 1}", "");
    assert!(!said.contains("fused MoE"), "{said}");
}

#[test]
fn after_what_only_running_follows_a_script_is_refused_with_the_line_and_the_way_to_watch() {
    let server = "python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton";
    let said = [
        "source venv/bin/activate",
        "conda activate sgl",
        "[ -e on ] && export SGLANG_USE_AITER=1",
    ]
    .map(|before| {
        let job = Job::new(&format!("{before}\n{server}\n"));
        let said = text(&job.init(&["launch.sh"]).stderr);
        let written = job.written();
        assert!(!written.contains("\ncommand = "), "{written}");
        [said, written]
            .map(|text| line(&text, "line 2 is not certain").to_owned())
            .join("\n")
    });
    insta::assert_snapshot!(said.join("\n"), @"
      ? server.command (needed): line 2 is not certain: line 1 runs `source venv/bin/activate`, which only running it follows; `gemmtune init -- bash SCRIPT` sees it; as written: python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton
    # ? command = … # line 2 is not certain: line 1 runs `source venv/bin/activate`, which only running it follows; `gemmtune init -- bash SCRIPT` sees it; as written: python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton
      ? server.command (needed): line 2 is not certain: line 1 runs `conda activate`, which only running it follows; `gemmtune init -- bash SCRIPT` sees it; as written: python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton
    # ? command = … # line 2 is not certain: line 1 runs `conda activate`, which only running it follows; `gemmtune init -- bash SCRIPT` sees it; as written: python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton
      ? server.command (needed): line 2 is not certain: the condition at line 1 is not decided by reading; `gemmtune init -- bash SCRIPT` sees it; as written: python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton
    # ? command = … # line 2 is not certain: the condition at line 1 is not decided by reading; `gemmtune init -- bash SCRIPT` sees it; as written: python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton
    ");
    // Where the server stands before it, what comes after is said to be missing, and asked for.
    let again = format!("again() {{ {server} --port 1; }}\n");
    let job = Job::new(&format!("{server} &\n{again}again\n"));
    let said = text(&job.init(&["launch.sh"]).stderr);
    insta::assert_snapshot!(line(&said, "line 2 names SGLang's server too"), @"  ? server.command (needed): line 2 names SGLang's server too, and line 3 calls the function `again`, which only running it follows; `gemmtune init -- bash SCRIPT` sees it; as written: python3 -m sglang.launch_server --model-path /m --fp8-gemm-backend triton");
    let bench = "python3 -m sglang.bench_serving --port 30000";
    let job = Job::new(&format!(
        "SGLANG_USE_AITER=1 {server} &\n{bench}\nmore() {{ {bench} --seed 2; }}\nmore\n"
    ));
    let said = text(&job.init(&["launch.sh"]).stderr);
    let said = [
        "not all of the script was followed",
        "benchmark.command (needed)",
    ]
    .map(|part| line(&said, part));
    insta::assert_snapshot!(said.join("\n"), @"
    warning: not all of the script was followed: line 4 calls the function `more`, which only running it follows; `gemmtune init -- bash SCRIPT` sees all that it starts
      ? benchmark.command (needed): line 2 is not certain: line 3 names a benchmark too, and line 4 calls the function `more`, which only running it follows
    ");
    assert!(job.written().contains("\ncommand = "), "{}", job.written());
}

#[test]
fn a_server_that_asks_for_a_key_is_remarked() {
    for (key, remarked) in [("--api-key s3", true), ("--api-key=s3", true), ("", false)] {
        let job = Job::new(&format!(
            "python3 -m sglang.launch_server --model-path /m {key}"
        ));
        let said = text(&job.init(&["launch.sh"]).stderr);
        let about_it = said.contains("asks for a key");
        assert_eq!(about_it, remarked, "{key}: {said}");
    }
}

#[test]
fn a_server_that_listens_elsewhere_is_remarked() {
    let job = Job::new("python3 -m sglang.launch_server --model-path /m --host 10.0.0.5");
    let output = job.init(&["launch.sh"]);
    insta::assert_snapshot!(line(&text(&output.stderr), "listens on 10.0.0.5"), @"warning: the server listens on 10.0.0.5 and gemmtune asks at 127.0.0.1: change `--host` in the command to 127.0.0.1 or 0.0.0.0");
}
