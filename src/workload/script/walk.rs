//! Evaluates a script: its variables and folder, conditions and loops.
//!
//! One rule applies to everything that may or may not run, or runs any number of times: it may print, wait or exit;
//! if it starts something or changes what later commands see, everything after it is uncertain.

use std::collections::{BTreeMap, BTreeSet};

use brush_parser::ast::{
    AndOr, Assignment, AssignmentName, AssignmentValue, CaseClauseCommand,
    CaseItemPostAction::ExitCase, Command, CompoundCommand, CompoundList, ForClauseCommand,
    IfClauseCommand, Pipeline, SeparatorOperator, SourceLocation,
};
use camino::{Utf8Path, Utf8PathBuf};

use super::{Facts, LONGEST, Surroundings, Word, reckon};

/// Most commands evaluated, counting loops: enough for any script worth reading.
const LONGEST_WALK: usize = 2_000;

/// Commands that a script relies on to succeed, so that what follows their `&&` runs.
const RELIED_ON: [&str; 3] = ["cd", "sleep", "mkdir"];

/// The value of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Scalar(Word),
    List(Vec<Word>),
}

impl Value {
    pub(super) fn words(&self) -> &[Word] {
        match self {
            Self::Scalar(word) => std::slice::from_ref(word),
            Self::List(words) => words,
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) value: Value,
    pub(super) exported: bool,
}

/// The part of the state that a subshell gets a copy of.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) variables: BTreeMap<String, Variable>,
    pub(super) unset: BTreeSet<String>,
    pub(super) folder: Word,
    /// Why everything that follows is uncertain.
    pub(super) clouded: Option<String>,
    /// Whether the shell has exited: `exit`, `return`, `exec`.
    pub(super) gone: bool,
}

/// The interpreter of scripts.
pub(super) struct Shell<'a> {
    pub(super) surroundings: &'a Surroundings<'a>,
    /// The script's own path.
    pub(super) file: Utf8PathBuf,
    /// Functions that were defined, or may be.
    pub(super) functions: BTreeSet<String>,
    pub(super) state: State,
    pub(super) facts: Facts,
    /// Lines of commands that were evaluated.
    pub(super) followed: BTreeSet<usize>,
    /// The line of the current command.
    pub(super) line: usize,
    /// Why the current command may or may not run.
    pub(super) condition: Option<String>,
    /// Whether the innermost loop is evaluated value by value, so that leaving it early matters.
    pub(super) is_counted: bool,
    steps: usize,
}

impl<'a> Shell<'a> {
    pub(super) fn new(surroundings: &'a Surroundings<'a>, script: &Utf8Path) -> Self {
        let state = State {
            variables: BTreeMap::new(),
            unset: BTreeSet::new(),
            folder: Word::of(surroundings.folder.as_str()),
            clouded: None,
            gone: false,
        };
        Self {
            surroundings,
            file: surroundings.folder.join(script),
            functions: BTreeSet::new(),
            state,
            facts: Facts::default(),
            followed: BTreeSet::new(),
            line: 0,
            condition: None,
            is_counted: false,
            steps: 0,
        }
    }

    /// Evaluates commands one after another; returns the status of the last one, if it is known.
    pub(super) fn list(&mut self, list: &CompoundList) -> Option<bool> {
        let mut status = Some(true);
        for item in &list.0 {
            if self.state.gone {
                break;
            }
            let in_background = matches!(item.1, SeparatorOperator::Async);
            let before = in_background.then(|| self.state.clone());
            let mut last = &item.0.first;
            status = self.pipeline(last);
            for more in &item.0.additional {
                let (pipeline, wanted) = match more {
                    AndOr::And(pipeline) => (pipeline, true),
                    AndOr::Or(pipeline) => (pipeline, false),
                };
                match status.or((wanted && relies_on(last)).then_some(true)) {
                    Some(known) if known == wanted => status = self.pipeline(pipeline),
                    Some(_) => {}
                    None => {
                        let why = undecided("condition", line_of(pipeline));
                        self.maybe(&why, |shell| shell.pipeline(pipeline));
                    }
                }
                last = pipeline;
            }
            if let Some(before) = before {
                self.state = before;
                status = Some(true);
            }
        }
        status
    }

    fn pipeline(&mut self, pipeline: &Pipeline) -> Option<bool> {
        let status = if let [only] = pipeline.seq.as_slice() {
            self.command(only)
        } else {
            for command in &pipeline.seq {
                self.apart(|shell| shell.command(command));
            }
            None
        };
        status.map(|status| status != pipeline.bang)
    }

    /// Evaluates something in a subshell: afterwards the state is the one before it.
    fn apart<T>(&mut self, walk: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.state.clone();
        let result = walk(self);
        self.state = before;
        result
    }

    fn command(&mut self, command: &Command) -> Option<bool> {
        self.steps += 1;
        if self.steps > LONGEST_WALK {
            self.cloud("the script runs more commands than are followed".to_owned());
            return None;
        }
        self.line = line_of(command);
        match command {
            Command::Simple(simple) => self.simple(simple),
            Command::Compound(compound, _) => self.compound(compound, self.line),
            Command::Function(function) => {
                self.functions.insert(function.fname.value.clone());
                Some(true)
            }
            Command::ExtendedTest(test, _) => self.extended_test(&test.expr),
        }
    }

    fn compound(&mut self, compound: &CompoundCommand, line: usize) -> Option<bool> {
        match compound {
            CompoundCommand::BraceGroup(group) => self.list(&group.list),
            CompoundCommand::Subshell(subshell) => self.apart(|shell| shell.list(&subshell.list)),
            CompoundCommand::IfClause(clause) => self.branch(clause, line),
            CompoundCommand::CaseClause(clause) => self.choose(clause, line),
            CompoundCommand::ForClause(clause) => self.each(clause, line),
            CompoundCommand::WhileClause(clause) | CompoundCommand::UntilClause(clause) => self
                .repeated(line, |shell| {
                    shell.list(&clause.0);
                    shell.list(&clause.1.list)
                }),
            CompoundCommand::Arithmetic(command) => match self.arithmetic(&command.expr.value) {
                Some(value) => Some(value != 0),
                None => self.only_running("has arithmetic that is not reckoned"),
            },
            CompoundCommand::ArithmeticForClause(_) => self.only_running("counts in a loop"),
            CompoundCommand::Coprocess(_) => self.only_running("starts a coprocess"),
        }
    }

    fn branch(&mut self, clause: &IfClauseCommand, line: usize) -> Option<bool> {
        let first = (Some(&clause.condition), &clause.then);
        let others = clause.elses.iter().flatten();
        let others = others.map(|other| (other.condition.as_ref(), &other.body));
        let ways = std::iter::once(first).chain(others);
        let why = undecided("condition", line);
        self.one_of(ways, &why, |shell, condition| match condition {
            Some(condition) => shell.decided(condition, &why),
            None => Some(true),
        })
    }

    fn choose(&mut self, clause: &CaseClauseCommand, line: usize) -> Option<bool> {
        let value = self.scalar(&clause.value.value, false);
        let mut cases = clause.cases.iter();
        if cases.any(|case| !matches!(case.post_action, ExitCase)) {
            self.only_running("falls from one case into the next");
        }
        let empty = CompoundList(Vec::new());
        let cases = clause.cases.iter();
        let ways = cases.map(|case| (case, case.cmd.as_ref().unwrap_or(&empty)));
        let why = undecided("choice", line);
        self.one_of(ways, &why, |shell, case| {
            let mut decided = Some(false);
            for pattern in &case.patterns {
                decided = reckon::either(decided, shell.matches(&value, pattern));
            }
            decided
        })
    }

    /// The status of a condition; if it is not known, the condition must not change anything itself.
    fn decided(&mut self, condition: &CompoundList, why: &str) -> Option<bool> {
        let before = self.state.clone();
        let status = self.list(condition);
        if status.is_none() && self.state != before {
            self.cloud(why.to_owned());
        }
        status
    }

    /// Evaluates the one branch whose condition holds. From the first undecided condition on, all possible branches
    /// are evaluated.
    fn one_of<'l, W>(
        &mut self,
        ways: impl Iterator<Item = (W, &'l CompoundList)>,
        why: &str,
        decide: impl Fn(&mut Self, W) -> Option<bool>,
    ) -> Option<bool> {
        let mut is_open = false;
        for (way, body) in ways {
            let mut decided = None;
            if is_open {
                self.maybe(why, |shell| decided = decide(shell, way));
            } else {
                decided = decide(self, way);
            }
            match decided {
                Some(false) => continue,
                Some(true) if !is_open => return self.list(body),
                _ => {}
            }
            let leaves = self.maybe(why, |shell| shell.list(body));
            if decided == Some(true) {
                break;
            }
            // If it exits, what follows runs only if this branch was not taken.
            is_open |= !leaves;
        }
        None
    }

    /// Evaluates something that may or may not run; returns whether it exits the script.
    fn maybe<T>(&mut self, why: &str, walk: impl FnOnce(&mut Self) -> T) -> bool {
        let before = self.state.clone();
        let found = self.facts.found.len();
        let outer = self.condition.replace(why.to_owned());
        walk(self);
        self.condition = outer;
        let after = std::mem::replace(&mut self.state, before);
        if after.gone && !self.state.gone {
            return true;
        }
        if after != self.state || self.facts.found.len() > found {
            self.cloud(after.clouded.unwrap_or_else(|| why.to_owned()));
        }
        false
    }

    /// Evaluates something that runs any number of times.
    fn repeated<T>(&mut self, line: usize, walk: impl FnOnce(&mut Self) -> T) -> Option<bool> {
        let why = format!("how often the loop at line {line} runs is not known");
        let outer = std::mem::replace(&mut self.is_counted, false);
        self.maybe(&why, walk);
        self.is_counted = outer;
        None
    }

    fn each(&mut self, clause: &ForClauseCommand, line: usize) -> Option<bool> {
        let written = clause.values.iter().flatten();
        let values: Vec<Word> = match clause.values {
            Some(_) => written.flat_map(|word| self.expand(&word.value)).collect(),
            None => self.arguments(),
        };
        if values.iter().all(|value| value.known().is_some()) {
            let outer = std::mem::replace(&mut self.is_counted, true);
            for value in values {
                self.set(&clause.variable_name, Value::Scalar(value), false);
                self.list(&clause.body.list);
            }
            self.is_counted = outer;
            return None;
        }
        let word = Word::unknown("", format!("the loop at line {line}"));
        self.set(&clause.variable_name, Value::Scalar(word), false);
        self.repeated(line, |shell| shell.list(&clause.body.list))
    }

    /// Evaluates an assignment; returns whether the value is known.
    pub(super) fn assign(&mut self, assignment: &Assignment, exported: bool) -> bool {
        let value = match &assignment.value {
            AssignmentValue::Scalar(word) => Value::Scalar(self.scalar(&word.value, true)),
            AssignmentValue::Array(elements) => {
                if elements.iter().any(|(at, _)| at.is_some()) {
                    self.only_running("has an array with indices");
                }
                let words = elements
                    .iter()
                    .flat_map(|(_, word)| self.expand(&word.value));
                Value::List(words.collect())
            }
        };
        let is_known = value.words().iter().all(|word| word.known().is_some());
        match &assignment.name {
            AssignmentName::ArrayElementName(..) => {
                self.only_running("sets an element of an array");
            }
            AssignmentName::VariableName(name) => {
                let present = self.state.variables.get(name);
                let present = present.map(|variable| variable.value.clone());
                let present = present.or_else(|| self.lookup(name).map(Value::Scalar));
                let value = match present.filter(|_| assignment.append) {
                    Some(present) => appended(present, value),
                    None => value,
                };
                self.set(name, value, exported);
            }
        }
        is_known
    }

    pub(super) fn set(&mut self, name: &str, value: Value, exported: bool) {
        let length: usize = value.words().iter().map(|word| word.text().len() + 1).sum();
        if length > LONGEST || name == "IFS" {
            self.only_running(&format!("sets `{name}`"));
            return;
        }
        // A variable inherited from the environment stays exported when it is set again.
        let is_exported = match self.state.variables.get(name) {
            Some(variable) => variable.exported,
            None if self.state.unset.contains(name) => false,
            None => (self.surroundings.variable)(name).is_some(),
        };
        let exported = exported || is_exported;
        let variable = Variable { value, exported };
        self.state.variables.insert(name.to_owned(), variable);
    }

    /// Marks everything that follows as uncertain.
    pub(super) fn cloud(&mut self, why: String) {
        self.facts.clouded.get_or_insert_with(|| why.clone());
        self.state.clouded.get_or_insert(why);
    }

    /// Marks everything that follows as uncertain because of the current command, whose status is unknown.
    pub(super) fn only_running(&mut self, does: &str) -> Option<bool> {
        let line = self.line;
        self.cloud(format!("line {line} {does}, which only running it follows"));
        None
    }

    /// The arguments of the script, as one unknown word if they were not given.
    pub(super) fn arguments(&self) -> Vec<Word> {
        match &self.surroundings.arguments {
            Some(arguments) => arguments.iter().map(Word::of).collect(),
            None => vec![Word::unknown("$@", "the arguments of the script")],
        }
    }

    pub(super) fn exported(&self) -> BTreeMap<String, Word> {
        let variables = self.state.variables.iter();
        variables
            .filter_map(|(name, variable)| match &variable.value {
                Value::Scalar(word) if variable.exported => Some((name.clone(), word.clone())),
                _ => None, // arrays are not passed on
            })
            .collect()
    }

    /// A path relative to the script's working directory.
    pub(super) fn below(&self, path: &Word) -> Word {
        match (path, &self.state.folder) {
            (Word::Known(path), _) if path.starts_with('/') => Word::of(clean(Utf8Path::new(path))),
            (Word::Known(path), Word::Known(folder)) => {
                Word::of(clean(&Utf8Path::new(folder).join(path)))
            }
            (Word::Known(_), unknown) | (unknown, _) => unknown.clone(),
        }
    }
}

/// The line at which a syntax node starts, from 1.
fn line_of(node: &impl SourceLocation) -> usize {
    node.location().map_or(0, |span| span.start.line)
}

fn relies_on(pipeline: &Pipeline) -> bool {
    let [Command::Simple(command)] = pipeline.seq.as_slice() else {
        return false;
    };
    let name = command.word_or_name.as_ref();
    !pipeline.bang && name.is_some_and(|name| RELIED_ON.contains(&name.value.as_str()))
}

fn undecided(what: &str, line: usize) -> String {
    format!("the {what} at line {line} is not decided by reading")
}

/// Whether `name` is a valid variable name.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
}

fn appended(present: Value, more: Value) -> Value {
    match (present, more) {
        (Value::List(words), Value::List(more)) => Value::List([words, more].concat()),
        (Value::Scalar(Word::Known(text)), Value::Scalar(Word::Known(more))) => {
            Value::Scalar(Word::Known(text + &more))
        }
        _ => Value::Scalar(Word::unknown("", "text that something unknown is added to")),
    }
}

/// Simplifies `a/./b/../c` to `a/c` lexically, as `cd` does.
fn clean(path: &Utf8Path) -> String {
    let mut clean = Utf8PathBuf::new();
    for part in path.components() {
        match part.as_str() {
            "." => {}
            ".." if clean.file_name().is_some() => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean.into_string()
}
