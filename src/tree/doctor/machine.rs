//! Checks of the machine: GPUs, ROCm, and the variables that hide or replace them.

use std::time::Duration;

use camino::Utf8Path;

use super::devices::{self, Gpu};
use super::{Check, Verdict};
use crate::proc::{Interrupt, Keeper, run};

/// Checks of the GPUs and the variables around them.
pub fn checks(
    gpus: &[Gpu],
    rocm: Option<&str>,
    hip: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    match (gpus.first(), devices::mixed(gpus)) {
        (None, _) => checks.push(
            Check::new(
                "GPUs",
                Verdict::Warning,
                "none seen by rocminfo, amd-smi or nvidia-smi",
            )
            .fix("run this where the server runs, with the devices passed into the container"),
        ),
        (_, Some(mixed)) => checks.push(
            Check::new(
                "GPUs",
                Verdict::Failure,
                format!("{mixed}: aiter stops on unequal devices"),
            )
            .fix("make only equal devices visible (ROCR_VISIBLE_DEVICES)"),
        ),
        (Some(gpu), None) => {
            let units = gpu
                .compute_units
                .map(|count| format!(", {count} CUs"))
                .unwrap_or_default();
            let memory = gpu
                .memory_mib
                .map(|mib| format!(", {} GiB", mib / 1024))
                .unwrap_or_default();
            checks.push(Check::new(
                "GPUs",
                Verdict::Good,
                format!("{} x {} {}{units}{memory}", gpus.len(), gpu.name, gpu.arch),
            ));
            let whole = devices::whole(&gpu.arch);
            if gpu
                .compute_units
                .is_some_and(|count| !whole.is_empty() && !whole.contains(&count))
            {
                checks.push(
                    Check::new("partitions", Verdict::Warning, "the devices are partitioned: no shipped table row has their count of compute units")
                        .fix("tune on the partitions that will serve"),
                );
            }
        }
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

/// The GPUs of this machine: asked of `rocminfo` as aiter does, then of the vendors' tools.
pub fn gpus(keeper: &Keeper, interrupt: &Interrupt) -> Vec<Gpu> {
    let ask = |argv: &[&str]| {
        let argv: Vec<_> = argv.iter().map(ToString::to_string).collect();
        let ran = run(keeper, &argv, None, [], Duration::from_secs(30), interrupt).ok()?;
        (ran.code == 0).then(|| String::from_utf8_lossy(&ran.stdout).into_owned())
    };
    let tool =
        |program: &'static str, arguments: &[&'static str]| ask(&[&[program], arguments].concat());
    let mut gpus = tool("rocminfo", &[])
        .map(|text| devices::rocminfo(&text))
        .unwrap_or_default();
    if gpus.is_empty() || gpus.iter().any(|gpu| gpu.memory_mib.is_none()) {
        let more = tool("amd-smi", &devices::AMD_SMI)
            .map(|text| devices::amd_smi(&text))
            .unwrap_or_default();
        if gpus.is_empty() {
            gpus = more;
        }
    }
    if gpus.is_empty() {
        gpus = tool("nvidia-smi", &devices::NVIDIA_SMI)
            .map(|text| devices::nvidia_smi(&text))
            .unwrap_or_default();
    }
    gpus
}

/// The installed ROCm version: `$ROCM_PATH` or `/opt/rocm`, file `.info/version`.
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
        let gpu = Gpu {
            arch: "gfx942".to_owned(),
            name: "x".to_owned(),
            compute_units: Some(38),
            memory_mib: None,
        };
        let all = checks(&[gpu], Some("7.2.0"), Some("7.0.51831"), variable);
        let found = |name: &str| all.iter().find(|check| check.name == name).unwrap();
        assert_eq!(found("partitions").verdict, Verdict::Warning);
        assert!(
            found("ROCm")
                .found
                .contains("torch was built for HIP 7.0.51831")
        );
        assert!(
            found("visible devices")
                .found
                .starts_with("HIP_VISIBLE_DEVICES=0")
        );
        assert!(found("pretended hardware").found.starts_with("CU_NUM=80"));
        assert_eq!(
            checks(&[], None, None, |_| None)[0].verdict,
            Verdict::Warning
        );
    }
}
