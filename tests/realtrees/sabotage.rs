//! Mistakes made on purpose.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::wanted::{Change, GFX950_NEW};
use crate::{Prepared, Run};

/// A layout mistake made on purpose must be seen, or the other checks prove nothing.
pub(crate) fn check_sabotage(prepared: &Prepared, release: &str) -> (String, Vec<String>) {
    let run = Run {
        prepared,
        release,
        device: GFX950_NEW,
        change: Change::Silent,
    };
    let mistakes = [
        // CK under bpreshuffle's name, weights shuffled for bpreshuffle.
        (
            "import aiter; fp8_utils.gemm_a8w8_blockscale_bpreshuffle = aiter.gemm_a8w8_blockscale",
            1.0,
        ),
        // One reader of the predicate only: Triton's weight given to bpreshuffle.
        (
            "fp8_utils.use_aiter_triton_gemm_w8a8_tuned_gfx950 = lambda *_: False",
            1.0,
        ),
        // bpreshuffle under Triton's name and plain weights on row-major scales.
        (
            "import aiter; fp8_utils.triton_gemm_a8w8_blockscale = lambda x, w, s, *a, **k: aiter.gemm_a8w8_blockscale(x, w, s.t().contiguous().t(), *a, **k)",
            0.15,
        ),
    ];
    let (mut problems, mut warm) = (Vec::new(), None);
    let mut line = format!("{release} with mistakes made on purpose:");
    for (mistake, floor) in mistakes {
        let env = Map::from_iter([
            ("REALTREES_SABOTAGE".to_owned(), Value::from(mistake)),
            ("REALTREES_M".to_owned(), Value::from("33")),
        ]);
        match run.start(&prepared.released(release), &env, &mut warm) {
            Ok(said) => {
                let worst = said
                    .cases()
                    .iter()
                    .filter_map(|case| case["error"].as_f64())
                    .fold(0.0, f64::max);
                let _ = write!(line, " {worst:.2}");
                if worst < floor {
                    problems.push(format!("not seen ({worst}): {mistake}"));
                }
            }
            Err(error) => problems.push(error),
        }
    }
    (line, problems)
}
