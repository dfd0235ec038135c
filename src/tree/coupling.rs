//! How a table reaches the kernels that run: compiled into a module, or by kernel name.
//!
//! This is decided for each operation and library from the Python function that calls the module: either it passes
//! the row's `kernelName` on, or it does not. Functions of one file may differ: at 303a583c, v0.1.13 and v0.1.14 only
//! the assembly branch of `gemm_a8w8_blockscale_bpreshuffle` does, and no CK or CKTile call. What is not recognised
//! counts as compiled in, which costs a rebuild; the opposite mistake would serve another table's kernels.
//!
//! Source: `aiter/ops/gemm_op_a8w8.py` and `gemm_op_a4w4.py`, every tag from v0.1.7 to v0.1.20.post1 and e4048607.

use camino::Utf8Path;

use super::doctor::caps;
use crate::problem::Op;
use crate::problem::op::AiterFacts;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, Expr, ExprKind, Function, Span, Stmt, StmtKind};
use crate::table::kernels::Library;

/// How a table reaches the kernels that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coupling {
    /// The module is generated from the table: another table has no effect until the module is built again.
    CompiledIn,
    /// The row's kernel is requested by name: if the module does not have it, the server stops.
    ByName,
}

/// aiter's operations, whose modules are built from a table, in table order.
pub fn tabled() -> impl Iterator<Item = (Op, &'static AiterFacts)> {
    Op::ALL.into_iter().filter_map(|op| Some((op, op.aiter()?)))
}

/// The Python name of the compiled function that serves `op` from `library`; `None` where there is none.
pub fn function(op: Op, library: Library) -> Option<&'static str> {
    op.aiter()?.function(library)
}

/// The parameter that carries a row's kernel.
const NAME: &str = "kernelName";

/// Whether the function that serves `op` from `library` is one of `named`.
pub fn is_among(named: &[String], op: Op, library: Library) -> bool {
    function(op, library).is_some_and(|function| named.iter().any(|name| name == function))
}

/// The compiled functions of the tree of `package` that take the row's kernel by name.
pub fn by_name(package: &Utf8Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut files: Vec<&str> = tabled().map(|(_, aiter)| aiter.source).collect();
    files.dedup();
    for file in files {
        let source = caps::file(package, file)
            .and_then(|path| Some((fs_err::read(&path).ok()?, path)))
            .and_then(|(bytes, path)| Source::parse(path, &bytes).ok());
        let Some(source) = source else { continue };
        for (op, aiter) in tabled().filter(|(_, aiter)| aiter.source == file) {
            for (library, name) in aiter.functions {
                if is_named(source.body(), op, *library, name) {
                    found.push((*name).to_owned());
                }
            }
        }
    }
    found
}

/// Whether `op`'s function passes the row's kernel to `called` by name: every call in a branch for the row's library
/// does, and where there is no such branch, at least one call does. A call made when no row was found passes no name
/// at any revision.
fn is_named(body: &[Stmt], op: Op, library: Library, called: &str) -> bool {
    let Some((_, caller)) = syntax::function(body, op.name()) else {
        return false;
    };
    let takes = syntax::function(body, called)
        .is_some_and(|(_, function)| function.params.iter().any(|param| param == NAME));
    let calls: Vec<(Span, bool)> = caller
        .mentions
        .iter()
        .filter(|mention| mention.called && mention.name == called)
        .map(|mention| {
            (
                mention.span,
                mention.keywords.iter().any(|word| word == NAME),
            )
        })
        .collect();
    let chosen = chosen_by(caller, library);
    let by_row: Vec<bool> = calls
        .iter()
        .filter(|(span, _)| chosen.iter().any(|branch| branch.contains(*span)))
        .map(|(_, named)| *named)
        .collect();
    let named = if by_row.is_empty() {
        calls.iter().any(|(_, named)| *named)
    } else {
        by_row.iter().all(|named| *named)
    };
    takes && named
}

/// The statements that run where the row's library is `library`: `if libtype == "ck":`.
fn chosen_by(function: &Function, library: Library) -> Vec<Span> {
    let mut chosen = Vec::new();
    syntax::walk_live(&function.body, &mut |stmt| {
        let StmtKind::If(branches) = &stmt.kind else {
            return;
        };
        for branch in branches {
            if branch
                .test
                .as_ref()
                .is_some_and(|test| asks_for(test, library))
            {
                chosen.extend(branch.body.iter().map(|stmt| stmt.span));
            }
        }
    });
    chosen
}

fn asks_for(test: &Expr, library: Library) -> bool {
    match &test.kind {
        ExprKind::Compare(left, syntax::Comparison::Equal, right) => [left, right]
            .iter()
            .any(|side| matches!(&side.kind, ExprKind::Str(text) if text == library.name())),
        ExprKind::And(parts) => parts.iter().any(|part| asks_for(part, library)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(ops: &str) -> Vec<String> {
        let keep = tempfile::tempdir().unwrap();
        let package = Utf8Path::from_path(keep.path()).unwrap().join("aiter");
        fs_err::create_dir_all(package.join("ops")).unwrap();
        fs_err::write(package.join("ops/gemm_op_a8w8.py"), ops).unwrap();
        by_name(&package)
    }

    /// A function like aiter's, whose calls pass `ck` and `asm` as the kernel.
    fn shuffled(parameter: &str, ck: &str, default: &str) -> String {
        format!(
            "def gemm_a8w8_blockscale_bpreshuffle_ck(XQ, WQ, Out{parameter}): ...\n\
             def gemm_a8w8_blockscale_bpreshuffle(XQ, WQ, Out):\n    config = row(XQ)\n    if config is not None:\n        \
             libtype = config[\"libtype\"]\n        if libtype == \"ck\":\n            \
             return gemm_a8w8_blockscale_bpreshuffle_ck(XQ, WQ, Out{ck})\n        elif libtype == \"asm\":\n            \
             kernelName = config[\"kernelName\"]\n            \
             return gemm_a8w8_blockscale_bpreshuffle_asm(XQ, WQ, Out, kernelName=kernelName)\n    \
             return gemm_a8w8_blockscale_bpreshuffle_ck(XQ, WQ, Out{default})\n"
        )
    }

    #[test]
    fn an_assembly_call_by_name_says_nothing_of_ck() {
        assert!(named(&shuffled("", "", "")).is_empty());
    }

    #[test]
    fn the_call_for_a_row_tells_and_the_one_for_want_of_a_row_does_not() {
        let name = ", kernelName=kernelName";
        let parameter = ", kernelName=\"\"";
        assert_eq!(
            named(&shuffled(parameter, name, "")),
            ["gemm_a8w8_blockscale_bpreshuffle_ck"]
        );
        assert!(named(&shuffled(parameter, "", name)).is_empty());
        assert!(
            named(&shuffled("", name, "")).is_empty(),
            "a module that takes no name is not asked by one"
        );
    }

    #[test]
    fn a_call_inside_another_expression_is_read() {
        let keep = tempfile::tempdir().unwrap();
        let package = Utf8Path::from_path(keep.path()).unwrap().join("aiter");
        fs_err::create_dir_all(package.join("ops")).unwrap();
        let text = "def gemm_a4w4(A, out, kernelName):\n    return gemm_a4w4_blockscale(A, out, kernelName=kernelName)[:1]\n\
            def gemm_a4w4_blockscale(A, out, splitK=0, kernelName=\"\"): ...\n";
        fs_err::write(package.join("ops/gemm_op_a4w4.py"), text).unwrap();
        assert_eq!(by_name(&package), ["gemm_a4w4_blockscale"]);
    }

    #[test]
    fn a_file_that_is_no_python_counts_as_compiled_in() {
        assert!(named("def gemm_a8w8_blockscale(:\n").is_empty());
        assert!(named("# kernelName=kernelName\n").is_empty());
    }
}
