//! Rules about the names of SGLang's configuration files: a name that is one byte off is never read.

use super::super::sglang_json::FileName;
use super::{Sink, rules};

/// Device names the shipped files of SGLang 0.5.23 carry, and those other parts are known to report
/// (`torch.cuda.get_device_name()`, blanks turned into underscores).
const DEVICES: [&str; 44] = [
    "AMD_Instinct_MI300A",
    "AMD_Instinct_MI300X",
    "AMD_Instinct_MI300X_OAM",
    "AMD_Instinct_MI308X",
    "AMD_Instinct_MI325X",
    "AMD_Instinct_MI325X_OAM",
    "AMD_Instinct_MI350X",
    "AMD_Instinct_MI355X",
    "AMD_Instinct_MI455X",
    "AMD_Radeon_Graphics",
    "NVIDIA_A10",
    "NVIDIA_A100-PCIE-40GB",
    "NVIDIA_A100-SXM4-40GB",
    "NVIDIA_A100-SXM4-80GB",
    "NVIDIA_A100_80GB_PCIe",
    "NVIDIA_A10G",
    "NVIDIA_A800-SXM4-80GB",
    "NVIDIA_B200",
    "NVIDIA_B300",
    "NVIDIA_B300_SXM6_AC",
    "NVIDIA_GB10",
    "NVIDIA_GB200",
    "NVIDIA_GB300",
    "NVIDIA_GH200_144G_HBM3e",
    "NVIDIA_GH200_480GB",
    "NVIDIA_GeForce_RTX_4090",
    "NVIDIA_GeForce_RTX_5090",
    "NVIDIA_H100_80GB_HBM3",
    "NVIDIA_H100_NVL",
    "NVIDIA_H100_PCIe",
    "NVIDIA_H20",
    "NVIDIA_H20-3e",
    "NVIDIA_H200",
    "NVIDIA_H200_NVL",
    "NVIDIA_H800",
    "NVIDIA_H800_PCIe",
    "NVIDIA_L20",
    "NVIDIA_L20Y",
    "NVIDIA_L4",
    "NVIDIA_L40",
    "NVIDIA_L40S",
    "NVIDIA_RTX_6000_Ada_Generation",
    "NVIDIA_RTX_PRO_6000_Blackwell_Server_Edition",
    "NVIDIA_RTX_PRO_6000_Blackwell_Workstation_Edition",
];

/// Judges the last part of `path`; returns the name where it can be read at all.
pub(super) fn check(path: &str, sink: &mut Sink<'_>) -> Option<FileName> {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = match file.parse::<FileName>() {
        Ok(name) => name,
        Err(error) => {
            sink.add(&rules::FILE_NAME_UNREAD, None, error.to_string());
            return None;
        }
    };
    let written = name.to_string();
    if written != file {
        sink.add(
            &rules::FILE_NAME_UNREAD,
            None,
            format!("`{file}` is looked for as `{written}`"),
        );
    }
    kind(&name, file, sink);
    device(&name, sink);
    Some(name)
}

fn kind(name: &FileName, file: &str, sink: &mut Sink<'_>) {
    let readable = match name.dtype.as_str() {
        "fp8_w8a8" | "int8_w8a8" => name.block_shape.is_some_and(|(n, k)| n > 0 && k > 0),
        "fp8_w8a8_channelwise" => name.block_shape.is_none(),
        _ => false,
    };
    if !readable || name.n == 0 || name.k == 0 {
        sink.add(
            &rules::FILE_NAME_UNREAD,
            None,
            format!("no kernel of SGLang looks for `{file}`: the dtypes are fp8_w8a8 and int8_w8a8 with a block shape, and fp8_w8a8_channelwise without"),
        );
    }
}

fn device(name: &FileName, sink: &mut Sink<'_>) {
    let device = name.device_name.as_str();
    if DEVICES.contains(&device) {
        return;
    }
    // Letters and digits only: what is left when case and separators are mistyped.
    let folded = |text: &str| {
        text.chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|letter| letter.to_ascii_lowercase())
            .collect::<String>()
    };
    // `AMD_MI300X` for `AMD_Instinct_MI300X`: the vendor and the model, without the brand between them.
    let model = |text: &str| {
        let (vendor, model) = text.split_once('_').unwrap_or(("", text));
        (vendor.to_ascii_lowercase(), folded(model))
    };
    let near = DEVICES.iter().find(|known| {
        let (whole, given) = (folded(known), folded(device));
        let ((vendor, known), (of, model)) = (model(known), model(device));
        let brandless = vendor == of && !model.is_empty() && known.ends_with(&model);
        whole == given || whole.starts_with(&given) || whole.ends_with(&given) || brandless
    });
    let vendor = ["NVIDIA_", "AMD_", "Intel"]
        .iter()
        .any(|vendor| device.starts_with(vendor));
    if let Some(near) = near {
        sink.add(
            &rules::FILE_NAME_UNREAD,
            None,
            format!("no device reports the name `{device}`; the nearest that one does is `{near}`"),
        );
    } else if device.contains(' ') || !vendor {
        sink.add(
            &rules::FILE_NAME_UNREAD,
            None,
            format!(
                "`{device}` is not how torch names a device with blanks turned into underscores"
            ),
        );
    } else {
        sink.add(
            &rules::DEVICE_NAME_UNKNOWN,
            None,
            format!("no device of the name `{device}` is known here"),
        );
    }
}
