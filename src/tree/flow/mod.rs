//! Follows a function through its branches without running it: which GEMM kernel does each path through it call, on a
//! given architecture and ROCm version?
//!
//! Values that the tree fixes (`_use_aiter_gfx95` on gfx942 is false) decide a branch; anything else (an environment
//! variable, the shape, the number of rows) splits the path in two and is recorded. Nothing is assumed about code
//! that is not understood: a call of something unknown is simply not a known kernel, and the caller refuses a path
//! without one.

use std::cell::Cell;
use std::collections::HashMap;

use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{Branch, Function, Span, Stmt, StmtKind};

mod eval;
mod machine;
mod value;

pub use machine::{Arch, Kernel, Rocm};
pub(super) use value::{Cause, Test};
use value::{State, Value, assign, bind_module, merged, split, truth};

/// More paths than this through one function mean that it is not the one we know.
const MAX_WAYS: usize = 4096;

/// Statements evaluated, over all paths, before the code is given up as not the one we know. The largest release
/// (0.5.23) takes fewer than 3000.
const MAX_STEPS: usize = 200_000;

/// One path through the followed function, from its first line to a `return`.
#[derive(Clone, Debug)]
pub(super) struct CodePath {
    /// The kernel whose result is returned, with the place of its call.
    pub(super) kernel: Option<(Kernel, Span)>,
    /// Whether the origin of the returned value is known: a kernel, or an operation beside them.
    pub(super) known: bool,
    /// The conditions on it and their outcomes.
    pub(super) tests: Vec<(Test, bool)>,
    /// The `return` statement that ended it.
    pub(super) end: Span,
    /// Whether it is one of the paths that GEMMs of the block-FP8 layers take: it ends in a `return` directly in the
    /// function's body, or it leaves early with the result of one of their kernels.
    pub(super) main: bool,
}

struct Exit<'a> {
    state: State<'a>,
    value: Value<'a>,
    end: Span,
}

/// Whether a path that leaves early computed the layer's GEMM. Releases leave early with bpreshuffle only for weights
/// of another kind (0.5.23, `_mxscale_w_scale`), and never with plain CK or Triton: that is a route.
fn leaves_with_gemm(value: &Value<'_>) -> bool {
    matches!(value, Value::Result(Some((Kernel::Ck | Kernel::Triton, _))))
}

/// What a dispatcher returns on one path.
pub(super) struct HandedOut<'a> {
    /// The function, if it is defined in the file.
    pub(super) function: Option<&'a Function>,
    /// The conditions on it and their outcomes.
    pub(super) tests: Vec<(Test, bool)>,
    /// The `return` statement; that of a followed function if it returned something other than the aiter path.
    pub(super) end: Span,
}

/// The facts of one machine, and the values of the module's globals on it.
pub(super) struct Flow<'a> {
    source: &'a Source,
    arch: Arch,
    rocm: Rocm,
    globals: HashMap<String, Value<'a>>,
    steps: Cell<usize>,
}

impl<'a> Flow<'a> {
    /// Evaluates the module's top level.
    pub(super) fn new(source: &'a Source, arch: Arch, rocm: Rocm) -> Result<Self, Refusal> {
        let mut flow = Self {
            source,
            arch,
            rocm,
            globals: HashMap::new(),
            steps: Cell::new(0),
        };
        for stmt in source.body() {
            let before = State {
                locals: std::mem::take(&mut flow.globals),
                ..State::default()
            };
            let (states, _) = flow.block(std::slice::from_ref(stmt), vec![before], 0)?;
            flow.globals = merged(states, stmt.span);
        }
        Ok(flow)
    }

    /// Every path through `function`, with unknown arguments.
    pub(super) fn ways(&self, function: &'a Function) -> Result<Vec<CodePath>, Refusal> {
        let mut state = State::default();
        for param in &function.params {
            state.locals.insert(param.clone(), Value::Unknown);
        }
        let (ended, exits) = self.block(&function.body, vec![state], 0)?;
        let direct = |end: Span| function.body.iter().any(|stmt| stmt.span == end);
        let mut ways: Vec<CodePath> = exits
            .into_iter()
            .map(|exit| CodePath {
                main: direct(exit.end) || leaves_with_gemm(&exit.value),
                kernel: match exit.value {
                    Value::Result(kernel) => kernel,
                    _ => None,
                },
                known: matches!(exit.value, Value::Result(_)),
                tests: exit.state.tests,
                end: exit.end,
            })
            .collect();
        // Falling off the end returns None: a path whose kernel, if any, is still relevant.
        ways.extend(ended.into_iter().map(|state| CodePath {
            kernel: None,
            known: false,
            tests: state.tests,
            end: function.name_span,
            main: true,
        }));
        Ok(ways)
    }

    /// What every path through `function` returns, with unknown arguments.
    pub(super) fn handed_out(&self, function: &'a Function) -> Result<Vec<HandedOut<'a>>, Refusal> {
        let mut state = State::default();
        for param in &function.params {
            state.locals.insert(param.clone(), Value::Unknown);
        }
        let (_, exits) = self.block(&function.body, vec![state], 0)?;
        let handed = |exit: Exit<'a>| HandedOut {
            function: match exit.value {
                Value::Function(function) => Some(function),
                _ => None,
            },
            end: exit.state.left.unwrap_or(exit.end),
            tests: exit.state.tests,
        };
        Ok(exits.into_iter().map(handed).collect())
    }

    fn block(
        &self,
        body: &'a [Stmt],
        states: Vec<State<'a>>,
        depth: usize,
    ) -> Result<(Vec<State<'a>>, Vec<Exit<'a>>), Refusal> {
        let mut states = states;
        let mut exits = Vec::new();
        for stmt in body {
            let mut next = Vec::new();
            self.steps.set(self.steps.get() + states.len());
            for state in states {
                let (continued, mut ended) = self.statement(stmt, state, depth)?;
                next.extend(continued);
                exits.append(&mut ended);
            }
            if next.len() + exits.len() > MAX_WAYS || self.steps.get() > MAX_STEPS {
                return Err(Refusal::new(
                    self.source,
                    stmt.span,
                    "too many ways through this code",
                    "more branches than any known release has",
                    "the dispatch of SGLang 0.5.5 to 0.5.23",
                ));
            }
            states = next;
        }
        Ok((states, exits))
    }

    fn statement(
        &self,
        stmt: &'a Stmt,
        mut state: State<'a>,
        depth: usize,
    ) -> Result<(Vec<State<'a>>, Vec<Exit<'a>>), Refusal> {
        match &stmt.kind {
            StmtKind::Assign {
                targets,
                value: Some(value),
            } => {
                let mut states = self.eval(value, state, depth)?;
                for (state, value) in &mut states {
                    for target in targets {
                        assign(target, value, state);
                    }
                }
                Ok((states.into_iter().map(|(state, _)| state).collect(), vec![]))
            }
            StmtKind::Expr(value) => {
                let states = self.eval(value, state, depth)?;
                Ok((states.into_iter().map(|(state, _)| state).collect(), vec![]))
            }
            StmtKind::Return(value) => {
                let states = match value {
                    Some(value) => self.eval(value, state, depth)?,
                    None => vec![(state, Value::None)],
                };
                let exits = states
                    .into_iter()
                    .map(|(state, value)| Exit {
                        state,
                        value,
                        end: stmt.span,
                    })
                    .collect();
                Ok((vec![], exits))
            }
            StmtKind::If(branches) => self.branches(branches, state, depth),
            StmtKind::Import(names) => {
                for alias in names {
                    bind_module(alias, &mut state);
                }
                Ok((vec![state], vec![]))
            }
            StmtKind::ImportFrom {
                module,
                level,
                names,
            } => {
                for alias in names {
                    // `from .aiter import …` is a module of the tree, whatever its name.
                    let value = Some(())
                        .filter(|()| *level == 0)
                        .and_then(|()| Kernel::imported(module, &alias.name))
                        .map_or(Value::Unknown, Value::Kernel);
                    state.locals.insert(alias.bound().to_owned(), value);
                }
                Ok((vec![state], vec![]))
            }
            StmtKind::Function(function) => {
                let value = if function.decorated {
                    Value::Unknown
                } else {
                    Value::Function(function)
                };
                state.locals.insert(function.name.clone(), value);
                Ok((vec![state], vec![]))
            }
            StmtKind::Class { name, .. } => {
                state.locals.insert(name.clone(), Value::Unknown);
                Ok((vec![state], vec![]))
            }
            StmtKind::Try {
                body,
                handlers,
                rest,
            } => {
                let (mut states, mut exits) = self.block(body, vec![state.clone()], depth)?;
                for handler in handlers {
                    let (handled, ended) = self.block(handler, vec![state.clone()], depth)?;
                    states.extend(handled);
                    exits.extend(ended);
                }
                let (states, ended) = self.block(rest, states, depth)?;
                exits.extend(ended);
                Ok((states, exits))
            }
            StmtKind::With { body, items } => {
                let mut states = vec![state];
                for item in items {
                    let mut next = Vec::new();
                    for state in states {
                        next.extend(
                            self.eval(item, state, depth)?
                                .into_iter()
                                .map(|(state, _)| state),
                        );
                    }
                    states = next;
                }
                self.block(body, states, depth)
            }
            StmtKind::Loop { body, head } => {
                let before: Vec<_> = self.eval(head, state, depth)?;
                let before: Vec<_> = before.into_iter().map(|(state, _)| state).collect();
                let (mut states, exits) = self.block(body, before.clone(), depth)?;
                states.extend(before);
                Ok((states, exits))
            }
            StmtKind::Raise => Ok((vec![], vec![])),
            StmtKind::Assign { value: None, .. } | StmtKind::Inert => Ok((vec![state], vec![])),
            StmtKind::Other => Err(Refusal::new(
                self.source,
                stmt.span,
                "a statement that is not understood",
                "it may choose the kernel",
                "`if` chains and assignments, as SGLang 0.5.5 to 0.5.23 have them",
            )),
        }
    }

    fn branches(
        &self,
        branches: &'a [Branch],
        state: State<'a>,
        depth: usize,
    ) -> Result<(Vec<State<'a>>, Vec<Exit<'a>>), Refusal> {
        let mut undecided = vec![state];
        let mut states = Vec::new();
        let mut exits = Vec::new();
        for branch in branches {
            let mut taken = Vec::new();
            let mut left = Vec::new();
            for state in undecided {
                let Some(test) = &branch.test else {
                    taken.push(state);
                    continue;
                };
                for (state, value) in self.eval(test, state, depth)? {
                    let test = match value {
                        Value::Test(test) => test,
                        other => match truth(&other) {
                            Some(true) => {
                                taken.push(state);
                                continue;
                            }
                            Some(false) => {
                                left.push(state);
                                continue;
                            }
                            None => self.test(test.span),
                        },
                    };
                    // Both paths get a copy of everything known so far.
                    self.steps.set(self.steps.get() + state.locals.len());
                    let (yes, no) = split(state, &test);
                    taken.extend(yes);
                    left.extend(no);
                }
            }
            let (continued, ended) = self.block(&branch.body, taken, depth)?;
            states.extend(continued);
            exits.extend(ended);
            undecided = left;
        }
        states.extend(undecided);
        Ok((states, exits))
    }
}
