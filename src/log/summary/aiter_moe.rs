//! What record files report about aiter's fused MoE: which calls ran, how often, and the result of each look-up.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{RecordFile, SHAPES_MAX};
use crate::log::record::{AiterMoe, AiterMoeServed, CallKind};
use crate::table::fmoe::requests::untuned_cells;
use crate::table::fmoe::table::UNTUNED;

/// Everything that processes with the overlay recorded.
#[derive(Debug, Default)]
pub struct AiterMoeSummary {
    /// Calls, with graph replays counted.
    pub calls: BTreeMap<AiterMoe, u64>,
    /// The results of each look-up, without duplicates: processes may differ.
    pub served: BTreeMap<AiterMoe, Vec<AiterMoeServed>>,
    captured: BTreeMap<(Option<u32>, AiterMoe), u64>,
    /// Calls of a problem in one captured graph, which is one forward pass; the maximum over all graphs. The tokens
    /// are left out.
    per_graph: BTreeMap<AiterMoe, u64>,
}

impl AiterMoeSummary {
    /// Whether no call was recorded.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Calls of the same weights in one forward pass, as counted in a captured graph.
    pub fn per_forward(&self, call: &AiterMoe) -> Option<u32> {
        let calls = self.per_graph.get(&of_weights(call))?;
        u32::try_from(*calls).ok()
    }

    /// The calls as CSV: the columns of a tuner's input, with the tokens of the forward, and the number of calls.
    pub fn to_csv(&self) -> String {
        let mut text = format!("{},ep,records\n", UNTUNED.join(","));
        for (call, records) in &self.calls {
            let request = &call.request;
            let cells = untuned_cells(&request.problem, request.tokens, request.problem.topk);
            let _ = writeln!(text, "{cells},{},{records}", u8::from(request.ep));
        }
        text
    }

    /// Counts calls; returns how many are left out because there are too many.
    pub(super) fn add_calls(
        &mut self,
        call: AiterMoe,
        kind: CallKind,
        bs: Option<u32>,
        count: u64,
    ) -> u64 {
        match kind {
            CallKind::Eager => self.add(call, count),
            CallKind::Capture => {
                let key = (bs, call);
                if self.captured.len() >= SHAPES_MAX && !self.captured.contains_key(&key) {
                    return count;
                }
                let sum = self.captured.entry(key).or_default();
                *sum = sum.saturating_add(count);
                0
            }
            CallKind::Warmup => 0,
        }
    }

    fn add(&mut self, call: AiterMoe, count: u64) -> u64 {
        if self.calls.len() >= SHAPES_MAX && !self.calls.contains_key(&call) {
            return count;
        }
        let sum = self.calls.entry(call).or_default();
        *sum = sum.saturating_add(count);
        0
    }

    pub(super) fn add_served(&mut self, call: AiterMoe, served: AiterMoeServed) {
        if self.served.len() >= SHAPES_MAX && !self.served.contains_key(&call) {
            return;
        }
        let answers = self.served.entry(call).or_default();
        if !answers.contains(&served) {
            answers.push(served);
        }
    }

    /// Ends a record file: captured calls are multiplied by the replays of their graph.
    pub(super) fn end_record_file(&mut self, file: &RecordFile) {
        for ((bs, call), count) in std::mem::take(&mut self.captured) {
            if bs.is_some() {
                let most = self.per_graph.entry(of_weights(&call)).or_default();
                *most = count.max(*most);
            }
            self.add(call, file.calls(bs, count));
        }
    }
}

fn of_weights(call: &AiterMoe) -> AiterMoe {
    let mut call = call.clone();
    call.request.tokens = 0;
    call
}

#[cfg(test)]
mod tests {
    use crate::log::LogSummary;
    use crate::log::scan::{Lines, scan};

    #[test]
    fn replays_are_the_weights_of_captured_calls_and_every_answer_is_kept() {
        let problem = r#""model_dim":7168,"inter_dim":256,"expert":257,"topk":9,"act_type":"Silu","dtype":"torch.bfloat16","q_dtype_a":"torch.float8_e4m3fnuz","q_dtype_w":"torch.float8_e4m3fnuz","q_type":"per_1x128","use_g1u1":true,"doweight_stage1":false,"experts_of_all":null,"is_shuffled":false"#;
        let calls = |m: u32, kind: &str, bs: &str, count: u32| {
            format!(
                r#"{{"fused_moe":"fused_moe_aiter","M":{m},{problem},"kind":"{kind}","bs":{bs},"count":{count}}}"#
            )
        };
        let served = |kernel: &str| {
            format!(
                r#"{{"served_aiter_moe":{{"M":4,{problem},"one_stage":true,"kernels":["{kernel}",""],"block_m":32,"table":"/t.csv"}}}}"#
            )
        };
        let lines = [
            r#"{"gemmtune":"hello","pid":1,"rank":0,"world":1,"version":1}"#.to_owned(),
            calls(4, "warmup", "null", 9),
            calls(4, "capture", "7", 58),
            calls(100, "eager", "null", 58),
            r#"{"replay":7,"tokens":4,"count":10}"#.to_owned(),
            served("a"),
            served("a"),
            served("b"),
        ];
        let mut summary = LogSummary::default();
        let text = lines.join("\n") + "\n";
        scan(text.as_bytes(), "records", Lines::Count, &mut summary).unwrap();
        let moe = &summary.aiter_moe;
        let counted: Vec<_> = moe
            .calls
            .iter()
            .map(|(call, n)| (call.request.tokens, *n))
            .collect();
        assert_eq!(counted, [(4, 580), (100, 58)]);
        let (call, answers) = moe.served.first_key_value().unwrap();
        assert_eq!((moe.per_forward(call), answers.len()), (Some(58), 2));
        let csv = moe.to_csv();
        let read = crate::table::fmoe::requests::read(csv.as_bytes()).unwrap();
        let read: Vec<_> = read
            .iter()
            .map(|one| (one.request.tokens, one.records))
            .collect();
        assert_eq!(read, counted, "{csv}");
        assert_eq!(summary.malformed, 0);
    }
}
