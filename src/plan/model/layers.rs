//! Linear layers as they are counted, validated as the loader validates them, and stored.

use super::config::{Config, ModelError};
use super::known::Family;
use super::quant::{Ignored, Scheme};
use super::{Layer, Parallel};

/// Largest number of layers accepted.
const MOST_LAYERS: u64 = 4096;

pub(super) struct Builder<'a> {
    pub(super) config: &'a Config,
    pub(super) parallel: &'a Parallel,
    pub(super) family: Family,
    ignored: Ignored,
    block: Option<(u64, u64)>,
    pub(super) hidden: u64,
    pub(super) depth: u64,
    layers: Vec<Layer>,
    rejected: Vec<String>,
    notes: Vec<String>,
}

/// How a weight is split over ranks.
enum Split {
    /// The whole weight on every rank.
    Replicated,
    /// Output features split over this many ranks, for each of the merged parts.
    Column(Vec<u64>, u64),
    /// Input features split over this many ranks.
    Row(u64),
}

/// One kind of layer before it is validated and counted; N and K on one rank.
pub(super) struct Kind<'k> {
    name: &'static str,
    /// Names of the checkpoint's modules that it is merged from.
    modules: &'k [&'static str],
    n: u64,
    k: u64,
    split: Split,
    condition: Option<&'static str>,
    present: bool,
}

impl<'k> Kind<'k> {
    /// A layer with the whole weight on every rank.
    pub(super) fn replicated(
        name: &'static str,
        modules: &'k [&'static str],
        n: u64,
        k: u64,
    ) -> Self {
        Self {
            name,
            modules,
            n,
            k,
            split: Split::Replicated,
            condition: None,
            present: true,
        }
    }

    /// A layer with output features split over `ranks`; of each of the merged `parts` there are `times[i]`.
    pub(super) fn column(
        name: &'static str,
        modules: &'k [&'static str],
        parts: &[(u64, u64)],
        k: u64,
        ranks: u64,
    ) -> Self {
        Self {
            split: Split::Column(parts.iter().map(|(part, _)| *part).collect(), ranks),
            n: parts.iter().map(|(part, times)| part * times).sum(),
            ..Self::replicated(name, modules, 0, k)
        }
    }

    /// A layer with input features split over `ranks`.
    pub(super) fn row(
        name: &'static str,
        modules: &'k [&'static str],
        n: u64,
        k: u64,
        ranks: u64,
    ) -> Self {
        Self {
            split: Split::Row(ranks),
            ..Self::replicated(name, modules, n, k)
        }
    }

    /// Sets the condition under which the layer exists, or runs.
    pub(super) fn only(mut self, condition: Option<&'static str>, present: bool) -> Self {
        self.condition = condition;
        self.present = present;
        self
    }
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        config: &'a Config,
        scheme: &Scheme,
        parallel: &'a Parallel,
        family: Family,
    ) -> Result<Self, ModelError> {
        let depth = config.needed("num_hidden_layers")?;
        if depth > MOST_LAYERS {
            return Err(ModelError::NotANumber {
                key: "num_hidden_layers",
                value: depth.to_string(),
                most: MOST_LAYERS,
            });
        }
        Ok(Self {
            config,
            parallel,
            family,
            ignored: Ignored::of(config),
            block: match scheme {
                Scheme::Block { n, k } => Some((u64::from(*n), u64::from(*k))),
                Scheme::PerChannel => None,
            },
            hidden: config.needed("hidden_size")?,
            depth,
            layers: Vec::new(),
            rejected: Vec::new(),
            notes: Vec::new(),
        })
    }

    pub(super) fn finish(self) -> (Vec<Layer>, Vec<String>, Vec<String>) {
        (self.layers, self.rejected, self.notes)
    }

    /// Adds a remark for display.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a reason why the server would refuse to load the model.
    pub(super) fn reject(&mut self, reason: String) {
        self.rejected.push(reason);
    }

    /// Validates the layer as the loader does, counts the decoder layers that have it, and stores it.
    pub(super) fn add(&mut self, kind: &Kind<'_>, has: impl Fn(u64) -> bool) {
        let count = (0..self.depth)
            .filter(|index| has(*index))
            .filter(|index| {
                !kind
                    .modules
                    .iter()
                    .any(|module| self.ignored.has(*index, module))
            })
            .count();
        let all = (0..self.depth).filter(|index| has(*index)).count();
        if all == 0 {
            return;
        }
        if count == 0 {
            self.notes
                .push(format!("{} is not quantised in this checkpoint", kind.name));
            return;
        }
        if kind.n == 0 || kind.k == 0 {
            self.rejected
                .push(format!("{}: nothing is left of it on a rank", kind.name));
            return;
        }
        self.check_blocks(kind);
        let (Ok(n), Ok(k), Ok(count)) = (
            u32::try_from(kind.n),
            u32::try_from(kind.k),
            u32::try_from(count),
        ) else {
            self.rejected.push(format!(
                "{}: {} by {} is larger than any weight",
                kind.name, kind.n, kind.k
            ));
            return;
        };
        self.layers.push(Layer {
            name: kind.name.into(),
            n,
            k,
            count,
            replicated: matches!(kind.split, Split::Replicated),
            condition: kind.condition.map(Into::into),
            present: kind.present,
        });
    }

    /// `Fp8LinearMethod.create_weights`: split sides must be whole scale blocks.
    fn check_blocks(&mut self, kind: &Kind<'_>) {
        let Some((block_n, block_k)) = self.block else {
            return;
        };
        match &kind.split {
            Split::Row(2..) if !kind.k.is_multiple_of(block_k) => self.rejected.push(format!(
                "{}: K = {} on a rank is no multiple of {block_k}",
                kind.name, kind.k
            )),
            Split::Column(parts, 2..) => {
                if let Some(part) = parts.iter().find(|part| !part.is_multiple_of(block_n)) {
                    self.rejected.push(format!(
                        "{}: a part of N = {part} on a rank is no multiple of {block_n}",
                        kind.name
                    ));
                }
            }
            _ => {}
        }
    }

    /// `total` divided by `ranks`; if that leaves a remainder, the server would reject it for that reason, and the
    /// result is rounded down.
    pub(super) fn part(&mut self, what: &str, total: u64, ranks: u64) -> u64 {
        if !total.is_multiple_of(ranks) {
            self.rejected.push(format!(
                "{what} = {total} cannot be split over {ranks} ranks"
            ));
        }
        total / ranks
    }
}
