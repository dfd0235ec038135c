//! Conditions and arithmetic on known values.

use brush_parser::arithmetic;
use brush_parser::ast::{
    ArithmeticExpr, ArithmeticTarget, BinaryOperator as Op, ExtendedTestExpr as Test,
    Word as Written,
};

use super::Word;
use super::walk::Shell;

impl Shell<'_> {
    /// Evaluates `[[ … ]]`; `None` if the result is not known.
    pub(super) fn extended_test(&mut self, test: &Test) -> Option<bool> {
        match test {
            Test::And(left, right) => {
                let (left, right) = (self.extended_test(left), self.extended_test(right));
                either(left.map(|left| !left), right.map(|right| !right)).map(|fails| !fails)
            }
            Test::Or(left, right) => {
                let (left, right) = (self.extended_test(left), self.extended_test(right));
                either(left, right)
            }
            Test::Not(inner) => self.extended_test(inner).map(|holds| !holds),
            Test::Parenthesized(inner) => self.extended_test(inner),
            Test::UnaryTest(operator, operand) => {
                let operand = self.scalar(&operand.value, false);
                unary(&operator.to_string(), operand.known()?)
            }
            Test::BinaryTest(operator, left, right) => {
                let left = self.scalar(&left.value, false);
                match operator.to_string().as_str() {
                    "==" | "=" => self.matches(&left, right),
                    "!=" => self.matches(&left, right).map(|holds| !holds),
                    operator => {
                        let right = self.scalar(&right.value, false);
                        in_order(operator, left.known()?, right.known()?)
                    }
                }
            }
        }
    }

    /// Whether a value matches a pattern of `case` or `[[ == ]]` that is plain text or a single star.
    pub(super) fn matches(&mut self, value: &Word, pattern: &Written) -> Option<bool> {
        if pattern.value == "*" {
            return Some(true);
        }
        let is_plain = |text: &str| !text.contains(['*', '?', '[', '(', '\\']);
        let value = value.known()?;
        let pattern = is_plain(&pattern.value).then(|| self.scalar(&pattern.value, false))?;
        // The value of a variable is a pattern too, unless it is quoted.
        let pattern = pattern.known().filter(|text| is_plain(text))?;
        Some(pattern == value)
    }

    /// Evaluates an arithmetic expression after expanding variables in it.
    pub(super) fn arithmetic(&mut self, written: &str) -> Option<i64> {
        let expanded = self.quoted_text(written);
        let parsed = expanded.known().map(|text| arithmetic::parse(text.trim()));
        let value = parsed.and_then(|parsed| self.reckoned(&parsed.ok()?));
        if value.is_none() && ["++", "--", "="].iter().any(|sets| written.contains(sets)) {
            self.only_running("has arithmetic that may set a variable");
        }
        value
    }

    fn reckoned(&self, expression: &ArithmeticExpr) -> Option<i64> {
        match expression {
            ArithmeticExpr::Literal(value) => Some(*value),
            // A variable that is not set here may be set outside.
            ArithmeticExpr::Reference(ArithmeticTarget::Variable(name)) => {
                integer(self.lookup(name)?.known()?.trim())
            }
            ArithmeticExpr::BinaryOp(operator, left, right) => {
                let (left, right) = (self.reckoned(left)?, self.reckoned(right)?);
                match operator {
                    Op::Multiply => left.checked_mul(right),
                    Op::Divide => left.checked_div(right),
                    Op::Modulo => left.checked_rem(right),
                    Op::Add => left.checked_add(right),
                    Op::Subtract => left.checked_sub(right),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// Parses a decimal number; with a leading zero bash reads octal, which is not supported.
fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_octal = digits.len() > 1 && digits.starts_with('0');
    text.parse().ok().filter(|_| !is_octal)
}

/// Evaluates `[ … ]` and `test …` with one comparison, given the words in between.
pub(super) fn test(words: &[Word]) -> Option<bool> {
    let words: Vec<&str> = words.iter().map(Word::known).collect::<Option<_>>()?;
    match words.as_slice() {
        ["!", operator @ ("-z" | "-n"), operand] => unary(operator, operand).map(|holds| !holds),
        [operator, operand] => unary(operator, operand),
        [left, "=" | "==", right] => Some(left == right),
        [left, "!=", right] => Some(left != right),
        [left, operator, right] => in_order(operator, left, right),
        _ => None,
    }
}

fn unary(operator: &str, operand: &str) -> Option<bool> {
    match operator {
        "-z" => Some(operand.is_empty()),
        "-n" => Some(!operand.is_empty()),
        // Files may come and go until the script runs.
        _ => None,
    }
}

fn in_order(operator: &str, left: &str, right: &str) -> Option<bool> {
    let (left, right) = (integer(left)?, integer(right)?);
    match operator {
        "-eq" => Some(left == right),
        "-ne" => Some(left != right),
        "-lt" => Some(left < right),
        "-le" => Some(left <= right),
        "-gt" => Some(left > right),
        "-ge" => Some(left >= right),
        _ => None,
    }
}

pub(super) fn either(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}
