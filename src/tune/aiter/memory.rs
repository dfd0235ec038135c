//! What a tuner may leave behind: GPU memory that is not released, and workers that outlive their parent.

use std::time::{Duration, Instant};

use camino::Utf8Path;

use crate::proc::{Interrupt, tree};

/// The variable that marks everything a tuner starts.
pub(super) const MARK: &str = "GEMMTUNE_TUNER";

/// Drivers use some memory themselves; a tuner's inputs are larger (`aiter/test_common.py` fills what it can).
const SMALL: u64 = 1 << 30;

/// How long a driver may take to release the memory of a process that ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes in use on all AMD GPUs of this host, from the kernel driver below `sys` (usually `/sys`): the sum of
/// `class/drm/card*/device/mem_info_vram_used`. `None` if there is no such GPU.
pub(super) fn taken(sys: &Utf8Path) -> Option<u64> {
    let cards = fs_err::read_dir(sys.join("class/drm")).ok()?;
    let used: Vec<u64> = cards
        .flatten()
        .filter(|entry| {
            // `card0-DP-1` is a connector of the same card.
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.starts_with("card") && !name.contains('-'))
        })
        .filter_map(|entry| {
            let file = entry.path().join("device/mem_info_vram_used");
            fs_err::read_to_string(file).ok()?.trim().parse().ok()
        })
        .collect();
    (!used.is_empty()).then(|| used.iter().sum())
}

/// A problem that exists before a tuner starts, if any.
pub(super) fn before(sys: &Utf8Path) -> Option<String> {
    let taken = taken(sys)?;
    (taken > SMALL).then(|| {
        format!(
            "{} GiB of GPU memory are taken before tuning begins: another process on these GPUs makes times wrong",
            taken >> 30
        )
    })
}

/// Ends workers that outlived their tuner and checks whether its memory was released; returns what was found, in
/// words.
pub(super) fn after(
    sys: &Utf8Path,
    mark: &str,
    before: Option<u64>,
    interrupt: &Interrupt,
) -> Vec<String> {
    let mut found = Vec::new();
    let strays = tree::marked(MARK, mark);
    if !strays.is_empty() {
        let left = tree::kill_all(|| tree::marked(MARK, mark));
        found.push(format!(
            "{} workers outlived their tuner and were ended",
            strays.len()
        ));
        if !left.is_empty() {
            found.push(format!(
                "processes {left:?} cannot be ended: they sit in the driver, and the GPU may need a reset"
            ));
        }
    }
    let Some(before) = before else {
        return found;
    };
    let until = Instant::now() + PATIENCE;
    while let Some(now) = taken(sys)
        && now > before + SMALL
    {
        if Instant::now() > until || interrupt.sleep(Duration::from_millis(200)) {
            found.push(format!(
                "{} GiB more GPU memory are taken than before the tuner ran",
                (now - before) >> 30
            ));
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_sum_over_cards_and_connectors_are_none() {
        let keep = tempfile::tempdir().unwrap();
        let sys = Utf8Path::from_path(keep.path()).unwrap();
        assert_eq!(taken(sys), None);
        for (card, used) in [
            ("card0", 3_u64 << 30),
            ("card1", 5),
            ("card1-DP-1", 1 << 40),
        ] {
            let folder = sys.join("class/drm").join(card).join("device");
            fs_err::create_dir_all(&folder).unwrap();
            crate::store::file::write_atomic(
                &folder.join("mem_info_vram_used"),
                format!("{used}\n").as_bytes(),
            )
            .unwrap();
        }
        assert_eq!(taken(sys), Some((3 << 30) + 5));
        insta::assert_snapshot!(before(sys).unwrap(), @"3 GiB of GPU memory are taken before tuning begins: another process on these GPUs makes times wrong");
        let interrupt = Interrupt::new();
        assert!(after(sys, "nobody", Some(3 << 30), &interrupt).is_empty());
        interrupt.raise();
        let found = after(sys, "nobody", Some(0), &interrupt);
        insta::assert_snapshot!(found.join("\n"), @"3 GiB more GPU memory are taken than before the tuner ran");
    }
}
