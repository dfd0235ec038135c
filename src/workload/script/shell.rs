//! The walk through a script: variables, functions, conditions and loops. What may not run is never taken for certain.

use std::collections::{BTreeMap, BTreeSet};

use brush_parser::ast::{
    AndOr, AssignmentName, AssignmentValue, CaseClauseCommand, Command, CompoundCommand,
    CompoundList, ElseClause, ForClauseCommand, IfClauseCommand, Pipeline, Program,
    SeparatorOperator,
};
use camino::{Utf8Path, Utf8PathBuf};

use super::{Facts, Surroundings, Word};

/// How deep functions and sourced files may nest: recursion in a launch script is a mistake.
const DEEPEST: usize = 16;

/// How many commands are walked, with loops and functions: enough for any script that is read to be worth it.
const LONGEST_WALK: usize = 20_000;

/// A loop over more values than this is not walked value by value.
const MOST_VALUES: usize = 64;

/// What a variable holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Scalar(Word),
    List(Vec<Word>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) value: Value,
    pub(super) exported: bool,
}

/// What a subshell gets a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) variables: BTreeMap<String, Variable>,
    pub(super) unset: BTreeSet<String>,
    pub(super) folder: Word,
    pub(super) venv: Option<Word>,
    pub(super) all_exported: bool,
    /// Positional arguments; `None`: not known.
    pub(super) arguments: Option<Vec<Word>>,
    /// Why nothing that follows is certain.
    pub(super) clouded: Option<String>,
    /// The shell has left: `exit`, `return`, `exec`.
    pub(super) gone: bool,
}

/// The interpreter of the script.
pub(super) struct Shell<'a> {
    pub(super) surroundings: &'a Surroundings<'a>,
    /// The file being read.
    pub(super) file: Utf8PathBuf,
    /// Whether lines are those of the script itself: 0 stands for lines of a sourced file.
    pub(super) sourced: usize,
    pub(super) functions: BTreeMap<String, Option<CompoundCommand>>,
    pub(super) state: State,
    /// What decides whether the present command runs, innermost last.
    pub(super) conditions: Vec<String>,
    /// Of each loop being walked: whether it is walked value by value.
    pub(super) loops: Vec<bool>,
    /// Of each running function: what its local variables hide.
    pub(super) hidden: Vec<Vec<(String, Option<Variable>)>>,
    pub(super) facts: Facts,
    depth: usize,
    steps: usize,
}

impl<'a> Shell<'a> {
    pub(super) fn new(surroundings: &'a Surroundings<'a>, script: &Utf8Path) -> Self {
        let arguments = surroundings.arguments.as_ref();
        let state = State {
            variables: BTreeMap::new(),
            unset: BTreeSet::new(),
            folder: Word::of(surroundings.folder.as_str()),
            venv: None,
            all_exported: false,
            arguments: arguments.map(|words| words.iter().map(Word::of).collect()),
            clouded: None,
            gone: false,
        };
        Self {
            surroundings,
            file: surroundings.folder.join(script),
            sourced: 0,
            functions: BTreeMap::new(),
            state,
            conditions: Vec::new(),
            loops: Vec::new(),
            hidden: Vec::new(),
            facts: Facts::default(),
            depth: 0,
            steps: 0,
        }
    }

    pub(super) fn into_facts(self) -> Facts {
        self.facts
    }

    pub(super) fn run(&mut self, program: &Program) {
        for list in &program.complete_commands {
            self.list(list);
        }
    }

    /// Walks commands one after another; the status of the last one, if it is known.
    pub(super) fn list(&mut self, list: &CompoundList) -> Option<bool> {
        let mut status = Some(true);
        for item in &list.0 {
            if self.state.gone {
                break;
            }
            let in_background = matches!(item.1, SeparatorOperator::Async);
            let before = in_background.then(|| self.state.clone());
            status = self.pipeline(&item.0.first);
            for more in &item.0.additional {
                let (pipeline, wanted) = match more {
                    AndOr::And(pipeline) => (pipeline, true),
                    AndOr::Or(pipeline) => (pipeline, false),
                };
                status = match status {
                    Some(known) if known == wanted => self.pipeline(pipeline),
                    Some(known) => Some(known),
                    None => {
                        let line = line_of(pipeline);
                        self.maybe(&self.reason("condition", line), |shell| {
                            shell.pipeline(pipeline);
                        });
                        None
                    }
                };
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
                let before = self.state.clone();
                self.command(command);
                self.state = before;
            }
            None
        };
        status.map(|status| status != pipeline.bang)
    }

    fn command(&mut self, command: &Command) -> Option<bool> {
        self.steps += 1;
        if self.steps > LONGEST_WALK {
            self.cloud("more commands than are followed".to_owned());
            return None;
        }
        let line = line_of(command);
        match command {
            Command::Simple(simple) => self.simple(simple, line),
            Command::Compound(compound, _) => self.compound(compound, line),
            Command::Function(function) => {
                let body = function.body.0.clone();
                // What may not be defined may not be called either.
                let body = self.conditions.is_empty().then_some(body);
                self.functions.insert(function.fname.value.clone(), body);
                Some(true)
            }
            Command::ExtendedTest(test, _) => self.extended_test(&test.expr),
        }
    }

    pub(super) fn compound(&mut self, compound: &CompoundCommand, line: usize) -> Option<bool> {
        self.depth += 1;
        let status = if self.depth > DEEPEST {
            self.cloud("functions and files nest too deeply".to_owned());
            None
        } else {
            match compound {
                CompoundCommand::BraceGroup(group) => self.list(&group.list),
                CompoundCommand::Subshell(subshell) => {
                    let before = self.state.clone();
                    let status = self.list(&subshell.list);
                    self.state = before;
                    status
                }
                CompoundCommand::IfClause(clause) => self.branch(clause, line),
                CompoundCommand::CaseClause(clause) => self.choose(clause, line),
                CompoundCommand::ForClause(clause) => self.each(clause, line),
                CompoundCommand::WhileClause(clause) | CompoundCommand::UntilClause(clause) => {
                    let reason = self.reason("loop", line);
                    self.repeat(&reason, |shell| {
                        shell.list(&clause.0);
                        shell.list(&clause.1.list);
                    });
                    None
                }
                CompoundCommand::ArithmeticForClause(clause) => {
                    let reason = self.reason("loop", line);
                    let parts = [&clause.initializer, &clause.condition, &clause.updater];
                    for part in parts.into_iter().flatten() {
                        self.forget_names(&part.value, &reason);
                    }
                    self.repeat(&reason, |shell| {
                        shell.list(&clause.body.list);
                    });
                    None
                }
                CompoundCommand::Arithmetic(command) => {
                    let value = self.arithmetic(&command.expr.value);
                    if value.is_none() {
                        let reason = format!("the arithmetic at line {line}");
                        self.forget_names(&command.expr.value, &reason);
                    }
                    value.map(|value| value != 0)
                }
                CompoundCommand::Coprocess(_) => {
                    self.cloud(format!("the coprocess at line {line}"));
                    None
                }
            }
        };
        self.depth -= 1;
        status
    }

    fn branch(&mut self, clause: &IfClauseCommand, line: usize) -> Option<bool> {
        let first = ElseClause {
            condition: Some(clause.condition.clone()),
            body: clause.then.clone(),
        };
        let others = clause.elses.iter().flatten();
        let clauses: Vec<&ElseClause> = std::iter::once(&first).chain(others).collect();
        self.alternatives(
            &self.reason("condition", line),
            clauses.len(),
            |shell, at| {
                let decided = match &clauses[at].condition {
                    Some(condition) => shell.list(condition),
                    None => Some(true),
                };
                (decided, &clauses[at].body)
            },
        );
        None
    }

    fn choose(&mut self, clause: &CaseClauseCommand, line: usize) -> Option<bool> {
        use brush_parser::ast::CaseItemPostAction::ExitCase;
        let value = self.scalar(&clause.value, false);
        let empty = CompoundList(Vec::new());
        if clause
            .cases
            .iter()
            .any(|case| !matches!(case.post_action, ExitCase))
        {
            self.cloud(format!("the fall-through at line {line}"));
        }
        self.alternatives(
            &self.reason("choice", line),
            clause.cases.len(),
            |shell, at| {
                let case = &clause.cases[at];
                let mut decided = Some(false);
                for pattern in &case.patterns {
                    let matches = shell.matches(&value, pattern);
                    decided = match (decided, matches) {
                        (Some(true), _) | (_, Some(true)) => Some(true),
                        (Some(false), Some(false)) => Some(false),
                        _ => None,
                    };
                }
                (decided, case.cmd.as_ref().unwrap_or(&empty))
            },
        );
        None
    }

    /// Walks the first alternative whose condition holds. From the first one on that cannot be decided, each that may
    /// be taken is walked from the same state, and what they do differently is unknown afterwards.
    fn alternatives<'l>(
        &mut self,
        reason: &str,
        count: usize,
        mut decide: impl FnMut(&mut Self, usize) -> (Option<bool>, &'l CompoundList),
    ) {
        let mut outcomes = Vec::new();
        let mut falls_through = true;
        for at in 0..count {
            let (decided, body) = decide(self, at);
            match decided {
                Some(false) => {}
                Some(true) if outcomes.is_empty() => {
                    self.list(body);
                    return;
                }
                _ => {
                    let before = self.state.clone();
                    self.conditions.push(reason.to_owned());
                    self.list(body);
                    self.conditions.pop();
                    outcomes.push(std::mem::replace(&mut self.state, before));
                    if decided == Some(true) {
                        falls_through = false;
                        break;
                    }
                }
            }
        }
        if falls_through {
            outcomes.push(self.state.clone());
        }
        self.merge(outcomes, reason);
    }

    /// Something that may run or not.
    pub(super) fn maybe(&mut self, reason: &str, walk: impl FnOnce(&mut Self)) {
        let before = self.state.clone();
        self.conditions.push(reason.to_owned());
        walk(self);
        self.conditions.pop();
        let after = std::mem::replace(&mut self.state, before.clone());
        self.merge(vec![before, after], reason);
    }

    /// Something that runs any number of times: walked once to learn what it changes, then with that unknown.
    fn repeat(&mut self, reason: &str, walk: impl Fn(&mut Self)) {
        let facts = self.facts.clone();
        self.loops.push(false);
        self.maybe(reason, &walk);
        self.facts = facts;
        self.maybe(reason, walk);
        self.loops.pop();
    }

    fn each(&mut self, clause: &ForClauseCommand, line: usize) -> Option<bool> {
        let reason = self.reason("loop", line);
        let values: Vec<Word> = match &clause.values {
            Some(values) => values.iter().flat_map(|value| self.expand(value)).collect(),
            None => self
                .state
                .arguments
                .clone()
                .unwrap_or_else(|| vec![Word::unknown("$@", "the arguments of the script")]),
        };
        let all_known = values.iter().all(|value| value.known().is_some());
        if all_known && values.len() <= MOST_VALUES {
            self.loops.push(true);
            for value in values {
                self.set(&clause.variable_name, Value::Scalar(value), false);
                self.list(&clause.body.list);
            }
            self.loops.pop();
            return None;
        }
        let all: Vec<_> = values.iter().map(Word::text).collect();
        let why = format!("{reason}, which takes {}", all.join(", "));
        let word = Word::unknown(&format!("${}", clause.variable_name), why);
        self.set(&clause.variable_name, Value::Scalar(word), false);
        self.repeat(&reason, |shell| {
            shell.list(&clause.body.list);
        });
        None
    }

    /// The state after one of several ways was taken. A path on which the script exits is not one that continues.
    fn merge(&mut self, outcomes: Vec<State>, reason: &str) {
        let mut ways = outcomes.into_iter().filter(|state| !state.gone);
        let Some(mut merged) = ways.next() else {
            self.state.gone = true;
            return;
        };
        for way in ways {
            let names: BTreeSet<String> = merged
                .variables
                .keys()
                .chain(way.variables.keys())
                .cloned()
                .collect();
            for name in names {
                let (one, other) = (merged.variables.get(&name), way.variables.get(&name));
                if one != other {
                    let exported = [one, other].into_iter().flatten().any(|one| one.exported);
                    let value = Value::Scalar(Word::unknown(&format!("${name}"), reason));
                    merged.variables.insert(name, Variable { value, exported });
                }
            }
            for name in merged
                .unset
                .symmetric_difference(&way.unset)
                .cloned()
                .collect::<Vec<_>>()
            {
                let value = Value::Scalar(Word::unknown(&format!("${name}"), reason));
                let variable = Variable {
                    value,
                    exported: true,
                };
                merged.variables.insert(name.clone(), variable);
                merged.unset.remove(&name);
            }
            if merged.folder != way.folder {
                merged.folder = Word::unknown(way.folder.text(), reason);
            }
            if merged.venv != way.venv {
                merged.venv = Some(Word::unknown("", reason));
            }
            if merged.arguments != way.arguments {
                merged.arguments = None;
            }
            if merged.all_exported != way.all_exported {
                merged.clouded = Some(format!("`set -a`, which depends on {reason}"));
            }
            merged.clouded = merged.clouded.or(way.clouded);
        }
        self.state = merged;
    }

    /// Walks the body of a function with its own arguments and local variables.
    pub(super) fn call(
        &mut self,
        body: &CompoundCommand,
        arguments: Vec<Word>,
        line: usize,
    ) -> Option<bool> {
        let outer = self.state.arguments.replace(arguments);
        self.hidden.push(Vec::new());
        let status = self.compound(body, line);
        for (name, variable) in self.hidden.pop().into_iter().flatten() {
            match variable {
                Some(variable) => self.state.variables.insert(name, variable),
                None => self.state.variables.remove(&name),
            };
        }
        self.state.arguments = outer;
        status
    }

    /// Assigns; `exported` where the assignment is an `export`.
    pub(super) fn assign(&mut self, assignment: &brush_parser::ast::Assignment, exported: bool) {
        let value = match &assignment.value {
            AssignmentValue::Scalar(word) => Value::Scalar(self.scalar(word, true)),
            AssignmentValue::Array(elements) => {
                if elements.iter().any(|(index, _)| index.is_some()) {
                    Value::Scalar(Word::unknown("", "an array with indices"))
                } else {
                    let words = elements.iter().flat_map(|(_, word)| self.expand(word));
                    Value::List(words.collect())
                }
            }
        };
        match &assignment.name {
            AssignmentName::ArrayElementName(name, _) => {
                let word = Word::unknown(&format!("${name}"), "an element of an array");
                self.set(name, Value::Scalar(word), exported);
            }
            AssignmentName::VariableName(name) if assignment.append => {
                let present = match self.state.variables.get(name) {
                    Some(variable) => Some(variable.value.clone()),
                    None => self.lookup(name).map(Value::Scalar),
                };
                self.set(name, appended(present, value, name), exported);
            }
            AssignmentName::VariableName(name) => self.set(name, value, exported),
        }
    }

    pub(super) fn set(&mut self, name: &str, value: Value, exported: bool) {
        let already = self
            .state
            .variables
            .get(name)
            .is_some_and(|variable| variable.exported);
        // A variable that came with the environment stays exported when it is set again.
        let inherited = !self.state.variables.contains_key(name)
            && !self.state.unset.contains(name)
            && (self.surroundings.variable)(name).is_some();
        let exported = exported || already || inherited || self.state.all_exported;
        self.state.unset.remove(name);
        self.state
            .variables
            .insert(name.to_owned(), Variable { value, exported });
    }

    /// Makes a variable unknown.
    pub(super) fn forget(&mut self, name: &str, why: &str) {
        let word = Word::unknown(&format!("${name}"), why);
        self.set(name, Value::Scalar(word), false);
    }

    /// Makes every variable named in `text` unknown.
    fn forget_names(&mut self, text: &str, why: &str) {
        for name in
            text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
        {
            if is_name(name) {
                self.forget(name, why);
            }
        }
    }

    /// From here on nothing is certain.
    pub(super) fn cloud(&mut self, why: String) {
        self.state.clouded.get_or_insert(why);
    }

    /// A variable of the script, else of the environment; the first element of an array.
    pub(super) fn lookup(&self, name: &str) -> Option<Word> {
        match self
            .state
            .variables
            .get(name)
            .map(|variable| &variable.value)
        {
            Some(Value::Scalar(word)) => Some(word.clone()),
            Some(Value::List(words)) => words.first().cloned(),
            None if self.state.unset.contains(name) => None,
            None if name == "PWD" => Some(self.state.folder.clone()),
            None => (self.surroundings.variable)(name).map(Word::Known),
        }
    }

    pub(super) fn exported(&self) -> BTreeMap<String, Word> {
        let exported = self
            .state
            .variables
            .iter()
            .filter(|(_, variable)| variable.exported);
        exported
            .filter_map(|(name, variable)| match &variable.value {
                Value::Scalar(word) if is_name(name) => Some((name.clone(), word.clone())),
                _ => None, // arrays are not passed on
            })
            .collect()
    }

    /// A path of the script, from its working directory on.
    pub(super) fn below(&self, path: &Word) -> Word {
        match (path.known(), self.state.folder.known()) {
            (Some(path), _) if path.starts_with('/') => Word::of(clean(Utf8Path::new(path))),
            (Some(path), Some(folder)) => Word::of(clean(&Utf8Path::new(folder).join(path))),
            (Some(path), None) => Word::unknown(path, reason(&self.state.folder)),
            (None, _) => path.clone(),
        }
    }

    pub(super) fn note(&mut self, note: String) {
        if !self.facts.notes.contains(&note) {
            self.facts.notes.push(note);
        }
    }

    /// `the condition at line 3`.
    fn reason(&self, what: &str, line: usize) -> String {
        format!("the {what} at {}", self.place(line))
    }

    /// `line 3`, with the file where it is not the script itself.
    pub(super) fn place(&self, line: usize) -> String {
        match self.file.file_name() {
            Some(file) if self.sourced > 0 => format!("line {line} of `{file}`"),
            _ => format!("line {line}"),
        }
    }
}

/// The line that something starts at, from 1.
pub(super) fn line_of(node: &impl brush_parser::ast::SourceLocation) -> usize {
    node.location().map_or(0, |span| span.start.line)
}

/// Whether `name` can name a variable.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
}

pub(super) fn reason(word: &Word) -> String {
    match word {
        Word::Known(_) => "nothing".to_owned(),
        Word::Unknown { why, .. } => why.clone(),
    }
}

fn appended(present: Option<Value>, more: Value, name: &str) -> Value {
    match (present, more) {
        (None, more) => more,
        (Some(Value::List(words)), Value::List(more)) => {
            Value::List(words.into_iter().chain(more).collect())
        }
        (Some(Value::Scalar(Word::Known(text))), Value::Scalar(Word::Known(more))) => {
            Value::Scalar(Word::Known(format!("{text}{more}")))
        }
        (Some(Value::Scalar(unknown @ Word::Unknown { .. })), _)
        | (_, Value::Scalar(unknown @ Word::Unknown { .. })) => Value::Scalar(unknown),
        _ => Value::Scalar(Word::unknown(name, "text appended to an array")),
    }
}

/// `a/./b/../c` as `a/c`, by text alone, as `cd` and `pwd` do it.
pub(super) fn clean(path: &Utf8Path) -> String {
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
