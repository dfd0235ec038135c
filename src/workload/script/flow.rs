//! Control flow of a script: what may not run, or may run several times, is never taken for certain.

use std::collections::BTreeSet;

use tree_sitter::Node;

use super::shell::{Shell, Value, Variable};
use super::{ScriptError, Word};

impl Shell<'_> {
    /// `a && b || c`: what stands after an operator depends on what stands before, unless that cannot fail here.
    pub(super) fn list_of(&mut self, node: Node<'_>, text: &str) -> Result<(), ScriptError> {
        let mut cursor = node.walk();
        let children: Vec<_> = node.named_children(&mut cursor).collect();
        let mut operators = node.walk();
        let alternative = node
            .children(&mut operators)
            .any(|child| child.kind() == "||");
        let mut may_fail = alternative;
        for (index, child) in children.into_iter().enumerate() {
            let conditional = index > 0 && may_fail;
            may_fail |= !succeeds(child, text);
            if conditional {
                self.under(node, "condition", |shell| shell.walk(child, text))?;
            } else {
                self.walk(child, text)?;
            }
        }
        Ok(())
    }

    /// Both sides of a condition that cannot be decided; the one side of one that can.
    pub(super) fn branch(&mut self, node: Node<'_>, text: &str) -> Result<(), ScriptError> {
        let condition = node.child_by_field_name("condition");
        let decided = condition.and_then(|condition| self.decide(condition, text));
        let mut cursor = node.walk();
        let children: Vec<_> = node
            .named_children(&mut cursor)
            .filter(|child| Some(*child) != condition)
            .collect();
        let (others, body): (Vec<_>, Vec<_>) = children
            .into_iter()
            .partition(|child| matches!(child.kind(), "elif_clause" | "else_clause"));
        if decided != Some(false) {
            self.maybe_under(decided.is_none(), node, |shell| {
                body.into_iter()
                    .try_for_each(|child| shell.walk(child, text))
            })?;
        }
        if decided != Some(true) {
            // An `elif` is a condition of its own, not decided further; an `else` follows the first condition.
            let uncertain =
                decided.is_none() || others.iter().any(|other| other.kind() == "elif_clause");
            for other in others {
                self.maybe_under(uncertain, node, |shell| shell.children(other, text))?;
            }
        }
        Ok(())
    }

    pub(super) fn choose(&mut self, node: Node<'_>, text: &str) -> Result<(), ScriptError> {
        let mut cursor = node.walk();
        let items: Vec<_> = node
            .named_children(&mut cursor)
            .filter(|child| child.kind() == "case_item")
            .collect();
        for item in items {
            let mut cursor = item.walk();
            let body: Vec<_> = item.children(&mut cursor).collect();
            let values: Vec<_> = item
                .children_by_field_name("value", &mut item.walk())
                .collect();
            for child in body
                .into_iter()
                .filter(|child| child.is_named() && !values.contains(child))
            {
                self.under(node, "choice", |shell| shell.walk(child, text))?;
            }
        }
        Ok(())
    }

    pub(super) fn repeat(&mut self, node: Node<'_>, text: &str) -> Result<(), ScriptError> {
        if node.kind() == "for_statement"
            && let Some(variable) = node.child_by_field_name("variable")
        {
            let values: Vec<_> = node
                .children_by_field_name("value", &mut node.walk())
                .flat_map(|value| self.expand(value, text))
                .collect();
            let name = text[variable.byte_range()].to_owned();
            let value = if let [only] = values.as_slice() {
                only.clone()
            } else {
                let all: Vec<_> = values.iter().map(Word::text).collect();
                let why = format!(
                    "the loop at line {}, which takes {}",
                    self.line_of(node),
                    all.join(", ")
                );
                Word::unknown(&format!("${name}"), why)
            };
            self.set(&name, Value::Scalar(value), false);
        }
        for part in ["initializer", "condition", "update"] {
            if node.kind() == "c_style_for_statement"
                && let Some(part) = node.child_by_field_name(part)
            {
                let why = format!("the loop at line {}", self.line_of(node));
                self.forget_all(part, text, &why);
            }
        }
        if node.kind() == "while_statement"
            && let Some(condition) = node.child_by_field_name("condition")
        {
            self.walk(condition, text)?;
        }
        let Some(body) = node.child_by_field_name("body") else {
            return Ok(());
        };
        self.under(node, "loop", |shell| shell.walk(body, text))
    }

    fn maybe_under(
        &mut self,
        uncertain: bool,
        node: Node<'_>,
        walk: impl FnOnce(&mut Self) -> Result<(), ScriptError>,
    ) -> Result<(), ScriptError> {
        if uncertain {
            self.under(node, "condition", walk)
        } else {
            walk(self)
        }
    }

    /// Walks something that may not run: what it changes is unknown afterwards, unless it changed nothing.
    fn under(
        &mut self,
        node: Node<'_>,
        what: &str,
        walk: impl FnOnce(&mut Self) -> Result<(), ScriptError>,
    ) -> Result<(), ScriptError> {
        let reason = format!("the {what} at line {}", self.line_of(node));
        let before = self.state.clone();
        self.conditions.push(reason.clone());
        let walked = walk(self);
        self.conditions.pop();
        let names: BTreeSet<_> = before
            .variables
            .keys()
            .chain(self.state.variables.keys())
            .cloned()
            .collect();
        for name in names {
            let after = self.state.variables.get(&name);
            if before.variables.get(&name) != after {
                let exported = after
                    .or(before.variables.get(&name))
                    .is_some_and(|variable| variable.exported);
                let value = Value::Scalar(Word::unknown(&format!("${name}"), reason.clone()));
                self.state
                    .variables
                    .insert(name, Variable { value, exported });
            }
        }
        if before.folder != self.state.folder {
            self.state.folder = Word::unknown(self.state.folder.text(), reason.clone());
        }
        if before.venv != self.state.venv {
            let text = self
                .state
                .venv
                .as_ref()
                .map_or_else(String::new, |venv| venv.text().to_owned());
            self.state.venv = Some(Word::unknown(&text, reason));
        }
        walked
    }

    /// `[ -z "$X" ]`, `[ -n "$X" ]` and comparisons of known strings.
    fn decide(&self, condition: Node<'_>, text: &str) -> Option<bool> {
        let test = condition.kind() == "test_command";
        let expression = test.then(|| condition.named_child(0)).flatten()?;
        let known = |node: Node<'_>| self.scalar(node, text).known().map(str::to_owned);
        match expression.kind() {
            "unary_expression" => {
                let operator = &text[expression.child_by_field_name("operator")?.byte_range()];
                let operand = expression.named_child(
                    u32::try_from(expression.named_child_count())
                        .ok()?
                        .checked_sub(1)?,
                )?;
                // An unset variable is empty to `-z`, but it may be set by whoever starts the script.
                match operator {
                    "-z" => Some(known(operand)?.is_empty()),
                    "-n" => Some(!known(operand)?.is_empty()),
                    _ => None,
                }
            }
            "binary_expression" => {
                let left = known(expression.child_by_field_name("left")?)?;
                let right = known(expression.child_by_field_name("right")?)?;
                match &text[expression.child_by_field_name("operator")?.byte_range()] {
                    "=" | "==" if !right.contains(['*', '?', '[']) => Some(left == right),
                    "!=" if !right.contains(['*', '?', '[']) => Some(left != right),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// Whether a command of a list is one that a script relies on to succeed: what stands behind its `&&` runs.
fn succeeds(node: Node<'_>, text: &str) -> bool {
    const RELIED_ON: [&str; 14] = [
        "cd", "pushd", "popd", "source", ".", "set", "true", ":", "echo", "printf", "mkdir",
        "sleep", "ulimit", "conda",
    ];
    match node.kind() {
        "variable_assignment"
        | "variable_assignments"
        | "declaration_command"
        | "unset_command" => true,
        "list" => {
            let mut cursor = node.walk();
            node.named_children(&mut cursor)
                .all(|child| succeeds(child, text))
        }
        "redirected_statement" => node
            .child_by_field_name("body")
            .is_some_and(|body| succeeds(body, text)),
        "command" => node
            .child_by_field_name("name")
            .is_some_and(|name| RELIED_ON.contains(&&text[name.byte_range()])),
        _ => false,
    }
}
