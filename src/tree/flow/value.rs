//! What a name can be bound to while a function is followed, and the state of one path through it.

use std::collections::HashMap;

use super::machine::Kernel;
use crate::pyedit::syntax::{Alias, Expr, ExprKind, Function, Span, StmtKind};

/// What a branch depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::tree) enum Cause {
    /// A function of the file that tests (N, K).
    Predicate(String),
    /// An environment variable, and its truth when it is not set, if the reading call gives it.
    Env(String, Option<bool>),
    /// The number of rows, M.
    Rows,
}

/// A truth value that only the running process knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::tree) struct Test {
    /// The condition as written in the source, on one line.
    pub(in crate::tree) text: String,
    /// What it depends on, as far as that is known.
    pub(in crate::tree) causes: Vec<Cause>,
    pub(super) negated: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Bool(bool),
    None,
    Int(i64),
    Str(String),
    Tuple(Vec<Self>),
    HipVersion,
    Kernel(Kernel),
    Module(String),
    Function(&'a Function),
    /// The result of a GEMM of aiter, with the place of its call, or `None` for a known operation beside them; or a
    /// value derived from it.
    Result(Option<(Kernel, Span)>),
    Test(Test),
    /// Bound to different kernels by code whose condition is not known.
    Ambiguous(Span),
    Unknown,
}

/// The state of one path through a function.
#[derive(Clone, Debug, Default)]
pub(super) struct State<'a> {
    pub(super) locals: HashMap<String, Value<'a>>,
    pub(super) tests: Vec<(Test, bool)>,
    /// The `return` of the followed function that ended last, if it returned something other than the aiter path.
    pub(super) left: Option<Span>,
}

/// The two continuations of `state` after `test`, or the one that is consistent with earlier tests.
pub(super) fn split<'a>(state: State<'a>, test: &Test) -> (Vec<State<'a>>, Vec<State<'a>>) {
    let answered = state
        .tests
        .iter()
        .find(|(known, _)| known.text == test.text)
        .map(|(_, answer)| *answer != test.negated);
    match answered {
        Some(true) => (vec![state], vec![]),
        Some(false) => (vec![], vec![state]),
        None => {
            let plain = Test {
                negated: false,
                ..test.clone()
            };
            let mut other = state.clone();
            let mut state = state;
            state.tests.push((plain.clone(), !test.negated));
            other.tests.push((plain, test.negated));
            (vec![state], vec![other])
        }
    }
}

pub(super) fn assign<'a>(target: &Expr, value: &Value<'a>, state: &mut State<'a>) {
    match (&target.kind, value) {
        (ExprKind::Name(name), value) => {
            // A test of a name is void once the name is rebound.
            state.tests.retain(|(test, _)| !names(&test.text, name));
            state.locals.insert(name.clone(), value.clone());
        }
        (ExprKind::Sequence(targets), Value::Tuple(values)) if targets.len() == values.len() => {
            for (target, value) in targets.iter().zip(values) {
                assign(target, value, state);
            }
        }
        (ExprKind::Sequence(targets), _) => {
            for target in targets {
                assign(target, &Value::Unknown, state);
            }
        }
        _ => {}
    }
}

/// Whether `name` occurs in `text` as a whole word.
fn names(text: &str, name: &str) -> bool {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .any(|word| word == name)
}

pub(super) fn bind_module(alias: &Alias, state: &mut State<'_>) {
    let (name, module) = if let Some(asname) = &alias.asname {
        (asname.clone(), alias.name.clone())
    } else {
        let top = alias.name.split('.').next().unwrap_or(&alias.name);
        (top.to_owned(), top.to_owned())
    };
    state.locals.insert(name, Value::Module(module));
}

/// The truth of a value that the tree fixes.
pub(super) fn truth(value: &Value<'_>) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::None => Some(false),
        Value::Int(value) => Some(*value != 0),
        Value::Str(value) => Some(!value.is_empty()),
        Value::Tuple(values) => Some(!values.is_empty()),
        Value::Kernel(_) | Value::Module(_) | Value::Function(_) => Some(true),
        Value::HipVersion
        | Value::Result(_)
        | Value::Test(_)
        | Value::Ambiguous(_)
        | Value::Unknown => None,
    }
}

/// Whether every `return` of `function` returns a truth value, and its body contains only tests and returns.
pub(super) fn is_predicate(function: &Function) -> bool {
    fn truthy(expr: &Expr) -> bool {
        match &expr.kind {
            ExprKind::Bool(_) | ExprKind::Compare(..) | ExprKind::Not(_) => true,
            ExprKind::And(items) | ExprKind::Or(items) => items.iter().any(truthy),
            _ => false,
        }
    }
    let mut returns = 0;
    let mut all = true;
    crate::pyedit::syntax::walk(&function.body, &mut |stmt| {
        if let StmtKind::Return(value) = &stmt.kind {
            returns += 1;
            all &= value.as_ref().is_some_and(truthy);
        }
    });
    returns > 0 && all
}

/// Merges the globals of all paths through one top-level statement. A name that is bound to different kernels on
/// different paths is ambiguous; other differing names become unknown.
pub(super) fn merged(states: Vec<State<'_>>, span: Span) -> HashMap<String, Value<'_>> {
    let mut states = states.into_iter();
    let Some(first) = states.next() else {
        return HashMap::new();
    };
    let mut result = first.locals;
    for state in states {
        let names: Vec<String> = result.keys().chain(state.locals.keys()).cloned().collect();
        for name in names {
            let (left, right) = (result.get(&name), state.locals.get(&name));
            let merged = match (left, right) {
                (Some(left), Some(right)) if same(left, right) => continue,
                // Bound on one path only: where it is unbound it cannot be called.
                (Some(value), None) | (None, Some(value)) => value.clone(),
                (Some(left), Some(right)) if is_gemm(left) || is_gemm(right) => {
                    Value::Ambiguous(span)
                }
                _ => Value::Unknown,
            };
            result.insert(name, merged);
        }
    }
    result
}

fn is_gemm(value: &Value<'_>) -> bool {
    matches!(value, Value::Kernel(_) | Value::Ambiguous(_))
}

fn same(left: &Value<'_>, right: &Value<'_>) -> bool {
    match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::None, Value::None)
        | (Value::HipVersion, Value::HipVersion)
        // It remains attributed to the statement that made it ambiguous.
        | (Value::Ambiguous(_), Value::Ambiguous(_))
        | (Value::Unknown, Value::Unknown) => true,
        (Value::Int(left), Value::Int(right)) => left == right,
        (Value::Str(left), Value::Str(right)) | (Value::Module(left), Value::Module(right)) => {
            left == right
        }
        (Value::Kernel(left), Value::Kernel(right)) => left == right,
        (Value::Function(left), Value::Function(right)) => std::ptr::eq(*left, *right),
        (Value::Test(left), Value::Test(right)) => left == right,
        (Value::Result(left), Value::Result(right)) => left == right,
        (Value::Tuple(left), Value::Tuple(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| same(left, right))
        }
        _ => false,
    }
}
