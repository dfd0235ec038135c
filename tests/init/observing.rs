//! Servers that run: found by their process, or started and watched.

use std::process::Command;

use serde_json::Value;

use crate::said::{line, plain, refusal};
use crate::support::{Job, Running, python3, text, tree_of, wait_for, watching};

#[test]
fn a_running_server_is_observed_with_every_variable_it_may_read() {
    let job = Job::new("");
    let port = crate::ports::reserve().to_string();
    let server = Running(
        python3(&job)
            .args([
                "-m",
                "sglang.launch_server",
                "--model-path",
                "/m",
                "--tp",
                "2",
                "--port",
                &port,
            ])
            .envs([
                ("SGLANG_USE_AITER", "1"),
                ("SAFETENSORS_FAST_GPU", "1"),
                ("USE_ROCM_AITER_ROPE_BACKEND", "0"),
                ("DEBUG_HIP_BLOCK_SYN", "1024"),
                ("TOKENIZERS_PARALLELISM", "false"),
                ("MC_GID_INDEX", "3"),
                ("SOME_OTHER_SWITCH", "1"),
                ("HF_TOKEN", "hunter2"),
                ("SSH_CONNECTION", "1 2"),
            ])
            .spawn()
            .unwrap(),
    );
    let pid = server.0.id().to_string();
    wait_for("the server listens", || {
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok()
    });
    let output = job.init(&["--pid", &pid]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // Which GPU and which weights is not known here, so what can tune either way is proposed, and the other kind is said.
    let said = text(&output.stderr);
    insta::assert_snapshot!(line(&said, "aiter's Triton GEMM"), @"warning: from 0.5.6 on SGLang runs block-FP8 GEMMs on MI300X and MI325X with aiter's Triton GEMM, which reads no CSV table: `aiter` tunes kernels that CSV tables name and sends the GEMMs to them that become faster, `aiter-triton` tunes the rows of the Triton GEMM and switches nothing");
    let config: toml::Table = job.written().parse().unwrap();
    assert_eq!(config["backend"]["kind"].as_str(), Some("aiter"));
    let server = &config["server"];
    assert_eq!(config["workload"]["tp"].as_integer(), Some(2));
    assert_eq!(server["port"].as_integer().unwrap().to_string(), port);
    assert_eq!(server["command"][1].as_str(), Some("-m"));
    for name in [
        "SGLANG_USE_AITER",
        "SAFETENSORS_FAST_GPU",
        "USE_ROCM_AITER_ROPE_BACKEND",
        "DEBUG_HIP_BLOCK_SYN",
        "TOKENIZERS_PARALLELISM",
        "MC_GID_INDEX",
        "SOME_OTHER_SWITCH",
    ] {
        assert!(server["env"].get(name).is_some(), "{name}");
    }
    assert!(
        server["env"].get("HF_TOKEN").is_none() && server["env"].get("SSH_CONNECTION").is_none()
    );
    assert!(
        said.contains("SSH_CONNECTION"),
        "what is left out is named: {said}"
    );
    assert!(!job.written().contains("hunter2") && !said.contains("hunter2"));

    // Its ranks are not it.
    let rank = tree_of(&pid)[0].to_string();
    let output = job.init(&["--force", "--pid", &rank]);
    assert_eq!(output.status.code(), Some(10), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains(&format!("by process {pid},")), "{said}");
    insta::assert_snapshot!(plain(&said, &job.folder), @"
    error: failed to observe the server: look at process [pid]: it calls itself `sglang::scheduler_TP0`, which is no command line; it was started by process [pid], which may be the one meant

    hint: fix that, then run `gemmtune init` again
    ");
}

#[test]
fn a_process_that_is_no_server_is_refused() {
    let job = Job::new("");
    let sleeper = Running(Command::new("sleep").arg("60").spawn().unwrap());
    wait_for("it sleeps", || {
        fs_err::read(format!("/proc/{}/cmdline", sleeper.0.id()))
            .is_ok_and(|line| line.starts_with(b"sleep"))
    });
    let output = job.init(&["--pid", &sleeper.0.id().to_string()]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    insta::assert_snapshot!(plain(&text(&output.stderr), &job.folder), @"
    error: process [pid] is no SGLang server: it runs `sleep 60`

    hint: `pgrep -f launch_server` lists servers; the one meant is the first, not its `sglang::` ranks
    ");
    assert!(!job.folder.join("gemmtune.toml").exists());
}

#[test]
fn ctrl_c_ends_what_init_started_and_nothing_else() {
    let port = crate::ports::reserve().to_string();
    let job = Job::new(&format!(
        "export SGLANG_USE_AITER=1\nsetsid nohup python3 -m sglang.launch_server --model-path /m --port {port} > log 2>&1 &\nsleep 600\n"
    ));
    // Another server with the same command line.
    let other_port = crate::ports::reserve().to_string();
    let mut other = Running(
        python3(&job)
            .args([
                "-m",
                "sglang.launch_server",
                "--model-path",
                "/m",
                "--port",
                &other_port,
            ])
            .spawn()
            .unwrap(),
    );
    let mut init = watching(&job, &["--", "bash", "launch.sh"])
        .stderr(
            fs_err::File::create(job.folder.join("said"))
                .unwrap()
                .into_parts()
                .0,
        )
        .spawn()
        .unwrap();
    let said = || fs_err::read_to_string(job.folder.join("said")).unwrap();
    wait_for("the server is ready", || {
        said().contains("is ready on port")
    });
    let started = tree_of(&init.id().to_string());
    assert!(
        started.len() >= 4,
        "keeper, shell, sleep, server, rank: {started:?}"
    );
    let interrupted = Command::new("kill")
        .args(["-INT", &init.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupted.success());
    assert!(init.wait().unwrap().success(), "{}", said());
    for pid in started {
        let state = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(
            state.is_empty() || state.contains(") Z"),
            "{pid} is left: {state}"
        );
    }
    assert!(
        other.0.try_wait().unwrap().is_none(),
        "a server that was not started here was ended"
    );
    let config: toml::Table = job.written().parse().unwrap();
    assert_eq!(
        config["server"]["port"].as_integer().unwrap().to_string(),
        port
    );
    assert_eq!(
        config["server"]["env"]["SGLANG_USE_AITER"].as_str(),
        Some("1")
    );
}

#[test]
fn a_command_that_starts_no_server_writes_nothing_and_says_what_it_saw() {
    let job = Job::new("echo hello; exit 3\n");
    let output = watching(&job, &["--", "bash", "launch.sh"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    assert!(text(&output.stderr).contains("hello"), "{output:?}");
    insta::assert_snapshot!(refusal(&output, &job.folder), @"
    error: `bash launch.sh` started no SGLang server and ended with code 3

    hint: run it without gemmtune first; a server is recognised by `sglang.launch_server`, `sglang serve`, or its answers
    ");
    assert!(!job.folder.join("gemmtune.toml").exists());
    let output = watching(&job, &["--", "/no/such/program"])
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(0));
    insta::assert_snapshot!(line(&text(&output.stderr), "gemmtune keeper"), @"gemmtune keeper: failed to start `/no/such/program`: No such file or directory (os error 2)");
    insta::assert_snapshot!(refusal(&output, &job.folder), @"
    error: `/no/such/program` started no SGLang server and ended with code 127

    hint: run it without gemmtune first; a server is recognised by `sglang.launch_server`, `sglang serve`, or its answers
    ");
}

#[test]
fn a_server_that_dies_early_is_written_down_with_a_warning() {
    let job = Job::new(
        "SGLANG_USE_AITER=1 python3 -m sglang.launch_server --model-path /m --port nonsense\nwhile true; do sleep 0.1; done\n",
    );
    let output = watching(&job, &["--json", "--", "bash", "launch.sh"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["watched"]["ended_by"], "server ended");
    assert_eq!(said["watched"]["ready"], false);
    let notes = format!("{:#}", said["notes"]);
    insta::assert_snapshot!(line(&notes, "ended before it was ready").trim(), @r#""the server ended before it was ready; what it was started with is in the file all the same","#);
}
