//! What a configuration says twice, and differently: no run of it could end well.

use camino::{Utf8Path, Utf8PathBuf};

use super::{Config, SGLANG_DEFAULT_PORT};

/// Spellings of one option of SGLang's (0.5.5 to 0.5.23, `srt/server_args.py`).
const TP: [&str; 3] = ["--tp-size", "--tensor-parallel-size", "--tp"];

/// Finds a program along a `PATH`.
pub type Find<'a> = &'a dyn Fn(&str, Option<&str>) -> Option<Utf8PathBuf>;

impl Config {
    /// Sentences on what contradicts what. Only what a command says in words of its own is compared: what stands in a
    /// script, behind a shell or in a variable is not seen.
    pub fn contradictions(&self, find: Find<'_>) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(command) = &self.server.command {
            self.check_server(command, &mut found);
            self.check_python(command, find, &mut found);
        }
        if let Some(command) = &self.benchmark.command {
            self.check_benchmark(command, &mut found);
        }
        found
    }

    fn check_server(&self, command: &[String], found: &mut Vec<String>) {
        let is_sglang = is_sglang(command, "launch_server");
        let port = self.server.port;
        match number(command, &["--port"]) {
            Some(said) if said != u64::from(port) => found.push(format!(
                "`server.port` is {port} and the server command says `--port {said}`"
            )),
            None if is_sglang
                && port != SGLANG_DEFAULT_PORT
                && !has(command, &["--port", "--config"]) =>
            {
                found.push(format!(
                    "`server.port` is {port} and the server command has no `--port`: SGLang then listens on {SGLANG_DEFAULT_PORT}"
                ));
            }
            _ => {}
        }
        let tp = self.workload.tp;
        match number(command, &TP) {
            Some(said) if said != u64::from(tp) => found.push(format!(
                "`workload.tp` is {tp} and the server command says {said}"
            )),
            None if is_sglang && tp != 1 && !has(command, &TP) && !has(command, &["--config"]) => {
                found.push(format!(
                    "`workload.tp` is {tp} and the server command has no `--tp-size`: SGLang then takes 1"
                ));
            }
            _ => {}
        }
    }

    fn check_benchmark(&self, command: &[String], found: &mut Vec<String>) {
        let port = u64::from(self.server.port);
        let url = option(command, &["--base-url"]);
        let said = match url {
            Some(url) => port_of(url),
            None => number(command, &["--port"]),
        };
        match said {
            Some(said) if said != port => found.push(format!(
                "the server listens on port {port} and the benchmark asks port {said}"
            )),
            None if url.is_none()
                && is_sglang(command, "bench_serving")
                && self.server.port != SGLANG_DEFAULT_PORT
                && !has(command, &["--port"]) =>
            {
                found.push(format!(
                    "the server listens on port {port} and the benchmark has no `--port`: `bench_serving` then asks {SGLANG_DEFAULT_PORT}"
                ));
            }
            _ => {}
        }
    }

    /// The interpreter decides which trees are inspected and instrumented.
    fn check_python(&self, command: &[String], find: Find<'_>, found: &mut Vec<String>) {
        let (Some(python), true) = (&self.backend.python, !self.backend.kind.is_built_in()) else {
            return;
        };
        let is_python = |word: &&String| {
            let name = Utf8Path::new(word.as_str()).file_name().unwrap_or_default();
            name.starts_with("python") && !name.contains(char::is_whitespace)
        };
        let Some(server) = command.iter().find(is_python) else {
            return;
        };
        let path = self.server.env.get("PATH").map(String::as_str);
        // An environment's interpreter is a link out of it: its folder tells two apart that are one file.
        let place = |program: &str| -> Option<(Utf8PathBuf, [Utf8PathBuf; 2])> {
            let file = if program.contains('/') {
                let folder = self.server.cwd.as_deref().unwrap_or(Utf8Path::new("."));
                folder.join(program)
            } else {
                find(program, path)?
            };
            let folder = file.parent()?.canonicalize_utf8().ok()?;
            let real = file.canonicalize_utf8().ok()?;
            Some((file, [folder, real]))
        };
        if let (Some((server, one)), Some((configured, other))) =
            (place(server), place(python.as_str()))
            && one != other
        {
            found.push(format!(
                "`backend.python` is `{configured}` and the server command runs `{server}`"
            ));
        }
    }
}

/// The value of the last of these options, as `--port 1` or `--port=1`.
pub(super) fn option<'a>(command: &'a [String], names: &[&str]) -> Option<&'a str> {
    let mut value = None;
    for (index, word) in command.iter().enumerate() {
        if names.contains(&word.as_str()) {
            value = command.get(index + 1).map(String::as_str);
        } else if let Some((name, inline)) = word.split_once('=')
            && names.contains(&name)
        {
            value = Some(inline);
        }
    }
    value
}

fn number(command: &[String], names: &[&str]) -> Option<u64> {
    option(command, names)?.parse().ok()
}

fn has(command: &[String], names: &[&str]) -> bool {
    command
        .iter()
        .any(|word| names.contains(&word.split('=').next().unwrap_or_default()))
}

/// Whether a command starts `module` of SGLang; `sglang serve` is its newer name of `launch_server`.
fn is_sglang(command: &[String], module: &str) -> bool {
    let module = format!("sglang.{module}");
    command.contains(&module)
        || (module.ends_with("launch_server")
            && command.windows(2).any(|words| {
                Utf8Path::new(&words[0]).file_name() == Some("sglang") && words[1] == "serve"
            }))
}

/// `http://127.0.0.1:30000/v1`: 30000.
fn port_of(url: &str) -> Option<u64> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split('/').next()?;
    authority.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(server: &str, benchmark: &str, more: &str) -> Config {
        let words = |text: &str| format!("{:?}", text.split(' ').collect::<Vec<_>>());
        let text = format!(
            "[workload]\nname = \"w\"\ntp = 2\n[server]\nport = 31000\ncommand = {}\n\
             [benchmark]\nresults = \"b\"\ncommand = {}\n[backend]\n{more}",
            words(server),
            words(benchmark)
        );
        Config::parse(&text).unwrap()
    }

    fn said(server: &str, benchmark: &str) -> Vec<String> {
        config(server, benchmark, "kind = \"reference\"").contradictions(&|_, _| None)
    }

    const SERVER: &str = "python3 -m sglang.launch_server --port 31000 --tp=2";
    const BENCHMARK: &str = "python3 -m sglang.bench_serving --port 31000";

    #[test]
    fn a_configuration_that_agrees_with_itself_is_left_alone() {
        for benchmark in [
            BENCHMARK,
            "bench",
            "python3 -m sglang.bench_serving --base-url http://localhost:31000",
            "python3 -m sglang.bench_serving --base-url http://localhost/v1",
        ] {
            assert_eq!(said(SERVER, benchmark), [""; 0], "{benchmark}");
        }
        assert_eq!(said("serve", BENCHMARK), [""; 0]);
        assert_eq!(
            said("python3 -m sglang.launch_server --config c.yaml", BENCHMARK),
            [""; 0]
        );
    }

    #[test]
    fn ports_and_sizes_that_differ_are_named() {
        let all = [
            (
                "python3 -m sglang.launch_server --port=30000 --tp-size 2",
                BENCHMARK,
            ),
            ("python3 -m sglang.launch_server --tp 2", BENCHMARK),
            (
                "python3 -m sglang.launch_server --port 31000 --tp 8",
                BENCHMARK,
            ),
            ("/v/bin/sglang serve --port 31000", BENCHMARK),
            (SERVER, "python3 -m sglang.bench_serving --port 30000"),
            (
                SERVER,
                "python3 -m sglang.bench_serving --base-url=http://127.0.0.1:8000/v1",
            ),
            (SERVER, "python3 -m sglang.bench_serving"),
        ]
        .map(|(server, benchmark)| {
            let said = said(server, benchmark);
            assert_eq!(said.len(), 1, "{said:?}");
            said[0].clone()
        });
        insta::assert_snapshot!(all.join("\n"), @"
        `server.port` is 31000 and the server command says `--port 30000`
        `server.port` is 31000 and the server command has no `--port`: SGLang then listens on 30000
        `workload.tp` is 2 and the server command says 8
        `workload.tp` is 2 and the server command has no `--tp-size`: SGLang then takes 1
        the server listens on port 31000 and the benchmark asks port 30000
        the server listens on port 31000 and the benchmark asks port 8000
        the server listens on port 31000 and the benchmark has no `--port`: `bench_serving` then asks 30000
        ");
    }

    #[test]
    fn another_interpreter_than_the_servers_is_named() {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(keep.path()).unwrap();
        for name in ["venv", "system"] {
            fs_err::create_dir_all(folder.join(name).join("bin")).unwrap();
            let bin = folder.join(name).join("bin");
            fs_err::write(bin.join("python3"), "").unwrap();
            std::os::unix::fs::symlink("python3", bin.join("python")).unwrap();
        }
        let venv = folder.join("venv/bin/python3");
        let said = |server: &str, on_path: &str| {
            let command = format!("numactl {server} -m sglang.launch_server --port 31000 --tp 2");
            let more = format!("kind = \"aiter\"\npython = \"{venv}\"");
            let found = folder.join(on_path).join("bin/python3");
            config(&command, BENCHMARK, &more).contradictions(&|_, _| Some(found.clone()))
        };
        assert_eq!(said("python3", "venv"), [""; 0]);
        assert_eq!(
            said(folder.join("venv/bin/python").as_str(), "system"),
            [""; 0]
        );
        for other in ["python3", folder.join("system/bin/python").as_str()] {
            let said = said(other, "system");
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with("`backend.python` is"), "{said:?}");
        }
    }
}
