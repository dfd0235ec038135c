//! Builds the tuner's command line: the wanted options, adapted to the flags that a script has.
//!
//! Pure. A missing optional flag is left out with a remark; one that is required but missing, or takes different
//! values, is refused by name.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::flags::{Flags, Takes};
use super::scripts::Script;
use crate::problem::Op;

/// A flag that is not as required.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// It does not exist, and is indispensable.
    #[error("use `{flag}`: `{script}` has no such flag")]
    Missing {
        flag: &'static str,
        script: Utf8PathBuf,
    },
    /// It takes a different number of values.
    #[error("use `{flag}`: in `{script}` it takes {takes}")]
    Changed {
        flag: &'static str,
        script: Utf8PathBuf,
        /// What it takes instead.
        takes: &'static str,
    },
    /// It accepts none of the values that serve the operation.
    #[error("use `{flag}`: `{script}` takes {choices}, and `{op}` needs one of {wanted}")]
    Choices {
        flag: &'static str,
        script: Utf8PathBuf,
        op: Op,
        choices: String,
        wanted: String,
    },
}

/// The options of a tuner run.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) python: &'a Utf8Path,
    pub(super) script: &'a Script,
    pub(super) flags: &'a Flags,
    pub(super) untuned: Utf8PathBuf,
    pub(super) tuned: Utf8PathBuf,
    pub(super) profile: Utf8PathBuf,
    /// Devices to use in parallel; all visible ones when absent.
    pub(super) devices: Option<u32>,
    /// Number of shapes after which results are written.
    pub(super) batch: usize,
    /// Library to search; the widest suitable one when absent.
    pub(super) libtype: Option<&'a str>,
    pub(super) split_k: bool,
    pub(super) err_ratio: f64,
    /// Time limit for one candidate (for one shape where candidates are grouped).
    pub(super) task: Duration,
}

/// A command line, and how it had to be adapted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) argv: Vec<String>,
    pub(super) remarks: Vec<String>,
}

/// A command line under construction, which is adapted to the flags of a script.
pub(super) struct Fit<'a> {
    flags: &'a Flags,
    script: &'a Utf8Path,
    pub(super) line: Line,
}

impl<'a> Fit<'a> {
    /// `argv` is the beginning of the line; its last word is the script.
    pub(super) fn new(argv: Vec<String>, script: &'a Utf8Path, flags: &'a Flags) -> Self {
        Self {
            flags,
            script,
            line: Line {
                argv,
                remarks: Vec::new(),
            },
        }
    }

    /// Whether the flag exists; an error if it takes other values.
    pub(super) fn has(&self, flag: &'static str, takes: Takes) -> Result<bool, FlagError> {
        match self.flags.get(flag) {
            None => Ok(false),
            Some(found) if found.takes == takes => Ok(true),
            Some(found) => Err(FlagError::Changed {
                flag,
                script: self.script.to_owned(),
                takes: match found.takes {
                    Takes::Nothing => "no value",
                    Takes::One => "one value",
                    Takes::Optional => "no or one value",
                    Takes::Several => "several values",
                },
            }),
        }
    }

    /// Adds a required flag.
    pub(super) fn need(
        &mut self,
        flag: &'static str,
        value: Option<String>,
    ) -> Result<(), FlagError> {
        if !self.has(flag, takes(value.as_ref()))? {
            return Err(FlagError::Missing {
                flag,
                script: self.script.to_owned(),
            });
        }
        self.line.argv.push(flag.to_owned());
        self.line.argv.extend(value);
        Ok(())
    }

    /// Adds a flag, or leaves it out if it does not exist; `without` describes the effect of that.
    pub(super) fn give(
        &mut self,
        flag: &'static str,
        value: Option<String>,
        without: &str,
    ) -> Result<(), FlagError> {
        if self.has(flag, takes(value.as_ref()))? {
            self.line.argv.push(flag.to_owned());
            self.line.argv.extend(value);
        } else {
            self.line
                .remarks
                .push(format!("this tuner has no `{flag}`: {without}"));
        }
        Ok(())
    }
}

/// The number of values implied by `value`.
fn takes(value: Option<&String>) -> Takes {
    match value {
        Some(_) => Takes::One,
        None => Takes::Nothing,
    }
}

/// The command line for `wanted`, adapted to the script.
pub(super) fn line(wanted: &Wanted<'_>) -> Result<Line, FlagError> {
    let script = wanted.script;
    let argv = vec![wanted.python.to_string(), script.path.to_string()];
    let mut fit = Fit::new(argv, &script.path, wanted.flags);
    for (flag, value) in [("-i", &wanted.untuned), ("-o", &wanted.tuned)] {
        fit.need(flag, Some(value.to_string()))?;
    }
    if let Some(mode) = script.mode {
        fit.need(mode, None)?;
    }
    fit.give(
        "-o2",
        Some(wanted.profile.to_string()),
        "what came second is not known",
    )?;
    if let Some(devices) = wanted.devices {
        fit.give(
            "--mp",
            Some(devices.to_string()),
            "it chooses the devices itself",
        )?;
    }
    fit.give(
        "--batch",
        Some(wanted.batch.to_string()),
        "rows come when all shapes are done",
    )?;
    fit.give(
        "--errRatio",
        Some(wanted.err_ratio.to_string()),
        "it decides which numbers are right enough",
    )?;
    fit.give(
        "--timeout",
        Some(wanted.task.as_secs().max(1).to_string()),
        "a candidate that hangs costs its shape",
    )?;
    if wanted.split_k {
        fit.give("-k", None, "K is not split")?;
    }
    fit.give("-v", None, "progress shows after each batch only")?;
    if let Some(flag) = wanted.flags.get("--libtype") {
        let list = wanted.libtype.map_or_else(
            || {
                script
                    .op
                    .aiter()
                    .map_or(&[][..], |aiter| aiter.libtypes)
                    .to_vec()
            },
            |one| vec![one],
        );
        let value = list
            .iter()
            .find(|library| {
                flag.choices.is_empty() || flag.choices.iter().any(|known| known == *library)
            })
            .ok_or_else(|| FlagError::Choices {
                flag: "--libtype",
                script: script.path.clone(),
                op: script.op,
                choices: flag.choices.join(", "),
                wanted: list.join(", "),
            })?;
        fit.has("--libtype", Takes::One)?;
        // Without choices the flag takes a list, in which `all` means every library that the script knows.
        fit.line
            .argv
            .extend(["--libtype".to_owned(), (*value).to_owned()]);
    } else if let Some(library) = wanted.libtype.filter(|library| *library != "ck") {
        return Err(FlagError::Choices {
            flag: "--libtype",
            script: script.path.clone(),
            op: script.op,
            choices: "no library (its kernels are CK's)".to_owned(),
            wanted: library.to_owned(),
        });
    }
    Ok(fit.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::aiter::flags::{Flag, FlagsFrom};

    fn flag(name: &str, takes: Takes, choices: &[&str]) -> Flag {
        Flag {
            names: vec![name.to_owned()],
            takes,
            choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
            default: None,
        }
    }

    fn script(op: Op, mode: Option<&'static str>) -> Script {
        Script {
            op,
            root: "/aiter".into(),
            path: "/aiter/csrc/x_tune.py".into(),
            mode,
            modules: Vec::new(),
            keys: Vec::new(),
            untuned_columns: Vec::new(),
            flags: flags(Vec::new()),
            capabilities: crate::tree::doctor::caps::Capabilities::default(),
            obeys_split_k: true,
            libraries: None,
            digest: String::new(),
        }
    }

    fn flags(flags: Vec<Flag>) -> Flags {
        Flags {
            from: FlagsFrom::Source,
            flags,
        }
    }

    fn fitted(script: &Script, flags: &Flags, libtype: Option<&str>) -> Result<Line, FlagError> {
        line(&Wanted {
            python: "python3".into(),
            script,
            flags,
            untuned: "/f/untuned.csv".into(),
            tuned: "/f/tuned.csv".into(),
            profile: "/f/profile.csv".into(),
            devices: Some(8),
            batch: 4,
            libtype,
            split_k: false,
            err_ratio: 0.05,
            task: Duration::from_secs(90),
        })
    }

    #[test]
    fn what_is_missing_is_done_without_or_refused_by_name() {
        let files = || vec![flag("-i", Takes::One, &[]), flag("-o", Takes::One, &[])];
        let plain = script(Op::Blockscale, None);
        let line = fitted(&plain, &flags(files()), None).unwrap();
        assert_eq!(
            line.argv.join(" "),
            "python3 /aiter/csrc/x_tune.py -i /f/untuned.csv -o /f/tuned.csv"
        );
        insta::assert_snapshot!(line.remarks.join("\n"), @"
        this tuner has no `-o2`: what came second is not known
        this tuner has no `--mp`: it chooses the devices itself
        this tuner has no `--batch`: rows come when all shapes are done
        this tuner has no `--errRatio`: it decides which numbers are right enough
        this tuner has no `--timeout`: a candidate that hangs costs its shape
        this tuner has no `-v`: progress shows after each batch only
        ");
        let error = fitted(&plain, &flags(files()[..1].to_vec()), None).unwrap_err();
        assert!(matches!(error, FlagError::Missing { flag: "-o", .. }));
        let mut changed = files();
        changed.push(flag("--mp", Takes::Nothing, &[]));
        let error = fitted(&plain, &flags(changed), None).unwrap_err();
        insta::assert_snapshot!(error, @"use `--mp`: in `/aiter/csrc/x_tune.py` it takes no value");
        let shuffled = script(Op::BlockscaleBpreshuffle, Some("--preshuffle"));
        let error = fitted(&shuffled, &flags(files()), None).unwrap_err();
        insta::assert_snapshot!(error, @"use `--preshuffle`: `/aiter/csrc/x_tune.py` has no such flag");
    }

    #[test]
    fn the_widest_library_is_the_one_its_dispatcher_can_run() {
        let with = |op, choices: &[&str], libtype| {
            let all = flags(vec![
                flag("-i", Takes::One, &[]),
                flag("-o", Takes::One, &[]),
                flag("--libtype", Takes::One, choices),
            ]);
            fitted(&script(op, None), &all, libtype).map(|line| line.argv.last().unwrap().clone())
        };
        let five = ["ck", "cktile", "asm", "all", "both"];
        assert_eq!(with(Op::Blockscale, &five, None).unwrap(), "both");
        assert_eq!(with(Op::BlockscaleBpreshuffle, &five, None).unwrap(), "all");
        assert_eq!(with(Op::Bpreshuffle, &[], None).unwrap(), "all");
        assert_eq!(with(Op::Blockscale, &five, Some("ck")).unwrap(), "ck");
        let error = with(Op::Blockscale, &["opus"], None).unwrap_err();
        insta::assert_snapshot!(error, @"use `--libtype`: `/aiter/csrc/x_tune.py` takes opus, and `gemm_a8w8_blockscale` needs one of both, all, ck");
    }
}
