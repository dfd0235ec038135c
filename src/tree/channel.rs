//! SGLang's FP8 linears with one scale per token and per output channel, and the calls of aiter's GEMM in them.
//!
//! Both are in `fp8_utils.py` of every release from 0.5.6 to 0.5.23: `apply_fp8_linear` takes the weight as (K, N)
//! and calls aiter's GEMM only for some inputs, `apply_fp8_ptpc_linear` takes it as (N, K), laid out in (16, 16)
//! tiles, and always calls the GEMM. compressed-tensors checkpoints with one scale per channel take the second, Quark
//! and `SGLANG_USE_AITER_FP8_PER_TOKEN` the first; 0.5.5 has only that one. From 0.5.22 on that one chooses between
//! the GEMM and a kernel of SGLang's own.

use crate::problem::Op;
use crate::pyedit::refusal::Refusal;
use crate::pyedit::source::Source;
use crate::pyedit::syntax::{self, Expr, ExprKind, Span, Stmt, StmtKind};

pub const LINEARS: &[&str] = Op::PER_CHANNEL.facts().linears;

/// The GEMM's name in aiter; its weight is (N, K) at every call.
pub const GEMM: &str = Op::PER_CHANNEL.name();

/// A place where a linear calls the GEMM, or something that may be the GEMM.
#[derive(Debug)]
pub struct GemmCall<'a> {
    pub linear: &'static str,
    /// The statement with the call.
    pub stmt: &'a Stmt,
    /// The callee, as written in the source.
    pub callee: String,
    /// The quantised activation (M, K), as written in the source.
    pub activation: String,
    /// The weight (N, K), as written in the source.
    pub weight: String,
}

/// Every such place in `fp8_utils.py`; empty where the tree's linears never call the GEMM.
pub fn calls(source: &Source) -> Result<Vec<GemmCall<'_>>, Refusal> {
    let mut found = Vec::new();
    for &linear in LINEARS {
        let Some((_, function)) = syntax::function(source.body(), linear) else {
            continue;
        };
        let mentions: Vec<Span> = function
            .mentions
            .iter()
            .filter(|mention| mention.name == GEMM)
            .map(|mention| mention.span)
            .collect();
        let Some(first) = mentions.first() else {
            continue;
        };
        let mut chosen = Vec::new();
        let mut accounted = 0;
        let mut here = Vec::new();
        let mut unclear = None;
        syntax::walk(&function.body, &mut |stmt| {
            let (StmtKind::Assign {
                value: Some(value), ..
            }
            | StmtKind::Return(Some(value))
            | StmtKind::Expr(value)) = &stmt.kind
            else {
                return;
            };
            if let Some(name) = picks(stmt, value) {
                accounted += 1;
                chosen.push(name);
                return;
            }
            let ExprKind::Call {
                function: callee,
                args,
                keywords,
            } = &value.kind
            else {
                return;
            };
            let Some(callee) = callee.dotted() else {
                return;
            };
            let direct = is_gemm(&callee);
            if !direct && !chosen.contains(&callee) {
                return;
            }
            accounted += usize::from(direct);
            let operand = |at: usize, name: &str| {
                let keyword = keywords
                    .iter()
                    .find(|(key, _)| key.as_deref() == Some(name));
                args.get(at).or(keyword.map(|(_, value)| value))?.dotted()
            };
            match (operand(0, "XQ"), operand(1, "WQ")) {
                (Some(activation), Some(weight)) => here.push(GemmCall {
                    linear,
                    stmt,
                    callee,
                    activation,
                    weight,
                }),
                _ => unclear = Some(value.span),
            }
        });
        if let Some(span) = unclear.or((accounted != mentions.len()).then_some(*first)) {
            return Err(Refusal::new(
                source,
                span,
                format!("`{linear}` uses `{GEMM}` in a way that is not known"),
                "its activation and weight have to be names, or the wrong shapes would be logged",
                "a call such as `output = gemm_a8w8_bpreshuffle(XQ=qinput, WQ=weight.T, …)`, as SGLang 0.5.5 to 0.5.23 have it",
            ));
        }
        found.extend(here);
    }
    Ok(found)
}

fn is_gemm(dotted: &str) -> bool {
    dotted.rsplit('.').next() == Some(GEMM)
}

/// The name that `stmt` binds either to the GEMM or to something else, depending on a condition.
fn picks(stmt: &Stmt, value: &Expr) -> Option<String> {
    let (
        StmtKind::Assign { targets, .. },
        ExprKind::Conditional {
            then, otherwise, ..
        },
    ) = (&stmt.kind, &value.kind)
    else {
        return None;
    };
    let gemm = |arm: &Expr| arm.dotted().is_some_and(|name| is_gemm(&name));
    match targets.as_slice() {
        [target] if gemm(then) || gemm(otherwise) => target.dotted(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(body: &str) -> Source {
        let text = format!(
            "def apply_fp8_linear(input, weight, weight_scale):\n{body}\n    return output\n"
        );
        Source::parse("fp8_utils.py", text.as_bytes()).unwrap()
    }

    fn operands(body: &str) -> Vec<(String, String, String)> {
        calls(&source(body))
            .unwrap()
            .into_iter()
            .map(|call| (call.callee, call.activation, call.weight))
            .collect()
    }

    fn of(callee: &str, activation: &str, weight: &str) -> (String, String, String) {
        (callee.to_owned(), activation.to_owned(), weight.to_owned())
    }

    #[test]
    fn operands_are_found_by_place_and_by_name() {
        assert_eq!(
            operands("    output = gemm_a8w8_bpreshuffle(XQ=qinput, WQ=weight.T, x_scale=x_scale)"),
            [of("gemm_a8w8_bpreshuffle", "qinput", "weight.T")]
        );
        assert_eq!(
            operands("    output = aiter.gemm_a8w8_bpreshuffle(q_input, weight, x_scale, None)"),
            [of("aiter.gemm_a8w8_bpreshuffle", "q_input", "weight")]
        );
        assert!(operands("    output = torch._scaled_mm(input, weight)").is_empty());
    }

    #[test]
    fn a_kernel_that_is_picked_by_a_test_is_named() {
        // SGLang 0.5.22 and 0.5.23.
        let picked = "    gemm = smallm_fp8_gemm if fits(qinput) else gemm_a8w8_bpreshuffle\n    \
                      output = gemm(XQ=qinput, WQ=weight.T)";
        assert_eq!(operands(picked), [of("gemm", "qinput", "weight.T")]);
    }

    #[test]
    fn a_use_that_is_not_understood_is_refused() {
        let said = [
            "    output = twice(gemm_a8w8_bpreshuffle(q, w))",
            "    output = gemm_a8w8_bpreshuffle(quantise(input), weight)",
            "    gemm = gemm_a8w8_bpreshuffle\n    output = gemm(input, weight)",
            "    output = gemm_a8w8_bpreshuffle(*operands)",
        ]
        .map(|body| calls(&source(body)).unwrap_err().to_string());
        insta::assert_snapshot!(said.join("\n"), @"
        `apply_fp8_linear` uses `gemm_a8w8_bpreshuffle` in a way that is not known
         --> fp8_utils.py:2:20
          |
        2 |     output = twice(gemm_a8w8_bpreshuffle(q, w))
          |                    ^^^^^^^^^^^^^^^^^^^^^ its activation and weight have to be names, or the wrong shapes would be logged
          |
          = note: a call such as `output = gemm_a8w8_bpreshuffle(XQ=qinput, WQ=weight.T, …)`, as SGLang 0.5.5 to 0.5.23 have it
        `apply_fp8_linear` uses `gemm_a8w8_bpreshuffle` in a way that is not known
         --> fp8_utils.py:2:14
          |
        2 |     output = gemm_a8w8_bpreshuffle(quantise(input), weight)
          |              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ its activation and weight have to be names, or the wrong shapes would be logged
          |
          = note: a call such as `output = gemm_a8w8_bpreshuffle(XQ=qinput, WQ=weight.T, …)`, as SGLang 0.5.5 to 0.5.23 have it
        `apply_fp8_linear` uses `gemm_a8w8_bpreshuffle` in a way that is not known
         --> fp8_utils.py:2:12
          |
        2 |     gemm = gemm_a8w8_bpreshuffle
          |            ^^^^^^^^^^^^^^^^^^^^^ its activation and weight have to be names, or the wrong shapes would be logged
          |
          = note: a call such as `output = gemm_a8w8_bpreshuffle(XQ=qinput, WQ=weight.T, …)`, as SGLang 0.5.5 to 0.5.23 have it
        `apply_fp8_linear` uses `gemm_a8w8_bpreshuffle` in a way that is not known
         --> fp8_utils.py:2:14
          |
        2 |     output = gemm_a8w8_bpreshuffle(*operands)
          |              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ its activation and weight have to be names, or the wrong shapes would be logged
          |
          = note: a call such as `output = gemm_a8w8_bpreshuffle(XQ=qinput, WQ=weight.T, …)`, as SGLang 0.5.5 to 0.5.23 have it
        ");
    }
}
