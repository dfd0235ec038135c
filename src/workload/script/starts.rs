//! The commands of a script: those that matter, and those that lead elsewhere (functions, files, shells).

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use tree_sitter::Node;

use super::command;
use super::shell::{Frame, Shell, Value, reason};
use super::{Found, ScriptError, Word};

impl Shell<'_> {
    pub(super) fn command(&mut self, node: Node<'_>, text: &str) -> Result<(), ScriptError> {
        let mut prefix = BTreeMap::new();
        let mut argv = Vec::new();
        let mut cursor = node.walk();
        for child in node.named_children(&mut cursor) {
            match child.kind() {
                "variable_assignment" => {
                    let name = child
                        .child_by_field_name("name")
                        .map(|name| text[name.byte_range()].to_owned());
                    let value = child.child_by_field_name("value");
                    let value =
                        value.map_or(Word::Known(String::new()), |value| self.scalar(value, text));
                    prefix.extend(name.map(|name| (name, value)));
                }
                "command_name" => argv.extend(
                    child
                        .named_child(0)
                        .map_or(Vec::new(), |name| self.expand(name, text)),
                ),
                "file_redirect" | "herestring_redirect" | "heredoc_redirect" | "comment" => {}
                _ => argv.extend(self.expand(child, text)),
            }
        }
        if argv.first().and_then(Word::known) == Some(":") {
            self.fill_in(node, text);
        }
        self.started(prefix, &argv, self.line_of(node))
    }

    /// `: "${NAME:=default}"` sets a variable that is not set.
    fn fill_in(&mut self, node: Node<'_>, text: &str) {
        if node.kind() == "expansion" {
            let inner = text[node.byte_range()].trim_start_matches("${");
            if let Some((name, _)) = inner.split_once('=') {
                let name = name.trim_end_matches(':');
                if command::is_name(name) {
                    let value = Value::Scalar(self.scalar(node, text));
                    self.set(name, value, false);
                }
            }
            return;
        }
        let mut cursor = node.walk();
        let children: Vec<_> = node.named_children(&mut cursor).collect();
        for child in children {
            self.fill_in(child, text);
        }
    }

    /// A command with its prefix assignments, as it would be started.
    fn started(
        &mut self,
        prefix: BTreeMap<String, Word>,
        argv: &[Word],
        line: usize,
    ) -> Result<(), ScriptError> {
        let argv = command::stripped(argv);
        let first = match argv.first() {
            Some(Word::Known(first)) => first.as_str(),
            Some(Word::Unknown { text, why }) => {
                self.note(format!("line {line} runs `{text}`, which depends on {why}"));
                return Ok(());
            }
            None => return Ok(()),
        };
        if let Some(environment) = command::environment(argv) {
            return self.in_environment(prefix, &environment, line);
        }
        if let Some((body, lines_before)) = self.functions.get(first).cloned() {
            let file = self.script().to_owned();
            return self.inside(
                Frame {
                    lines_before,
                    hidden: Some(Vec::new()),
                    ..Frame::of(file, Some(argv[1..].to_vec()))
                },
                &body,
            );
        }
        match first {
            "cd" | "pushd" => {
                let target = argv.get(1).cloned().or_else(|| self.lookup("HOME"));
                self.state.folder =
                    self.below(&target.unwrap_or_else(|| Word::unknown("cd", "the home folder")));
                return Ok(());
            }
            "set" => {
                for option in argv[1..].iter().map(Word::text) {
                    match option {
                        "-a" | "allexport" => self.state.all_exported = true,
                        "+a" => self.state.all_exported = false,
                        "--" => break,
                        _ => {}
                    }
                }
                if let Some(at) = argv.iter().position(|word| word.text() == "--") {
                    self.set_arguments(Some(argv[at + 1..].to_vec()));
                }
                return Ok(());
            }
            "shift" => {
                let by = argv.get(1).map_or(Some(1), |by| by.known()?.parse().ok());
                let left = self.positional().zip(by);
                let left = left.map(|(arguments, by): (_, usize)| {
                    arguments.get(by..).unwrap_or_default().to_vec()
                });
                self.set_arguments(left);
                return Ok(());
            }
            "eval" => return self.evaluated(&argv[1..], line),
            "read" | "mapfile" | "readarray" | "getopts" | "let" | "printf" => {
                self.filled(first, &argv[1..], line);
                return Ok(());
            }
            "source" | "." => return self.source(&argv[1..], line),
            "bash" | "sh" => return self.nested(&argv[1..], line),
            "conda" | "mamba" | "micromamba"
                if argv.get(1).and_then(Word::known) == Some("activate") =>
            {
                let name = argv.get(2).map_or("base", Word::text);
                self.state.venv = Some(Word::unknown(
                    name,
                    format!("the conda environment `{name}`, activated at line {line}"),
                ));
                return Ok(());
            }
            _ => {}
        }
        if let Some(wrapper) = command::elsewhere(argv) {
            self.facts.wrappers.push((wrapper, line));
            return Ok(());
        }
        let Some(role) = command::role(argv) else {
            return Ok(());
        };
        let mut env = self.exported();
        env.extend(prefix);
        self.facts.found.push(Found {
            role,
            argv: argv.to_vec(),
            env,
            unset: self.state.unset.iter().cloned().collect(),
            folder: self.state.folder.clone(),
            venv: self.state.venv.clone(),
            line,
            depends_on: self.conditions.last().cloned(),
        });
        Ok(())
    }

    /// The command behind `env`: gemmtune sets the environment itself, and would not get its own variables through
    /// an `env -i`.
    fn in_environment(
        &mut self,
        mut prefix: BTreeMap<String, Word>,
        environment: &command::Environment<'_>,
        line: usize,
    ) -> Result<(), ScriptError> {
        let (before, found) = (self.state.clone(), self.facts.found.len());
        if environment.cleared {
            prefix.clear();
            for variable in self.state.variables.values_mut() {
                variable.exported = false;
            }
        }
        self.state.unset.extend(environment.unset.iter().cloned());
        prefix.extend(environment.set.iter().cloned());
        let ran = self.started(prefix, environment.rest, line);
        self.state = before;
        if environment.cleared && self.facts.found.len() > found {
            self.note(format!(
                "line {line} starts with an empty environment (`env -i`); gemmtune passes its own on: name under \
                 `server.unset` what must not be there"
            ));
        }
        ran
    }

    /// New positional parameters; where it is not certain that they are set, they are not known.
    fn set_arguments(&mut self, arguments: Option<Vec<Word>>) {
        let arguments = arguments.filter(|_| self.conditions.is_empty());
        if let Some(frame) = self.frames.last_mut() {
            frame.arguments = arguments;
        }
    }

    /// Commands that put into variables what the script does not hold.
    fn filled(&mut self, command: &str, words: &[Word], line: usize) {
        let why = format!("what `{command}` at line {line} finds");
        let names: Vec<String> = match command {
            "printf" => words
                .iter()
                .position(|word| word.text() == "-v")
                .and_then(|at| words.get(at + 1))
                .map(|name| name.text().to_owned())
                .into_iter()
                .collect(),
            "let" => words
                .iter()
                .map(|word| {
                    let name = word.text().trim_start_matches(['+', '-']);
                    let end = name.find(|character: char| !is_part_of_name(character));
                    name[..end.unwrap_or(name.len())].to_owned()
                })
                .collect(),
            _ => words
                .iter()
                .filter(|word| !word.text().starts_with('-'))
                .map(|word| word.text().to_owned())
                .collect(),
        };
        for name in names.iter().filter(|name| command::is_name(name)) {
            self.forget(name, &why);
        }
    }

    /// `eval WORDS`: read as a text in place.
    fn evaluated(&mut self, words: &[Word], line: usize) -> Result<(), ScriptError> {
        let known: Option<Vec<&str>> = words.iter().map(Word::known).collect();
        if let Some(known) = known {
            let file = self.script().to_owned();
            let arguments = self.positional().cloned();
            let frame = Frame {
                lines_before: line - 1,
                ..Frame::of(file, arguments)
            };
            return self.inside(frame, &known.join(" "));
        }
        let written: Vec<_> = words.iter().map(Word::text).collect();
        let written = written.join(" ");
        // What conda's own line does is known: it makes `conda activate` work.
        if !written.contains("conda") {
            self.note(format!(
                "line {line} evaluates `{written}`, which was not followed"
            ));
        }
        Ok(())
    }

    fn source(&mut self, words: &[Word], line: usize) -> Result<(), ScriptError> {
        let Some(path) = words.first() else {
            return Ok(());
        };
        let resolved = self.below(path);
        let Some(file) = resolved.known().map(Utf8PathBuf::from) else {
            self.note(format!(
                "line {line} sources `{}`, which depends on {}",
                path.text(),
                reason(&resolved)
            ));
            return Ok(());
        };
        if let Some(bin) = file
            .parent()
            .filter(|bin| file.file_name() == Some("activate") && bin.file_name() == Some("bin"))
        {
            let venv = bin.parent().unwrap_or(bin);
            let path = match self.lookup("PATH") {
                Some(Word::Known(path)) => Word::Known(format!("{bin}:{path}")),
                Some(unknown) => unknown,
                None => Word::Known(bin.to_string()),
            };
            let venv = Word::Known(venv.to_string());
            self.set("VIRTUAL_ENV", Value::Scalar(venv.clone()), true);
            self.set("PATH", Value::Scalar(path), true);
            self.state.venv = Some(venv);
            return Ok(());
        }
        if let Some(text) = (self.surroundings.read)(&file) {
            let arguments = if words.len() > 1 {
                Some(words[1..].to_vec())
            } else {
                self.positional().cloned()
            };
            self.inside(Frame::of(file, arguments), &text)
        } else {
            self.note(format!(
                "line {line} sources `{file}`, which cannot be read"
            ));
            Ok(())
        }
    }

    /// `bash -c TEXT` and `bash FILE ARGUMENTS`: a shell of its own, so nothing it sets comes back.
    fn nested(&mut self, words: &[Word], line: usize) -> Result<(), ScriptError> {
        let before = self.state.clone();
        let command = words.iter().position(|word| {
            word.known().is_some_and(|option| {
                option.starts_with('-') && !option.starts_with("--") && option.ends_with('c')
            })
        });
        if let Some(text) = command.and_then(|at| words.get(at + 1)) {
            match text.known().map(str::to_owned) {
                Some(inner) => {
                    let file = self.script().to_owned();
                    self.inside(
                        Frame {
                            lines_before: line - 1,
                            ..Frame::of(file, Some(Vec::new()))
                        },
                        &inner,
                    )?;
                }
                None => self.note(format!(
                    "line {line} starts a shell on `{}`, which depends on {}",
                    text.text(),
                    reason(text)
                )),
            }
        } else if let Some(at) = words.iter().position(|word| !word.text().starts_with('-')) {
            let file = self.below(&words[at]);
            match file.known().and_then(|file| {
                Some((
                    Utf8PathBuf::from(file),
                    (self.surroundings.read)(Utf8Path::new(file))?,
                ))
            }) {
                Some((file, inner)) => {
                    let arguments = Some(words[at + 1..].to_vec());
                    self.inside(Frame::of(file, arguments), &inner)?;
                }
                None => self.note(format!(
                    "line {line} runs `{}`, which cannot be read",
                    words[at].text()
                )),
            }
        } else {
            self.note(format!(
                "line {line} starts a shell on what it is fed with, which was not read"
            ));
        }
        self.state = before;
        Ok(())
    }

    fn inside(&mut self, frame: Frame, text: &str) -> Result<(), ScriptError> {
        self.frames.push(frame);
        let ran = self.run(text);
        let hidden = self.frames.pop().and_then(|frame| frame.hidden);
        for (name, variable) in hidden.into_iter().flatten() {
            match variable {
                Some(variable) => self.state.variables.insert(name, variable),
                None => self.state.variables.remove(&name),
            };
        }
        ran
    }
}

fn is_part_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}
