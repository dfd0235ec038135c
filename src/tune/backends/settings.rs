//! What spaces of settings have in common: every combination of values, and what is one step away.

/// A setting of `T`: the values it may take, its current value, and how to set another.
pub(super) type Setting<'a, T> = (&'a [u32], u32, fn(&mut T, u32));

/// Combines `found` with each of `values`, the last setting varying fastest.
pub(super) fn each<T: Clone, V: Copy>(found: &[T], values: &[V], set: fn(&mut T, V)) -> Vec<T> {
    let with = |one: &T, value: V| {
        let mut other = one.clone();
        set(&mut other, value);
        other
    };
    let all = found.iter();
    all.flat_map(|one| values.iter().map(move |&value| with(one, value)))
        .collect()
}

/// What differs from `one` in one setting by one step: the adjacent values, or the nearest if the current one is not
/// in the list.
pub(super) fn one_step<T: Clone>(one: &T, settings: &[Setting<'_, T>]) -> Vec<T> {
    let mut found = Vec::new();
    for &(values, value, set) in settings {
        let below = values.iter().copied().filter(|other| *other < value).max();
        let above = values.iter().copied().filter(|other| *other > value).min();
        for next in below.into_iter().chain(above) {
            let mut other = one.clone();
            set(&mut other, next);
            found.push(other);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_come_with_the_last_setting_varying_fastest() {
        let pairs = each(&[(0, 0)], &[1, 2], |pair, value| pair.0 = value);
        let pairs = each(&pairs, &[8, 9], |pair, value| pair.1 = value);
        assert_eq!(pairs, [(1, 8), (1, 9), (2, 8), (2, 9)]);
    }

    #[test]
    fn a_step_leads_to_the_neighbours_of_a_value_even_where_it_is_not_in_the_list() {
        let around = one_step(
            &(16, 5),
            &[
                (&[16, 32, 64], 16, |pair, value| pair.0 = value),
                (&[2, 4, 8], 5, |pair, value| pair.1 = value),
            ],
        );
        assert_eq!(around, [(32, 5), (16, 4), (16, 8)]);
    }
}
