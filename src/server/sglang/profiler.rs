//! SGLang's own profiler: `/start_profile` and `/stop_profile`, the same in every release from 0.5.5 to 0.5.23.
//!
//! Given a number of steps, the scheduler of each rank runs torch.profiler over that many forward passes and exports
//! `<time>-TP-<rank>.trace.json.gz`; it responds once the profiler runs, and serves no requests while it exports.
//! Stages are not recorded separately (`profile_by_stage`), because then a prefill between decode steps starts a
//! second profiler, which ends the server.

use std::time::Duration;

use camino::Utf8Path;
use serde_json::json;

use super::Site;
use crate::engine::ports::Profiler;
use crate::workload::loopback::agent;

/// Starting it loads the device's tracing library into each rank, which takes seconds the first time.
const START: Duration = Duration::from_secs(60);

/// A stop request is answered once traces are exported.
const STOP: Duration = Duration::from_secs(30);

/// If set, `/start_profile` only accepts stages and ends the scheduler on anything else (0.5.6 on).
const OTHER_PROFILER: &str = "SGLANG_PROFILE_V2";

/// Most characters of a response that a remark quotes.
const QUOTED: usize = 200;

impl Profiler for Site {
    fn start(&self, base_url: &str, folder: &Utf8Path, steps: u32) -> Result<(), String> {
        let is_set =
            |value: &String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "y");
        if self.variable(OTHER_PROFILER).as_ref().is_some_and(is_set) {
            return Err(format!(
                "{OTHER_PROFILER} is set, with which steps cannot be counted"
            ));
        }
        let order = json!({
            "output_dir": folder,
            "num_steps": steps,
            // The CPU's events name the steps (0.5.11 on); stacks and shapes cost time and are not used.
            "activities": ["CPU", "GPU"],
            "with_stack": false,
            "record_shapes": false,
        });
        let answer = agent(START)
            .post(&format!("{base_url}/start_profile"))
            .header("content-type", "application/json")
            .send(order.to_string().as_bytes());
        match answer {
            Ok(answer) if answer.status() == 200 => Ok(()),
            Ok(mut answer) => {
                let text = answer.body_mut().read_to_string().unwrap_or_default();
                let text: String = text.trim().chars().take(QUOTED).collect();
                Err(format!(
                    "/start_profile answered {}: {text}",
                    answer.status()
                ))
            }
            Err(error) => Err(format!("/start_profile: {error}")),
        }
    }

    fn stop(&self, base_url: &str) {
        // If nothing is being recorded it refuses, which is fine.
        let _ = agent(STOP)
            .post(&format!("{base_url}/stop_profile"))
            .send_empty();
    }
}
