//! The tuner's command line from its source: the `add_argument` calls of aiter's scripts.
//!
//! Used for trees whose script cannot run here, because `--help` imports torch and aiter first.

use super::flags::{Flag, Flags, FlagsFrom, Takes};
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{Expr, ExprKind, Stmt, StmtKind, class, walk};

/// The flags that the base class and the script define.
pub(super) fn flags(base: &Source, script: &Source) -> Flags {
    let mut flags = Vec::new();
    for source in [base, script] {
        walk(source.body(), &mut |stmt| {
            if let Some(flag) = argument(source, base, stmt) {
                flags.push(flag);
            }
        });
    }
    Flags {
        from: FlagsFrom::Source,
        flags,
    }
}

/// The list that a script assigns to `key` before it creates its tuner.
pub(super) fn keys(script: &Source) -> Option<Vec<String>> {
    let mut found = None;
    walk(script.body(), &mut |stmt| {
        if let StmtKind::Assign {
            targets,
            value: Some(value),
        } = &stmt.kind
            && targets
                .iter()
                .any(|target| target.dotted().as_deref() == Some("key"))
            && let Some(names) = strings(value)
            && names.iter().any(|name| name == "cu_num")
        {
            found = Some(names);
        }
    });
    found
}

fn argument(source: &Source, base: &Source, stmt: &Stmt) -> Option<Flag> {
    let StmtKind::Expr(expr) = &stmt.kind else {
        return None;
    };
    let ExprKind::Call {
        function,
        args,
        keywords,
    } = &expr.kind
    else {
        return None;
    };
    if !function.dotted()?.ends_with("parser.add_argument") {
        return None;
    }
    let names: Vec<String> = args
        .iter()
        .filter_map(|arg| match &arg.kind {
            ExprKind::Str(name) if name.starts_with('-') => Some(name.clone()),
            _ => None,
        })
        .collect();
    if names.is_empty() {
        return None;
    }
    let keyword = |name: &str| {
        keywords
            .iter()
            .find(|(given, _)| given.as_deref() == Some(name))
            .map(|(_, value)| value)
    };
    let text = |name: &str| match keyword(name).map(|value| &value.kind) {
        Some(ExprKind::Str(text)) => Some(text.as_str()),
        _ => None,
    };
    let takes = match (text("action"), text("nargs")) {
        (Some("store_true" | "store_false" | "store_const" | "count"), _) => Takes::Nothing,
        (_, Some("?")) => Takes::Optional,
        (_, Some("+" | "*")) => Takes::Several,
        _ => Takes::One,
    };
    Some(Flag {
        takes,
        choices: keyword("choices").and_then(strings).unwrap_or_default(),
        default: keyword("default").map(|value| default(source, base, value)),
        names,
    })
}

/// The source of a default; for `defaults["timeout"]` the value in `TunerCommon.ARG_DEFAULTS`.
fn default(source: &Source, base: &Source, value: &Expr) -> String {
    let text = source.slice(value.span);
    let key = text
        .strip_prefix("defaults[\"")
        .and_then(|rest| rest.strip_suffix("\"]"));
    key.and_then(|key| arg_default(base, key))
        .unwrap_or(text)
        .to_owned()
}

fn arg_default<'a>(base: &'a Source, key: &str) -> Option<&'a str> {
    let (_, body) = class(base.body(), "TunerCommon")?;
    body.iter().find_map(|stmt| {
        let StmtKind::Assign {
            targets,
            value: Some(value),
        } = &stmt.kind
        else {
            return None;
        };
        if !targets
            .iter()
            .any(|target| target.dotted().as_deref() == Some("ARG_DEFAULTS"))
        {
            return None;
        }
        let ExprKind::Dict(entries) = &value.kind else {
            return None;
        };
        entries
            .iter()
            .find(|(name, _)| matches!(&name.kind, ExprKind::Str(name) if name == key))
            .map(|(_, value)| base.slice(value.span))
    })
}

fn strings(value: &Expr) -> Option<Vec<String>> {
    let ExprKind::Sequence(items) = &value.kind else {
        return None;
    };
    items
        .iter()
        .map(|item| match &item.kind {
            ExprKind::Str(text) => Some(text.clone()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"
class TunerCommon:
    ARG_DEFAULTS: ClassVar[dict] = {
        "errRatio": 0.05,
        "timeout": 1800,  # seconds
    }
    def _setup_common_arguments(self):
        defaults = self.get_arg_defaults()
        self.parser.add_argument("-i", "--untune_file", default=defaults["untune_file"])
        self.parser.add_argument("-k", "--splitK", action="store_true")
        self.parser.add_argument("--timeout", type=int, default=defaults["timeout"])
        self.parser.add_argument("--run_config", nargs="?", const=True, default=False)
"#;
    const SCRIPT: &str = r#"
class Tuner(GemmCommonTuner):
    def _setup_specific_arguments(self):
        self.parser.add_argument(
            "--libtype",
            # a comment
            choices=["ck", "cktile"],
            default="all",
        )
        self.parser.add_argument("--blockPerCu", nargs="+", type=int, default=list(range(1, 5)))
if __name__ == "__main__":
    key = ["gfx", "cu_num", "M", "N", "K"]
"#;

    #[test]
    fn arguments_are_read_with_their_defaults() {
        let base = Source::parse("base_tuner.py", BASE.as_bytes()).unwrap();
        let script = Source::parse("tune.py", SCRIPT.as_bytes()).unwrap();
        let flags = flags(&base, &script);
        let of = |name| flags.get(name).unwrap();
        assert_eq!(of("--untune_file").takes, Takes::One);
        assert_eq!(of("-k").takes, Takes::Nothing);
        assert_eq!(of("--timeout").default.as_deref(), Some("1800"));
        assert_eq!(of("--run_config").takes, Takes::Optional);
        assert_eq!(of("--libtype").choices, ["ck", "cktile"]);
        assert_eq!(of("--blockPerCu").takes, Takes::Several);
        assert_eq!(keys(&script).unwrap()[0], "gfx");
        assert_eq!(keys(&base), None);
    }
}
