//! The flags of a tuner's command line and the values they take.
//!
//! Pure. The output of `--help` is parsed here; [`super::argparse`] gets the same from source.

use serde::Serialize;

/// How many values a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Takes {
    /// None: it is a switch.
    Nothing,
    One,
    Optional,
    Several,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flag {
    /// Its spellings, `-k` and `--splitK`.
    pub names: Vec<String>,
    pub takes: Takes,
    /// The only values it accepts, if the definition lists them.
    pub choices: Vec<String>,
    /// The default, as spelt in the source; `--help` does not contain it.
    pub default: Option<String>,
}

/// Where the flags were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlagsFrom {
    /// From the script's `--help`.
    Help,
    Source,
}

/// The flags of a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flags {
    /// Where they were read from.
    pub from: FlagsFrom,
    /// In the order of definition.
    pub flags: Vec<Flag>,
}

impl Flags {
    /// The flag with a spelling of `name`.
    pub fn get(&self, name: &str) -> Option<&Flag> {
        self.flags
            .iter()
            .find(|flag| flag.names.iter().any(|known| known == name))
    }

    /// Parses argparse's output for `--help`; `None` if it is something else.
    pub fn from_help(text: &str) -> Option<Self> {
        let start = text.find("usage:")?;
        let flags: Vec<Flag> = text[start..].lines().filter_map(flag_line).collect();
        (!flags.is_empty()).then_some(Self {
            from: FlagsFrom::Help,
            flags,
        })
    }

    /// Names in `self` that `other` lacks.
    pub fn missing_in(&self, other: &Self) -> Vec<String> {
        self.flags
            .iter()
            .filter(|flag| flag.names.iter().all(|name| other.get(name).is_none()))
            .filter_map(|flag| flag.names.last().cloned())
            .collect()
    }

    /// Adds the defaults that `source` knows.
    #[must_use]
    pub fn with_defaults_of(mut self, source: &Self) -> Self {
        for flag in &mut self.flags {
            let known = flag.names.iter().find_map(|name| source.get(name));
            flag.default = known.and_then(|known| known.default.clone());
        }
        self
    }
}

/// Parses an option's line of the help: `  -i FILE, --untune_file FILE`, from Python 3.13 `  -i, --untune_file FILE`,
/// followed by two blanks and the help text if there is room.
fn flag_line(line: &str) -> Option<Flag> {
    let plain = without_escapes(line);
    let text = plain.trim_start();
    // Options are indented by two blanks; deeper lines are help texts.
    let indent = plain.len() - text.len();
    if !text.starts_with('-') || indent == 0 || indent > 4 {
        return None;
    }
    let definition = text.split("  ").next().unwrap_or(text).trim_end();
    let mut names = Vec::new();
    let mut value = "";
    for part in definition.split(", ") {
        let (name, rest) = part.split_once(' ').unwrap_or((part, ""));
        if !name.starts_with('-') {
            return None;
        }
        names.push(name.to_owned());
        if !rest.is_empty() {
            value = rest.trim();
        }
    }
    if names.iter().any(|name| name == "--help") {
        return None;
    }
    let choices = value
        .strip_prefix('{')
        .and_then(|rest| rest.split_once('}'))
        .map(|(inside, _)| inside.split(',').map(str::to_owned).collect())
        .unwrap_or_default();
    let takes = match value {
        "" => Takes::Nothing,
        several if several.ends_with("...]") => Takes::Several,
        optional if optional.starts_with('[') => Takes::Optional,
        _ => Takes::One,
    };
    Some(Flag {
        names,
        takes,
        choices,
        default: None,
    })
}

/// `text` without terminal colour sequences.
pub(super) fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        // `ESC [ … letter`; a lone escape is dropped.
        rest = match after.strip_prefix('[') {
            Some(sequence) => sequence
                .find(|end: char| end.is_ascii_alphabetic())
                .map_or("", |end| &sequence[end + 1..]),
            None => after,
        };
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_of_old_and_new_pythons_reads_the_same() {
        let old = "some log line\nusage: tune.py [-h] [-i FILE]\n\noptions:\n  -h, --help            show this\n  \
                   --verbose, -v         more info\n  -i FILE, --untune_file FILE\n                        input\n  \
                   --libtype {ck,cktile,all,both}\n  --blockPerCu B [B ...]\n  --run_config [TUNED_CSV]\n  \
                   -k, --splitK          Use splitK kernels\n";
        let new = old.replace("-i FILE, --untune_file FILE", "-i, --untune_file FILE");
        let flags = Flags::from_help(old).unwrap();
        assert_eq!(Flags::from_help(&new).unwrap(), flags);
        let takes = |name| flags.get(name).map(|flag| flag.takes);
        assert_eq!(takes("-v"), Some(Takes::Nothing));
        assert_eq!(takes("--untune_file"), Some(Takes::One));
        assert_eq!(takes("--blockPerCu"), Some(Takes::Several));
        assert_eq!(takes("--run_config"), Some(Takes::Optional));
        assert_eq!(takes("--splitK"), Some(Takes::Nothing));
        assert_eq!(
            flags.get("--libtype").unwrap().choices,
            ["ck", "cktile", "all", "both"]
        );
        assert_eq!(flags.flags.len(), 6, "help itself is no flag of ours");
        assert_eq!(Flags::from_help("Traceback (most recent call last):"), None);
    }

    /// The actual output of the scripts of four revisions; `testdata/aiter-help/ORIGIN.md`.
    #[test]
    fn recorded_help_of_four_revisions_is_read() {
        let read = |revision: &str, op: &str| {
            let path = format!(
                "{}/testdata/aiter-help/{revision}-{op}.txt",
                env!("CARGO_MANIFEST_DIR")
            );
            Flags::from_help(&fs_err::read_to_string(path).unwrap()).unwrap()
        };
        let count = |revision, op| read(revision, op).flags.len();
        let (plain, rowwise) = ("gemm_a8w8_blockscale", "gemm_a8w8_bpreshuffle");
        assert_eq!((count("v0.1.9", plain), count("v0.1.9", rowwise)), (10, 11));
        for (revision, libraries) in [
            ("303a583c", "ck,cktile,asm,all,both"),
            ("v0.1.13", "ck,cktile,asm,all,both"),
            ("e4048607a5", "ck,cktile,asm,opus,all,both"),
        ] {
            assert_eq!((count(revision, plain), count(revision, rowwise)), (21, 20));
            let flags = read(revision, plain);
            let takes = |name| flags.get(name).map(|flag| flag.takes);
            assert_eq!(flags.get("--libtype").unwrap().choices.join(","), libraries);
            assert_eq!(takes("--preshuffle"), Some(Takes::Nothing));
            assert_eq!(takes("--blockPerCu"), Some(Takes::Several));
            assert_eq!(takes("--timeout"), Some(Takes::One));
            assert_eq!(takes("--sort"), Some(Takes::One));
            assert_eq!(takes("--run_config"), Some(Takes::Optional));
            assert_eq!(takes("-o2"), Some(Takes::One));
            assert!(
                read(revision, rowwise)
                    .get("--libtype")
                    .unwrap()
                    .choices
                    .is_empty()
            );
        }
        let old = read("v0.1.9", plain);
        assert_eq!(
            old.get("--sort").map(|flag| flag.takes),
            Some(Takes::Nothing)
        );
        assert_eq!(old.get("--libtype"), None);
        assert_eq!(old.get("--timeout"), None);
    }

    #[test]
    fn colours_are_no_part_of_a_line() {
        assert_eq!(
            without_escapes("\u{1b}[1;31m[GPU Fault]\u{1b}[0m Task 4"),
            "[GPU Fault] Task 4"
        );
        assert_eq!(without_escapes("plain"), "plain");
    }
}
