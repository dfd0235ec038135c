//! Commands: those of the shell that change what follows, those that matter, and those that lead elsewhere.

use std::collections::BTreeMap;

use brush_parser::ast::{
    Assignment, AssignmentName, AssignmentValue, CommandPrefixOrSuffixItem as Item, SimpleCommand,
};
use camino::{Utf8Path, Utf8PathBuf};

use super::reckon::test;
use super::shell::{Shell, Value, is_name, reason};
use super::{Elsewhere, Found, Word};
use crate::workload::container;
use crate::workload::quote::quoted;
use crate::workload::role::{self, name_of};

/// Commands that run the rest of their line in a way that does not matter here: gemmtune starts processes itself.
const DROPPED: [&str; 6] = ["exec", "nohup", "time", "command", "setsid", "builtin"];

/// Commands that a script relies on to succeed: what stands behind their `&&` runs, behind their `||` does not.
const RELIED_ON: [&str; 16] = [
    "cd", "pushd", "popd", "source", ".", "set", "true", ":", "echo", "printf", "mkdir", "sleep",
    "ulimit", "export", "unset", "local",
];

/// Commands that change the environment in ways that only running them tells.
const OPAQUE: [&str; 14] = [
    "module",
    "ml",
    "spack",
    "activate",
    "deactivate",
    "pyenv",
    "nvm",
    "sdk",
    "workon",
    "asdf",
    "mise",
    "direnv",
    "guix",
    "nix-shell",
];

/// Builtins that leave variables and folders as they are.
const HARMLESS: [&str; 23] = [
    "echo", "printf", "true", ":", "kill", "wait", "jobs", "disown", "trap", "ulimit", "umask",
    "type", "hash", "times", "fg", "bg", "history", "help", "compgen", "complete", "bind",
    "logout", "suspend",
];

/// What `env` in front of a command does to its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment<'a> {
    /// `-i`: nothing is inherited.
    pub(super) cleared: bool,
    pub(super) unset: Vec<String>,
    pub(super) set: Vec<(String, Word)>,
    /// The command it starts.
    pub(super) rest: &'a [Word],
}

impl Shell<'_> {
    /// A simple command; whether it succeeds, if that is known.
    pub(super) fn simple(&mut self, command: &SimpleCommand, line: usize) -> Option<bool> {
        let mut prefix: Vec<&Assignment> = Vec::new();
        let mut here_document = None;
        let mut items: Vec<&Item> = Vec::new();
        items.extend(command.prefix.iter().flat_map(|prefix| &prefix.0));
        let name = command.word_or_name.as_ref();
        for item in &items {
            if let Item::AssignmentWord(assignment, _) = item {
                prefix.push(assignment);
            }
        }
        let Some(name) = name else {
            for assignment in prefix {
                self.assign(assignment, false);
            }
            return Some(true);
        };
        let mut argv = self.expand(name);
        let declares = matches!(
            argv.first().and_then(Word::known),
            Some("export" | "declare" | "typeset" | "local" | "readonly")
        );
        if declares {
            let suffix: Vec<&Item> = command.suffix.iter().flat_map(|suffix| &suffix.0).collect();
            self.declare(argv[0].text(), &suffix, line);
            return Some(true);
        }
        for item in command.suffix.iter().flat_map(|suffix| &suffix.0) {
            match item {
                Item::Word(word) | Item::AssignmentWord(_, word) => argv.extend(self.expand(word)),
                Item::ProcessSubstitution(..) => {
                    argv.push(Word::unknown("<(…)", "a process substitution"));
                }
                Item::IoRedirect(brush_parser::ast::IoRedirect::HereDocument(_, document)) => {
                    here_document = Some(document.doc.value.clone());
                }
                Item::IoRedirect(_) => {}
            }
        }
        let mut environment = BTreeMap::new();
        for assignment in prefix {
            if let (AssignmentName::VariableName(name), AssignmentValue::Scalar(value)) =
                (&assignment.name, &assignment.value)
            {
                let value = self.scalar(value, true);
                environment.insert(name.clone(), value);
            }
        }
        if let Some(text) = here_document
            && text.lines().any(container::names_sglang)
        {
            let tool = argv.first().map_or("", Word::text).to_owned();
            self.elsewhere(&tool, line, None);
        }
        self.started(environment, &argv, line)
    }

    /// A command with its prefix assignments, as it would be started.
    pub(super) fn started(
        &mut self,
        prefix: BTreeMap<String, Word>,
        argv: &[Word],
        line: usize,
    ) -> Option<bool> {
        let first = match argv.first()? {
            Word::Known(first) => first.clone(),
            Word::Unknown { text, why } => {
                // It may be anything, a builtin too.
                self.cloud(format!(
                    "{} runs `{}`, which depends on {why}",
                    self.place(line),
                    quoted(text)
                ));
                self.note_sglang(text, argv, line);
                return None;
            }
        };
        if let Some(body) = self.functions.get(&first).cloned() {
            return if let Some(body) = body {
                self.call(&body, argv[1..].to_vec(), line)
            } else {
                self.cloud(format!(
                    "{} calls `{first}`, which may be defined or not",
                    self.place(line)
                ));
                None
            };
        }
        if let Some(status) = self.builtin(&first, argv, line) {
            return status;
        }
        let stripped = stripped(argv);
        if first == "exec" {
            if stripped.is_empty() {
                return Some(true); // redirections only
            }
            let status = self.program(prefix, stripped, line);
            self.state.gone = true;
            return status;
        }
        if stripped.len() < argv.len() && !stripped.is_empty() {
            return self.started(prefix, stripped, line);
        }
        self.program(prefix, stripped, line)
    }

    /// A builtin: its status, or `None` where the command is not one.
    #[expect(
        clippy::option_option,
        reason = "no builtin, one of unknown status, and one of known status"
    )]
    fn builtin(&mut self, name: &str, argv: &[Word], line: usize) -> Option<Option<bool>> {
        let words = &argv[1..];
        let place = self.place(line);
        match name {
            "false" => return Some(Some(false)),
            "[" => {
                let inner = words.split_last().map_or(words, |(_, inner)| inner);
                return Some(test(inner));
            }
            "test" => return Some(test(words)),
            "exit" | "return" | "logout" => {
                self.state.gone = true;
            }
            "break" | "continue" => {
                if self.loops.last() == Some(&true) {
                    self.cloud(format!("`{name}` at {place}"));
                }
            }
            "cd" | "pushd" => self.change_folder(words),
            "popd" => self.state.folder = Word::unknown("popd", format!("`popd` at {place}")),
            "set" => self.options(words, &place),
            "shift" => {
                let by = words.first().map_or(Some(1), |by| by.known()?.parse().ok());
                let left = self.state.arguments.as_ref().zip(by);
                // What is more than there is shifts nothing.
                self.state.arguments = left.map(|(arguments, by): (_, usize)| {
                    arguments.get(by..).unwrap_or(arguments).to_vec()
                });
            }
            "unset" => {
                for word in words {
                    match word.known() {
                        Some(option) if option.starts_with('-') => {}
                        Some(name) => {
                            self.state.variables.remove(name);
                            self.state.unset.insert(name.to_owned());
                            self.functions.remove(name);
                        }
                        None => self.cloud(format!("{place} unsets `{}`", quoted(word.text()))),
                    }
                }
            }
            // They put into variables what the script does not hold.
            "read" | "mapfile" | "readarray" | "getopts" | "let" => {
                self.cloud(format!("what `{name}` at {place} finds"));
                return Some(None);
            }
            "printf" if words.iter().any(|word| word.text() == "-v") => {
                self.cloud(format!("what `{name} -v` at {place} writes"));
            }
            "eval" => self.evaluate(words, line),
            "source" | "." => self.source(words, line),
            "alias" | "shopt" | "enable" => {
                let harmless =
                    name == "shopt" && !words.iter().any(|word| word.text() == "expand_aliases");
                if !harmless && name != "alias" {
                    self.cloud(format!("`{name}` at {place}"));
                }
            }
            "conda" | "mamba" | "micromamba" => {
                if words.first().map(Word::text) == Some("activate") {
                    self.opaque(&format!("`{name} activate` at {place}"));
                }
                return (words.first().map(Word::text) == Some("activate")).then_some(Some(true));
            }
            _ if OPAQUE.contains(&name) => self.opaque(&format!("`{name}` at {place}")),
            _ if HARMLESS.contains(&name) => {}
            _ => return None,
        }
        Some(RELIED_ON.contains(&name).then_some(true))
    }

    /// Only running the script shows the environment; the script's own variables are still known.
    fn opaque(&mut self, why: &str) {
        self.state.venv = Some(Word::unknown("", why));
    }

    fn change_folder(&mut self, words: &[Word]) {
        let mut words = words
            .iter()
            .filter(|word| !matches!(word.text(), "--" | "-P" | "-L"));
        let target = words.next().cloned().or_else(|| self.lookup("HOME"));
        let target = match target {
            Some(word) if word.text() != "-" && self.lookup("CDPATH").is_none() => word,
            _ => Word::unknown("cd", "a folder that only bash knows"),
        };
        self.state.folder = self.below(&target);
    }

    fn options(&mut self, words: &[Word], place: &str) {
        for (at, word) in words.iter().enumerate() {
            let Some(option) = word.known() else {
                self.cloud(format!("`set` at {place}"));
                return;
            };
            match option {
                "--" => {
                    self.state.arguments = Some(words[at + 1..].to_vec());
                    return;
                }
                "allexport" => {
                    self.state.all_exported = words[..at].last().map(Word::text) == Some("-o");
                }
                _ if option.starts_with('-') && option.contains('a') => {
                    self.state.all_exported = true;
                }
                _ if option.starts_with('+') && option.contains('a') => {
                    self.state.all_exported = false;
                }
                _ if option.starts_with(['-', '+']) => {}
                // `set one two` is `set -- one two`; the word behind `-o` is an option's name.
                _ if at > 0 && words[at - 1].text().ends_with('o') => {}
                _ => {
                    self.state.arguments = Some(words[at..].to_vec());
                    return;
                }
            }
        }
    }

    /// `export`, `declare`, `local` and their like.
    fn declare(&mut self, command: &str, items: &[&Item], line: usize) {
        let place = self.place(line);
        let mut exports = command == "export";
        let mut removes = false;
        let is_local = matches!(command, "local" | "declare" | "typeset");
        for item in items {
            let (assignment, word) = match item {
                Item::AssignmentWord(assignment, word) => (Some(assignment), word),
                Item::Word(word) => (None, word),
                _ => continue,
            };
            if let Some(assignment) = assignment {
                if let (true, AssignmentName::VariableName(name)) = (is_local, &assignment.name) {
                    self.hide(name);
                }
                self.assign(assignment, exports);
                continue;
            }
            for word in self.expand(word) {
                let Some(text) = word.known() else {
                    self.cloud(format!(
                        "{place} declares `{}`, which depends on {}",
                        quoted(word.text()),
                        reason(&word)
                    ));
                    continue;
                };
                if let Some(options) = text.strip_prefix('-') {
                    exports |= options.contains('x');
                    removes |= command == "export" && options.contains('n');
                    if options.contains(['n', 'i', 'l', 'u']) && command != "export" {
                        self.cloud(format!("`{command} {text}` at {place}"));
                    }
                    if options.contains('f') {
                        return;
                    }
                    continue;
                }
                if text.starts_with('+') {
                    self.cloud(format!("`{command} {text}` at {place}"));
                    continue;
                }
                let (name, value) = match text.split_once('=') {
                    Some((name, value)) => (name, Some(Word::of(value))),
                    None => (text, None),
                };
                if !is_name(name) {
                    self.cloud(format!("{place} declares `{}`", quoted(text)));
                    continue;
                }
                if is_local {
                    self.hide(name);
                }
                match (value, self.state.variables.get_mut(name)) {
                    (Some(value), _) => self.set(name, Value::Scalar(value), exports),
                    (None, Some(variable)) => {
                        variable.exported = (variable.exported || exports) && !removes;
                    }
                    (None, None) if removes => {
                        self.state.unset.insert(name.to_owned());
                    }
                    (None, None) => {}
                }
            }
        }
    }

    /// Remembers what a local variable of the innermost function hides, to be put back when it returns.
    fn hide(&mut self, name: &str) {
        let present = self.state.variables.get(name).cloned();
        if let Some(hidden) = self.hidden.last_mut()
            && !hidden.iter().any(|(other, _)| other == name)
        {
            hidden.push((name.to_owned(), present));
        }
    }

    /// `eval WORDS`: read as a text in place.
    fn evaluate(&mut self, words: &[Word], line: usize) {
        let place = self.place(line);
        let written: Vec<_> = words.iter().map(Word::text).collect();
        let written = written.join(" ");
        let known: Option<Vec<&str>> = words.iter().map(Word::known).collect();
        match known.map(|known| super::parse(&known.join(" "))) {
            Some(Ok(program)) => {
                self.sourced += 1;
                for list in &program.complete_commands {
                    for found in self.recorded(|shell| {
                        shell.list(list);
                    }) {
                        self.facts.found[found].line = line;
                    }
                }
                self.sourced -= 1;
            }
            // What conda's own line does is known: it makes `conda activate` work.
            None if written.contains("conda") && written.contains("hook") => {}
            _ => {
                self.cloud(format!("{place} evaluates `{}`", quoted(&written)));
                self.note_sglang(&written, words, line);
            }
        }
    }

    /// Indices of what is found while `walk` runs.
    fn recorded(&mut self, walk: impl FnOnce(&mut Self)) -> std::ops::Range<usize> {
        let before = self.facts.found.len();
        walk(self);
        before..self.facts.found.len()
    }

    fn source(&mut self, words: &[Word], line: usize) {
        let Some(path) = words.first() else {
            return;
        };
        let place = self.place(line);
        // A bare name is looked for along PATH, and conda's `activate` is one.
        let is_bare = path.known().is_some_and(|path| !path.contains('/'));
        let file = self.below(path).known().map(Utf8PathBuf::from);
        let text = file
            .as_ref()
            .filter(|_| !is_bare)
            .and_then(|file| (self.surroundings.read)(file));
        let is_activate = file
            .as_ref()
            .is_some_and(|file| file.file_name() == Some("activate"));
        let (Some(file), Some(text)) = (file, text) else {
            let why = format!(
                "`{}`, sourced at {place}, which cannot be read",
                quoted(path.text())
            );
            if is_activate {
                self.opaque(&why);
            } else {
                self.cloud(why);
            }
            return;
        };
        if is_activate {
            let bin = file.parent().unwrap_or(&file).to_owned();
            let venv = bin.parent().unwrap_or(&bin).to_owned();
            // Scripts of venv, virtualenv and uv name their folder; conda's `activate NAME` goes elsewhere.
            let names_it = text.lines().any(|line| {
                let value = line
                    .trim()
                    .trim_start_matches("export ")
                    .strip_prefix("VIRTUAL_ENV=");
                value.is_some_and(|value| value.trim_matches(['"', '\'']) == venv.as_str())
            });
            if names_it && words.len() == 1 {
                self.activate(&bin, &venv);
            } else {
                self.opaque(&format!("`{}`, sourced at {place}", quoted(path.text())));
            }
            return;
        }
        let Ok(program) = super::parse(&text) else {
            self.cloud(format!(
                "`{file}`, sourced at {place}, which is not understood"
            ));
            return;
        };
        let outer = std::mem::replace(&mut self.file, file);
        let arguments =
            (words.len() > 1).then(|| self.state.arguments.replace(words[1..].to_vec()));
        self.sourced += 1;
        if self.sourced > 16 {
            self.cloud("functions and files nest too deeply".to_owned());
        } else {
            for found in self.recorded(|shell| shell.run(&program)) {
                self.facts.found[found].line = line;
            }
        }
        self.sourced -= 1;
        if let Some(arguments) = arguments {
            self.state.arguments = arguments;
        }
        self.file = outer;
        self.state.gone = false; // `return` ends the file only; an `exit` in it would end nothing that works
    }

    fn activate(&mut self, bin: &Utf8Path, venv: &Utf8Path) {
        let path = match self.lookup("PATH") {
            Some(Word::Known(path)) => Word::of(format!("{bin}:{path}")),
            Some(unknown) => unknown,
            None => Word::of(bin.as_str()),
        };
        let venv = Word::of(venv.as_str());
        self.set("VIRTUAL_ENV", Value::Scalar(venv.clone()), true);
        self.set("PATH", Value::Scalar(path), true);
        self.state.venv = Some(venv);
    }

    /// A program: recorded where it matters.
    fn program(
        &mut self,
        mut prefix: BTreeMap<String, Word>,
        argv: &[Word],
        line: usize,
    ) -> Option<bool> {
        if let Some(environment) = environment(argv) {
            let before = self.state.clone();
            if environment.cleared {
                prefix.clear();
                for variable in self.state.variables.values_mut() {
                    variable.exported = false;
                }
                self.note(format!(
                    "{} starts with an empty environment (`env -i`); gemmtune passes its own on: name under \
                     `server.unset` what must not be there",
                    self.place(line)
                ));
            }
            for name in &environment.unset {
                self.state.variables.remove(name);
            }
            self.state.unset.extend(environment.unset.iter().cloned());
            prefix.extend(environment.set.iter().cloned());
            self.program(prefix, stripped(environment.rest), line);
            self.state = before;
            return None;
        }
        let texts: Vec<&str> = argv
            .iter()
            .map(|word| word.known().unwrap_or_default())
            .collect();
        // gemmtune has limits of its own, and a server that is ended from outside fails its trial.
        if texts
            .first()
            .is_some_and(|first| name_of(first) == "timeout")
        {
            let rest = &argv[role::wrapper(&texts)..];
            return if rest.is_empty() {
                None
            } else {
                self.program(prefix, rest, line)
            };
        }
        if let Some(tool) = role::elsewhere(&texts) {
            let shown: Vec<&str> = argv.iter().map(Word::text).collect();
            let inside = container::inside(&tool, &shown);
            self.elsewhere(&tool, line, inside);
            return None;
        }
        let status = RELIED_ON
            .contains(&texts.first().copied().unwrap_or_default())
            .then_some(true);
        let Some(role) = role::role(role::looked_through(&texts)) else {
            let tool = argv.first().map_or("", Word::text).to_owned();
            if matches!(
                name_of(&tool),
                "echo" | "printf" | "grep" | "pkill" | "pgrep" | "cat" | "tee"
            ) {
                return status;
            }
            self.note_sglang(&tool, &argv[1..], line);
            return status;
        };
        let mut env = self.exported();
        env.extend(prefix);
        let unset = self
            .state
            .unset
            .iter()
            .filter(|name| !env.contains_key(*name));
        self.facts.found.push(Found {
            role,
            argv: argv.to_vec(),
            unset: unset.cloned().collect(),
            env,
            folder: self.state.folder.clone(),
            venv: self.state.venv.clone(),
            line,
            depends_on: self.conditions.last().cloned(),
            clouded: self.state.clouded.clone(),
        });
        None
    }

    /// A command that leads to a server through something that is not known.
    fn note_sglang(&mut self, tool: &str, words: &[Word], line: usize) {
        let texts: Vec<&str> = words.iter().map(Word::text).collect();
        if texts.iter().any(|word| container::names_sglang(word)) || container::names_sglang(tool) {
            let inside = container::inside(tool, &texts);
            self.elsewhere(tool, line, inside);
        }
    }

    fn elsewhere(&mut self, tool: &str, line: usize, inside: Option<String>) {
        let elsewhere = Elsewhere {
            tool: quoted(tool),
            line,
            inside,
        };
        if !self.facts.elsewhere.contains(&elsewhere) {
            self.facts.elsewhere.push(elsewhere);
        }
    }
}

/// `argv` without [`DROPPED`] in front.
fn stripped(mut argv: &[Word]) -> &[Word] {
    while let Some(first) = argv.first().and_then(Word::known) {
        let name = name_of(first).to_owned();
        if !DROPPED.contains(&name.as_str()) {
            break;
        }
        argv = &argv[1..];
        while let Some(option) = argv
            .first()
            .and_then(Word::known)
            .filter(|word| word.starts_with('-'))
        {
            // `exec -a name`, `time -f format -o file`.
            let takes_value = matches!(
                (name.as_str(), option),
                ("exec", "-a") | ("time", "-f" | "-o")
            );
            argv = argv
                .get(if takes_value { 2 } else { 1 }..)
                .unwrap_or_default();
        }
    }
    argv
}

/// `env` and its arguments taken apart; `None` where `argv` is not an `env`, or one with other options.
fn environment(argv: &[Word]) -> Option<Environment<'_>> {
    let (first, mut rest) = argv.split_first()?;
    if name_of(first.known()?) != "env" {
        return None;
    }
    let mut found = Environment::default();
    while let Some((word, after)) = rest.split_first() {
        match word.text() {
            "-i" | "-" | "--ignore-environment" => found.cleared = true,
            "-u" | "--unset" => {
                let (name, after) = after.split_first()?;
                found.unset.push(name.known()?.to_owned());
                rest = after;
                continue;
            }
            text => {
                if let Some(name) = text.strip_prefix("--unset=") {
                    found.unset.push(name.to_owned());
                } else if text.starts_with('-') {
                    return None;
                } else if let Some((name, value)) =
                    text.split_once('=').filter(|(name, _)| is_name(name))
                {
                    let value = match word {
                        Word::Known(_) => Word::of(value),
                        Word::Unknown { why, .. } => Word::unknown(value, why.clone()),
                    };
                    found.set.push((name.to_owned(), value));
                } else {
                    found.rest = rest;
                    return Some(found);
                }
            }
        }
        rest = after;
    }
    Some(found)
}
