//! Commands: shell builtins, those with a relevant role, and those that start something elsewhere.

use brush_parser::ast::{Assignment, CommandPrefixOrSuffixItem as Item, IoRedirect, SimpleCommand};

use super::reckon::test;
use super::walk::{Shell, Value, is_name};
use super::{Elsewhere, Found, TALK, Word};
use crate::workload::container;
use crate::workload::quote::quoted;
use crate::workload::role::{self, Role, name_of};

/// Programs that run the rest of their line in a way that is irrelevant here: gemmtune starts processes itself, and
/// has its own limits.
const DROPPED: [&str; 4] = ["nohup", "setsid", "exec", "timeout"];

/// Builtins (bash 5) and functions of common environments whose effects can only be found by running them.
const OPAQUE: &str = "source . eval shift getopts read mapfile readarray let declare typeset local readonly alias unalias \
    shopt enable pushd popd builtin fc compopt conda mamba micromamba module ml spack activate deactivate pyenv nvm sdk \
    workon asdf mise direnv guix";

/// Arguments of `set` that affect only failures and output, not what a working script starts.
const SET: &str = "-e -u -x -v -eu -ex -ux -eux -euo -exo -euxo -eo -o +e +u +x +ex +eu errexit nounset xtrace pipefail";

impl Shell<'_> {
    /// Evaluates a simple command; returns whether it succeeds, if that is known.
    pub(super) fn simple(&mut self, command: &SimpleCommand) -> Option<bool> {
        let prefix = command.prefix.iter().flat_map(|prefix| &prefix.0);
        let assignments = prefix.filter_map(|item| match item {
            Item::AssignmentWord(assignment, _) => Some(assignment),
            _ => None,
        });
        let assignments: Vec<&Assignment> = assignments.collect();
        let Some(name) = &command.word_or_name else {
            let mut all_known = true;
            for assignment in assignments {
                all_known &= self.assign(assignment, false);
            }
            // The status is that of a substitution, if there is one.
            return all_known.then_some(true);
        };
        let mut argv = self.expand(&name.value);
        let exports = argv.first().and_then(Word::known) == Some("export");
        let mut here_document = "";
        for item in command.suffix.iter().flat_map(|suffix| &suffix.0) {
            match item {
                Item::AssignmentWord(assignment, _) if exports && assignments.is_empty() => {
                    self.assign(assignment, true);
                }
                Item::Word(word) | Item::AssignmentWord(_, word) => {
                    argv.extend(self.expand(&word.value));
                }
                Item::ProcessSubstitution(..) => {
                    argv.push(Word::unknown("<(…)", "a process substitution"));
                }
                Item::IoRedirect(IoRedirect::HereDocument(_, document)) => {
                    here_document = &document.doc.value;
                }
                Item::IoRedirect(_) => {}
            }
        }
        if here_document.lines().any(container::names_sglang) {
            let tool = argv.first().map_or("", Word::text);
            self.elsewhere(tool, None);
        }
        if assignments.is_empty() {
            return self.started(&argv);
        }
        // They are visible only to this command.
        let before = (self.state.variables.clone(), self.state.unset.clone());
        for assignment in assignments {
            self.assign(assignment, true);
        }
        if exports || argv.first().is_some_and(|first| first.text() == "unset") {
            self.only_running("sets variables for a builtin that sets others");
        }
        let status = self.started(&argv);
        (self.state.variables, self.state.unset) = before;
        status
    }

    /// Evaluates a command of these words.
    fn started(&mut self, argv: &[Word]) -> Option<bool> {
        let (first, words) = argv.split_first()?;
        let Word::Known(name) = first else {
            // It may be anything, even a builtin.
            let text = quoted(first.text());
            self.only_running(&format!("runs `{text}`, which is not known"));
            self.note_sglang(first.text(), argv);
            return None;
        };
        if self.functions.contains(name) {
            return self.only_running(&format!("calls the function `{}`", quoted(name)));
        }
        if among(OPAQUE, name) {
            self.note_sglang(name, words);
            let said = words.first().map_or("", Word::text);
            let said = quoted(&format!("{name} {said}"));
            return self.only_running(&format!("runs `{}`", said.trim_end()));
        }
        self.followed.insert(self.line);
        match name.as_str() {
            "printf" if words.iter().any(|word| word.text() == "-v") => {
                self.only_running("has `printf` set a variable")
            }
            "true" | ":" | "echo" | "printf" => Some(true),
            "false" => Some(false),
            "[" => test(words.split_last().map_or(words, |(_, inner)| inner)),
            "test" => test(words),
            "exit" | "return" | "logout" => {
                self.state.gone = true;
                None
            }
            "break" | "continue" if self.is_counted || !words.is_empty() => {
                self.only_running("leaves a loop early")
            }
            "break" | "continue" => None,
            "cd" => self.change_folder(words),
            "export" => self.export(words),
            "unset" => self.unset(words),
            "set" if words.iter().all(|word| among(SET, word.text())) => Some(true),
            "set" => self.only_running("has `set` change the shell"),
            "trap"
                if words
                    .iter()
                    .any(|word| among("DEBUG ERR RETURN", word.text())) =>
            {
                self.only_running("has `trap` run commands in between")
            }
            "ulimit" | "umask" => {
                let note = "limits that the script sets (`ulimit`) are not in the file: start `gemmtune run` from a shell that has them";
                self.facts.notes.push(note.to_owned());
                None
            }
            // `command -v` only checks for a command.
            "command" if !is_option(words.first()) => self.started(words),
            _ => {
                let leaves = name == "exec" && !words.is_empty();
                self.program(argv);
                self.state.gone |= leaves;
                None
            }
        }
    }

    fn change_folder(&mut self, words: &[Word]) -> Option<bool> {
        let target = match words {
            [] => self.lookup("HOME"),
            [only] if !only.text().starts_with('-') && self.lookup("CDPATH").is_none() => {
                Some(only.clone())
            }
            _ => None,
        };
        let target = target.unwrap_or_else(|| Word::unknown("cd", "a folder that only bash knows"));
        self.state.folder = self.below(&target);
        None
    }

    /// Evaluates the words of an `export` that are not literal assignments.
    fn export(&mut self, words: &[Word]) -> Option<bool> {
        for word in words {
            let text = word.known().unwrap_or("-");
            let name = text.split('=').next().unwrap_or_default();
            let is_inherited = self.lookup(name).is_some();
            match (text.split_once('='), self.state.variables.get_mut(name)) {
                (Some((_, value)), _) if is_name(name) => {
                    self.set(name, Value::Scalar(Word::of(value)), true);
                }
                (None, Some(variable)) => variable.exported = true,
                (None, None) if is_inherited => {}
                _ => {
                    let shown = quoted(word.text());
                    return self.only_running(&format!("exports `{shown}`"));
                }
            }
        }
        Some(true)
    }

    fn unset(&mut self, words: &[Word]) -> Option<bool> {
        for word in words {
            let Some(name) = word.known().filter(|name| is_name(name)) else {
                let shown = quoted(word.text());
                return self.only_running(&format!("unsets `{shown}`"));
            };
            self.state.variables.remove(name);
            self.state.unset.insert(name.to_owned());
        }
        Some(true)
    }

    /// Evaluates a program: records it if its role is relevant.
    fn program(&mut self, argv: &[Word]) {
        let texts = argv.iter().map(|word| word.known().unwrap_or_default());
        let texts: Vec<&str> = texts.collect();
        let Some(first) = texts.first().map(|first| name_of(first)) else {
            return;
        };
        if DROPPED.contains(&first) {
            let taken = match (first, texts.get(1)) {
                ("timeout", _) => role::wrapper(&texts),
                ("exec", Some(&"-a")) => 3,
                _ => 1,
            };
            let rest = argv.get(taken..).unwrap_or_default();
            // Other options may change what is run, and how.
            if !is_option(rest.first()) {
                return self.program(rest);
            }
        }
        if let Some(tool) = role::elsewhere(&texts) {
            let shown: Vec<&str> = argv.iter().map(Word::text).collect();
            let inside = container::inside(&tool, &shown);
            self.elsewhere(&tool, inside);
            return;
        }
        match role::role(role::looked_through(&texts)) {
            Some(Role::Probe) => {}
            None if TALK.contains(&first) => {}
            None => self.note_sglang(argv[0].text(), &argv[1..]),
            Some(role) => {
                let env = self.exported();
                let unset = &self.state.unset;
                let unset = unset.iter().filter(|name| !env.contains_key(*name));
                let clouded = self.state.clouded.clone();
                self.facts.found.push(Found {
                    role,
                    argv: argv.to_vec(),
                    unset: unset.cloned().collect(),
                    env,
                    folder: self.state.folder.clone(),
                    line: self.line,
                    clouded: clouded.or_else(|| self.condition.clone()),
                });
            }
        }
    }

    /// Notes a command that leads to a server through something that is not known.
    fn note_sglang(&mut self, tool: &str, words: &[Word]) {
        let texts: Vec<&str> = words.iter().map(Word::text).collect();
        if texts.iter().any(|word| container::names_sglang(word)) || container::names_sglang(tool) {
            let inside = container::inside(tool, &texts);
            self.elsewhere(tool, inside);
        }
    }

    fn elsewhere(&mut self, tool: &str, inside: Option<String>) {
        self.followed.insert(self.line);
        let elsewhere = Elsewhere {
            tool: quoted(tool),
            line: self.line,
            inside,
        };
        if !self.facts.elsewhere.contains(&elsewhere) {
            self.facts.elsewhere.push(elsewhere);
        }
    }
}

fn is_option(word: Option<&Word>) -> bool {
    word.is_some_and(|word| word.text().starts_with('-'))
}

fn among(words: &str, wanted: &str) -> bool {
    words.split(' ').any(|word| word == wanted)
}
