//! `gemmtune init` on forty launch scripts in the shapes of public ones: each is watched and read, and what reading
//! takes for known must be what was really started.

#[path = "ports/mod.rs"]
mod ports;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::sync::Mutex;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value as Json;
use toml::{Table, Value};

/// A home folder with what the scripts name: environments, a model's options, a benchmark, tools that lead elsewhere.
struct Home {
    _keep: tempfile::TempDir,
    folder: Utf8PathBuf,
    path: String,
}

impl Home {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        let python = Command::new("python3")
            .args([
                "-c",
                "import os, sys; print(os.path.realpath(sys.executable))",
            ])
            .output()
            .unwrap();
        let python = Utf8PathBuf::from(text(&python.stdout).trim());
        for bin in [
            "venv/bin",
            "conda/bin",
            "conda/envs/sgl/bin",
            "conda/etc/profile.d",
            "bin",
        ] {
            fs_err::create_dir_all(folder.join(bin)).unwrap();
        }
        for link in [
            "bin/python3",
            "bin/python",
            "venv/bin/python",
            "conda/envs/sgl/bin/python3",
        ] {
            std::os::unix::fs::symlink(&python, folder.join(link)).unwrap();
        }
        let write = |name: &str, text: &str| fs_err::write(folder.join(name), text).unwrap();
        write(
            "venv/bin/activate",
            &format!(
                "# This file must be used with \"source bin/activate\" *from bash*\n\
                 VIRTUAL_ENV={folder}/venv\nexport VIRTUAL_ENV\n\
                 PATH=\"$VIRTUAL_ENV/bin:$PATH\"\nexport PATH\nPS1=\"(venv) ${{PS1:-}}\"\nexport PS1\n"
            ),
        );
        // As conda does it: what a program prints is evaluated.
        write(
            "conda/etc/profile.d/conda.sh",
            "conda() {\n  \\local ask\n  ask=\"$(bash \"$HOME/conda/bin/conda.sh\" \"$@\")\" || \\return\n  \\eval \"$ask\"\n}\n",
        );
        write(
            "conda/bin/conda.sh",
            "echo export \"PATH='$HOME/conda/envs/$2/bin:$PATH'\" \"CONDA_PREFIX='$HOME/conda/envs/$2'\"\n",
        );
        write(
            "conda/bin/activate",
            "#!/bin/sh\n_CONDA_ROOT=\"$HOME/conda\"\n\\. \"$_CONDA_ROOT/etc/profile.d/conda.sh\" || return $?\nconda activate \"$@\"\n",
        );
        fs_err::copy(
            site().join("sglang/bench_serving.py"),
            folder.join("benchmark_serving.py"),
        )
        .unwrap();
        for tool in ["docker", "srun"] {
            write(&format!("bin/{tool}"), "#!/bin/sh\nsleep 0.3\n");
            let mode = std::fs::Permissions::from_mode(0o755);
            fs_err::set_permissions(folder.join("bin").join(tool), mode).unwrap();
        }
        let path = format!("{folder}/bin:{}:/usr/bin:/bin", site().join("bin"));
        Self {
            _keep: keep,
            folder,
            path,
        }
    }

    /// A folder of its own for one script, with ports that are free.
    fn place(&self, script: &Utf8Path) -> (Utf8PathBuf, String) {
        let [port, next] = [0, 1].map(|_| ports::reserve().to_string());
        let place = self.folder.join(script.file_stem().unwrap());
        fs_err::create_dir(&place).unwrap();
        let of = |text: &str| {
            text.replace(
                "$((30000 + i))",
                &format!("$(( i == 0 ? {port} : {next} ))"),
            )
            .replace("30000", &port)
            .replace("30001", &next)
        };
        let script_text = fs_err::read_to_string(script).unwrap();
        fs_err::write(place.join(script.file_name().unwrap()), of(&script_text)).unwrap();
        fs_err::copy(
            script.with_file_name("common.env"),
            place.join("common.env"),
        )
        .unwrap();
        fs_err::write(
            place.join("server.yaml"),
            of("model-path: /m\ntp-size: 2\nport: 30000\n"),
        )
        .unwrap();
        (place, script_text)
    }

    fn init(&self, place: &Utf8Path, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_gemmtune"))
            .args(["--json", "init"])
            .args(arguments)
            .current_dir(place)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", &self.folder)
            .env("PYTHONPATH", site())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // A proxy that answers nobody: loopback is never asked through it.
            .env("http_proxy", "http://127.0.0.1:9")
            .env("HTTP_PROXY", "http://127.0.0.1:9")
            .output()
            .unwrap()
    }
}

fn site() -> Utf8PathBuf {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/init/site")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What became of one script by one way.
struct Made {
    verdict: &'static str,
    table: Table,
    said: String,
}

fn made(output: &Output, file: &Utf8Path) -> Made {
    let said = text(&output.stderr);
    if !output.status.success() {
        let verdict = if said.contains("elsewhere") {
            "elsewhere"
        } else {
            "refused"
        };
        return Made {
            verdict,
            table: Table::new(),
            said,
        };
    }
    let document: Json = serde_json::from_slice(&output.stdout).unwrap();
    let written = fs_err::read_to_string(file).unwrap();
    let table: Table = written
        .parse()
        .unwrap_or_else(|error| panic!("{error}\n{written}"));
    let asked: Vec<&str> = document["questions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|question| question["needed"] == true)
        .map(|question| question["name"].as_str().unwrap())
        .collect();
    // A script that starts no benchmark leaves its question.
    let of_server = asked.iter().any(|name| !name.starts_with("benchmark."));
    let verdict = match (of_server, table["server"].get("cwd")) {
        (false, _) => "known",
        (true, Some(_)) => "asked",
        (true, None) => "refused",
    };
    Made {
        verdict,
        table,
        said: format!("{said}\n{written}"),
    }
}

/// What has to be equal by both ways: a console script may stand with or without its interpreter.
fn essence(table: &Table) -> BTreeMap<String, Value> {
    let mut parts = BTreeMap::new();
    for (section, names) in [
        ("workload", &["model", "tp", "concurrency"][..]),
        ("server", &["command", "cwd", "port", "env", "unset"]),
        ("backend", &["kind", "python"]),
        ("benchmark", &["command", "results", "loads", "repeats"]),
    ] {
        let Some(table) = table.get(section).and_then(Value::as_table) else {
            continue;
        };
        for name in names {
            let Some(mut value) = table.get(*name).cloned() else {
                continue;
            };
            if let (&"command", Value::Array(words)) = (name, &mut value)
                && words.len() > 1
                && words[0].as_str().unwrap().contains("/python")
                && words[1].as_str().unwrap().starts_with('/')
            {
                words.remove(0);
            }
            if let (&"env", Value::Table(variables)) = (name, &value) {
                for (variable, value) in variables {
                    parts.insert(format!("server.env.{variable}"), value.clone());
                }
                continue;
            }
            parts.insert(format!("{section}.{name}"), value);
        }
    }
    parts
}

/// One script by both ways: its line of the table, and what is wrong with it.
fn tried(home: &Home, script: &Utf8Path) -> (String, Option<String>) {
    let (place, content) = home.place(script);
    let name = script.file_name().unwrap();
    let expected = |key: &str| {
        let line = content.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().to_owned()
    };
    let arguments: Vec<&str> = content
        .lines()
        .find_map(|line| line.strip_prefix("# ARGUMENTS:"))
        .map_or_else(Vec::new, |line| line.split_whitespace().collect());
    let measures = content.contains("bench_serving")
        || content.contains("vllm bench")
        || content.contains("benchmark_serving");
    let until = if measures { "bench" } else { "ready" };
    let mut watching = vec!["-o", "watched.toml", "--until", until, "--", "bash", name];
    watching.extend(&arguments);
    let watched = made(&home.init(&place, &watching), &place.join("watched.toml"));
    let read = made(
        &home.init(&place, &["-o", "read.toml", name]),
        &place.join("read.toml"),
    );
    let by_watching = match watched.verdict {
        "known" => "ready",
        other => other,
    };
    let (truth, taken) = (essence(&watched.table), essence(&read.table));
    let is_known = watched.verdict == "known";
    let differs = |name: &&String| is_known && truth.get(*name) != taken.get(*name);
    let mut wrong: Vec<&String> = taken.keys().filter(differs).collect();
    if read.verdict == "known" {
        // Nothing may be missing either, but for a benchmark that is asked for.
        let of_server = |name: &&String| name.starts_with("server.");
        wrong.extend(truth.keys().filter(of_server).filter(differs));
    }
    let by_reading = match (read.verdict, wrong.is_empty()) {
        ("known", true) => "right",
        // What reading could not tell it may leave out; what it writes must be so.
        (other, true) => other,
        (_, false) => "wrong",
    };
    let row = format!("| `{name}` | {by_watching} | {by_reading} |");
    let as_expected =
        by_watching == expected("# watching:") && by_reading == expected("# reading:");
    let complaint = (!as_expected).then(|| {
        format!(
            "{row} {wrong:?}\n--- watched\n{}\n--- read\n{}",
            watched.said, read.said
        )
    });
    (row, complaint)
}

#[test]
fn scripts_in_the_shapes_of_public_ones_are_watched_right_and_never_read_wrong() {
    let home = Home::new();
    let folder = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/init/scripts");
    let mut scripts: Vec<Utf8PathBuf> = folder
        .read_dir_utf8()
        .unwrap()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension() == Some("sh"))
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 30);
    let (queue, results) = (Mutex::new(scripts.clone()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some(script) = queue.lock().unwrap().pop() else {
                        break;
                    };
                    let result = tried(&home, &script);
                    results.lock().unwrap().push(result);
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort();
    let rows: Vec<&str> = results.iter().map(|(row, _)| row.as_str()).collect();
    fs_err::write(
        concat!(env!("CARGO_TARGET_TMPDIR"), "/init-trial.md"),
        rows.join("\n"),
    )
    .unwrap();
    let complaints: Vec<&String> = results
        .iter()
        .filter_map(|(_, complaint)| complaint.as_ref())
        .collect();
    assert!(
        complaints.is_empty(),
        "{}",
        complaints
            .iter()
            .map(|text| text.as_str())
            .collect::<Vec<_>>()
            .join("\n\n")
    );
    // Nothing that was started is left: the home's path stands in every one's environment.
    let left: Vec<_> = fs_err::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            fs_err::read(entry.path().join("environ"))
                .is_ok_and(|environ| text(&environ).contains(&format!("HOME={}\0", home.folder)))
        })
        .map(|entry| text(&fs_err::read(entry.path().join("cmdline")).unwrap_or_default()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
