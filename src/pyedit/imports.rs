//! Which names a module binds at its top level, and how an import is added.

use super::edit::Edit;
use super::hooks::InsertionPoint;
use super::refusal::Refusal;
use super::source::Source;
use super::syntax::{Span, Stmt, StmtKind};

/// Whether running the module's top level, in full, binds `name`: an import, a definition or an
/// assignment outside any block that may be skipped.
pub fn binds(source: &Source, name: &str) -> bool {
    source.body().iter().any(|stmt| stmt_binds(stmt, name))
}

fn stmt_binds(stmt: &Stmt, name: &str) -> bool {
    match &stmt.kind {
        StmtKind::Import(names) => names.iter().any(|alias| match &alias.asname {
            Some(asname) => asname == name,
            None => alias.name.split('.').next() == Some(name),
        }),
        StmtKind::ImportFrom { names, .. } => names.iter().any(|alias| alias.bound() == name),
        StmtKind::Assign {
            targets,
            value: Some(_),
        } => targets
            .iter()
            .any(|target| target.dotted().as_deref() == Some(name)),
        StmtKind::Function(function) => function.name == name,
        StmtKind::Class { name: class, .. } => class == name,
        _ => false,
    }
}

/// The edit that makes `from module import name` hold in `source`, or `None` where the top level
/// binds `name` already. The line goes after the last import of the top level.
///
/// ```text
/// import torch
///                              <- from sglang.srt.utils import get_bool_env_var
/// x = 1
/// ```
pub fn ensure(source: &Source, module: &str, name: &str) -> Result<Option<Edit>, Refusal> {
    if binds(source, name) {
        return Ok(None);
    }
    let last = source
        .body()
        .iter()
        .rev()
        .find(|stmt| matches!(stmt.kind, StmtKind::Import(_) | StmtKind::ImportFrom { .. }));
    let Some(last) = last else {
        return Err(Refusal::new(
            source,
            Span::at(0),
            "no import to put another one beside",
            "this file imports nothing at its top level",
            "a module that imports `torch`, as every SGLang release has it",
        ));
    };
    Ok(Some(
        InsertionPoint::after(source, last)?.insert(&format!("from {module} import {name}\n")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_is_added_once_and_after_the_last_one() {
        let source = Source::parse(
            "a.py",
            b"from __future__ import annotations\nimport torch\n\nif x:\n    import y\n",
        )
        .unwrap();
        assert!(ensure(&source, "m", "torch").unwrap().is_none());
        let edit = ensure(&source, "m", "y").unwrap().unwrap();
        assert_eq!(
            edit.text, "from m import y\n",
            "an import under `if` may not run"
        );
        assert_eq!(
            &source.text()[..edit.span.start],
            "from __future__ import annotations\nimport torch\n"
        );
    }
}
