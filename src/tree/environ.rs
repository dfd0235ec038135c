//! Defaults in SGLang's own list of environment variables.

use super::package::Package;
use crate::pyedit::syntax::{self, ExprKind, StmtKind};

/// Where the list is (SGLang 0.5.4 to 0.5.23): `class Envs`, one `NAME = EnvBool(default)` each.
const ENVIRON: &str = "srt/environ.py";

/// The truth of `envs.<name>` when the variable is not set; `None` where the list does not tell.
pub(super) fn unset(package: &Package, name: &str) -> Option<bool> {
    let source = package.read(ENVIRON).ok()?;
    let mut unset = None;
    syntax::walk(source.body(), &mut |stmt| {
        if let StmtKind::Assign {
            targets,
            value: Some(value),
        } = &stmt.kind
            && targets
                .iter()
                .any(|target| target.dotted().as_deref() == Some(name))
            && let ExprKind::Call { function, args, .. } = &value.kind
            && function.dotted().as_deref() == Some("EnvBool")
            && let Some(ExprKind::Bool(default)) = args.first().map(|argument| &argument.kind)
        {
            unset = Some(*default);
        }
    });
    unset
}
