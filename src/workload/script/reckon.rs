//! Conditions and arithmetic on known values.

use brush_parser::ast::{
    ArithmeticExpr, ArithmeticTarget, BinaryOperator, BinaryPredicate, ExtendedTestExpr, TestExpr,
    UnaryOperator, UnaryPredicate, Word as Written,
};
use brush_parser::{arithmetic, test_command};

use super::Word;
use super::shell::{Shell, is_name};

impl Shell<'_> {
    /// `[[ … ]]`.
    pub(super) fn extended_test(&mut self, test: &ExtendedTestExpr) -> Option<bool> {
        match test {
            ExtendedTestExpr::And(left, right) => {
                let (left, right) = (self.extended_test(left), self.extended_test(right));
                both(left, right)
            }
            ExtendedTestExpr::Or(left, right) => {
                let (left, right) = (self.extended_test(left), self.extended_test(right));
                either(left, right)
            }
            ExtendedTestExpr::Not(inner) => self.extended_test(inner).map(|holds| !holds),
            ExtendedTestExpr::Parenthesized(inner) => self.extended_test(inner),
            ExtendedTestExpr::UnaryTest(predicate, operand) => {
                let operand = self.scalar(operand, false);
                unary(predicate, &operand)
            }
            ExtendedTestExpr::BinaryTest(predicate, left, right) => {
                use BinaryPredicate as Is;
                let value = self.scalar(left, false);
                match predicate {
                    Is::StringExactlyMatchesPattern | Is::StringExactlyMatchesString => {
                        self.matches(&value, right)
                    }
                    Is::StringDoesNotExactlyMatchPattern | Is::StringDoesNotExactlyMatchString => {
                        self.matches(&value, right).map(|holds| !holds)
                    }
                    _ => {
                        let right = self.scalar(right, false);
                        self.compared(predicate, &value, &right)
                    }
                }
            }
        }
    }

    fn compared(&mut self, predicate: &BinaryPredicate, left: &Word, right: &Word) -> Option<bool> {
        // Operands of `[[ a -lt b ]]` are arithmetic expressions.
        let left = self.reckoned(left.known()?)?;
        let right = self.reckoned(right.known()?)?;
        in_order(predicate, left, right)
    }

    /// Whether a value matches a pattern of `case` or `[[ == ]]`; the pattern's quoted parts stand for themselves.
    pub(super) fn matches(&mut self, value: &Word, pattern: &Written) -> Option<bool> {
        if pattern.value == "*" {
            return Some(true);
        }
        let value = value.known()?;
        let has_wildcards = pattern.value.contains(['*', '?', '[', '(', '\\']);
        if !has_wildcards {
            let pattern = self.scalar(pattern, false);
            // What a variable holds is a pattern too, unless it is quoted.
            return pattern
                .known()
                .filter(|text| !text.contains(['*', '?', '[', '\\']))
                .map(|text| text == value);
        }
        // Text with stars alone, without quotes or expansions.
        let plain = |part: &str| {
            part.chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "-_./:, ".contains(letter))
        };
        let parts: Vec<&str> = pattern.value.split('*').collect();
        if parts.len() < 2 || !parts.iter().all(|part| plain(part)) {
            return None;
        }
        Some(matches_stars(value, &parts))
    }

    /// An arithmetic expression as written, variables in it expanded first.
    pub(super) fn arithmetic(&mut self, written: &str) -> Option<i64> {
        let expanded = self.quoted_text(written);
        let text = expanded.known()?.to_owned();
        self.reckoned(&text)
    }

    fn reckoned(&mut self, text: &str) -> Option<i64> {
        let expression = arithmetic::parse(text.trim()).ok()?;
        self.value_of_expression(&expression)
    }

    fn value_of_expression(&mut self, expression: &ArithmeticExpr) -> Option<i64> {
        match expression {
            ArithmeticExpr::Literal(value) => Some(*value),
            ArithmeticExpr::Reference(ArithmeticTarget::Variable(name)) => self.number(name),
            ArithmeticExpr::UnaryOp(operator, operand) => {
                let value = self.value_of_expression(operand)?;
                Some(match operator {
                    UnaryOperator::UnaryPlus => value,
                    UnaryOperator::UnaryMinus => value.checked_neg()?,
                    UnaryOperator::BitwiseNot => !value,
                    UnaryOperator::LogicalNot => i64::from(value == 0),
                })
            }
            ArithmeticExpr::BinaryOp(operator, left, right) => {
                // Only one side may run, which matters where it assigns; then it is not known here.
                let left = self.value_of_expression(left)?;
                let right = self.value_of_expression(right)?;
                reckon(*operator, left, right)
            }
            ArithmeticExpr::Conditional(condition, one, other) => {
                if self.value_of_expression(condition)? == 0 {
                    self.value_of_expression(other)
                } else {
                    self.value_of_expression(one)
                }
            }
            _ => None,
        }
    }

    /// A variable as a number; one that is set to nothing is 0, and one that is not set may be set outside.
    fn number(&self, name: &str) -> Option<i64> {
        let word = is_name(name).then(|| self.lookup(name))??;
        let text = word.known()?.trim();
        if text.is_empty() {
            Some(0)
        } else {
            integer(text)
        }
    }
}

/// A decimal number; a leading zero makes it octal for bash, which is not followed.
fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    text.parse().ok()
}

/// `[ … ]` and `test …`, from the words between.
pub(super) fn test(words: &[Word]) -> Option<bool> {
    let words: Vec<&str> = words.iter().map(Word::known).collect::<Option<_>>()?;
    // A word that looks like an operator but is a value is bash's to sort out.
    let test = test_command::parse(&words).ok()?;
    plain_test(&test)
}

fn plain_test(test: &TestExpr) -> Option<bool> {
    match test {
        TestExpr::False => Some(false),
        TestExpr::Literal(text) => Some(!text.is_empty()),
        TestExpr::And(left, right) => both(plain_test(left), plain_test(right)),
        TestExpr::Or(left, right) => either(plain_test(left), plain_test(right)),
        TestExpr::Not(inner) => plain_test(inner).map(|holds| !holds),
        TestExpr::Parenthesized(inner) => plain_test(inner),
        TestExpr::UnaryTest(predicate, operand) => unary(predicate, &Word::of(operand)),
        TestExpr::BinaryTest(predicate, left, right) => {
            use BinaryPredicate as Is;
            match predicate {
                Is::StringExactlyMatchesString | Is::StringExactlyMatchesPattern => {
                    Some(left == right)
                }
                Is::StringDoesNotExactlyMatchString | Is::StringDoesNotExactlyMatchPattern => {
                    Some(left != right)
                }
                _ => {
                    let (left, right) = (integer(left)?, integer(right)?);
                    in_order(predicate, left, right)
                }
            }
        }
    }
}

fn unary(predicate: &UnaryPredicate, operand: &Word) -> Option<bool> {
    let known = operand.known();
    match predicate {
        UnaryPredicate::StringHasZeroLength => known.map(str::is_empty),
        UnaryPredicate::StringHasNonZeroLength => known.map(|text| !text.is_empty()),
        // Files may come and go until the script runs.
        _ => None,
    }
}

fn in_order(predicate: &BinaryPredicate, left: i64, right: i64) -> Option<bool> {
    use BinaryPredicate as Is;
    Some(match predicate {
        Is::ArithmeticEqualTo => left == right,
        Is::ArithmeticNotEqualTo => left != right,
        Is::ArithmeticLessThan => left < right,
        Is::ArithmeticLessThanOrEqualTo => left <= right,
        Is::ArithmeticGreaterThan => left > right,
        Is::ArithmeticGreaterThanOrEqualTo => left >= right,
        _ => return None,
    })
}

fn reckon(operator: BinaryOperator, left: i64, right: i64) -> Option<i64> {
    use BinaryOperator as Op;
    match operator {
        Op::Multiply => left.checked_mul(right),
        Op::Divide => left.checked_div(right),
        Op::Modulo => left.checked_rem(right),
        Op::Add => left.checked_add(right),
        Op::Subtract => left.checked_sub(right),
        Op::Power => left.checked_pow(u32::try_from(right).ok()?),
        Op::Comma => Some(right),
        Op::LessThan => Some(i64::from(left < right)),
        Op::LessThanOrEqualTo => Some(i64::from(left <= right)),
        Op::GreaterThan => Some(i64::from(left > right)),
        Op::GreaterThanOrEqualTo => Some(i64::from(left >= right)),
        Op::Equals => Some(i64::from(left == right)),
        Op::NotEquals => Some(i64::from(left != right)),
        Op::BitwiseAnd => Some(left & right),
        Op::BitwiseOr => Some(left | right),
        Op::BitwiseXor => Some(left ^ right),
        Op::LogicalAnd => Some(i64::from(left != 0 && right != 0)),
        Op::LogicalOr => Some(i64::from(left != 0 || right != 0)),
        _ => None,
    }
}

fn both(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    match (left, right) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn either(left: Option<bool>, right: Option<bool>) -> Option<bool> {
    both(left.map(|left| !left), right.map(|right| !right)).map(|neither| !neither)
}

/// Whether `value` is `parts` in order with anything between them.
fn matches_stars(value: &str, parts: &[&str]) -> bool {
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    let Some(mut rest) = value.strip_prefix(first) else {
        return false;
    };
    for part in &parts[1..parts.len() - 1] {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}
