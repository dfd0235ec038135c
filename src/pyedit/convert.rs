//! Converts the parser's tree to our own. The only file that uses the parser's types.

use ruff_python_ast::visitor::{self, Visitor};
use ruff_python_ast::{self as ast};
use ruff_text_size::{Ranged, TextRange};

use super::syntax::{
    Alias, Branch, Comparison, Expr, ExprKind, Function, Mention, Span, Stmt, StmtKind,
};

/// Stack of the parsing thread. The parser descends once per nesting level; `extent` limits their number, and an
/// unoptimised build needs several kilobytes for each.
const STACK: usize = 256 << 20;

/// An expression nested deeper than this becomes [`ExprKind::Other`], because later code walks the tree on a stack of
/// ordinary size.
const MAX_DEPTH: usize = 100;

/// Parses `text`; the error is what is wrong and where.
pub(super) fn parse(text: &str) -> Result<Parsed, (String, Span)> {
    let failed = |what: &str| (format!("{what} the parser"), Span::at(0));
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || parse_here(text))
            .map_err(|_| failed("no memory for"))?
            .join()
            .unwrap_or_else(|_| Err(failed("a bug in")))
    })
}

fn parse_here(text: &str) -> Result<Parsed, (String, Span)> {
    let parsed = ruff_python_parser::parse_module(text)
        .map_err(|error| (error.error.to_string(), span(error.location)))?;
    let mut tokens = Vec::new();
    for token in parsed.tokens() {
        use ruff_python_ast::token::TokenKind;
        match token.kind() {
            TokenKind::Comment => tokens.push((TokenClass::Comment, span(token.range()))),
            TokenKind::Indent => tokens.push((TokenClass::Indent, span(token.range()))),
            _ => {}
        }
    }
    Ok(Parsed {
        body: block(&parsed.syntax().body),
        tokens,
    })
}

/// A parsed file in our own types.
pub(super) struct Parsed {
    pub(super) body: Vec<Stmt>,
    pub(super) tokens: Vec<(TokenClass, Span)>,
}

/// The classes of tokens that edits distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenClass {
    Comment,
    Indent,
}

fn span(range: TextRange) -> Span {
    Span {
        start: range.start().to_usize(),
        end: range.end().to_usize(),
    }
}

fn block(body: &[ast::Stmt]) -> Vec<Stmt> {
    body.iter().map(statement).collect()
}

fn statement(stmt: &ast::Stmt) -> Stmt {
    let kind = match stmt {
        ast::Stmt::Import(import) => StmtKind::Import(import.names.iter().map(alias).collect()),
        ast::Stmt::ImportFrom(import) => StmtKind::ImportFrom {
            module: import
                .module
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            level: import.level,
            names: import.names.iter().map(alias).collect(),
        },
        ast::Stmt::Assign(assign) => StmtKind::Assign {
            targets: assign.targets.iter().map(expression).collect(),
            value: Some(expression(&assign.value)),
        },
        ast::Stmt::AnnAssign(assign) => StmtKind::Assign {
            targets: vec![expression(&assign.target)],
            value: assign.value.as_deref().map(expression),
        },
        ast::Stmt::If(branch) => {
            let mut branches = vec![Branch {
                test: Some(expression(&branch.test)),
                body: block(&branch.body),
            }];
            branches.extend(branch.elif_else_clauses.iter().map(|clause| Branch {
                test: clause.test.as_ref().map(expression),
                body: block(&clause.body),
            }));
            StmtKind::If(branches)
        }
        ast::Stmt::Return(value) => StmtKind::Return(value.value.as_deref().map(expression)),
        ast::Stmt::FunctionDef(definition) => StmtKind::Function(function(definition)),
        ast::Stmt::ClassDef(definition) => StmtKind::Class {
            name: definition.name.to_string(),
            body: block(&definition.body),
        },
        ast::Stmt::Try(attempt) => {
            let mut rest = block(&attempt.orelse);
            rest.extend(block(&attempt.finalbody));
            StmtKind::Try {
                body: block(&attempt.body),
                handlers: attempt
                    .handlers
                    .iter()
                    .map(|ast::ExceptHandler::ExceptHandler(handler)| block(&handler.body))
                    .collect(),
                rest,
            }
        }
        ast::Stmt::With(with) => StmtKind::With {
            items: with
                .items
                .iter()
                .map(|item| expression(&item.context_expr))
                .collect(),
            body: [
                with.items
                    .iter()
                    .filter_map(|item| item.optional_vars.as_deref())
                    .map(bound_by_block)
                    .collect(),
                block(&with.body),
            ]
            .concat(),
        },
        ast::Stmt::For(repeat) => StmtKind::Loop {
            head: expression(&repeat.iter),
            body: [
                vec![bound_by_block(&repeat.target)],
                block(&repeat.body),
                block(&repeat.orelse),
            ]
            .concat(),
        },
        ast::Stmt::While(repeat) => StmtKind::Loop {
            head: expression(&repeat.test),
            body: [block(&repeat.body), block(&repeat.orelse)].concat(),
        },
        // The target is bound to a new value, which is not read.
        ast::Stmt::AugAssign(assign) => StmtKind::Assign {
            targets: vec![expression(&assign.target)],
            value: Some(unread(span(stmt.range()))),
        },
        ast::Stmt::Delete(delete) => StmtKind::Assign {
            targets: delete.targets.iter().map(expression).collect(),
            value: Some(unread(Span::at(span(stmt.range()).start))),
        },
        ast::Stmt::Expr(value) => StmtKind::Expr(expression(&value.value)),
        ast::Stmt::Raise(_) => StmtKind::Raise,
        ast::Stmt::Pass(_)
        | ast::Stmt::Global(_)
        | ast::Stmt::Nonlocal(_)
        | ast::Stmt::Assert(_)
        | ast::Stmt::TypeAlias(_)
        | ast::Stmt::Break(_)
        | ast::Stmt::Continue(_) => StmtKind::Inert,
        _ => StmtKind::Other,
    };
    Stmt {
        span: span(stmt.range()),
        kind,
    }
}

/// `for target in …` and `with … as target`: an assignment of an unknown value, in front of the block.
fn bound_by_block(target: &ast::Expr) -> Stmt {
    let span = span(target.range());
    Stmt {
        span,
        kind: StmtKind::Assign {
            targets: vec![expression(target)],
            value: Some(unread(Span::at(span.start))),
        },
    }
}

/// A value that is not read; `span` may contain names that it uses.
fn unread(span: Span) -> Expr {
    Expr {
        span,
        kind: ExprKind::Other,
    }
}

fn alias(alias: &ast::Alias) -> Alias {
    Alias {
        name: alias.name.to_string(),
        asname: alias.asname.as_ref().map(ToString::to_string),
        span: span(alias.range()),
    }
}

fn function(definition: &ast::StmtFunctionDef) -> Function {
    let mut mentions = Mentions::default();
    for stmt in &definition.body {
        mentions.visit_stmt(stmt);
    }
    mentions.found.sort_by_key(|mention| mention.span);
    let parameters = &definition.parameters;
    Function {
        name: definition.name.to_string(),
        name_span: span(definition.name.range()),
        params: parameters
            .posonlyargs
            .iter()
            .chain(&parameters.args)
            .chain(&parameters.kwonlyargs)
            .map(|parameter| parameter.parameter.name.to_string())
            .collect(),
        decorated: !definition.decorator_list.is_empty(),
        body: block(&definition.body),
        mentions: mentions.found,
        globals: mentions.globals,
    }
}

/// Collects every name and attribute used in a function body.
#[derive(Default)]
struct Mentions {
    found: Vec<Mention>,
    called: Option<(Span, Vec<String>)>,
    globals: Vec<String>,
}

impl Mentions {
    /// Records `name` at `at`, as the last part of the expression `whole`.
    fn mention(&mut self, name: String, at: TextRange, whole: TextRange) {
        let keywords = self
            .called
            .take_if(|(function, _)| *function == span(whole))
            .map(|(_, keywords)| keywords);
        self.found.push(Mention {
            name,
            span: span(at),
            called: keywords.is_some(),
            keywords: keywords.unwrap_or_default(),
        });
    }
}

impl<'a> Visitor<'a> for Mentions {
    fn visit_stmt(&mut self, stmt: &'a ast::Stmt) {
        if let ast::Stmt::Global(global) = stmt {
            self.globals
                .extend(global.names.iter().map(ToString::to_string));
        }
        visitor::walk_stmt(self, stmt);
    }

    fn visit_expr(&mut self, expr: &'a ast::Expr) {
        match expr {
            ast::Expr::Call(call) => {
                let keywords = call.arguments.keywords.iter();
                self.called = Some((
                    span(call.func.range()),
                    keywords
                        .filter_map(|keyword| keyword.arg.as_ref().map(ToString::to_string))
                        .collect(),
                ));
            }
            ast::Expr::Name(name) => self.mention(name.id.to_string(), name.range(), name.range()),
            ast::Expr::Attribute(attribute) => self.mention(
                attribute.attr.to_string(),
                attribute.attr.range(),
                attribute.range(),
            ),
            _ => {}
        }
        visitor::walk_expr(self, expr);
    }
}

fn expression(expr: &ast::Expr) -> Expr {
    nested(expr, 0)
}

fn nested(expr: &ast::Expr, depth: usize) -> Expr {
    if depth > MAX_DEPTH {
        return Expr {
            span: span(expr.range()),
            kind: ExprKind::Other,
        };
    }
    let below = |expr: &ast::Expr| nested(expr, depth + 1);
    let boxed = |expr: &ast::Expr| Box::new(below(expr));
    let kind = match expr {
        ast::Expr::Name(name) => ExprKind::Name(name.id.to_string()),
        ast::Expr::Attribute(attribute) => {
            ExprKind::Attribute(boxed(&attribute.value), attribute.attr.to_string())
        }
        ast::Expr::Call(call) => ExprKind::Call {
            function: boxed(&call.func),
            args: call.arguments.args.iter().map(below).collect(),
            keywords: call
                .arguments
                .keywords
                .iter()
                .map(|keyword| {
                    (
                        keyword.arg.as_ref().map(ToString::to_string),
                        below(&keyword.value),
                    )
                })
                .collect(),
        },
        ast::Expr::Named(named) => ExprKind::Named(boxed(&named.target), boxed(&named.value)),
        ast::Expr::BooleanLiteral(literal) => ExprKind::Bool(literal.value),
        ast::Expr::NoneLiteral(_) => ExprKind::None,
        ast::Expr::NumberLiteral(literal) => match &literal.value {
            ast::Number::Int(value) => value.as_i64().map_or(ExprKind::Other, ExprKind::Int),
            _ => ExprKind::Other,
        },
        ast::Expr::StringLiteral(literal) => ExprKind::Str(literal.value.to_str().to_owned()),
        ast::Expr::BoolOp(operation) => {
            let values = operation.values.iter().map(below).collect();
            match operation.op {
                ast::BoolOp::And => ExprKind::And(values),
                ast::BoolOp::Or => ExprKind::Or(values),
            }
        }
        ast::Expr::UnaryOp(operation) if operation.op == ast::UnaryOp::Not => {
            ExprKind::Not(boxed(&operation.operand))
        }
        ast::Expr::Compare(compare) => match (&*compare.ops, &*compare.comparators) {
            ([op], [right]) => {
                ExprKind::Compare(boxed(&compare.left), comparison(*op), boxed(right))
            }
            _ => ExprKind::Other,
        },
        ast::Expr::Tuple(ast::ExprTuple { elts, .. })
        | ast::Expr::List(ast::ExprList { elts, .. })
        | ast::Expr::Set(ast::ExprSet { elts, .. }) => {
            ExprKind::Sequence(elts.iter().map(below).collect())
        }
        ast::Expr::Dict(dict) => dict
            .items
            .iter()
            .map(|item| Some((below(item.key.as_ref()?), below(&item.value))))
            .collect::<Option<Vec<_>>>()
            .map_or(ExprKind::Other, ExprKind::Dict),
        ast::Expr::If(conditional) => ExprKind::Conditional {
            test: boxed(&conditional.test),
            then: boxed(&conditional.body),
            otherwise: boxed(&conditional.orelse),
        },
        _ => ExprKind::Other,
    };
    Expr {
        span: span(expr.range()),
        kind,
    }
}

fn comparison(op: ast::CmpOp) -> Comparison {
    match op {
        ast::CmpOp::Eq => Comparison::Equal,
        ast::CmpOp::NotEq => Comparison::NotEqual,
        ast::CmpOp::Lt => Comparison::Less,
        ast::CmpOp::LtE => Comparison::LessOrEqual,
        ast::CmpOp::Gt => Comparison::Greater,
        ast::CmpOp::GtE => Comparison::GreaterOrEqual,
        ast::CmpOp::Is => Comparison::Is,
        ast::CmpOp::IsNot => Comparison::IsNot,
        ast::CmpOp::In => Comparison::In,
        ast::CmpOp::NotIn => Comparison::NotIn,
    }
}
