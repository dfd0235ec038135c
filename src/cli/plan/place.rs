//! The device that is planned for.

use std::collections::BTreeSet;

use super::{Error, ErrorKind, PlanArgs};
use crate::problem::Op;
use crate::table::aiter::Table;
use crate::table::devices;
use crate::table::roofline::Device;

/// Multiprocessors of an H100 SXM (NVIDIA's data sheet).
const H100_UNITS: u32 = 132;

/// The device for which rows are looked up, and its rates.
pub(super) struct Place {
    pub(super) gfx: String,
    pub(super) cu_num: u32,
    pub(super) device: Device,
    pub(super) note: Option<String>,
}

impl Place {
    pub(super) fn of(args: &PlanArgs, tables: &[Table], ops: &[Op]) -> Result<Self, Error> {
        if let Some(name) = &args.device {
            let device = Self::rates(args, Device::of_name(name), name, tables);
            let vendor = ["NVIDIA", "AMD", "Radeon", "Intel"];
            // A log of such a device names it, and its shapes can still be ordered.
            let assumed = device.is_err()
                && args.rates.is_empty()
                && vendor.iter().any(|vendor| name.starts_with(vendor));
            let note = assumed.then(|| {
                format!("the rates of `{name}` are not known: times and order are computed with an H100's; --rates gives others")
            });
            let device = if assumed {
                Device::unknown(name, H100_UNITS)
            } else {
                device?
            };
            let (gfx, cu_num) = devices::key(name).unwrap_or(("", 0));
            return Ok(Self {
                gfx: gfx.to_owned(),
                cu_num,
                device,
                note,
            });
        }
        if let (Some(gfx), Some(cu_num)) = (&args.gfx, args.cu) {
            let device = Self::rates(args, Device::of_key(gfx, cu_num), gfx, tables)?;
            return Ok(Self {
                gfx: gfx.clone(),
                cu_num,
                device,
                note: None,
            });
        }
        // The device of the tables, if they have only one.
        let keys: BTreeSet<(String, u32)> = tables
            .iter()
            .flat_map(|table| &table.rows)
            .filter_map(|row| Some((row.gfx.as_deref()?.to_owned(), row.cu_num?)))
            .collect();
        if keys.len() > 1 {
            let keys: Vec<_> = keys
                .iter()
                .map(|(gfx, cu)| format!("--gfx {gfx} --cu {cu}"))
                .collect();
            return Err(
                Error::new(ErrorKind::Usage, "the tables hold rows of several devices")
                    .hint(format!("say for which to plan: {}", keys.join(" or "))),
            );
        }
        if let Some((gfx, cu_num)) = keys.into_iter().next() {
            let device = Self::rates(args, Device::of_key(&gfx, cu_num), &gfx, tables)?;
            return Ok(Self {
                gfx,
                cu_num,
                device,
                note: None,
            });
        }
        let (gfx, cu_num, name) = if ops == [Op::TritonBlockFp8] {
            ("", 0, "NVIDIA_H100_80GB_HBM3")
        } else {
            ("gfx942", 304, "AMD_Instinct_MI300X")
        };
        let device = Self::rates(args, Device::of_name(name), name, tables)?;
        let note = Some(format!(
            "no device was said: planned for {name}; say another with --gfx and --cu or --device"
        ));
        Ok(Self {
            gfx: gfx.to_owned(),
            cu_num,
            device,
            note,
        })
    }

    /// The device's rates: given, known, or the best that any row of the tables reached.
    fn rates(
        args: &PlanArgs,
        known: Option<Device>,
        name: &str,
        tables: &[Table],
    ) -> Result<Device, Error> {
        if let [flops, bytes] = args.rates[..] {
            let valid = |rate: f64| rate.is_finite() && rate > 0.0;
            return if valid(flops) && valid(bytes) {
                Ok(Device::measured(name, flops, bytes))
            } else {
                Err(Error::new(
                    ErrorKind::Usage,
                    "--rates takes two positive numbers",
                ))
            };
        }
        let reached = |of: fn(&crate::table::aiter::Row) -> Option<f64>| {
            tables
                .iter()
                .flat_map(|table| &table.rows)
                .filter_map(of)
                .fold(0.0, f64::max)
        };
        known
            .or_else(|| {
                let (flops, bytes) = (reached(|row| row.tflops), reached(|row| row.bw));
                (flops > 0.0 && bytes > 0.0)
                    .then(|| Device::measured(name, flops * 1e12, bytes * 1e9))
            })
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Usage,
                    format!("the rates of `{name}` are not known"),
                )
                .hint("give them with --rates FLOPS,BYTES, or a table tuned on it with --table")
            })
    }
}
