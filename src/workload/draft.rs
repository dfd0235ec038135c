//! A first `gemmtune.toml` from what a script or a live process says, with a question for everything it does not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::config::{SGLANG_DEFAULT_PORT, SGLANG_READY_LINE};
use super::env::matters;
use super::observe::Process;
use super::script::{Facts, Found, Role, Surroundings, Word, flag};
use super::secret::is_secret;

/// Something only the user knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// The name in `gemmtune.toml`.
    pub name: String,
    /// Why it could not be told.
    pub why: String,
    /// Whether a run needs it.
    pub needed: bool,
}

/// A configuration as far as it could be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    tables: Vec<(&'static str, Vec<Line>)>,
    /// What has to be asked.
    pub questions: Vec<Question>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Line {
    Value(&'static str, toml::Value, Option<String>),
    Asked(&'static str, String),
}

/// Looks a program up along a `PATH`; answers with the file's path.
pub type Find<'a> = &'a dyn Fn(&str, &str) -> Option<Utf8PathBuf>;

impl Draft {
    /// A draft from a script that has been read.
    pub fn from_script(
        name: &str,
        facts: &Facts,
        surroundings: &Surroundings<'_>,
        find: Find<'_>,
    ) -> Self {
        let mut draft = Self {
            notes: facts.notes.clone(),
            ..Self::default()
        };
        for (wrapper, line) in &facts.wrappers {
            draft.notes.push(format!(
                "line {line} starts something with `{wrapper}`, which was not entered: run `gemmtune init` where that command runs"
            ));
        }
        let servers: Vec<_> = facts.of(Role::Server).collect();
        let why = match (
            servers.as_slice(),
            facts.of(Role::OtherServer).next(),
            facts.wrappers.first(),
        ) {
            ([_], ..) => None,
            ([], Some(other), _) => Some(format!(
                "line {} starts a server that is not SGLang",
                other.line
            )),
            ([], None, Some((wrapper, line))) => {
                Some(format!("it is started inside `{wrapper}` at line {line}"))
            }
            ([], None, None) => {
                Some("the script starts no SGLang server that could be seen".to_owned())
            }
            (several, ..) => {
                let lines: Vec<_> = several
                    .iter()
                    .map(|server| server.line.to_string())
                    .collect();
                Some(format!(
                    "the script starts {} servers, at lines {}",
                    several.len(),
                    lines.join(", ")
                ))
            }
        };
        let server = servers.first().copied().filter(|_| why.is_none());
        let benchmarks: Vec<_> = facts.of(Role::Benchmark).collect();
        draft.workload(name, server, &benchmarks);
        draft.server(server, why, surroundings, find);
        draft.benchmark(&benchmarks, surroundings, find);
        draft.backend(server, surroundings, find);
        draft
    }

    /// A draft from a live server: nothing depends on anything, but there is no benchmark to see.
    pub fn from_process(
        process: &Process,
        surroundings: &Surroundings<'_>,
        find: Find<'_>,
    ) -> Self {
        let known = |text: &String| Word::Known(text.clone());
        let (taken, left): (BTreeMap<_, _>, BTreeMap<_, _>) = process
            .env
            .iter()
            .partition(|(name, _)| matters(name) || *name == "PATH");
        let found = Found {
            role: Role::Server,
            argv: process.argv.iter().map(known).collect(),
            env: taken
                .into_iter()
                .map(|(name, value)| (name.clone(), known(value)))
                .collect(),
            unset: Vec::new(),
            folder: Word::Known(process.folder.to_string()),
            venv: None,
            line: 0,
            depends_on: None,
        };
        let mut draft = Self::default();
        draft.notes.push(format!(
            "{} variables of process {} that do not matter to a server were left out",
            left.len(),
            process.pid
        ));
        draft.workload(&format!("pid-{}", process.pid), Some(&found), &[]);
        draft.server(Some(&found), None, surroundings, find);
        draft.benchmark(&[], surroundings, find);
        draft.backend(Some(&found), surroundings, find);
        draft
    }

    fn workload(&mut self, name: &str, server: Option<&Found>, benchmarks: &[&Found]) {
        self.tables.push(("workload", Vec::new()));
        self.value("name", plain(name), None);
        let argv = server.map_or(&[][..], |server| &server.argv);
        let elsewhere = in_a_file(argv);
        match flag(argv, &["--model-path", "--model"]).as_deref() {
            None if elsewhere.is_some() => {
                self.ask("model", elsewhere.clone().unwrap_or_default(), false);
            }
            Some(Word::Known(model)) => self.value("model", model.clone(), None),
            Some(Word::Unknown { why, .. }) => {
                self.ask("model", format!("it depends on {why}"), false);
            }
            None => self.ask("model", "no `--model-path` was seen".to_owned(), false),
        }
        match (
            server,
            flag(argv, &["--tp-size", "--tensor-parallel-size", "--tp"]).as_deref(),
        ) {
            (_, Some(word)) => self.number("tp", word),
            (Some(_), None) if elsewhere.is_some() => {
                self.ask("tp", elsewhere.unwrap_or_default(), true);
            }
            // The default of every release from 0.5.5 to 0.5.23.
            (Some(_), None) => {
                self.value("tp", 1, Some("no --tp-size: SGLang's default".to_owned()));
            }
            (None, None) => self.ask("tp", "no server was seen".to_owned(), true),
        }
        let concurrency: Vec<_> = benchmarks
            .iter()
            .filter_map(|benchmark| flag(&benchmark.argv, &["--max-concurrency"]))
            .collect();
        match concurrency.as_slice() {
            [only] => self.number("concurrency", only),
            [] => self.ask(
                "concurrency",
                "no `--max-concurrency` was seen".to_owned(),
                false,
            ),
            several => {
                let all: Vec<_> = several.iter().map(|word| word.text().to_owned()).collect();
                self.ask(
                    "concurrency",
                    format!("the script uses several: {}", all.join(", ")),
                    false,
                );
            }
        }
    }

    fn server(
        &mut self,
        server: Option<&Found>,
        why: Option<String>,
        surroundings: &Surroundings<'_>,
        find: Find<'_>,
    ) {
        self.tables.push(("server", Vec::new()));
        let Some(server) = server else {
            self.ask("command", why.unwrap_or_default(), true);
            return;
        };
        if let Some(reason) = &server.depends_on {
            self.notes.push(format!(
                "the server at line {} depends on {reason}",
                server.line
            ));
        }
        self.command("command", server, surroundings, find);
        match &server.folder {
            Word::Known(folder) => self.value("cwd", folder.clone(), None),
            Word::Unknown { why, .. } => self.ask("cwd", format!("it depends on {why}"), true),
        }
        match flag(&server.argv, &["--port"]).as_deref() {
            Some(word) => self.number("port", word),
            None if in_a_file(&server.argv).is_some() => {
                self.ask("port", in_a_file(&server.argv).unwrap_or_default(), true);
            }
            None => self.value(
                "port",
                i64::from(SGLANG_DEFAULT_PORT),
                Some("no --port: SGLang's default".to_owned()),
            ),
        }
        if let Some(Word::Known(host)) = flag(&server.argv, &["--host"]).as_deref()
            && !["0.0.0.0", "127.0.0.1", "localhost", "::"].contains(&host.as_str())
        {
            self.notes.push(format!(
                "the server listens on {host} and gemmtune asks at 127.0.0.1: change `--host` in the command to 127.0.0.1 or 0.0.0.0"
            ));
        }
        if flag(&server.argv, &["--api-key"]).is_some() {
            self.notes.push(
                "the server asks for a key (`--api-key`), which gemmtune does not send: take it out of the command, where it was copied with \
                 its value; a server that only gemmtune asks needs none"
                    .to_owned(),
            );
        }
        let quiet = flag(&server.argv, &["--log-level"]);
        if quiet
            .as_deref()
            .and_then(Word::known)
            .is_none_or(|level| matches!(level, "info" | "debug"))
        {
            self.value("ready_log", SGLANG_READY_LINE, None);
        }
        self.environment(server);
    }

    fn environment(&mut self, server: &Found) {
        let mut env = toml::Table::new();
        for (name, word) in &server.env {
            match word {
                _ if is_secret(name) => {
                    self.notes.push(format!("`{name}` looks like a secret and was not copied: set it where you start gemmtune"));
                }
                Word::Known(value) => {
                    env.insert(name.clone(), toml::Value::String(value.clone()));
                }
                Word::Unknown { why, .. } => {
                    self.ask("env", format!("`{name}` depends on {why}"), true);
                }
            }
        }
        if !env.is_empty() {
            self.value("env", env, None);
        }
        if !server.unset.is_empty() {
            self.value("unset", server.unset.clone(), None);
        }
    }

    fn benchmark(
        &mut self,
        benchmarks: &[&Found],
        surroundings: &Surroundings<'_>,
        find: Find<'_>,
    ) {
        self.tables.push(("benchmark", Vec::new()));
        let [benchmark] = benchmarks else {
            let why = if benchmarks.is_empty() {
                "no `sglang.bench_serving` was seen; give its command, or use gemmtune's own load with \
                 `builtin = { concurrency = …, prompts = …, input_len = …, output_len = … }`"
                    .to_owned()
            } else {
                let lines: Vec<_> = benchmarks
                    .iter()
                    .map(|benchmark| benchmark.line.to_string())
                    .collect();
                format!(
                    "the script runs {} benchmarks, at lines {}",
                    lines.len(),
                    lines.join(", ")
                )
            };
            self.ask("command", why, true);
            return;
        };
        if let Some(reason) = &benchmark.depends_on {
            self.notes.push(format!(
                "the benchmark at line {} depends on {reason}",
                benchmark.line
            ));
        }
        match flag(&benchmark.argv, &["--output-file"]).as_deref() {
            Some(Word::Known(file)) => {
                self.command("command", benchmark, surroundings, find);
                self.value("results", file.clone(), None);
            }
            Some(Word::Unknown { why, .. }) => {
                self.command("command", benchmark, surroundings, find);
                self.ask("results", format!("it depends on {why}"), true);
            }
            None => {
                let mut with_file = (*benchmark).clone();
                with_file.argv.extend(
                    ["--output-file", "bench.jsonl"].map(|word| Word::Known(word.to_owned())),
                );
                self.command("command", &with_file, surroundings, find);
                self.value(
                    "results",
                    "bench.jsonl",
                    Some("--output-file was added to the command".to_owned()),
                );
            }
        }
    }

    fn backend(&mut self, server: Option<&Found>, surroundings: &Surroundings<'_>, find: Find<'_>) {
        self.tables.push(("backend", Vec::new()));
        let Some(server) = server else {
            self.ask("kind", "no server was seen".to_owned(), true);
            self.ask("python", "no server was seen".to_owned(), true);
            return;
        };
        let forced = flag(&server.argv, &["--fp8-gemm-backend"]);
        let aiter = server
            .env
            .get("SGLANG_USE_AITER")
            .cloned()
            .or_else(|| (surroundings.variable)("SGLANG_USE_AITER").map(Word::Known));
        match (forced.as_deref().and_then(Word::known), aiter.as_ref().and_then(Word::known)) {
            (Some("triton"), _) => self.value("kind", "sglang-triton", None),
            (Some("aiter"), _) | (Some("auto") | None, Some("1" | "true" | "True")) => self.value("kind", "aiter", None),
            (Some(other), _) => {
                self.ask("kind", format!("`--fp8-gemm-backend {other}` is none that gemmtune tunes (aiter, triton)"), true);
            }
            (None, _) => self.ask(
                "kind",
                "neither SGLANG_USE_AITER=1 nor `--fp8-gemm-backend triton` was seen: `aiter` or `sglang-triton`".to_owned(),
                true,
            ),
        }
        match interpreter(server, surroundings, find) {
            Ok(python) => self.value("python", python.to_string(), None),
            Err(why) => self.ask("python", why, true),
        }
    }

    /// A command, its program resolved; every word that is not known is asked for.
    fn command(
        &mut self,
        name: &'static str,
        found: &Found,
        surroundings: &Surroundings<'_>,
        find: Find<'_>,
    ) {
        let mut unknown: Vec<_> = found
            .argv
            .iter()
            .filter_map(|word| match word {
                Word::Known(_) => None,
                Word::Unknown { text, why } => Some(format!("`{text}` depends on {why}")),
            })
            .collect();
        if let Some(why) = other_environment(found, find) {
            unknown.push(why);
        }
        if unknown.is_empty() {
            let mut argv: Vec<_> = found
                .argv
                .iter()
                .map(|word| word.text().to_owned())
                .collect();
            if let Some(program) = resolve(found, surroundings, find) {
                argv[0] = program.to_string();
            }
            self.value(name, argv, None);
        } else {
            let words: Vec<_> = found.argv.iter().map(Word::text).collect();
            self.ask(
                name,
                format!("{}; as written: {}", unknown.join("; "), words.join(" ")),
                true,
            );
        }
    }

    fn number(&mut self, name: &'static str, word: &Word) {
        match word {
            Word::Known(text) => match text.parse::<u32>() {
                Ok(number) => self.value(name, i64::from(number), None),
                Err(_) => self.ask(name, format!("`{text}` is no number"), true),
            },
            Word::Unknown { why, .. } => self.ask(name, format!("it depends on {why}"), true),
        }
    }

    fn value(&mut self, name: &'static str, value: impl Into<toml::Value>, remark: Option<String>) {
        if let Some((_, lines)) = self.tables.last_mut() {
            lines.push(Line::Value(name, value.into(), remark));
        }
    }

    fn ask(&mut self, name: &'static str, why: String, needed: bool) {
        if let Some((table, lines)) = self.tables.last_mut() {
            lines.push(Line::Asked(name, why.clone()));
            self.questions.push(Question {
                name: format!("{table}.{name}"),
                why,
                needed,
            });
        }
    }

    /// Whether a run could start with it.
    pub fn is_complete(&self) -> bool {
        self.questions.iter().all(|question| !question.needed)
    }

    /// The configuration file: what was asked stands in it as a comment.
    pub fn to_toml(&self, origin: &str) -> String {
        let mut text = format!("# Read from {origin} by `gemmtune init`.\n");
        if !self.questions.is_empty() {
            text.push_str(
                "# Lines that start with `# ?` could not be told and are yours to fill in.\n",
            );
        }
        for (table, lines) in &self.tables {
            let _ = writeln!(text, "\n[{table}]");
            for line in lines {
                let _ = match line {
                    Line::Value(name, value, None) => writeln!(text, "{name} = {value}"),
                    Line::Value(name, value, Some(remark)) => {
                        writeln!(text, "{name} = {value} # {remark}")
                    }
                    Line::Asked(name, why) => {
                        writeln!(text, "# ? {name} = … # {}", why.replace('\n', " "))
                    }
                };
            }
        }
        text
    }
}

/// The program file a command would start, where that can be told.
fn resolve(found: &Found, surroundings: &Surroundings<'_>, find: Find<'_>) -> Option<Utf8PathBuf> {
    let program = found.argv.first()?.known()?;
    if program.contains('/') {
        return Some(match found.folder.known() {
            Some(folder) if !program.starts_with('/') => Utf8Path::new(folder).join(program),
            _ => Utf8PathBuf::from(program),
        });
    }
    let path = match found.env.get("PATH") {
        Some(path) => path.known()?.to_owned(),
        None => (surroundings.variable)("PATH")?,
    };
    find(program, &path)
}

/// The interpreter that a server runs in.
fn interpreter(
    found: &Found,
    surroundings: &Surroundings<'_>,
    find: Find<'_>,
) -> Result<Utf8PathBuf, String> {
    if let Some(why) = other_environment(found, find) {
        return Err(why);
    }
    let at = found.argv.iter().position(is_python);
    let inner = Found {
        argv: found.argv[at.unwrap_or(0)..].to_vec(),
        ..found.clone()
    };
    let program = resolve(&inner, surroundings, find);
    match (program, at) {
        (Some(python), Some(_)) => Ok(python),
        // A console script names its interpreter in its first line.
        (Some(script), None) => (surroundings.read)(&script)
            .and_then(|text| Some(text.lines().next()?.strip_prefix("#!")?.trim().to_owned()))
            .filter(|line| line.contains("python") && !line.contains(' '))
            .map(Utf8PathBuf::from)
            .ok_or_else(|| format!("`{script}` does not name its interpreter")),
        (None, _) => Err(format!(
            "`{}` is not on the PATH it would run with",
            inner.argv[0].text()
        )),
    }
}

/// Wrappers such as numactl stand in front of the interpreter.
fn is_python(word: &Word) -> bool {
    word.known().is_some_and(|word| {
        Utf8Path::new(word)
            .file_name()
            .is_some_and(|name| name.starts_with("python"))
    })
}

/// Why the program cannot be told although one of its name is on the path: it is that of an environment which is not
/// known, or not here.
fn other_environment(found: &Found, find: Find<'_>) -> Option<String> {
    let at = found.argv.iter().position(is_python).unwrap_or(0);
    let program = found.argv.get(at)?.known()?;
    if program.contains('/') {
        return None;
    }
    match found.venv.as_ref()? {
        Word::Unknown { why, .. } => Some(format!("`{program}` depends on {why}")),
        Word::Known(venv) => find(program, &format!("{venv}/bin")).is_none().then(|| {
            format!("`{program}` is not in `{venv}/bin`, and the script activates `{venv}`")
        }),
    }
}

/// Where options that are not in the command may stand.
fn in_a_file(argv: &[Word]) -> Option<String> {
    let file = flag(argv, &["--config"])?;
    Some(format!("it may stand in `{}` (`--config`)", file.text()))
}

/// A name for a run folder.
fn plain(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|character| {
            if character.is_ascii_alphanumeric() || "._-".contains(character) {
                character
            } else {
                '-'
            }
        })
        .collect();
    let trimmed = plain.trim_start_matches('.');
    if trimmed.is_empty() {
        "workload".to_owned()
    } else {
        trimmed.to_owned()
    }
}
