//! The tables about the benchmark: the user's own command, or several of them as loads.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8Path;

use super::{Draft, Made, Subject, uncertain};
use crate::workload::env::matters;
use crate::workload::load::Load;
use crate::workload::quote::{cut, quoted};
use crate::workload::role::{self, Client};
use crate::workload::script::{Found, Word};
use crate::workload::secret::{is_secret, masked};

/// The result file if the command does not name one.
const RESULTS: &str = "bench.jsonl";

/// A load that a benchmark's flags describe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Described {
    concurrency: u32,
    prompts: u32,
    input_len: u32,
    output_len: u32,
    warmup: u32,
    seed: u32,
    /// The lower bound of the lengths, in percent, where they are drawn rather than fixed.
    ratio: Option<u32>,
}

impl Described {
    /// Converts it to one of gemmtune's own loads.
    fn load(&self, name: &str) -> Load {
        Load {
            name: Some(name.to_owned()),
            metric: None,
            concurrency: self.concurrency,
            prompts: self.prompts,
            input_len: self.input_len,
            output_len: self.output_len,
            warmup: self.warmup,
            seed: self.seed.into(),
        }
    }
}

impl Draft {
    pub(super) fn benchmark(
        &mut self,
        subject: Option<&Subject<'_>>,
        benchmarks: &[&Found],
        made: &Made<'_>,
    ) {
        let mut different: Vec<(&Found, i64)> = Vec::new();
        for benchmark in benchmarks {
            let alike =
                |other: &Found| without_results(&other.argv) == without_results(&benchmark.argv);
            match different.iter_mut().find(|(other, _)| alike(other)) {
                Some((_, times)) => *times += 1,
                None => different.push((benchmark, 1)),
            }
        }
        match different.as_slice() {
            [] => {
                self.tables.push(("benchmark", Vec::new()));
                self.ask(
                    "command",
                    "no `sglang.bench_serving` was seen; give its command, or use gemmtune's own load with \
                     `builtin = { concurrency = …, prompts = …, input_len = …, output_len = … }`",
                    true,
                );
            }
            [(only, times)] => self.one(subject, only, *times, made),
            several => {
                let founds: Vec<&Found> = several.iter().map(|(found, _)| *found).collect();
                self.several(subject, &founds);
            }
        }
    }

    /// The user's own command, with its results in the trial's folder.
    fn one(&mut self, subject: Option<&Subject<'_>>, found: &Found, times: i64, made: &Made<'_>) {
        self.tables.push(("benchmark", Vec::new()));
        if let Some(why) = uncertain(found) {
            self.ask("command", why, true);
            return;
        }
        let texts: Vec<&str> = found.argv.iter().map(Word::text).collect();
        let client = role::client(&texts);
        if client == Client::Other {
            let why = format!(
                "gemmtune reads the results of `bench_serving` and `vllm bench serve`, not those of `{}`; use its own load with \
                 `builtin = {{ concurrency = …, prompts = …, input_len = …, output_len = … }}`",
                cut(&masked(&texts).join(" "), 300)
            );
            self.ask("command", why, true);
            return;
        }
        self.port(subject, &texts);
        let (mut started, results, remark) = with_results(found, client);
        started.argv = absolute(&started);
        started.argv = self.with_environment(&started, subject);
        self.command("command", &started, made);
        match results {
            Word::Known(results) => self.value("results", results, remark),
            Word::Unknown { why, .. } => self.ask("results", format!("it depends on {why}"), true),
        }
        if times > 1 {
            self.value("repeats", times, Some("it ran as often".to_owned()));
        }
    }

    /// Several different benchmarks: gemmtune's own loads if their flags describe such, otherwise the commands one
    /// after another, if each appends a line to the results.
    fn several(&mut self, subject: Option<&Subject<'_>>, founds: &[&Found]) {
        let described: Result<Vec<Described>, String> =
            founds.iter().map(|found| describe(found)).collect();
        match described {
            Ok(loads) => {
                let mut names = BTreeSet::new();
                for load in &loads {
                    self.tables.push(("benchmark.loads", Vec::new()));
                    let mut name = format!(
                        "c{}-{}x{}",
                        load.concurrency, load.input_len, load.output_len
                    );
                    if !names.insert(name.clone()) {
                        name = format!("{name}-{}", names.len());
                        names.insert(name.clone());
                    }
                    let drawn = load.ratio.map(|ratio| {
                        format!(
                            "the mean: the benchmark draws lengths between {ratio} % and all of what it is given (`--random-range-ratio`)"
                        )
                    });
                    self.notes.extend(load.load(&name).remark());
                    self.value("name", name, None);
                    self.value("concurrency", i64::from(load.concurrency), None);
                    self.value("prompts", i64::from(load.prompts), None);
                    self.value("input_len", i64::from(load.input_len), drawn);
                    self.value("output_len", i64::from(load.output_len), None);
                    self.value("warmup", i64::from(load.warmup), None);
                    self.value("seed", i64::from(load.seed), None);
                }
                self.notes.push(format!(
                    "{} benchmarks were found, and became as many loads of gemmtune's own generator, in one trial each time",
                    loads.len()
                ));
            }
            Err(why) => {
                self.tables.push(("benchmark", Vec::new()));
                let all_append = founds.iter().all(|found| {
                    let texts: Vec<&str> = found.argv.iter().map(Word::text).collect();
                    role::client(&texts) == Client::Sglang && found.clouded.is_none()
                });
                let lines: Option<Vec<String>> = founds
                    .iter()
                    .map(|found| self.shell_line(found, subject))
                    .collect();
                if let Some(lines) = lines.filter(|_| all_append) {
                    let command = ["bash", "-c", &lines.join(" && ")]
                        .map(str::to_owned)
                        .to_vec();
                    self.value("command", command, None);
                    self.value(
                        "results",
                        RESULTS,
                        Some("each of the benchmarks adds its line".to_owned()),
                    );
                } else {
                    let shown: Vec<String> = founds
                        .iter()
                        .map(|found| {
                            let texts: Vec<&str> = found.argv.iter().map(Word::text).collect();
                            format!("`{}`", cut(&masked(&texts).join(" "), 200))
                        })
                        .collect();
                    self.ask(
                        "command",
                        format!(
                            "{} benchmarks were found, and {why}: {}",
                            founds.len(),
                            shown.join(", ")
                        ),
                        true,
                    );
                }
            }
        }
    }

    /// A benchmark as a shell command line; `None` if one of its words is unknown or a secret.
    fn shell_line(&mut self, found: &Found, subject: Option<&Subject<'_>>) -> Option<String> {
        let (mut started, ..) = with_results(found, Client::Sglang);
        set_flag(&mut started.argv, "--output-file", RESULTS);
        started.argv = absolute(&started);
        started.argv = self.with_environment(&started, subject);
        let words: Vec<&str> = started
            .argv
            .iter()
            .map(Word::known)
            .collect::<Option<_>>()?;
        crate::workload::secret::is_open(&words)
            .then(|| shlex::try_join(words.iter().copied()).ok())
            .flatten()
    }

    /// Adds what a benchmark's own environment sets in addition to the server's, which it inherits.
    fn with_environment(&mut self, found: &Found, subject: Option<&Subject<'_>>) -> Vec<Word> {
        let empty = BTreeMap::new();
        let server = subject.map_or(&empty, |subject| &subject.found.env);
        let mut front = Vec::new();
        for (name, value) in &found.env {
            let is_new =
                server.get(name) != Some(value) && (matters(name) || name.ends_with("proxy"));
            match value {
                Word::Known(value) if is_new && !is_secret(name) && name != "PATH" => {
                    front.push(Word::of(format!("{name}={value}")));
                }
                _ if is_new && is_secret(name) => {
                    self.notes.push(format!("the benchmark's `{name}` looks like a secret and was not copied: export it where you start gemmtune"));
                }
                _ => {}
            }
        }
        if !front.is_empty() {
            front.insert(0, Word::of("env"));
        }
        front.extend(found.argv.iter().cloned());
        front
    }

    /// A benchmark that uses another port measures something else.
    fn port(&mut self, subject: Option<&Subject<'_>>, argv: &[&str]) {
        let asked = role::flag(argv, &["--port"])
            .map(str::to_owned)
            .or_else(|| {
                let url = role::flag(argv, &["--base-url"])?;
                let port = url.trim_end_matches('/').rsplit(':').next()?;
                Some(port.split('/').next()?.to_owned())
            });
        let listens = subject.and_then(|subject| match subject.answer {
            Some(answer) => Some(answer.address.port().to_string()),
            None => crate::workload::script::flag(&subject.found.argv, &["--port"])
                .and_then(|port| port.known().map(str::to_owned)),
        });
        if let (Some(asked), Some(listens)) = (asked, listens)
            && asked != listens
            && asked.chars().all(|digit| digit.is_ascii_digit())
        {
            self.notes.push(format!(
                "the benchmark asks port {} and the server listens on {listens}: one of them is not the one meant",
                quoted(&asked)
            ));
        }
    }
}

/// A command line without its result options, in which repeated runs do not differ.
fn without_results(argv: &[Word]) -> Vec<String> {
    let mut rest = Vec::new();
    let mut words = argv.iter().map(Word::text);
    while let Some(word) = words.next() {
        let name = word.split('=').next().unwrap_or(word);
        if [
            "--output-file",
            "--result-filename",
            "--result-dir",
            "--tag",
        ]
        .contains(&name)
        {
            if name == word {
                words.next();
            }
        } else {
            rest.push(word.to_owned());
        }
    }
    rest
}

/// Sets a flag's value, or adds it.
fn set_flag(argv: &mut Vec<Word>, name: &str, value: &str) {
    for at in 0..argv.len() {
        if argv[at].text() == name {
            if let Some(word) = argv.get_mut(at + 1) {
                *word = Word::of(value);
            }
            return;
        }
        if argv[at]
            .text()
            .split_once('=')
            .is_some_and(|(flag, _)| flag == name)
        {
            argv[at] = Word::of(format!("{name}={value}"));
            return;
        }
    }
    argv.extend([name, value].map(Word::of));
}

/// The command with its results in the folder it runs in, the name of the result file, and what was changed.
fn with_results(found: &Found, client: Client) -> (Found, Word, Option<String>) {
    let mut started = found.clone();
    let file_name = |word: &Word| match word {
        Word::Known(path) => Word::of(Utf8Path::new(path).file_name().unwrap_or(RESULTS)),
        unknown @ Word::Unknown { .. } => unknown.clone(),
    };
    let flag = |name| crate::workload::script::flag(&found.argv, &[name]);
    if client == Client::Vllm {
        let texts: Vec<&str> = found.argv.iter().map(Word::text).collect();
        let results = flag("--result-filename")
            .map_or_else(|| Word::of("bench.json"), |word| file_name(&word));
        if !role::has_flag(&texts, &["--save-result"]) {
            started.argv.push(Word::of("--save-result"));
        }
        set_flag(&mut started.argv, "--result-dir", ".");
        set_flag(&mut started.argv, "--result-filename", results.text());
        let remark = "written where the trial's results are".to_owned();
        return (started, results, Some(remark));
    }
    let Some(word) = flag("--output-file") else {
        let added = ["--output-file", RESULTS].map(Word::of);
        started.argv.extend(added);
        let remark = "--output-file was added to the command".to_owned();
        return (started, Word::of(RESULTS), Some(remark));
    };
    let results = file_name(&word);
    if let Word::Known(name) = &results
        && name != word.text()
    {
        set_flag(&mut started.argv, "--output-file", name);
        let remark = "its folder was left out: the file is each trial's own".to_owned();
        return (started, results, Some(remark));
    }
    (started, results, None)
}

/// The command with paths relative to its working directory made absolute, because it runs in the trial's folder.
fn absolute(found: &Found) -> Vec<Word> {
    let Some(folder) = found.folder.known().map(Utf8Path::new) else {
        return found.argv.clone();
    };
    let mut argv = found.argv.clone();
    for at in 1..argv.len() {
        let before = argv[at - 1].text().to_owned();
        let Word::Known(text) = &argv[at] else {
            continue;
        };
        let is_output =
            ["--output-file", "--result-dir", "--result-filename"].contains(&before.as_str());
        let may_be_file = Utf8Path::new(text).extension() == Some("py")
            || text.starts_with("./")
            || text.starts_with("../")
            || before.ends_with("-path")
            || before.ends_with("-file");
        if !is_output && may_be_file && !text.starts_with(['/', '-']) && folder.join(text).exists()
        {
            argv[at] = Word::of(folder.join(text).as_str());
        }
    }
    argv
}

/// The load that a benchmark's flags describe, or why gemmtune's generator cannot produce it.
///
/// Names and defaults are those of SGLang 0.5.16's `bench_serving` and vLLM 0.11's `bench serve`: random prompts must
/// be requested by name; the defaults are 1000 of them, 1024 tokens in and (vLLM) 128 out, without a limit on rate or
/// concurrency.
fn describe(found: &Found) -> Result<Described, String> {
    if let Some(why) = uncertain(found) {
        return Err(why);
    }
    let texts: Vec<&str> = found
        .argv
        .iter()
        .map(Word::known)
        .collect::<Option<_>>()
        .ok_or_else(|| "not every word of them is known".to_owned())?;
    let client = role::client(&texts);
    if client == Client::Other {
        return Err("their results are not read".to_owned());
    }
    let is_vllm = client == Client::Vllm;
    let number = |names: &[&str], default: u32| match role::flag(&texts, names) {
        Some(text) => text
            .parse()
            .map_err(|_| format!("`{}` is no count", quoted(text))),
        None => Ok(default),
    };
    let dataset = role::flag(&texts, &["--dataset-name"]).unwrap_or(if is_vllm {
        "random"
    } else {
        "sharegpt"
    });
    if !matches!(dataset, "random" | "random-ids") {
        return Err(format!(
            "the dataset `{}` is not gemmtune's",
            quoted(dataset)
        ));
    }
    if role::flag(&texts, &["--request-rate"])
        .is_some_and(|rate| !matches!(rate, "inf" | "Infinity"))
    {
        return Err("they limit the rate of requests".to_owned());
    }
    let prompts = number(&["--num-prompts", "--num-prompt"], 1000)?;
    let concurrency = number(&["--max-concurrency"], prompts)?.min(prompts);
    let input = number(
        &["--random-input-len", "--random-input", "--input-len"],
        1024,
    )?;
    let output = number(
        &["--random-output-len", "--random-output", "--output-len"],
        if is_vllm { 128 } else { 1024 },
    )?;
    let ratio: f64 = match role::flag(&texts, &["--random-range-ratio"]) {
        Some(text) => text
            .parse()
            .map_err(|_| format!("`{}` is no ratio", quoted(text)))?,
        // vLLM's ratio is a spread around the length, 0 by default; SGLang's is the lower bound.
        None if is_vllm => 1.0,
        None => 0.0,
    };
    if !(0.0..=1.0).contains(&ratio) {
        return Err(format!("the ratio {ratio} is not between 0 and 1"));
    }
    // `vllm bench serve` draws lengths around the given one, the scripts below it: both have these means.
    let is_around = is_vllm
        && !texts
            .iter()
            .any(|word| word.ends_with("benchmark_serving.py"));
    let mean = |length: u32| {
        if is_around {
            length
        } else {
            (f64::from(length) * (1.0 + ratio) / 2.0).round() as u32
        }
    };
    let warmup = number(&["--warmup-requests", "--num-warmups"], u32::from(!is_vllm))?;
    let seed = number(&["--seed"], u32::from(!is_vllm))?;
    if prompts == 0 || input == 0 || output == 0 || concurrency == 0 {
        return Err("one of them sends nothing".to_owned());
    }
    Ok(Described {
        concurrency,
        prompts,
        input_len: mean(input).max(1),
        output_len: mean(output).max(1),
        warmup,
        seed,
        ratio: (!is_around && ratio < 1.0).then(|| (ratio * 100.0).round() as u32),
    })
}
