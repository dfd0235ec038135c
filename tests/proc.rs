//! Children and their trees, with the real keeper.

use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use gemmtune::proc::interrupt::Urgency;
use gemmtune::proc::{Interrupt, Keeper, Spawn, WaitOutcome, run};

fn keeper() -> Keeper {
    Keeper::new(Utf8PathBuf::from(env!("CARGO_BIN_EXE_gemmtune")))
}

fn shell(script: &str) -> Vec<String> {
    ["bash", "-c", script].map(str::to_owned).to_vec()
}

/// Waits until `path` holds `count` numbers, and returns them.
fn numbers(path: &Utf8PathBuf, count: usize) -> Vec<u32> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let text = fs_err::read_to_string(path).unwrap_or_default();
        let found: Vec<u32> = text
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < until, "`{path}` holds {text:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_alive(pid: u32) -> bool {
    fs_err::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn gone(pids: &[u32]) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while pids.iter().any(|&pid| is_alive(pid)) {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
    (folder, path)
}

/// Children of every kind: in the group, ignoring SIGTERM in a session of its own, without a terminal.
const STUBBORN: &str = r#"
sleep 300 & echo $! >> "$PIDS"
setsid bash -c 'trap "" TERM; echo $$ >> "$PIDS"; while :; do sleep 1; done' &
nohup sleep 300 >/dev/null 2>&1 & echo $! >> "$PIDS"
wait
"#;

#[test]
fn stopping_a_child_leaves_no_descendant_of_any_kind() {
    let (_keep, folder) = scratch();
    let pids = folder.join("pids");
    let mut spawn = Spawn::new(shell(STUBBORN), &folder.join("log")).env("PIDS", pids.as_str());
    spawn.grace = Duration::from_millis(300);
    let mut kept = spawn.start(&keeper()).unwrap();
    let started = numbers(&pids, 3);
    kept.stop(Urgency::Stop, &Interrupt::new());
    assert!(gone(&started), "left alive of {started:?}");
}

#[test]
fn a_keeper_whose_parent_is_killed_ends_the_tree() {
    let (_keep, folder) = scratch();
    let pids = folder.join("pids");
    fs_err::write(folder.join("stubborn.sh"), STUBBORN).unwrap();
    // The outer shell stands for gemmtune: it alone holds the write end of the lifeline.
    let script = format!(
        "coproc LIFE {{ exec 3<&0; PIDS={pids} exec {} keeper --lifeline-fd 3 --grace-ms 100 -- bash {folder}/stubborn.sh; }}
         wait",
        env!("CARGO_BIN_EXE_gemmtune"),
    );
    let mut parent = std::process::Command::new("bash")
        .arg("-c")
        .arg(script)
        .spawn()
        .unwrap();
    let started = numbers(&pids, 3);
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(gone(&started), "left alive of {started:?}");
}

#[test]
fn the_tree_of_a_killed_keeper_is_ended_before_its_end_is_told() {
    let (_keep, folder) = scratch();
    let pids = folder.join("pids");
    let spawn = Spawn::new(shell(STUBBORN), &folder.join("log")).env("PIDS", pids.as_str());
    let mut kept = spawn.start(&keeper()).unwrap();
    let started = numbers(&pids, 3);
    let keeper = nix::unistd::Pid::from_raw(kept.pid().cast_signed());
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(
        kept.wait(Duration::from_secs(20), &Interrupt::new()),
        WaitOutcome::Exited(127)
    );
    assert!(gone(&started), "left alive of {started:?}");
}

#[test]
fn exit_codes_and_signals_come_through() {
    let (_keep, folder) = scratch();
    let code = |script: &str| {
        let mut kept = Spawn::new(shell(script), &folder.join("log"))
            .start(&keeper())
            .unwrap();
        kept.wait(Duration::from_secs(10), &Interrupt::new())
    };
    assert_eq!(code("exit 0"), WaitOutcome::Exited(0));
    assert_eq!(code("exit 7"), WaitOutcome::Exited(7));
    assert_eq!(code("kill -SEGV $$"), WaitOutcome::Exited(139));
}

#[test]
fn a_program_that_does_not_exist_is_named_in_the_log() {
    let (_keep, folder) = scratch();
    let log = folder.join("log");
    let argv = vec!["no-such-program-here".to_owned()];
    let mut kept = Spawn::new(argv, &log).start(&keeper()).unwrap();
    assert_eq!(
        kept.wait(Duration::from_secs(10), &Interrupt::new()),
        WaitOutcome::Exited(127)
    );
    let text = fs_err::read_to_string(&log).unwrap();
    insta::assert_snapshot!(text, @"gemmtune keeper: failed to start `no-such-program-here`: No such file or directory (os error 2)");
}

#[test]
fn a_command_that_leaves_a_daemon_ends_with_it() {
    let (_keep, folder) = scratch();
    let pids = folder.join("pids");
    let script = "setsid sleep 300 & echo $! > \"$PIDS\"";
    let mut spawn = Spawn::new(shell(script), &folder.join("log")).env("PIDS", pids.as_str());
    spawn.grace = Duration::from_millis(100);
    let mut kept = spawn.start(&keeper()).unwrap();
    assert_eq!(
        kept.wait(Duration::from_secs(10), &Interrupt::new()),
        WaitOutcome::Exited(0)
    );
    assert!(gone(&numbers(&pids, 1)));
}

#[test]
fn a_run_has_a_deadline_and_keeps_both_streams_apart() {
    let limit = Duration::from_secs(10);
    let argv = shell("echo out; echo err >&2; exit 3");
    let ran = run(&keeper(), &argv, None, [], limit, &Interrupt::new()).unwrap();
    assert_eq!(
        (ran.code, &ran.stdout[..], &ran.stderr[..]),
        (3, &b"out\n"[..], &b"err\n"[..])
    );

    let start = Instant::now();
    let limit = Duration::from_millis(200);
    let slow = run(
        &keeper(),
        &shell("sleep 60"),
        None,
        [],
        limit,
        &Interrupt::new(),
    );
    let error = slow.unwrap_err();
    insta::assert_snapshot!(error, @"run `bash`: no answer within 200ms");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_interrupt_wakes_a_wait() {
    let (_keep, folder) = scratch();
    let interrupt = Interrupt::new();
    let mut kept = Spawn::new(shell("sleep 60"), &folder.join("log"))
        .start(&keeper())
        .unwrap();
    interrupt.raise();
    assert_eq!(
        kept.wait(Duration::from_secs(60), &interrupt),
        WaitOutcome::Interrupted(Urgency::Stop)
    );
}
