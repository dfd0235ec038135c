//! Expressions: the value of each on the paths that lead through it.

use super::Flow;
use super::machine::{Arch, Kernel, Rocm};
use super::value::{Cause, State, Test, Value, assign, is_predicate, split, truth};
use crate::pyedit::refusal::Refusal;
use crate::pyedit::syntax::{Comparison, Expr, ExprKind, Function, Span};
use crate::tree::era::LEAF;

/// Operations other than the block-FP8 GEMM whose results releases return: the per-token GEMM (0.5.21), the kernel
/// for few rows (0.5.23), and an empty tensor for no rows (0.5.22).
const BESIDE: [&str; 3] = [
    "apply_fp8_ptpc_linear",
    "try_smallm_fp8_bs_linear",
    "new_empty",
];

/// Depth to which calls between functions of the file are followed.
const MAX_DEPTH: usize = 6;

fn is_beside(call: &Expr) -> bool {
    let ExprKind::Call { function, .. } = &call.kind else {
        return false;
    };
    match &function.kind {
        ExprKind::Name(name) | ExprKind::Attribute(_, name) => BESIDE.contains(&name.as_str()),
        _ => false,
    }
}

impl<'a> Flow<'a> {
    /// The value of `expr` on every path through it.
    pub(super) fn eval(
        &self,
        expr: &'a Expr,
        state: State<'a>,
        depth: usize,
    ) -> Result<Vec<(State<'a>, Value<'a>)>, Refusal> {
        let one = |state, value| Ok(vec![(state, value)]);
        match &expr.kind {
            ExprKind::Name(name) => {
                let value = self.lookup(name, &state);
                one(state, value)
            }
            ExprKind::Attribute(base, attr) => {
                let mut values = self.eval(base, state, depth)?;
                for (_, value) in &mut values {
                    *value = match value {
                        Value::Module(module) => Kernel::imported(module, attr).map_or_else(
                            || Value::Module(format!("{module}.{attr}")),
                            Value::Kernel,
                        ),
                        Value::Result(kernel) => Value::Result(*kernel),
                        _ => Value::Unknown,
                    };
                }
                Ok(values)
            }
            ExprKind::Bool(value) => one(state, Value::Bool(*value)),
            ExprKind::None => one(state, Value::None),
            ExprKind::Int(value) => one(state, Value::Int(*value)),
            ExprKind::Str(value) => one(state, Value::Str(value.clone())),
            ExprKind::Sequence(items) => {
                let mut result = Vec::new();
                for (state, values) in self.eval_all(items, state, depth)? {
                    result.push((state, Value::Tuple(values)));
                }
                Ok(result)
            }
            ExprKind::Not(inner) => {
                let mut values = self.eval(inner, state, depth)?;
                for (_, value) in &mut values {
                    *value = match std::mem::replace(value, Value::Unknown) {
                        Value::Test(mut test) => {
                            test.negated = !test.negated;
                            Value::Test(test)
                        }
                        other => truth(&other).map_or_else(
                            || {
                                let mut test = self.test(inner.span);
                                test.negated = true;
                                Value::Test(test)
                            },
                            |truth| Value::Bool(!truth),
                        ),
                    };
                }
                Ok(values)
            }
            ExprKind::And(items) => self.joined(expr, items, false, state, depth),
            ExprKind::Or(items) => self.joined(expr, items, true, state, depth),
            ExprKind::Compare(left, op, right) => {
                let mut result = Vec::new();
                for (state, left_value) in self.eval(left, state, depth)? {
                    for (state, right_value) in self.eval(right, state, depth)? {
                        let value = self
                            .compared(&left_value, *op, &right_value)
                            .map_or_else(|| Value::Test(self.test(expr.span)), Value::Bool);
                        result.push((state, value));
                    }
                }
                Ok(result)
            }
            ExprKind::Conditional {
                test,
                then,
                otherwise,
            } => {
                let mut result = Vec::new();
                for (state, value) in self.eval(test, state, depth)? {
                    let test = match (truth(&value), value) {
                        (Some(true), _) => {
                            result.extend(self.eval(then, state, depth)?);
                            continue;
                        }
                        (Some(false), _) => {
                            result.extend(self.eval(otherwise, state, depth)?);
                            continue;
                        }
                        (None, Value::Test(test)) => test,
                        (None, _) => self.test(test.span),
                    };
                    let (yes, no) = split(state, &test);
                    for state in yes {
                        result.extend(self.eval(then, state, depth)?);
                    }
                    for state in no {
                        result.extend(self.eval(otherwise, state, depth)?);
                    }
                }
                Ok(result)
            }
            ExprKind::Call {
                function,
                args,
                keywords,
            } => self.call(expr, function, args, keywords, state, depth),
            ExprKind::Named(target, value) => {
                let mut values = self.eval(value, state, depth)?;
                for (state, value) in &mut values {
                    assign(target, value, state);
                }
                Ok(values)
            }
            ExprKind::Dict(_) | ExprKind::Other => {
                let value = self.derived(expr.span, &state);
                one(state, value)
            }
        }
    }

    /// The possible value of an expression that is not read: the result whose name occurs in it (`output + bias`).
    fn derived(&self, span: Span, state: &State<'a>) -> Value<'a> {
        let words = self
            .source
            .slice(span)
            .split(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let mut results = words.filter_map(|word| match state.locals.get(word) {
            Some(Value::Result(kernel)) => Some(*kernel),
            _ => None,
        });
        match results.next() {
            Some(first) if results.all(|other| other == first) => Value::Result(first),
            _ => Value::Unknown,
        }
    }

    fn eval_all(
        &self,
        items: &'a [Expr],
        state: State<'a>,
        depth: usize,
    ) -> Result<Vec<(State<'a>, Vec<Value<'a>>)>, Refusal> {
        let mut ways = vec![(state, Vec::new())];
        for item in items {
            let mut next = Vec::new();
            for (state, mut values) in ways {
                let mut found = self.eval(item, state, depth)?;
                let last = found.pop();
                for (state, value) in found {
                    let mut values = values.clone();
                    values.push(value);
                    next.push((state, values));
                }
                if let Some((state, value)) = last {
                    values.push(value);
                    next.push((state, values));
                }
            }
            ways = next;
        }
        Ok(ways)
    }

    /// `and` and `or`; `stop` is the truth value that ends the chain.
    fn joined(
        &self,
        expr: &Expr,
        items: &'a [Expr],
        stop: bool,
        state: State<'a>,
        depth: usize,
    ) -> Result<Vec<(State<'a>, Value<'a>)>, Refusal> {
        let mut result = Vec::new();
        for (state, values) in self.eval_all(items, state, depth)? {
            let mut open: Vec<Test> = Vec::new();
            let mut value = None;
            for (item, found) in items.iter().zip(values) {
                match (truth(&found), found) {
                    (Some(truth), _) if truth == stop => {
                        value = Some(Value::Bool(stop));
                        break;
                    }
                    (Some(_), _) => {}
                    (None, Value::Test(test)) => open.push(test),
                    (None, _) => open.push(self.test(item.span)),
                }
            }
            let value = value.unwrap_or_else(|| match open.len() {
                0 => Value::Bool(!stop),
                1 => Value::Test(open.remove(0)),
                _ => {
                    let mut test = self.test(expr.span);
                    test.causes
                        .extend(open.into_iter().flat_map(|test| test.causes));
                    test.causes.sort();
                    test.causes.dedup();
                    Value::Test(test)
                }
            });
            result.push((state, value));
        }
        Ok(result)
    }

    fn call(
        &self,
        expr: &'a Expr,
        function: &'a Expr,
        args: &'a [Expr],
        keywords: &'a [(Option<String>, Expr)],
        state: State<'a>,
        depth: usize,
    ) -> Result<Vec<(State<'a>, Value<'a>)>, Refusal> {
        let own = match &function.kind {
            ExprKind::Name(name) => matches!(self.lookup(name, &state), Value::Function(_)),
            _ => false,
        };
        // A function of that name defined in the file takes precedence.
        if let Some(value) = self.platform(expr, function, args).filter(|_| !own) {
            return Ok(vec![(state, value)]);
        }
        let mut result = Vec::new();
        for (state, callee) in self.eval(function, state, depth)? {
            for (state, values) in self.eval_all(args, state, depth)? {
                let mut ways = vec![(state, Vec::new())];
                for (name, value) in keywords {
                    let mut next = Vec::new();
                    for (state, named) in ways {
                        for (state, value) in self.eval(value, state, depth)? {
                            let mut named = named.clone();
                            named.push((name.clone(), value));
                            next.push((state, named));
                        }
                    }
                    ways = next;
                }
                for (state, named) in ways {
                    result.extend(self.called(expr, &callee, &values, &named, state, depth)?);
                }
            }
        }
        Ok(result)
    }

    fn called(
        &self,
        expr: &'a Expr,
        callee: &Value<'a>,
        args: &[Value<'a>],
        keywords: &[(Option<String>, Value<'a>)],
        mut state: State<'a>,
        depth: usize,
    ) -> Result<Vec<(State<'a>, Value<'a>)>, Refusal> {
        match callee {
            Value::Kernel(kernel) => Ok(vec![(state, Value::Result(Some((*kernel, expr.span))))]),
            Value::Ambiguous(span) => Err(Refusal::new(
                self.source,
                *span,
                "which kernel this name means is decided when the module is imported",
                "binds a GEMM under a condition that the tree does not fix",
                "one binding for each kernel name, as every SGLang release has it",
            )),
            Value::Function(function) if depth < MAX_DEPTH && is_predicate(function) => {
                let value = self.truth_of(function, self.text(expr.span), depth)?;
                Ok(vec![(state, value)])
            }
            _ if is_beside(expr) => Ok(vec![(state, Value::Result(None))]),
            Value::Function(function)
                if depth < MAX_DEPTH
                    && (self.calls_kernel(function) || function.mentions(LEAF)) =>
            {
                let outer = std::mem::take(&mut state.locals);
                for (param, value) in function.params.iter().zip(args) {
                    state.locals.insert(param.clone(), value.clone());
                }
                for (name, value) in keywords {
                    if let Some(name) = name {
                        state.locals.insert(name.clone(), value.clone());
                    }
                }
                for param in &function.params {
                    state.locals.entry(param.clone()).or_insert(Value::Unknown);
                }
                let (ended, exits) = self.block(&function.body, vec![state], depth + 1)?;
                let back = |mut state: State<'a>, value: Value<'a>, end: Option<Span>| {
                    state.locals.clone_from(&outer);
                    let leaf = matches!(value, Value::Function(found) if found.name == LEAF);
                    state.left = end.filter(|_| !leaf);
                    (state, value)
                };
                let mut result: Vec<_> = exits
                    .into_iter()
                    .map(|exit| back(exit.state, exit.value, Some(exit.end)))
                    .collect();
                result.extend(
                    ended
                        .into_iter()
                        .map(|state| back(state, Value::None, None)),
                );
                Ok(result)
            }
            _ => {
                // A method of a result, or a function called with one: what it returns is derived from that result.
                let handed = args.iter().chain(keywords.iter().map(|(_, value)| value));
                let result = std::iter::once(callee)
                    .chain(handed)
                    .find(|value| matches!(value, Value::Result(_)));
                let value = result.cloned().unwrap_or(Value::Unknown);
                Ok(vec![(state, value)])
            }
        }
    }

    /// The value of calling a predicate: a constant, or a test that names it.
    fn truth_of(
        &self,
        function: &'a Function,
        text: String,
        depth: usize,
    ) -> Result<Value<'a>, Refusal> {
        let mut state = State::default();
        for param in &function.params {
            state.locals.insert(param.clone(), Value::Unknown);
        }
        let (_, exits) = self.block(&function.body, vec![state], depth + 1)?;
        let truths: Vec<Option<bool>> = exits.iter().map(|exit| truth(&exit.value)).collect();
        if let [first @ Some(value), rest @ ..] = truths.as_slice()
            && rest.iter().all(|other| other == first)
        {
            return Ok(Value::Bool(*value));
        }
        Ok(Value::Test(Test {
            text,
            causes: vec![Cause::Predicate(function.name.clone())],
            negated: false,
        }))
    }

    /// Whether `function` may call a kernel itself.
    fn calls_kernel(&self, function: &Function) -> bool {
        function.mentions.iter().any(|mention| {
            matches!(
                self.globals.get(&mention.name),
                Some(Value::Kernel(_) | Value::Ambiguous(_))
            ) || mention.name.contains("gemm_a8w8_blockscale")
        })
    }

    /// Calls whose value is fixed by the machine, or that read the environment.
    fn platform(&self, expr: &Expr, function: &Expr, args: &[Expr]) -> Option<Value<'a>> {
        let dotted = function.dotted()?;
        let text_of = |at: usize| match args.get(at).map(|argument| &argument.kind) {
            Some(ExprKind::Str(text)) => Some(text.clone()),
            _ => None,
        };
        let (variable, unset) = match dotted.as_str() {
            // Anything other than "true" or "1" counts as false (`sglang.srt.utils`, every release).
            "get_bool_env_var" => (
                text_of(0),
                match args.get(1) {
                    None => Some(false),
                    Some(_) => text_of(1)
                        .map(|text| matches!(text.to_ascii_lowercase().as_str(), "true" | "1")),
                },
            ),
            "os.environ.get" | "os.getenv" | "getenv" => (
                text_of(0),
                match args.get(1) {
                    None => Some(false),
                    Some(_) => text_of(1).map(|text| !text.is_empty()),
                },
            ),
            _ => (
                dotted
                    .strip_prefix("envs.")
                    .and_then(|rest| rest.strip_suffix(".get"))
                    .map(str::to_owned),
                None,
            ),
        };
        if let Some(variable) = variable {
            if variable == "SGLANG_USE_AITER" {
                return Some(Value::Bool(true));
            }
            return Some(Value::Test(Test {
                text: self.text(expr.span),
                causes: vec![Cause::Env(variable, unset)],
                negated: false,
            }));
        }
        Some(match dotted.as_str() {
            "is_hip" => Value::Bool(true),
            "is_cuda"
            | "is_npu"
            | "is_xpu"
            | "is_cpu"
            | "is_musa"
            | "is_mps"
            | "is_gfx1250_supported" => Value::Bool(false),
            "is_gfx95_supported" => Value::Bool(self.arch == Arch::Gfx950),
            "is_gfx942_supported" => Value::Bool(self.arch == Arch::Gfx942),
            "get_hip_version" => Value::HipVersion,
            _ => return None,
        })
    }

    fn compared(&self, left: &Value<'a>, op: Comparison, right: &Value<'a>) -> Option<bool> {
        match (left, op, right) {
            (Value::HipVersion, op, Value::Tuple(items)) => self.hip_compared(op, items),
            (_, Comparison::In, Value::Tuple(items)) if items.is_empty() => Some(false),
            (_, Comparison::NotIn, Value::Tuple(items)) if items.is_empty() => Some(true),
            (Value::None, Comparison::Is, Value::None) => Some(true),
            (Value::None, Comparison::IsNot, Value::None) => Some(false),
            (Value::Int(left), Comparison::Equal, Value::Int(right)) => Some(left == right),
            (Value::Bool(left), Comparison::Is | Comparison::Equal, Value::Bool(right)) => {
                Some(left == right)
            }
            _ => None,
        }
    }

    fn hip_compared(&self, op: Comparison, items: &[Value<'a>]) -> Option<bool> {
        let wanted: Vec<i64> = items
            .iter()
            .map(|item| match item {
                Value::Int(value) => Some(*value),
                _ => None,
            })
            .collect::<Option<_>>()?;
        let split = vec![7, 2, 0];
        let bound: Vec<i64> = wanted.iter().copied().chain([0, 0, 0]).take(3).collect();
        match (op, self.rocm) {
            // The version is somewhere below 7.2, so only a bound at or above 7.2 decides.
            (Comparison::GreaterOrEqual, Rocm::Below72) if bound >= split => Some(false),
            (Comparison::Less, Rocm::Below72) if bound >= split => Some(true),
            (Comparison::GreaterOrEqual, Rocm::From72) if bound <= split => Some(true),
            (Comparison::Less, Rocm::From72) if bound <= split => Some(false),
            _ => None,
        }
    }

    fn lookup(&self, name: &str, state: &State<'a>) -> Value<'a> {
        if name == "TYPE_CHECKING" {
            return Value::Bool(false);
        }
        state
            .locals
            .get(name)
            .or_else(|| self.globals.get(name))
            .cloned()
            .unwrap_or(Value::Unknown)
    }

    fn text(&self, span: Span) -> String {
        self.source
            .slice(span)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub(super) fn test(&self, span: Span) -> Test {
        let text = self.text(span);
        let causes = if text.contains(".shape[0]") && text.contains(['<', '>']) {
            vec![Cause::Rows]
        } else {
            vec![]
        };
        Test {
            text,
            causes,
            negated: false,
        }
    }
}
