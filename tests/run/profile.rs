//! Where the time of a step goes, told by the played server's profiler.

use std::time::{Duration, Instant};

use camino::Utf8Path;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::said::{line, plain};
use super::schema::check;
use super::sglang_triton::Scene;
use super::support::{document, stderr};

#[test]
fn the_baselines_server_says_where_its_time_goes_by_load() {
    let scene = Scene::new(1, &[]);
    scene.change(|config| {
        config.replace(
            "[[benchmark.loads]]\nname = \"decode-1\"",
            "[benchmark]\nkeep_traces = true\n[[benchmark.loads]]\nname = \"decode-1\"",
        )
    });
    let output = scene.run(&["run", "--until", "plan"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = scene.latest();
    let profile = document(&run.join("profile.json"));
    assert_eq!(profile["remarks"], serde_json::json!([]), "{profile}");
    let loads = profile["loads"].as_array().unwrap();
    for (load, (name, concurrency)) in loads.iter().zip([("decode-1", 1), ("decode-4", 4)]) {
        assert_eq!(
            (load["load"].as_str(), load["concurrency"].as_u64()),
            (Some(name), Some(concurrency))
        );
        let phases = &load["ranks"][0]["phases"];
        let decode = &phases[0];
        assert_eq!(decode["phase"], "decode", "{load}");
        assert_eq!(decode["told_by"], "step_spans");
        assert!(decode["steps"].as_u64().unwrap() > 10, "{decode}");
        // GEMMs take a fifth of a step as it is profiled, a quarter of the time in which anything runs.
        let bound = &decode["bound"]["operations"][0];
        let share = bound["share"].as_f64().unwrap();
        assert!((0.199..0.251).contains(&share), "{decode}");
        let at_most = bound["at_most"].as_f64().unwrap();
        assert!((at_most - 1.0 / (1.0 - share)).abs() < 1e-9, "{decode}");
        assert_eq!(
            decode["operations"][0]["families"][0]["family"],
            "SGLang Triton"
        );
        assert_eq!(decode["unknown"][0]["name"], "standin_sampler");
        assert!(decode["unprofiled_us"].as_f64().unwrap() > 0.0);
        assert_eq!(phases[1]["phase"], "prefill", "{load}");
        assert!((phases[1]["tokens"].as_f64().unwrap() - 12.0).abs() < 1e-9);
        let says = load["says"].as_str().unwrap();
        assert!(
            says.starts_with(&format!("{name}: dense FP8 GEMMs 2")),
            "{says}"
        );
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
    assert_eq!(loads.len(), 2);
    let journal = fs_err::read_to_string(run.join("journal.jsonl")).unwrap();
    assert!(journal.contains("x in a step at concurrency"), "{journal}");

    // The traces that were kept are ones that the command reads.
    let traces = run.join("profile");
    let output = scene.run(&["profile", traces.as_str(), "--json"], &[]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    check("profile", &told);
    assert_eq!(told["profiles"].as_array().unwrap().len(), 4);
    assert_eq!(told["slowest"][0]["rank"], "TP-0");
}

/// The remark of a run whose server's profiler is played in `mode`; the run goes on.
fn remarked(mode: &str) -> String {
    let scene = Scene::new(1, &[]);
    scene.change(|config| {
        config.replace(
            "[[benchmark.loads]]\nname = \"decode-1\"",
            "[benchmark]\ntimeout_s = 20\n[[benchmark.loads]]\nname = \"decode-1\"",
        )
    });
    let output = scene.run(&["run", "--until", "plan"], &[("STANDIN_PROFILER", mode)]);
    assert!(output.status.success(), "{mode}: {}", stderr(&output));
    let run = scene.latest();
    assert!(!run.join("profile").exists(), "no traces are left");
    let profile = document(&run.join("profile.json"));
    let remark = profile["remarks"][0].as_str().unwrap().to_owned();
    let said = stderr(&output);
    let said = line(
        &said,
        "the breakdown of the step time of decode-1 is incomplete",
    );
    assert!(said.ends_with(&remark), "{said}: {remark}");
    plain(said, &scene.folder)
}

#[test]
fn a_server_without_a_profiler_is_remarked_and_the_run_goes_on() {
    insta::assert_snapshot!(remarked("absent"), @"          the breakdown of the step time of decode-1 is incomplete: /start_profile answered 404 Not Found: Not Found");
}

#[test]
fn a_profiler_that_never_writes_is_given_up_in_time() {
    insta::assert_snapshot!(remarked("hangs"), @"          the breakdown of the step time of decode-1 is incomplete: no trace lay in `[folder]/runs/[time]-stand-in/profile/1-prefill` after 20 s (a server in a container writes to its own folders)");
}

#[test]
fn a_server_that_its_profiler_ends_has_served_its_baseline() {
    let said = remarked("dies");
    // The end of the server is seen as one of several errors.
    let (said, _) = said.split_once(": io: ").unwrap();
    insta::assert_snapshot!(said, @"          the breakdown of the step time of decode-1 is incomplete: /start_profile");
}

#[test]
fn a_trace_that_was_cut_off_is_remarked() {
    insta::assert_snapshot!(remarked("torn"), @"          the breakdown of the step time of decode-1 is incomplete: failed to read the trace `[folder]/runs/[time]-stand-in/profile/1-prefill/[time]-TP-0.trace.json.gz`: it ends early, so it was cut off or is still being written");
}

#[test]
fn an_interruption_during_the_profile_keeps_the_baseline_that_was_timed() {
    let scene = Scene::new(1, &[]);
    let mut interrupted = scene
        .command(&["run", "--until", "capture"])
        .env("STANDIN_PROFILER", "hangs")
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    while !scene.folder.join("runs/latest/profile/1-prefill").exists() {
        assert!(Instant::now() < until, "the profile never began");
        assert!(interrupted.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(
        Pid::from_raw(interrupted.id().cast_signed()),
        Signal::SIGINT,
    )
    .unwrap();
    assert_eq!(interrupted.wait().unwrap().code(), Some(130));
    let output = scene.run(&["run", "--until", "capture"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let trials = fs_err::read_dir(scene.latest().join("trials")).unwrap();
    let names: Vec<String> = trials
        .map(|trial| trial.unwrap().file_name().into_string().unwrap())
        .collect();
    let of = |role: &str| names.iter().filter(|name| name.contains(role)).count();
    assert_eq!((of("baseline"), of("capture")), (1, 1), "{names:?}");
}

#[test]
fn steps_without_names_are_told_by_their_graphs() {
    let scene = Scene::new(1, &[]);
    let output = scene.run(
        &["run", "--until", "baseline"],
        &[("STANDIN_PROFILER", "unnamed")],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let profile = document(&scene.latest().join("profile.json"));
    let phase = &profile["loads"][0]["ranks"][0]["phases"][0];
    assert_eq!(
        (&phase["phase"], &phase["told_by"]),
        (&"decode".into(), &"graph_launches".into()),
        "{profile}"
    );
}

#[test]
fn nothing_is_profiled_where_it_is_switched_off() {
    let scene = Scene::new(1, &[]);
    scene.change(|config| {
        config.replace(
            "[[benchmark.loads]]\nname = \"decode-1\"",
            "[benchmark]\nprofile = false\n[[benchmark.loads]]\nname = \"decode-1\"",
        )
    });
    let output = scene.run(&["run", "--until", "baseline"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!scene.latest().join("profile.json").exists());
    assert!(!Utf8Path::new(&scene.latest().join("profile")).exists());
}
