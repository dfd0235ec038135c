//! Rules about the names of configuration files: a name that differs by one byte is never read. SGLang and vLLM read
//! files with the same contents but spell the name differently.

use super::super::devices;
use super::super::sglang_json::FileName;
use super::{Sink, rules};

/// Checks the last part of `path`; returns the parsed name if it can be parsed at all.
pub(super) fn check(path: &str, sink: &mut Sink<'_>) -> Option<FileName> {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = match file.parse::<FileName>() {
        Ok(name) => name,
        Err(error) => {
            sink.add(&rules::FILE_NAME_UNREAD, None, error.to_string());
            return None;
        }
    };
    spelling(path, file, &name.to_string(), &name.of_vllm(), sink);
    kind(&name, file, sink);
    device(&name.device_name, sink);
    Some(name)
}

/// Whether vLLM reads the file's folder: the path leads through its package, and not through SGLang's.
pub(super) fn is_of_vllm(path: &str) -> bool {
    let through = |package: &str| path.split('/').any(|part| part == package);
    through("vllm") && !through("sglang")
}

/// Compares the name of a file with those that SGLang and vLLM look for.
pub(super) fn spelling(path: &str, file: &str, sglang: &str, vllm: &str, sink: &mut Sink<'_>) {
    let known = path
        .split('/')
        .any(|part| matches!(part, "sglang" | "vllm"));
    let wanted = if is_of_vllm(path) { vllm } else { sglang };
    let unread = file != wanted;
    if !unread {
        return;
    }
    let message = if sglang == vllm || known {
        format!("`{file}` is looked for as `{wanted}`")
    } else if file == vllm {
        format!("SGLang looks for `{sglang}`, only vLLM looks for this spelling")
    } else {
        format!("SGLang looks for `{sglang}`, vLLM for `{vllm}`")
    };
    sink.add(&rules::FILE_NAME_UNREAD, None, message);
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
            format!("no block-scaled kernel looks for `{file}`: the dtypes are fp8_w8a8 and int8_w8a8 with a block shape, and fp8_w8a8_channelwise without"),
        );
    }
}

/// Checks a device name as spelt in the name of a file.
pub(super) fn device(device: &str, sink: &mut Sink<'_>) {
    if device.is_empty() {
        sink.add(&rules::FILE_NAME_UNREAD, None, "the name says no device");
        return;
    }
    // The list of devices accepts a blank, the runtime does not.
    if devices::is_known(device) && !device.contains(' ') {
        return;
    }
    // Letters and digits only: what is unaffected by wrong case or separators.
    let folded = |text: &str| {
        text.chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|letter| letter.to_ascii_lowercase())
            .collect::<String>()
    };
    // `AMD_MI300X` for `AMD_Instinct_MI300X`: the vendor and the model, without the brand in between.
    let model = |text: &str| {
        let (vendor, model) = text.split_once('_').unwrap_or(("", text));
        (vendor.to_ascii_lowercase(), folded(model))
    };
    let near = devices::names().find(|known| {
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
