//! Which block-FP8 GEMM the server is told to run, and whether that is what a tuned table reaches.

use super::{BackendKind, Config, Launch, contradiction};
use crate::table::serves;

/// SGLang's option for it and its older name (0.5.5 to 0.5.23, `srt/server_args.py`).
const OPTIONS: [&str; 2] = ["--fp8-gemm-backend", "--fp8-gemm-runner-backend"];

impl Config {
    /// What the server command says with `--fp8-gemm-backend`, as far as its own words or its script's text say it.
    pub fn fp8_backend(&self) -> Option<String> {
        match self.launch().ok()? {
            Launch::Command(command) => contradiction::option(command, &OPTIONS).map(str::to_owned),
            Launch::Script(path) => {
                let text = fs_err::read_to_string(path).ok()?;
                let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
                contradiction::option(&words, &OPTIONS).map(str::to_owned)
            }
        }
    }

    /// Says so where SGLang's Triton tables are to be tuned and the server, told nothing, reads none on `device`.
    pub fn unread_tables(&self, device: &str) -> Option<String> {
        if self.backend.kind != BackendKind::SglangTriton || self.fp8_backend().is_some() {
            return None;
        }
        serves::unread(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: &str, launch: &str) -> Config {
        let text = format!(
            "[workload]\nname = \"w\"\n[server]\n{launch}\n\
             [benchmark]\nbuiltin = {{ concurrency = 1, prompts = 1, input_len = 8, output_len = 8 }}\n\
             [backend]\nkind = \"{kind}\"\npython = \"python3\"\n"
        );
        Config::parse(&text).unwrap()
    }

    #[test]
    fn a_server_that_is_told_nothing_reads_no_table_on_hopper() {
        let silent = "command = [\"python3\", \"-m\", \"sglang.launch_server\"]";
        let told = "command = [\"sglang\", \"serve\", \"--fp8-gemm-backend=triton\"]";
        let said =
            |kind: &str, launch: &str, device: &str| config(kind, launch).unread_tables(device);
        let sentence = said("sglang-triton", silent, "NVIDIA H200").unwrap();
        insta::assert_snapshot!(sentence, @r#"on NVIDIA H200 SGLang runs block-FP8 GEMMs with DeepGEMM unless the server says `--fp8-gemm-backend triton` or cannot import it, and that reads no Triton table; what is tuned there is a route between kernels below it (`backend.kind = "sglang-families"`, `gemmtune tune --backend sglang-families`)"#);
        assert_eq!(said("sglang-triton", told, "NVIDIA H200"), None);
        assert_eq!(said("sglang-triton", silent, "NVIDIA L40S"), None);
        assert_eq!(said("sglang-families", silent, "NVIDIA H200"), None);
    }

    #[test]
    fn the_flag_is_found_in_the_text_of_a_script() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("launch.sh");
        fs_err::write(
            &path,
            "exec python3 -m sglang.launch_server \\\n    --fp8-gemm-runner-backend triton --port 1\n",
        )
        .unwrap();
        let config = config("sglang-triton", &format!("script = {path:?}"));
        assert_eq!(config.fp8_backend().as_deref(), Some("triton"));
    }
}
