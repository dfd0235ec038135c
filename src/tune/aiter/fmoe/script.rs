//! The tuner script of a tree: its key, its flags, and properties found in its text. Starts no process.

use camino::{Utf8Path, Utf8PathBuf};

use crate::problem::op::fused_moe_aiter::TUNER;
use crate::table::fmoe::table::UNTUNED;
use crate::tree::doctor::caps::{self, Capabilities};
use crate::tune::aiter::flags::Flags;
use crate::tune::aiter::scripts::{BASE, digest, package, parse, read};
use crate::tune::aiter::{AiterTuneError, argparse};

/// The tile of kernels for few tokens: what runs without a row up to 32 tokens (`get_2stage_cfgs` of
/// `aiter/fused_moe.py`).
const SMALL_TILE: u32 = 16;

/// aiter's fused-MoE tuner in a tree.
#[derive(Clone, Debug)]
pub struct FmoeScript {
    /// The folder that contains the package `aiter`.
    pub root: Utf8PathBuf,
    pub path: Utf8PathBuf,
    /// Columns that identify a row, in the order it writes them.
    pub keys: Vec<String>,
    /// Flags, from the argparse definitions.
    pub flags: Flags,
    /// Rows of a tile with which two-stage kernels are searched; empty if the text does not tell.
    pub tiles: Vec<u32>,
    /// Whether a task's time limit runs while it waits in the queue.
    pub counts_queueing: bool,
    /// Digest of the script and the files with which it runs candidates.
    pub digest: String,
}

impl FmoeScript {
    /// Finds it in the tree at `tree`: the package `aiter`, or the folder that contains it.
    pub fn find(tree: &Utf8Path) -> Result<Self, AiterTuneError> {
        let package = package(tree)?;
        let root = package.parent().unwrap_or(&package).to_owned();
        let missing = |tree| AiterTuneError::NoFmoeScript {
            tree,
            script: TUNER,
        };
        let path = caps::file(&package, TUNER).ok_or_else(|| missing(root.clone()))?;
        let script = parse(&path)?;
        let keys = argparse::keys(&script).unwrap_or_default();
        let expected = keys
            .iter()
            .filter(|key| !["gfx", "cu_num"].contains(&key.as_str()));
        if !expected.eq(UNTUNED.iter()) {
            return Err(AiterTuneError::OtherFmoeKey {
                script: path,
                keys: keys.join(", "),
            });
        }
        Ok(Self {
            flags: argparse::flags(&read(&package, BASE)?, &script),
            tiles: tiles(script.text()),
            counts_queueing: !Capabilities::read(&package).has("timeout-from-start"),
            digest: digest(&package, &path)?,
            keys,
            root,
            path,
        })
    }

    /// Whether its key includes the architecture: from v0.1.16 on.
    pub fn keys_gfx(&self) -> bool {
        self.keys.iter().any(|key| key == "gfx")
    }

    /// A remark on its search, if needed.
    pub(super) fn remark(&self) -> Option<String> {
        let known = !self.tiles.is_empty() && !self.tiles.contains(&SMALL_TILE);
        known.then(|| {
            let tiles: Vec<String> = self.tiles.iter().map(u32::to_string).collect();
            format!(
                "this tuner tries block_m {} for two stages and never {SMALL_TILE}, which is what runs without a row up to 32 tokens: \
                 there a tuned row can be slower than none, so compare end to end before it is kept",
                tiles.join(", ")
            )
        })
    }
}

/// The list of tiles that `tune` uses for every kind of two-stage candidate.
fn tiles(text: &str) -> Vec<u32> {
    let list = text
        .split_once("blockMs = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or("", |(list, _)| list);
    let numbers = list.split(',').map(|number| number.trim().parse());
    numbers.collect::<Result<_, _>>().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiles_of_a_search_are_read_from_its_text() {
        assert_eq!(tiles("x\n        blockMs = [32, 64, 128]\n"), [32, 64, 128]);
        assert_eq!(tiles("blockMs = [16, tile]\n"), [] as [u32; 0]);
        assert_eq!(tiles("nothing"), [] as [u32; 0]);
    }
}
