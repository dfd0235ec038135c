//! aiter's kernel names: which library and operation a name belongs to, and which id it has.
//!
//! Source: aiter (MIT licence), the instance lists below `csrc/ck_gemm_*` at e4048607a5: CK ids denote
//! the same instances from v0.1.7 on, and only the plain blockscale names changed (a wave-map field
//! after v0.1.9). Ids of the other libraries change between revisions and are not recorded here.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::problem::Op;
pub use crate::problem::library::Library;

/// The name of `op`'s CK instance `id`, in its current spelling.
pub fn ck_name(op: Op, id: i64) -> Option<&'static str> {
    ck_names(op).get(usize::try_from(id).ok()?).copied()
}

/// How many CK instances `op` has; 0 for operations that CK does not serve.
pub fn ck_count(op: Op) -> usize {
    ck_names(op).len()
}

/// The first id of the CK instance called `name`, in its current spelling or that before the wave-map field. A few
/// names belong to two instances.
pub fn ck_id(op: Op, name: &str) -> Option<i64> {
    let at = ck_names(op)
        .iter()
        .position(|known| is_spelling_of(op, name, known))?;
    i64::try_from(at).ok()
}

/// Whether `name` is some revision's spelling of the instance that is called `known` today.
pub fn is_spelling_of(op: Op, name: &str, known: &str) -> bool {
    name == known || older_spelling(op).is_some_and(|older| name == older(known))
}

/// Whether `name` is a known instance in the spelling of v0.1.9 and older, which current aiter does not know.
pub fn is_old_spelling(op: Op, name: &str) -> bool {
    older_spelling(op).is_some_and(|older| {
        !ck_names(op).contains(&name) && ck_names(op).iter().any(|known| older(known) == name)
    })
}

fn older_spelling(op: Op) -> Option<fn(&str) -> String> {
    op.aiter()?.older_spelling
}

/// Names by id, empty for an operation that CK does not serve.
fn ck_names(op: Op) -> &'static [&'static str] {
    static NAMES: LazyLock<BTreeMap<Op, Vec<&'static str>>> = LazyLock::new(|| {
        Op::ALL
            .into_iter()
            .filter_map(|op| Some((op, op.aiter()?.ck_names.lines().collect())))
            .collect()
    });
    NAMES.get(&op).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_agree_in_both_spellings() {
        let counts = Op::ALL.map(ck_count);
        assert_eq!(counts[..6], [19, 18, 159, 86, 20, 0]);
        for op in Op::ALL {
            let count = i64::try_from(ck_count(op)).unwrap();
            for id in 0..count {
                let name = ck_name(op, id).unwrap();
                assert_eq!(ck_name(op, ck_id(op, name).unwrap()), Some(name));
                assert!(!is_old_spelling(op, name));
                assert_eq!(Library::of_kernel(name), Some(Library::Ck), "{name}");
            }
            assert_eq!(ck_name(op, count), None);
        }
        let old = "a8w8_blockscale_1x128x128_256x16x128x256_16x16_16x16_16x16x1_16x16x1_1x16x1x16_8_1x2_intrawave_v1";
        assert_eq!(ck_id(Op::Blockscale, old), Some(7));
        assert!(is_old_spelling(Op::Blockscale, old));
        assert_eq!(ck_id(Op::A8w8, old), None);
    }
}
