//! The only place in the library that reads the process environment.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;

/// Changes to an environment: variables set (`Some`) or removed (`None`).
pub type Environment = BTreeMap<String, Option<String>>;

/// A variable of our own environment, if it is set and is UTF-8.
#[expect(clippy::disallowed_methods, reason = "this is the module that may")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Our whole environment, except for values that are not UTF-8.
pub fn all() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The folder in which this process was started.
pub fn folder() -> std::io::Result<Utf8PathBuf> {
    Utf8PathBuf::try_from(std::env::current_dir()?).map_err(std::io::Error::other)
}

/// Prefixes of variables that change what a server computes or how fast: SGLang, aiter, the GPU stacks, the
/// communication libraries, and where Python and the loader search.
const MATTERS: [&str; 43] = [
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
    "PATH",
    "HIPBLAS",
    "HIPCC",
    "SAFETENSORS_",
    "USE_ROCM",
    "DEBUG_HIP",
    "TOKENIZERS_",
    "XDG_CACHE_HOME",
    "MC_",
    "UCX_",
    "NVSHMEM_",
    "FLASHINFER_",
    "DG_",
    "CUTLASS_",
    "ROCBLAS_",
    "AMD_",
    "FLASH_ATTENTION",
];

/// Names of variables that belong to a login, a terminal or a shell, not to a program.
const SESSION: [&str; 40] = [
    "_",
    "SHLVL",
    "PWD",
    "OLDPWD",
    "TERM",
    "COLORTERM",
    "TERM_PROGRAM",
    "TERM_PROGRAM_VERSION",
    "LS_COLORS",
    "LSCOLORS",
    "SSH_CLIENT",
    "SSH_CONNECTION",
    "SSH_TTY",
    "SSH_AUTH_SOCK",
    "LOGNAME",
    "MAIL",
    "HOSTNAME",
    "SHELL",
    "DISPLAY",
    "XAUTHORITY",
    "WINDOWID",
    "TMUX",
    "TMUX_PANE",
    "STY",
    "WINDOW",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "LESS",
    "LESSOPEN",
    "LESSCLOSE",
    "PS1",
    "PS2",
    "PROMPT_COMMAND",
    "CONDA_PROMPT_MODIFIER",
    "VIRTUAL_ENV_PROMPT",
    "HISTFILE",
    "HISTSIZE",
    "GEMMTUNE_KEEPER",
    "which_declare",
];

/// Prefixes of such names, including those of functions that bash exports.
const OF_A_SESSION: [&str; 6] = [
    "BASH_FUNC_",
    "XDG_SESSION",
    "DBUS_SESSION",
    "VSCODE_",
    "LC_TERMINAL",
    "HIST",
];

/// Whether a variable belongs to a login, a terminal or a shell: no server reads it.
pub fn is_of_a_session(name: &str) -> bool {
    SESSION.contains(&name) || OF_A_SESSION.iter().any(|start| name.starts_with(start))
}

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
        assert!(is_of_a_session("SSH_CONNECTION") && is_of_a_session("BASH_FUNC_module%%"));
        assert!(!is_of_a_session("PATH") && !is_of_a_session("HOME"));
        for name in ["LS_COLORS", "SSH_CONNECTION", "PWD", "SHLVL"] {
            assert!(!matters(name), "{name}");
        }
    }
}
