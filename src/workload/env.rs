//! The one place of the library that reads the process environment.

use camino::Utf8PathBuf;

/// A variable of our own environment, if it is set and is UTF-8.
#[expect(clippy::disallowed_methods, reason = "this is the module that may")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Our whole environment, without what is not UTF-8.
pub fn all() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The folder we were started in.
pub fn folder() -> std::io::Result<Utf8PathBuf> {
    Utf8PathBuf::try_from(std::env::current_dir()?).map_err(std::io::Error::other)
}

/// Starts of the names of variables that change what a server computes or how fast: SGLang, aiter, the GPU stacks,
/// the communication libraries, and where Python and the loader find things.
const MATTERS: [&str; 26] = [
    "SGLANG_",
    "SGL_",
    "AITER_",
    "HIP_",
    "ROCR_",
    "ROCM_",
    "HSA_",
    "GPU_",
    "CU_NUM",
    "CUDA_",
    "NCCL_",
    "RCCL_",
    "MIOPEN_",
    "TORCH",
    "PYTORCH_",
    "TRITON_",
    "VLLM_",
    "OMP_",
    "MKL_",
    "PYTHON",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "LD_",
    "HF_",
    "TRANSFORMERS_",
    "MORI_",
];

/// Whether a variable can change what a server computes or how fast.
pub fn matters(name: &str) -> bool {
    MATTERS.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_told_from_noise() {
        for name in [
            "SGLANG_USE_AITER",
            "AITER_CONFIG_GEMM_A8W8",
            "HIP_VISIBLE_DEVICES",
            "PYTHONPATH",
            "CU_NUM",
        ] {
            assert!(matters(name), "{name}");
        }
        for name in ["LS_COLORS", "SSH_CONNECTION", "PWD", "SHLVL"] {
            assert!(!matters(name), "{name}");
        }
    }
}
