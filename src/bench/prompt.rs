//! Seeded prompts: item i of a seed is the same on every machine and in both arms.

use serde_json::Value;

use crate::stats::rng::SplitMix64;

/// What a prompt is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A list of token ids, each in `first..=last`: exact lengths without a tokenizer.
    TokenIds {
        /// Lowest token id.
        first: u32,
        /// Highest token id.
        last: u32,
    },
    /// English words, for servers that take text only; how many tokens they are depends on the server's tokenizer.
    Words,
}

impl Default for Kind {
    /// Ids 16 to 500: ordinary tokens in common vocabularies (the control tokens of Llama- and
    /// Qwen-style vocabularies lie below 16 or at the very end) and within even a tiny model's.
    fn default() -> Self {
        Self::TokenIds {
            first: 16,
            last: 500,
        }
    }
}

/// Common short words; most tokenizers have each as one token with its leading space.
const WORDS: [&str; 64] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
];

/// Prompt `index` of `seed`, `length` tokens or words long, as the `prompt` field of a request.
pub fn prompt(kind: Kind, seed: u64, index: u64, length: usize) -> Value {
    let mut rng = SplitMix64::for_item(seed, index);
    match kind {
        Kind::TokenIds { first, last } => {
            let span = u64::from(last.saturating_sub(first)) + 1;
            let id = |rng: &mut SplitMix64| Value::from(u64::from(first) + rng.below(span));
            (0..length).map(|_| id(&mut rng)).collect()
        }
        Kind::Words => {
            let word = |rng: &mut SplitMix64| WORDS[rng.below(WORDS.len() as u64) as usize];
            let words: Vec<&str> = (0..length).map(|_| word(&mut rng)).collect();
            Value::from(words.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_depends_on_seed_and_index_alone() {
        let kind = Kind::TokenIds { first: 5, last: 9 };
        let ids = prompt(kind, 7, 3, 100);
        assert_eq!(ids, prompt(kind, 7, 3, 100));
        assert_ne!(ids, prompt(kind, 7, 4, 100));
        assert_ne!(ids, prompt(kind, 8, 3, 100));
        let ids = ids.as_array().unwrap();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| (5..=9).contains(&id.as_u64().unwrap())));
        let words = prompt(Kind::Words, 7, 3, 12);
        assert_eq!(words.as_str().unwrap().split(' ').count(), 12);
    }

    #[test]
    fn the_prompts_of_a_seed_never_change() {
        // Recorded runs identify their prompts by seed: a change here changes what they mean.
        let ids = prompt(Kind::default(), 1, 0, 4);
        assert_eq!(ids.to_string(), "[194,473,37,393]");
    }
}
