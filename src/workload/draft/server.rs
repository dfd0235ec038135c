//! The tables about the server: what is served, how it is started, and what is tuned.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::{Draft, Made, Subject, amd, experts, plain, resolve};
use crate::problem::Op;
use crate::table::serves::ByDefault;
use crate::workload::config::{SGLANG_DEFAULT_PORT, SGLANG_READY_LINE};
use crate::workload::env::{is_of_a_session, matters};
use crate::workload::quote::quoted;
use crate::workload::role;
use crate::workload::script::{Found, Word, flag};
use crate::workload::secret::{is_open, is_secret, masked};

/// Options of the server that hold keys, which a server used only by gemmtune does not need.
const KEYS: [&str; 2] = ["--api-key", "--admin-api-key"];

/// Variables that make a server log or tune what it runs, which then also affects the baseline: aiter's online tuning
/// and logs (aiter 303a583c, `aiter/ops/gemm_op_a8w8.py`, `aiter/jit/core.py`), SGLang's dumps.
const INSTRUMENTS: [&str; 6] = [
    "AITER_TUNE_GEMM",
    "AITER_ONLINE_TUNE",
    "AITER_LOG_TUNED_CONFIG",
    "AITER_LOG_MORE",
    "AITER_REBUILD",
    "AITER_INTREE_GEMM_TUNE",
];

/// The difference between a process's environment and ours.
pub(super) struct Environment {
    pub(super) set: BTreeMap<String, Word>,
    pub(super) unset: Vec<String>,
}

impl Environment {
    /// For a descendant of this process: all differences were made by the script.
    pub(super) fn difference(
        theirs: &BTreeMap<String, String>,
        ours: &BTreeMap<String, String>,
    ) -> Self {
        let set = theirs
            .iter()
            .filter(|(name, value)| ours.get(*name) != Some(value) && !is_of_a_session(name))
            .map(|(name, value)| (name.clone(), Word::of(value)))
            .collect();
        let unset = ours
            .keys()
            .filter(|name| !theirs.contains_key(*name) && !is_of_a_session(name));
        Self {
            set,
            unset: unset.cloned().collect(),
        }
    }

    /// For a process that was started from elsewhere: everything except variables of a login session, so that no
    /// variable that the server reads is lost; also returns the names of what was left out.
    pub(super) fn of_process(
        theirs: &BTreeMap<String, String>,
        ours: &BTreeMap<String, String>,
    ) -> (Self, Vec<String>) {
        let (left, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            theirs.iter().partition(|(name, _)| is_of_a_session(name));
        let set = kept
            .into_iter()
            .filter(|(name, value)| matters(name) || ours.get(*name) != Some(*value))
            .map(|(name, value)| (name.clone(), Word::of(value)))
            .collect();
        let unset = ours
            .keys()
            .filter(|name| !theirs.contains_key(*name) && matters(name));
        let environment = Self {
            set,
            unset: unset.cloned().collect(),
        };
        (environment, left.into_keys().cloned().collect())
    }
}

impl Draft {
    pub(super) fn workload(
        &mut self,
        name: &str,
        subject: Option<&Subject<'_>>,
        benchmarks: &[&Found],
    ) {
        self.tables.push(("workload", Vec::new()));
        self.value("name", plain(name), None);
        let argv = subject.map_or(&[][..], |subject| &subject.found.argv);
        let uncertain = uncertain(argv);
        let model = flag(argv, &["--model-path", "--model"]).or_else(|| served(argv));
        match (
            subject.and_then(|subject| subject.resolved("model_path")?.as_str()),
            model,
        ) {
            (Some(model), _) => self.value("model", model, None),
            (None, Some(Word::Known(model))) => self.value("model", model, None),
            (None, Some(Word::Unknown { why, .. })) => {
                self.ask("model", format!("it depends on {why}"), false);
            }
            (None, None) => {
                let why = uncertain.clone();
                self.ask(
                    "model",
                    why.unwrap_or_else(|| "no `--model-path` was seen".to_owned()),
                    false,
                );
            }
        }
        let size = flag(argv, &["--tp-size", "--tensor-parallel-size", "--tp"]);
        match (
            subject,
            subject.and_then(|subject| subject.resolved("tp_size")?.as_i64()),
            size,
        ) {
            (Some(_), Some(size), _) => self.value("tp", size, others(argv)),
            (_, None, Some(word)) => {
                self.number("tp", &word);
                if let Some((_, lines)) = self.tables.last_mut()
                    && let Some(super::Line::Value(_, _, remark)) = lines.last_mut()
                {
                    *remark = others(argv);
                }
            }
            (Some(_), None, None) if uncertain.is_some() => {
                self.ask("tp", uncertain.unwrap_or_default(), true);
            }
            // The default of every release from 0.5.5 to 0.5.23.
            (Some(_), None, None) => {
                self.value("tp", 1, Some("no --tp-size: SGLang's default".to_owned()));
            }
            (None, ..) => self.ask("tp", "no server was seen", true),
        }
        let concurrency: Vec<Word> = benchmarks
            .iter()
            .filter_map(|benchmark| flag(&benchmark.argv, &["--max-concurrency"]))
            .collect();
        match concurrency.as_slice() {
            [only] => self.number("concurrency", only),
            _ if benchmarks.len() > 1 => {} // each load has its own
            _ => self.ask("concurrency", "no `--max-concurrency` was seen", false),
        }
    }

    pub(super) fn server(
        &mut self,
        subject: Option<&Subject<'_>>,
        why: Option<String>,
        made: &Made<'_>,
    ) {
        self.tables.push(("server", Vec::new()));
        let Some(subject) = subject else {
            self.ask("command", why.unwrap_or_default(), true);
            return;
        };
        let server = subject.found;
        let mut started = server.clone();
        started.argv = self.without_keys(&server.argv);
        if let Some(why) = one_of_several(&server.argv) {
            let words: Vec<&str> = server.argv.iter().map(Word::text).collect();
            self.ask(
                "command",
                format!("{why}; as written: {}", masked(&words).join(" ")),
                true,
            );
        } else {
            self.command("command", &started, made);
        }
        match &server.folder {
            Word::Known(folder) => self.value("cwd", folder.clone(), None),
            Word::Unknown { why, .. } => self.ask("cwd", format!("it depends on {why}"), true),
        }
        let listens = subject.answer.map(|answer| answer.address);
        match (listens, flag(&server.argv, &["--port"])) {
            (Some(address), _) => self.value("port", i64::from(address.port()), None),
            (None, Some(word)) => self.number("port", &word),
            (None, None) => match uncertain(&server.argv) {
                Some(why) => self.ask("port", why, true),
                None => self.value(
                    "port",
                    i64::from(SGLANG_DEFAULT_PORT),
                    Some("no --port: SGLang's default".to_owned()),
                ),
            },
        }
        let host = match listens {
            Some(address) => Some(address.ip().to_string()),
            None => {
                flag(&server.argv, &["--host"]).and_then(|host| host.known().map(str::to_owned))
            }
        };
        if let Some(host) = host
            && !["0.0.0.0", "127.0.0.1", "localhost", "::", "::1"].contains(&host.as_str())
        {
            self.notes.push(format!(
                "the server listens on {} and gemmtune asks at 127.0.0.1: change `--host` in the command to 127.0.0.1 or 0.0.0.0",
                quoted(&host)
            ));
        }
        let quiet = flag(&server.argv, &["--log-level"]);
        let is_sglang = {
            let words: Vec<&str> = server.argv.iter().map(Word::text).collect();
            role::role(role::looked_through(&words)).is_some()
        };
        if is_sglang
            && quiet
                .as_ref()
                .and_then(Word::known)
                .is_none_or(|level| matches!(level, "info" | "debug"))
        {
            self.value("ready_log", SGLANG_READY_LINE, None);
        }
        self.environment(server, made);
    }

    /// The server's command without its keys: a server that only gemmtune uses needs none, and a key should not be
    /// copied.
    fn without_keys(&mut self, argv: &[Word]) -> Vec<Word> {
        let mut rest = Vec::new();
        let mut words = argv.iter();
        let mut dropped = Vec::new();
        while let Some(word) = words.next() {
            let name = word.text().split('=').next().unwrap_or_default();
            if KEYS.contains(&name) {
                dropped.push(format!("`{name}`"));
                if !word.text().contains('=') {
                    words.next();
                }
            } else {
                rest.push(word.clone());
            }
        }
        if !dropped.is_empty() {
            self.notes.push(format!(
                "the server asks for a key ({}), which is left out of the command: gemmtune sends none, and a server that \
                 only gemmtune asks needs none",
                dropped.join(", ")
            ));
        }
        rest
    }

    fn environment(&mut self, server: &Found, made: &Made<'_>) {
        if !server.unset.is_empty() {
            self.value("unset", server.unset.clone(), None);
        }
        self.baseline(server, made);
        self.tables.push(("server.env", Vec::new()));
        for (name, word) in &server.env {
            match word {
                Word::Known(value) if is_secret(name) || !is_open(&[value]) => {
                    // What is set here already reaches the server unchanged.
                    let is_here = (made.surroundings.variable)(name).is_some();
                    if is_here {
                        self.notes.push(format!("`{name}` looks like a secret and was not copied: it is taken from where gemmtune is started"));
                    } else {
                        self.ask(name, "it looks like a secret and was not copied: export it where you start gemmtune", false);
                    }
                }
                Word::Known(value) => self.value(name, value.clone(), None),
                Word::Unknown { why, .. } => {
                    self.ask(name, format!("it depends on {why}"), true);
                }
            }
        }
        if self
            .tables
            .last()
            .is_some_and(|(_, lines)| lines.is_empty())
        {
            self.tables.pop();
        }
    }

    /// Remarks on what ends up in the baseline although the user may not want it there, and on what comes only from
    /// this shell.
    fn baseline(&mut self, server: &Found, made: &Made<'_>) {
        let is_instrument = |name: &str| {
            INSTRUMENTS.contains(&name)
                || name.contains("DUMP")
                || name.starts_with("GEMMTUNE_") && name != "GEMMTUNE_KEEPER"
        };
        let names: Vec<&String> = server.env.keys().collect();
        let tables: Vec<&str> = names
            .iter()
            .filter(|name| name.starts_with("AITER_CONFIG"))
            .map(|name| name.as_str())
            .collect();
        if !tables.is_empty() {
            self.notes.push(format!(
                "the baseline serves with the tables that {} name: what is gained is gained over these",
                list(&tables)
            ));
        }
        let instruments: Vec<&str> = names
            .iter()
            .filter(|name| is_instrument(name))
            .map(|name| name.as_str())
            .collect();
        if !instruments.is_empty() {
            self.notes.push(format!(
                "{} make the server log, dump or tune while it serves, in the baseline too: take them out of `[server.env]` \
                 unless production runs with them",
                list(&instruments)
            ));
        }
        let inherited: Vec<&str> = Op::ALL
            .into_iter()
            .filter_map(|op| Some(op.aiter()?.variable))
            .chain(INSTRUMENTS)
            .filter(|name| {
                !server.env.contains_key(*name) && !server.unset.iter().any(|unset| unset == name)
            })
            .filter(|name| (made.surroundings.variable)(name).is_some())
            .collect();
        if !inherited.is_empty() {
            self.notes.push(format!(
                "this shell sets {}, which reach the baseline wherever gemmtune is started with them",
                list(&inherited)
            ));
        }
    }

    pub(super) fn backend(&mut self, subject: Option<&Subject<'_>>, made: &Made<'_>) {
        self.tables.push(("backend", Vec::new()));
        let Some(subject) = subject else {
            self.ask("kind", "no server was seen", true);
            self.ask("python", "no server was seen", true);
            return;
        };
        let server = subject.found;
        let forced = flag(
            &server.argv,
            &["--fp8-gemm-backend", "--fp8-gemm-runner-backend"],
        );
        let forced = forced
            .as_ref()
            .and_then(Word::known)
            .or_else(|| subject.resolved("fp8_gemm_runner_backend")?.as_str())
            .filter(|backend| *backend != "auto");
        let uses_aiter = flag_is_on(subject, made, "SGLANG_USE_AITER");
        let experts = experts::there(subject, made);
        match (forced, uses_aiter, made.machine) {
            (Some("triton"), ..) => {
                self.value("kind", "sglang-triton", None);
                let gpu = made.gpu.as_deref().unwrap_or_default();
                if ByDefault::on(gpu) == Some(ByDefault::DeepGemm) {
                    self.notes.push(format!(
                        "the server says `--fp8-gemm-backend triton`: on {gpu} SGLang takes DeepGEMM by itself, which was faster than its Triton \
                         kernel with any table where both were measured (an H200); without the flag `backend.kind = \"sglang-families\"` tunes below it"
                    ));
                }
            }
            (Some("deep_gemm"), ..) => self.value("kind", "sglang-families", None),
            (Some("aiter"), ..) | (None, true, _) => {
                let proposed = amd::proposal(subject, made);
                self.value("kind", proposed.kind, proposed.why);
                self.notes.extend(proposed.notes);
            }
            (Some(other), ..) => {
                let why = format!("`--fp8-gemm-backend {}` is not one that gemmtune tunes (aiter, deep_gemm, triton)", quoted(other));
                self.ask("kind", why, true);
            }
            (None, false, Some(("sglang-families", _))) if experts => self.value(
                "kind",
                "sglang-moe",
                Some(experts::ALONE.to_owned()),
            ),
            (None, false, Some((kind, why))) => {
                self.value("kind", kind, Some(why.to_owned()));
                if kind == "aiter" {
                    self.notes.push(
                        "the server has no `SGLANG_USE_AITER=1`: it then runs SGLang's own Triton kernel on AMD, which no table of aiter's reaches"
                            .to_owned(),
                    );
                    if experts {
                        self.notes.push(experts::IN_TRITON.to_owned());
                    }
                }
            }
            (None, false, None) => self.ask(
                "kind",
                "neither SGLANG_USE_AITER=1 nor `--fp8-gemm-backend` was seen: `aiter` on AMD, `sglang-families` on NVIDIA, where Hopper's default is DeepGEMM",
                true,
            ),
        }
        if experts && matches!(forced, Some("triton" | "deep_gemm")) {
            self.notes.push(experts::TOO.to_owned());
        }
        match interpreter(server, made) {
            Ok(python) => self.value("python", python.to_string(), None),
            Err(why) => self.ask("python", why, true),
        }
    }

    /// A command with its program resolved; for every word that is unknown or contains a secret a question is added.
    pub(super) fn command(&mut self, name: &str, found: &Found, made: &Made<'_>) {
        let mut unknown: Vec<_> = found
            .argv
            .iter()
            .filter_map(|word| match word {
                Word::Known(_) => None,
                Word::Unknown { text, why } => Some(format!("`{}` depends on {why}", quoted(text))),
            })
            .collect();
        let words: Vec<&str> = found.argv.iter().map(Word::text).collect();
        if !is_open(&words) {
            unknown.push("it holds a secret, which is not copied".to_owned());
        }
        if unknown.is_empty() {
            let mut argv: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            if let Some(program) = resolve(found, made) {
                argv[0] = program.to_string();
            }
            // After `taskset` and similar wrappers the interpreter is searched for along the same path.
            let at = found.argv.iter().position(is_python).filter(|at| *at > 0);
            if let Some((at, Ok(python))) = at.map(|at| (at, interpreter(found, made)))
                && role::looked_through(&words).first() == words.get(at)
            {
                argv[at] = python.to_string();
            }
            self.value(name, argv, None);
        } else {
            let why = format!(
                "{}; as written: {}",
                unknown.join("; "),
                masked(&words).join(" ")
            );
            self.ask(name, why, true);
        }
    }
}

/// Whether a variable is on for the server, in its own environment or in the one it inherits.
pub(super) fn flag_is_on(subject: &Subject<'_>, made: &Made<'_>, name: &str) -> bool {
    let set = subject.found.env.get(name).cloned();
    let set = set.or_else(|| (made.surroundings.variable)(name).map(Word::Known));
    matches!(
        set.as_ref().and_then(Word::known),
        Some("1" | "true" | "True")
    )
}

/// `` `A`, `B` `` for a sentence.
fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names
        .iter()
        .map(|name| format!("`{}`", quoted(name)))
        .collect();
    quoted.join(", ")
}

/// Other kinds of parallelism that the server uses, as a remark beside `tp`.
fn others(argv: &[Word]) -> Option<String> {
    const SIZES: [(&str, &[&str]); 4] = [
        (
            "--ep-size",
            &["--ep-size", "--expert-parallel-size", "--ep"],
        ),
        ("--dp-size", &["--dp-size", "--data-parallel-size", "--dp"]),
        ("--pp-size", &["--pp-size", "--pipeline-parallel-size"]),
        ("--nnodes", &["--nnodes"]),
    ];
    let sizes: Vec<String> = SIZES
        .iter()
        .filter_map(|(name, names)| Some(format!("{name} {}", quoted(flag(argv, names)?.text()))))
        .collect();
    (!sizes.is_empty()).then(|| sizes.join(", "))
}

/// Why a server is only a part of one: a rank of several nodes, or one side of a disaggregated pair.
fn one_of_several(argv: &[Word]) -> Option<String> {
    if let Some(nodes) = flag(argv, &["--nnodes"]).filter(|nodes| nodes.text() != "1") {
        return Some(format!(
            "it is one of {} nodes, and gemmtune starts a server on one: try a `--tp` that fits one node",
            quoted(nodes.text())
        ));
    }
    let mode = flag(argv, &["--disaggregation-mode"]).filter(|mode| mode.text() != "null")?;
    Some(format!(
        "it is the `{}` side of a disaggregated pair, and gemmtune starts one server: leave `--disaggregation-mode` out",
        quoted(mode.text())
    ))
}

/// The model of `sglang serve MODEL`.
pub(super) fn served(argv: &[Word]) -> Option<Word> {
    let at = argv.iter().position(|word| word.text() == "serve")?;
    argv.get(at + 1)
        .filter(|word| !word.text().starts_with('-'))
        .cloned()
}

/// Why an option that is not in a command may still be set: it may be in a file, or after an unknown word.
fn uncertain(argv: &[Word]) -> Option<String> {
    if let Some(file) = flag(argv, &["--config"]) {
        return Some(format!(
            "it may stand in `{}` (`--config`)",
            quoted(file.text())
        ));
    }
    let unknown = argv.iter().find(|word| word.known().is_none())?;
    Some(format!("it may stand behind `{}`", quoted(unknown.text())))
}

/// The interpreter that a server runs in.
fn interpreter(found: &Found, made: &Made<'_>) -> Result<Utf8PathBuf, String> {
    let at = found.argv.iter().position(is_python);
    let inner = Found {
        argv: found.argv[at.unwrap_or(0)..].to_vec(),
        ..found.clone()
    };
    let program = resolve(&inner, made);
    match (program, at) {
        (Some(python), Some(_)) => Ok(python),
        // A console script names its interpreter in its first line.
        (Some(script), None) => (made.surroundings.read)(&script)
            .and_then(|text| {
                let line = text.lines().next()?.strip_prefix("#!")?.trim().to_owned();
                let by_name = Found {
                    argv: vec![Word::of(
                        line.strip_prefix("/usr/bin/env ").unwrap_or(&line).trim(),
                    )],
                    ..found.clone()
                };
                is_python(&by_name.argv[0]).then(|| resolve(&by_name, made))?
            })
            .filter(|python| !python.as_str().contains(' '))
            .ok_or_else(|| format!("`{script}` does not name its interpreter")),
        (None, _) => Err(format!(
            "`{}` is not on the PATH it would run with",
            quoted(inner.argv[0].text())
        )),
    }
}

/// Wrappers such as numactl precede the interpreter.
fn is_python(word: &Word) -> bool {
    word.known().is_some_and(|word| {
        Utf8Path::new(word)
            .file_name()
            .is_some_and(|name| name.starts_with("python") || name.starts_with("pypy"))
    })
}
