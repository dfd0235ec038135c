//! Checks of the machine: GPUs, ROCm, and the variables that hide GPUs or override their properties.

use std::time::Duration;

use camino::Utf8Path;

use super::devices::{self, Gpu};
use super::{Check, Verdict};
use crate::proc::keeper::CANNOT_START;
use crate::proc::{Interrupt, Keeper, Ran, RunError, run};

/// The GPUs that were found.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub gpus: Vec<Gpu>,
    /// If none were found: what the programs reported instead, `program: line`.
    pub said: Vec<String>,
}

impl Seen {
    /// A description of why no GPU was found.
    pub fn nothing(&self) -> String {
        let asked = "none seen by rocminfo, amd-smi, rocm-smi or nvidia-smi";
        if self.said.is_empty() {
            format!("{asked}, none of which is installed here")
        } else {
            format!("{asked} ({})", self.said.join("; "))
        }
    }

    /// How to fix that.
    pub fn remedy(&self) -> &'static str {
        let denied = |line: &String| {
            ["Permission", "permitted", "required groups", "not member"]
                .iter()
                .any(|word| line.contains(word))
        };
        if self.said.iter().any(denied) {
            "be in the groups that own /dev/kfd and /dev/dri (`render` and `video`; in a container \
             `--device=/dev/kfd --device=/dev/dri --group-add=video --group-add=render`)"
        } else {
            "run this where the server runs, with the devices passed into the container"
        }
    }
}

/// Checks of the GPUs and the related variables.
pub fn checks(
    seen: &Seen,
    rocm: Option<&str>,
    hip: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let found = devices::listed(&seen.gpus);
    if seen.gpus.is_empty() {
        checks.push(Check::new("GPUs", Verdict::Warning, seen.nothing()).fix(seen.remedy()));
    } else if devices::mixed(&seen.gpus) {
        checks.push(
            Check::new(
                "GPUs",
                Verdict::Failure,
                format!("{found}: aiter stops on unequal devices"),
            )
            .fix("make only equal devices visible (ROCR_VISIBLE_DEVICES)"),
        );
    } else {
        checks.push(Check::new("GPUs", Verdict::Good, found));
    }
    if seen.gpus.iter().any(devices::partitioned) {
        checks.push(
            Check::new("partitions", Verdict::Warning, "the devices are partitioned: no shipped table row has their count of compute units")
                .fix("tune on the partitions that will serve"),
        );
    }
    if let Some(rocm) = rocm {
        let family = |version: &str| {
            version
                .split(['.', '-'])
                .take(2)
                .collect::<Vec<_>>()
                .join(".")
        };
        let other = hip.filter(|hip| family(hip) != family(rocm));
        checks.push(match other {
            None => Check::new("ROCm", Verdict::Good, rocm),
            Some(hip) => Check::new("ROCm", Verdict::Warning, format!("{rocm} is installed, torch was built for HIP {hip}"))
                .fix("SGLang decides by torch's version, aiter builds with the installed one: use one of the two"),
        });
    }
    for (name, what) in devices::VISIBLE {
        if let Some(value) = variable(name) {
            checks.push(Check::new(
                "visible devices",
                Verdict::Note,
                format!("{name}={value} hides devices from {what}"),
            ));
        }
    }
    for (name, what) in devices::PRETENDED {
        if let Some(value) = variable(name) {
            checks.push(
                Check::new(
                    "pretended hardware",
                    Verdict::Warning,
                    format!("{name}={value} replaces {what}"),
                )
                .fix(format!("unset {name}, unless it is meant")),
            );
        }
    }
    checks
}

/// A program, its arguments, and the parser of its output.
type Source = (&'static str, &'static [&'static str], fn(&str) -> Vec<Gpu>);

/// In the order in which they are tried, until one reports a GPU.
const SOURCES: [Source; 4] = [
    ("rocminfo", &[], devices::rocminfo),
    ("amd-smi", &devices::AMD_SMI, devices::amd_smi),
    ("rocm-smi", &devices::ROCM_SMI, devices::rocm_smi),
    ("nvidia-smi", &devices::NVIDIA_SMI, devices::nvidia_smi),
];

/// The GPUs of this machine: from `rocminfo`, as aiter does, then from the vendors' tools.
pub fn gpus(keeper: &Keeper, interrupt: &Interrupt) -> Seen {
    let mut seen = Seen::default();
    for (program, arguments, read) in SOURCES {
        let argv: Vec<_> = [&[program], arguments]
            .concat()
            .iter()
            .map(ToString::to_string)
            .collect();
        let limit = Duration::from_secs(30);
        let said = match run(keeper, &argv, None, [], limit, interrupt) {
            // It is not installed.
            Ok(Ran {
                code: CANNOT_START, ..
            })
            | Err(RunError::Spawn(_)) => None,
            Ok(ran) => {
                let stdout = String::from_utf8_lossy(&ran.stdout);
                // The exit code is not reliable: with a warning about one device the others are still listed.
                seen.gpus = read(&stdout);
                let stderr = String::from_utf8_lossy(&ran.stderr);
                let complaint = (ran.code != 0).then(|| devices::complaint(&stdout, &stderr));
                Some(
                    complaint
                        .flatten()
                        .unwrap_or_else(|| "lists no GPU".to_owned()),
                )
            }
            Err(error) => Some(error.to_string()),
        };
        if !seen.gpus.is_empty() {
            seen.said.clear();
            return seen;
        }
        seen.said
            .extend(said.map(|said| format!("{program}: {said}")));
    }
    seen
}

/// The installed ROCm version: file `.info/version` in `$ROCM_PATH` or `/opt/rocm`.
pub fn rocm(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let root = variable("ROCM_PATH").unwrap_or_else(|| "/opt/rocm".to_owned());
    let text = fs_err::read_to_string(Utf8Path::new(&root).join(".info/version")).ok()?;
    Some(text.trim().to_owned()).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hides_or_replaces_devices_is_said() {
        let variable = |name: &str| match name {
            "HIP_VISIBLE_DEVICES" => Some("0".to_owned()),
            "CU_NUM" => Some("80".to_owned()),
            _ => None,
        };
        let seen = Seen {
            gpus: vec![Gpu {
                arch: "gfx942".to_owned(),
                compute_units: Some(38),
                ..Gpu::default()
            }],
            said: Vec::new(),
        };
        let all = checks(&seen, Some("7.2.0"), Some("7.0.51831"), variable);
        let found = |name: &str| all.iter().find(|check| check.name == name).unwrap();
        assert_eq!(found("GPUs").found, "1 x gfx942, 38 CUs");
        assert_eq!(found("partitions").verdict, Verdict::Warning);
        let said =
            ["ROCm", "visible devices", "pretended hardware"].map(|name| &*found(name).found);
        insta::assert_snapshot!(said.join("\n"), @"
        7.2.0 is installed, torch was built for HIP 7.0.51831
        HIP_VISIBLE_DEVICES=0 hides devices from HIP and torch, but not rocminfo
        CU_NUM=80 replaces the compute units of aiter's look-up, but not those of its tuner
        ");
    }

    #[test]
    fn closed_devices_are_told_from_missing_ones() {
        let check = |said: &[&str]| {
            let seen = Seen {
                gpus: Vec::new(),
                said: said.iter().map(ToString::to_string).collect(),
            };
            checks(&seen, None, None, |_| None).remove(0)
        };
        let denied = check(&["rocminfo: Unable to open /dev/kfd read-write: Permission denied"]);
        assert_eq!(denied.verdict, Verdict::Warning);
        let missing = check(&["rocminfo: ROCk module is NOT loaded, possibly no GPU devices"]);
        let said = [denied, missing, check(&[])]
            .map(|check| format!("{}\n    {}", check.found, check.fix.unwrap()));
        insta::assert_snapshot!(said.join("\n"), @"
        none seen by rocminfo, amd-smi, rocm-smi or nvidia-smi (rocminfo: Unable to open /dev/kfd read-write: Permission denied)
            be in the groups that own /dev/kfd and /dev/dri (`render` and `video`; in a container `--device=/dev/kfd --device=/dev/dri --group-add=video --group-add=render`)
        none seen by rocminfo, amd-smi, rocm-smi or nvidia-smi (rocminfo: ROCk module is NOT loaded, possibly no GPU devices)
            run this where the server runs, with the devices passed into the container
        none seen by rocminfo, amd-smi, rocm-smi or nvidia-smi, none of which is installed here
            run this where the server runs, with the devices passed into the container
        ");
    }
}
