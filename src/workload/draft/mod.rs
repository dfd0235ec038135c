//! A first `gemmtune.toml` from what was watched, read or observed, with a question for everything that was not.

mod amd;
mod benchmark;
mod experts;
mod server;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde_json::Value as Json;

use super::container;
use super::env::matters;
use super::observe::Process;
use super::quote::{cut, is_plain, quoted};
use super::role::Role;
use super::script::{Facts, Found, Surroundings, Word};
use super::secret::masked;
use super::watch::{Answer, Ending, Seen, Watched};
use server::Environment;

/// A longer limit for a question's reason, because it may quote a whole command.
const REASON_WIDTH: usize = 1200;

/// Something only the user knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// The name in `gemmtune.toml`.
    pub name: String,
    /// Why it is unknown.
    pub why: String,
    /// Whether a run needs it.
    pub needed: bool,
}

/// A configuration as far as it is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    tables: Vec<(&'static str, Vec<Line>)>,
    /// What the user has to answer.
    pub questions: Vec<Question>,
    /// Remarks for the reader.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Line {
    Value(String, toml::Value, Option<String>),
    Asked(String, String),
}

/// Searches for a program along a `PATH`; returns the file's path.
pub type Find<'a> = &'a dyn Fn(&str, &str) -> Option<Utf8PathBuf>;

/// What a draft is made from, besides what was observed.
pub struct Made<'a> {
    /// Files and variables of the environment that `init` runs in.
    pub surroundings: &'a Surroundings<'a>,
    pub find: Find<'a>,
    /// The backend that this machine's GPUs allow: `aiter` with AMD's driver, `sglang-families` with NVIDIA's; with
    /// the reason.
    pub machine: Option<(&'static str, &'static str)>,
    /// The first NVIDIA GPU of this machine, by name.
    pub gpu: Option<String>,
    /// The architecture of the first AMD GPU of this machine, such as `gfx942`.
    pub gfx: Option<String>,
}

/// A server, and its own response if it gave one.
struct Subject<'a> {
    found: &'a Found,
    answer: Option<&'a Answer>,
}

impl Subject<'_> {
    /// One of the server's resolved arguments.
    fn resolved(&self, name: &str) -> Option<&Json> {
        let info = self.answer?.info.as_ref()?;
        // 0.5.5 to 0.5.23 respond with the arguments themselves; a nested form is searched as well.
        info.get(name)
            .or_else(|| info.get("server_args")?.get(name))
            .filter(|value| !value.is_null())
    }
}

impl Draft {
    /// A draft from a parsed script.
    pub fn from_script(name: &str, facts: &Facts, made: &Made<'_>) -> Self {
        let mut draft = Self {
            notes: facts.notes.iter().map(|note| cut(note, 300)).collect(),
            ..Self::default()
        };
        for elsewhere in &facts.elsewhere {
            let inside = elsewhere.inside.as_deref();
            draft.notes.push(format!(
                "line {} starts something with `{}`, which was not entered{}; {}",
                elsewhere.line,
                elsewhere.tool,
                inside.map_or_else(String::new, |inside| format!(": {inside}")),
                container::advice(&elsewhere.tool)
            ));
        }
        let mut servers: Vec<&Found> = Vec::new();
        for server in facts.of(Role::Server) {
            // One command in several branches counts once.
            let is_same = |other: &&Found| other.argv == server.argv && other.env == server.env;
            if !servers.iter().any(is_same) {
                servers.push(server);
            }
        }
        let why = why_no_server(facts, &servers);
        let subject = servers
            .first()
            .filter(|_| why.is_none())
            .map(|found| Subject {
                found,
                answer: None,
            });
        let mut benchmarks: Vec<Found> = facts.of(Role::Benchmark).cloned().collect();
        if let Some(why) = &facts.clouded {
            draft.notes.push(format!(
                "not all of the script was followed: {why}; `gemmtune init -- bash SCRIPT` sees all that it starts"
            ));
            // It is not known whether more of them run.
            if let Some(line) = facts.missed_benchmarks.first() {
                let why = format!("line {line} names a benchmark too, and {why}");
                for benchmark in &mut benchmarks {
                    benchmark.clouded.get_or_insert_with(|| why.clone());
                }
            }
        }
        let benchmarks: Vec<&Found> = benchmarks.iter().collect();
        draft.fill(name, subject.as_ref(), why, &benchmarks, made);
        draft
    }

    /// A draft from what a command actually started.
    pub fn from_watched(
        name: &str,
        watched: &Watched,
        ours: &BTreeMap<String, String>,
        made: &Made<'_>,
    ) -> Self {
        let mut draft = Self::default();
        for (tool, argv) in &watched.elsewhere {
            let words: Vec<&str> = argv.iter().map(String::as_str).collect();
            if let Some(inside) = container::inside(tool, &words) {
                draft.notes.push(format!(
                    "`{tool}` starts something that was not watched: {inside}; {}",
                    container::advice(tool)
                ));
            }
        }
        let seen: Vec<&Seen> = watched.of(Role::Server).collect();
        let (servers, why) = draft.one_server(&seen);
        let founds: Vec<Found> = seen.iter().map(|seen| found(seen, ours)).collect();
        let subject = servers.and_then(|at| {
            Some(Subject {
                found: founds.get(at)?,
                answer: seen.get(at)?.answer.as_ref(),
            })
        });
        if let Some(server) = servers.and_then(|at| seen.get(at)) {
            draft.remarks(server, watched.ending);
            let theirs = &server.process.env;
            let inherited: Vec<&str> = ours
                .iter()
                .filter(|(name, value)| {
                    matters(name) && *name != "PATH" && theirs.get(*name) == Some(*value)
                })
                .map(|(name, _)| name.as_str())
                .collect();
            if !inherited.is_empty() {
                draft.notes.push(format!(
                    "the server got these variables from this shell: {}; start `gemmtune run` from one that has them, or write \
                     them under `[server.env]`",
                    cut(&inherited.join(", "), 600)
                ));
            }
        }
        let benchmarks: Vec<Found> = watched
            .of(Role::Benchmark)
            .map(|seen| found(seen, ours))
            .collect();
        let benchmarks: Vec<&Found> = benchmarks.iter().collect();
        draft.fill(name, subject.as_ref(), why, &benchmarks, made);
        draft
    }

    /// A draft from a live server: no benchmark can be seen, and there is no parent shell to compare its environment
    /// with.
    pub fn from_process(
        process: &Process,
        answer: Option<&Answer>,
        ours: &BTreeMap<String, String>,
        made: &Made<'_>,
    ) -> Self {
        let mut draft = Self::default();
        let (environment, left) = Environment::of_process(&process.env, ours);
        if !left.is_empty() {
            draft.notes.push(format!(
                "left out, as variables of a login or a terminal: {}",
                cut(&left.join(", "), 300)
            ));
        }
        let found = Found {
            role: Role::Server,
            argv: process.command().into_iter().map(Word::Known).collect(),
            env: environment.set,
            unset: environment.unset,
            folder: Word::of(process.folder.as_str()),
            line: 0,
            clouded: None,
        };
        let subject = Subject {
            found: &found,
            answer,
        };
        draft.fill(
            &format!("pid-{}", process.pid),
            Some(&subject),
            None,
            &[],
            made,
        );
        draft
    }

    fn fill(
        &mut self,
        name: &str,
        subject: Option<&Subject<'_>>,
        why: Option<String>,
        benchmarks: &[&Found],
        made: &Made<'_>,
    ) {
        self.workload(name, subject, benchmarks);
        self.server(subject, why, made);
        self.benchmark(subject, benchmarks, made);
        self.backend(subject, made);
    }

    /// Which of the started servers to use, or why none.
    fn one_server(&mut self, seen: &[&Seen]) -> (Option<usize>, Option<String>) {
        let alike = |seen: &Seen| {
            let mut words = seen.process.argv.iter().skip(1);
            let mut rest = Vec::new();
            while let Some(word) = words.next() {
                let name = word.split('=').next().unwrap_or(word);
                if ["--port", "--nccl-port", "--base-gpu-id", "--dist-init-addr"].contains(&name) {
                    if name == word {
                        words.next();
                    }
                } else {
                    rest.push(word.clone());
                }
            }
            rest
        };
        let Some(first) = seen.first() else {
            return (None, Some("no SGLang server was started".to_owned()));
        };
        let different: Vec<&&Seen> = seen
            .iter()
            .filter(|other| alike(other) != alike(first))
            .collect();
        // One that became ready supersedes failed attempts.
        let at = seen
            .iter()
            .position(|seen| seen.answer.is_some())
            .unwrap_or(0);
        if let Some(other) = different.first() {
            let why = format!(
                "{} servers with different commands were started: `{}` and `{}`; gemmtune tunes one: start that one alone",
                seen.len(),
                cut(&masked(&first.process.argv).join(" "), 300),
                cut(&masked(&other.process.argv).join(" "), 300)
            );
            return (None, Some(why));
        }
        if seen.len() > 1 {
            self.notes.push(format!(
                "{} servers with the same command were started, but for ports and devices: one of them is tuned",
                seen.len()
            ));
        }
        (Some(at), None)
    }

    /// Remarks on what a command line and an environment do not tell.
    fn remarks(&mut self, seen: &Seen, ending: Ending) {
        if seen.answer.is_none() {
            self.notes.push(match ending {
                Ending::Exited | Ending::ServerEnded => {
                    "the server ended before it was ready; what it was started with is in the file all the same".to_owned()
                }
                _ => "the server was not ready yet when the watching ended".to_owned(),
            });
        }
        if let Some(under) = &seen.under {
            self.notes.push(format!(
                "the server was started by `{}`, which is left out: gemmtune starts the server itself",
                quoted(under)
            ));
        }
        if !seen.placement.limits.is_empty() {
            self.notes.push(format!(
                "the server ran with other limits than this shell (`ulimit`): {}; start `gemmtune run` from a shell that has them",
                seen.placement.limits.join(", ")
            ));
        }
        if let Some(memory) = &seen.placement.memory
            && seen.front.is_empty()
        {
            self.notes.push(format!(
                "the server's memory policy is `{}`: put the `numactl` that set it in front of the command",
                quoted(memory)
            ));
        }
    }

    fn value(&mut self, name: &str, value: impl Into<toml::Value>, remark: Option<String>) {
        if let Some((_, lines)) = self.tables.last_mut() {
            lines.push(Line::Value(name.to_owned(), value.into(), remark));
        }
    }

    fn ask(&mut self, name: &str, why: impl AsRef<str>, needed: bool) {
        let why = cut(why.as_ref(), REASON_WIDTH);
        if let Some((table, lines)) = self.tables.last_mut() {
            lines.push(Line::Asked(name.to_owned(), why.clone()));
            self.questions.push(Question {
                name: format!("{table}.{name}"),
                why,
                needed,
            });
        }
    }

    fn number(&mut self, name: &str, word: &Word) {
        match word {
            Word::Known(text) => match text.parse::<u32>() {
                Ok(number) => self.value(name, i64::from(number), None),
                Err(_) => self.ask(name, format!("`{}` is no number", quoted(text)), true),
            },
            Word::Unknown { why, .. } => self.ask(name, format!("it depends on {why}"), true),
        }
    }

    /// Whether a run could start with it.
    pub fn is_complete(&self) -> bool {
        self.questions.iter().all(|question| !question.needed)
    }

    /// Whether there is a server to start.
    pub fn has_server(&self) -> bool {
        let server = self.tables.iter().find(|(name, _)| *name == "server");
        server.is_some_and(|(_, lines)| {
            lines
                .iter()
                .any(|line| matches!(line, Line::Value(name, ..) if name == "command"))
        })
    }

    /// The configuration file, with open questions as comments.
    pub fn to_toml(&self, origin: &str) -> String {
        let mut text = format!("# Made from {} by `gemmtune init`.\n", cut(origin, 300));
        if !self.questions.is_empty() {
            text.push_str("# Lines that start with `# ?` are unknown and yours to fill in.\n");
        }
        for (table, lines) in &self.tables {
            // Each load is a table in an array.
            let heading = match *table {
                "benchmark.loads" => "[[benchmark.loads]]".to_owned(),
                table => format!("[{table}]"),
            };
            let _ = writeln!(text, "\n{heading}");
            for line in lines {
                let _ = match line {
                    Line::Value(name, value, None) => writeln!(text, "{} = {value}", key(name)),
                    Line::Value(name, value, Some(remark)) => {
                        writeln!(
                            text,
                            "{} = {value} # {}",
                            key(name),
                            cut(remark, REASON_WIDTH)
                        )
                    }
                    Line::Asked(name, why) => writeln!(text, "# ? {} = … # {why}", key(name)),
                };
            }
        }
        text
    }
}

/// Why none of the servers in a script can be used.
fn why_no_server(facts: &Facts, servers: &[&Found]) -> Option<String> {
    match (
        servers,
        facts.of(Role::OtherServer).next(),
        facts.elsewhere.first(),
    ) {
        ([only], ..) => {
            let why = uncertain(only).or_else(|| {
                let (line, why) = (facts.missed.first()?, facts.clouded.as_ref()?);
                Some(format!("line {line} names SGLang's server too, and {why}"))
            })?;
            let words: Vec<&str> = only.argv.iter().map(Word::text).collect();
            Some(format!(
                "{why}; `gemmtune init -- bash SCRIPT` sees it; as written: {}",
                masked(&words).join(" ")
            ))
        }
        ([], Some(other), _) => Some(format!(
            "line {} starts a server that is not SGLang",
            other.line
        )),
        ([], None, Some(elsewhere)) => Some(format!(
            "it is started through `{}` at line {}{}",
            elsewhere.tool,
            elsewhere.line,
            elsewhere
                .inside
                .as_ref()
                .map_or_else(String::new, |inside| format!(": {inside}"))
        )),
        ([], None, None) => Some(match facts.missed.first() {
            Some(line) => format!(
                "line {line} names SGLang's server, and {}",
                facts
                    .clouded
                    .as_deref()
                    .unwrap_or("what runs it was not seen")
            ),
            None => "the script starts no SGLang server that could be seen".to_owned(),
        }),
        (several, ..) => {
            let lines: Vec<_> = several
                .iter()
                .map(|server| server.line.to_string())
                .collect();
            Some(format!(
                "the script starts {} different servers, at lines {}",
                several.len(),
                lines.join(", ")
            ))
        }
    }
}

/// Why a command of a script is uncertain, if it is.
fn uncertain(found: &Found) -> Option<String> {
    let why = found.clouded.as_ref()?;
    Some(format!("line {} is not certain: {why}", found.line))
}

/// Converts what was observed to the form that a parsed script has.
fn found(seen: &Seen, ours: &BTreeMap<String, String>) -> Found {
    let environment = Environment::difference(&seen.process.env, ours);
    let mut argv = seen.front.clone();
    if let (true, Some(cpus)) = (argv.is_empty(), &seen.placement.cpus) {
        argv = ["taskset", "-c", cpus].map(str::to_owned).to_vec();
    }
    argv.extend(seen.process.command());
    Found {
        role: seen.role,
        argv: argv.into_iter().map(Word::Known).collect(),
        env: environment.set,
        unset: environment.unset,
        folder: Word::of(seen.process.folder.as_str()),
        line: 0,
        clouded: None,
    }
}

/// The program file that a command would start, if it is known.
fn resolve(found: &Found, made: &Made<'_>) -> Option<Utf8PathBuf> {
    let program = found.argv.first()?.known()?;
    if program.contains('/') {
        return Some(match found.folder.known() {
            Some(folder) if !program.starts_with('/') => Utf8Path::new(folder).join(program),
            _ => Utf8PathBuf::from(program),
        });
    }
    let path = match found.env.get("PATH") {
        Some(path) => path.known()?.to_owned(),
        None => (made.surroundings.variable)("PATH")?,
    };
    (made.find)(program, &path)
}

/// A TOML key: in quotes where it holds more than letters, digits, `_` and `-`.
fn key(name: &str) -> String {
    let is_bare = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        toml::Value::String(name.chars().filter(|letter| is_plain(*letter)).collect()).to_string()
    }
}

/// A name for a run folder.
fn plain(name: &str) -> String {
    let plain: String = name
        .chars()
        .take(60)
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
