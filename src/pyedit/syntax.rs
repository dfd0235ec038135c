//! The statements and expressions of a Python file, as far as gemmtune reads them.
//!
//! Everything has its byte span. What gemmtune has no use for is [`ExprKind::Other`] or
//! [`StmtKind::Other`]: its text is still there through the span, and every name inside a function
//! is still listed in [`Function::mentions`].

/// A half-open range of bytes in the text of one [`crate::pyedit::source::Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// The empty span at `offset`.
    pub fn at(offset: usize) -> Self {
        Self {
            start: offset,
            end: offset,
        }
    }

    /// Whether `other` lies inside this span.
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The span as a range, for slicing.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start..self.end
    }
}

#[derive(Clone, Debug)]
pub struct Stmt {
    /// Its bytes, without the trailing newline.
    pub span: Span,
    pub kind: StmtKind,
}

/// The kinds of statement.
#[derive(Clone, Debug)]
pub enum StmtKind {
    /// `import a.b as c, d`
    Import(Vec<Alias>),
    /// `from .module import name as alias`
    ImportFrom {
        /// The module; empty for `from . import x`.
        module: String,
        /// How many leading dots.
        level: u32,
        /// The imported names; `*` is one of them.
        names: Vec<Alias>,
    },
    /// `a = b = value` and `a: T = value`; `a: T` has no value. For `a += b` and `del a` the value is one that is not
    /// read.
    Assign {
        targets: Vec<Expr>,
        value: Option<Expr>,
    },
    /// `if … elif … else …`; the `else` branch has no test.
    If(Vec<Branch>),
    /// `return value`
    Return(Option<Expr>),
    /// `def` and `async def`
    Function(Function),
    Class {
        name: String,
        body: Vec<Stmt>,
    },
    /// `try` with its handlers.
    Try {
        body: Vec<Stmt>,
        /// One list per `except`.
        handlers: Vec<Vec<Stmt>>,
        /// `else` and then `finally`.
        rest: Vec<Stmt>,
    },
    With {
        items: Vec<Expr>,
        /// The statements, preceded by an assignment for each `as`.
        body: Vec<Stmt>,
    },
    /// `for` or `while`.
    Loop {
        /// The iterable or the test.
        head: Expr,
        /// The statements, `else` included, preceded by an assignment to the target of a `for`.
        body: Vec<Stmt>,
    },
    /// An expression on its own, such as a docstring or a call.
    Expr(Expr),
    Raise,
    /// `pass`, `global`, `assert` and the like: they bind nothing.
    Inert,
    /// A statement that may branch or bind in a way gemmtune does not read (`match`).
    Other,
}

/// One arm of an `if`.
#[derive(Clone, Debug)]
pub struct Branch {
    /// The condition; `None` for `else`.
    pub test: Option<Expr>,
    pub body: Vec<Stmt>,
}

/// One name of an import.
#[derive(Clone, Debug)]
pub struct Alias {
    /// The name in the other module.
    pub name: String,
    /// The name after `as`.
    pub asname: Option<String>,
    /// `name as asname` in the text.
    pub span: Span,
}

impl Alias {
    /// The name that the import binds here.
    pub fn bound(&self) -> &str {
        self.asname.as_deref().unwrap_or(&self.name)
    }
}

#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    /// The name in the text.
    pub name_span: Span,
    /// Parameter names in order, without `*args` and `**kwargs`.
    pub params: Vec<String>,
    /// Whether any decorator is on it.
    pub decorated: bool,
    /// Its statements, docstring included.
    pub body: Vec<Stmt>,
    /// Every name and attribute used in it, in source order.
    pub mentions: Vec<Mention>,
    /// Names that it declares `global`.
    pub globals: Vec<String>,
}

/// A use of a name or an attribute (`b` in `a.b`) in a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    pub name: String,
    pub span: Span,
    /// Whether it is called here.
    pub called: bool,
    /// Names of the keyword arguments of that call.
    pub keywords: Vec<String>,
}

impl Function {
    /// Whether `name` is used anywhere inside.
    pub fn mentions(&self, name: &str) -> bool {
        self.mention(name).is_some()
    }

    /// The first use of `name`.
    pub fn mention(&self, name: &str) -> Option<&Mention> {
        self.mentions.iter().find(|mention| mention.name == name)
    }
}

#[derive(Clone, Debug)]
pub struct Expr {
    pub span: Span,
    pub kind: ExprKind,
}

/// The kinds of expression.
#[derive(Clone, Debug)]
pub enum ExprKind {
    Name(String),
    /// `value.attr`
    Attribute(Box<Expr>, String),
    Call {
        function: Box<Expr>,
        /// Positional arguments.
        args: Vec<Expr>,
        /// Keyword arguments; `**x` has no name.
        keywords: Vec<(Option<String>, Expr)>,
    },
    /// `True` or `False`
    Bool(bool),
    None,
    /// An integer that fits.
    Int(i64),
    /// A string without interpolation.
    Str(String),
    /// `a and b and …`
    And(Vec<Expr>),
    /// `a or b or …`
    Or(Vec<Expr>),
    Not(Box<Expr>),
    /// `left op right`, one operator.
    Compare(Box<Expr>, Comparison, Box<Expr>),
    /// A tuple, list or set display.
    Sequence(Vec<Expr>),
    /// A dictionary display without `**`.
    Dict(Vec<(Expr, Expr)>),
    /// `then if test else otherwise`
    Conditional {
        test: Box<Expr>,
        /// The value if the test holds.
        then: Box<Expr>,
        /// The value if it does not.
        otherwise: Box<Expr>,
    },
    /// `(name := value)`
    Named(Box<Expr>, Box<Expr>),
    Other,
}

/// A comparison operator of Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    Is,
    IsNot,
    /// `in`
    In,
    NotIn,
}

impl Expr {
    /// The dotted name that this expression is, such as `torch.bfloat16`; `None` for any other expression.
    pub fn dotted(&self) -> Option<String> {
        match &self.kind {
            ExprKind::Name(name) => Some(name.clone()),
            ExprKind::Attribute(value, attr) => Some(format!("{}.{attr}", value.dotted()?)),
            _ => None,
        }
    }
}

/// Every statement of `body` and of the blocks inside it, outermost first, functions included.
pub fn walk<'a>(body: &'a [Stmt], visit: &mut dyn FnMut(&'a Stmt)) {
    for stmt in body {
        visit(stmt);
        for block in blocks(stmt) {
            walk(block, visit);
        }
    }
}

/// The same without the branches of an `if` that can never run, judged by their tests alone (`if False:`, `if
/// TYPE_CHECKING:`).
pub fn walk_live<'a>(body: &'a [Stmt], visit: &mut dyn FnMut(&'a Stmt)) {
    for stmt in body {
        visit(stmt);
        if let StmtKind::If(branches) = &stmt.kind {
            for branch in branches {
                let literal = branch.test.as_ref().and_then(literal_truth);
                if literal != Some(false) {
                    walk_live(&branch.body, visit);
                }
                if literal == Some(true) {
                    break;
                }
            }
        } else {
            for block in blocks(stmt) {
                walk_live(block, visit);
            }
        }
    }
}

/// The value of a test that depends on no name of the program.
fn literal_truth(test: &Expr) -> Option<bool> {
    match &test.kind {
        ExprKind::Bool(value) => Some(*value),
        ExprKind::Int(value) => Some(*value != 0),
        ExprKind::None => Some(false),
        ExprKind::Name(name) if name == "TYPE_CHECKING" => Some(false),
        ExprKind::Not(inner) => literal_truth(inner).map(|truth| !truth),
        _ => None,
    }
}

/// The blocks directly inside a statement.
pub fn blocks(stmt: &Stmt) -> Vec<&[Stmt]> {
    match &stmt.kind {
        StmtKind::If(branches) => branches.iter().map(|branch| &branch.body[..]).collect(),
        StmtKind::Function(function) => vec![&function.body],
        StmtKind::Class { body, .. }
        | StmtKind::With { body, .. }
        | StmtKind::Loop { body, .. } => vec![body],
        StmtKind::Try {
            body,
            handlers,
            rest,
        } => std::iter::once(body)
            .chain(handlers)
            .chain([rest])
            .map(|block| &block[..])
            .collect(),
        _ => Vec::new(),
    }
}

/// The function called `name` directly in `body`, the last one where there are several.
pub fn function<'a>(body: &'a [Stmt], name: &str) -> Option<(&'a Stmt, &'a Function)> {
    body.iter().rev().find_map(|stmt| match &stmt.kind {
        StmtKind::Function(function) if function.name == name => Some((stmt, function)),
        _ => None,
    })
}

/// The statements of the class called `name` directly in `body`.
pub fn class<'a>(body: &'a [Stmt], name: &str) -> Option<(&'a Stmt, &'a [Stmt])> {
    body.iter().rev().find_map(|stmt| match &stmt.kind {
        StmtKind::Class { name: found, body } if found == name => Some((stmt, body.as_slice())),
        _ => None,
    })
}
