//! Names of fused-MoE tables.

use std::fmt;
use std::str::FromStr;

use crate::problem::fused_moe::{MoeProblem, Scales};

/// The name under which SGLang looks for a table (`get_config_file_name`, the same in 0.5.5 to 0.5.23).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Experts on one rank, a fused shared expert included.
    pub experts: u32,
    /// Columns of the activation between the GEMMs on one rank: `w2.shape[2]`, half of the rows of `w13`.
    pub n: u32,
    /// The device as torch names it, blanks turned into underscores.
    pub device_name: String,
    /// `fp8_w8a8`, `int8_w8a8`, `int8_w8a16`, `int4_w4a16` or `float32`; absent for bf16 and fp16.
    pub dtype: Option<String>,
    /// Scale block of the weights: N side, K side.
    pub block_shape: Option<(u32, u32)>,
    /// Whether weights are scaled per output channel and activations per token.
    pub per_channel: bool,
    /// Whether the table is the down projection's.
    pub down: bool,
}

/// A file name that does not have the form that the runtime builds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "read `{0}` as the name of a fused-MoE table, `E=<int>,N=<int>,device_name=<name>[,dtype=<dtype>][,block_shape=[<int>, <int>]][,per_channel_quant=True][_down].json`"
)]
pub struct BadTableName(pub String);

impl TableName {
    /// The name of the table of one projection of `problem` on a device.
    pub fn of(problem: &MoeProblem, device_name: &str, down: bool) -> Self {
        Self {
            experts: problem.experts,
            n: problem.n,
            device_name: device_name.replace(' ', "_"),
            dtype: (!problem.dtype.is_empty()).then(|| problem.dtype.clone()),
            block_shape: match problem.scales {
                Scales::Block(n, k) => Some((n, k)),
                _ => None,
            },
            per_channel: problem.scales == Scales::Channel,
            down,
        }
    }

    /// The problem that the table is for.
    pub fn problem(&self) -> MoeProblem {
        MoeProblem {
            experts: self.experts,
            n: self.n,
            hidden: None,
            topk: None,
            dtype: self.dtype.clone().unwrap_or_default(),
            scales: match self.block_shape {
                Some((n, k)) => Scales::Block(n, k),
                None if self.per_channel => Scales::Channel,
                None => Scales::None,
            },
            experts_of_all: None,
        }
    }

    /// The same table for the up (`false`) or the down projection.
    #[must_use]
    pub fn with_down(&self, down: bool) -> Self {
        Self {
            down,
            ..self.clone()
        }
    }

    /// The name vLLM looks for: without the blank in the block shape. vLLM has neither `_down` nor
    /// `per_channel_quant`.
    pub fn of_vllm(&self) -> String {
        self.to_string().replace(", ", ",")
    }

    /// Whether some FP8, INT8 or INT4 layer makes the runtime look for such a name.
    pub fn is_asked_for(&self) -> bool {
        let (block, channel) = (self.block_shape.is_some(), self.per_channel);
        let sizes = self.experts > 0 && self.n > 0;
        let kind = match self.dtype.as_deref() {
            // Weights that are not quantised have no scales. The group of int4 weights is one-sided, and left out.
            None | Some("float32" | "int4_w4a16" | "int8_w8a16") => !block && !channel,
            Some("fp8_w8a8" | "int8_w8a8") => !(block && channel),
            Some(_) => false,
        };
        sizes && kind && self.block_shape.is_none_or(|(n, k)| n > 0 && k > 0)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (experts, n, device) = (self.experts, self.n, &self.device_name);
        write!(formatter, "E={experts},N={n},device_name={device}")?;
        if let Some(dtype) = &self.dtype {
            write!(formatter, ",dtype={dtype}")?;
        }
        if let Some((rows, columns)) = self.block_shape {
            write!(formatter, ",block_shape=[{rows}, {columns}]")?;
        }
        if self.per_channel {
            formatter.write_str(",per_channel_quant=True")?;
        }
        formatter.write_str(if self.down { "_down.json" } else { ".json" })
    }
}

impl FromStr for TableName {
    type Err = BadTableName;

    /// Parses a name liberally (with or without blanks after commas); the runtime would only open it if `to_string`
    /// gives the same text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| BadTableName(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<TableName> {
    let stem = text.strip_suffix(".json")?;
    let (stem, down) = match stem.strip_suffix("_down") {
        Some(stem) => (stem, true),
        None => (stem, false),
    };
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let (experts, rest) = stem.strip_prefix("E=")?.split_once(',')?;
    let (n, rest) = rest.trim_start().strip_prefix("N=")?.split_once(',')?;
    let rest = rest.trim_start().strip_prefix("device_name=")?;
    // A device name may contain commas; the next selector ends it.
    let end = ["dtype=", "block_shape=", "per_channel_quant="]
        .iter()
        .flat_map(|selector| [format!(",{selector}"), format!(", {selector}")])
        .filter_map(|selector| rest.find(&selector))
        .min()
        .unwrap_or(rest.len());
    let mut name = TableName {
        experts: number(experts)?,
        n: number(n)?,
        device_name: rest.get(..end)?.to_owned(),
        dtype: None,
        block_shape: None,
        per_channel: false,
        down,
    };
    let mut rest = rest.get(end..)?;
    while let Some(selector) = rest.strip_prefix(',').map(str::trim_start) {
        if let Some(list) = selector.strip_prefix("block_shape=[") {
            let (list, after) = list.split_once(']')?;
            let (rows, columns) = list.split_once(',')?;
            name.block_shape = Some((number(rows)?, number(columns)?));
            rest = after;
        } else {
            let end = selector.find(',').unwrap_or(selector.len());
            let (key, value) = selector.get(..end)?.split_once('=')?;
            match (key, value) {
                ("dtype", dtype) if !dtype.is_empty() => name.dtype = Some(dtype.to_owned()),
                ("per_channel_quant", "True") => name.per_channel = true,
                _ => return None,
            }
            rest = selector.get(end..)?;
        }
    }
    rest.is_empty().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_is_shipped_reads_back_as_it_is_spelled() {
        for name in [
            "E=256,N=256,device_name=NVIDIA_H20,dtype=fp8_w8a8,block_shape=[128, 128]_down.json",
            "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
            "E=160,N=192,device_name=NVIDIA_H20-3e,dtype=fp8_w8a8,per_channel_quant=True.json",
            "E=192,N=192,device_name=NVIDIA_H20_down.json",
            "E=64,N=896,device_name=Intel(R)_Arc(TM)_Pro_B60_Graphics.json",
            "E=8,N=7168,device_name=NVIDIA_A100-SXM4-80GB,dtype=int8_w8a16.json",
            "E=384,N=128,device_name=,dtype=int4_w4a16_down.json",
        ] {
            let parsed: TableName = name.parse().unwrap();
            assert_eq!(parsed.to_string(), name);
            assert_eq!(parsed.down, name.contains("_down"), "{name}");
            assert!(parsed.is_asked_for(), "{name}");
        }
    }

    #[test]
    fn vllms_spelling_is_read_and_is_not_sglangs() {
        let vllm = "E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json";
        let parsed: TableName = vllm.parse().unwrap();
        assert_eq!(parsed.of_vllm(), vllm);
        assert_eq!(parsed.to_string(), vllm.replace("128,128", "128, 128"));
    }

    #[test]
    fn no_layer_asks_for_a_scale_block_of_weights_without_scales() {
        let asked = |selectors: &str| {
            let name = format!("E=256,N=128,device_name=NVIDIA_H20{selectors}.json");
            name.parse::<TableName>().unwrap().is_asked_for()
        };
        assert!(!asked(",block_shape=[128, 128]"), "SGLang ships one");
        assert!(!asked(",dtype=int4_w4a16,block_shape=[128, 128]"));
        assert!(!asked(
            ",dtype=fp8_w8a8,block_shape=[128, 128],per_channel_quant=True"
        ));
        assert!(!asked(",dtype=fp8_w8a8,block_shape=[0, 128]"));
        assert!(!asked(",dtype=fp8"));
        assert!(asked(",dtype=int8_w8a8,block_shape=[128, 128]"));
    }

    #[test]
    fn what_is_no_name_of_a_table_is_refused_without_a_panic() {
        for text in [
            "",
            "E=1.json",
            "E=1,N=2.json",
            "E=x,N=2,device_name=A.json",
            "E=1,N=2,device_name=A,dtype=.json",
            "E=1,N=2,device_name=A,block_shape=[1].json",
            "E=1,N=2,device_name=A,block_shape=[1, 2.json",
            "E=1,N=2,device_name=A,dtype=b,c.json",
            "E=1,N=2,device_name=A,per_channel_quant=False.json",
            "E=896,topk=16,device_name=NVIDIA_GB300.json",
            "N=1,K=2,device_name=A,dtype=fp8_w8a8.json",
            "E=1,N=2,device_name=A_down",
            "E=é,N=2,device_name=é,dtype=é",
        ] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
    }
}
