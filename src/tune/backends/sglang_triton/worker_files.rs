//! The GPU worker: Python files of `python/gpu_worker/`, embedded in the binary.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use crate::store::file::write_atomic;

/// Name of the folder with the files, which the interpreter runs.
const FOLDER: &str = "gpu_worker";

const FILES: [(&str, &str); 52] = {
    macro_rules! embedded {
        ($($name:literal),* $(,)?) => {
            [$(($name, include_str!(concat!("../../../../python/gpu_worker/", $name)))),*]
        };
    }
    embedded![
        "__init__.py",
        "__main__.py",
        "ahead.py",
        "aiter/__init__.py",
        "aiter/compiling.py",
        "aiter/launching.py",
        "aiter/plan.py",
        "aiter/tree.py",
        "bench.py",
        "channel.py",
        "command.py",
        "compile_child.py",
        "compilers.py",
        "device.py",
        "families/__init__.py",
        "families/cublaslt.py",
        "families/cutlass.py",
        "families/deepgemm.py",
        "families/flashinfer_sm90.py",
        "families/launch.py",
        "families/nvrtc.py",
        "families/stream.cu",
        "families/stream.py",
        "families/stream_wg.cu",
        "families/stream_wg.py",
        "fault_kernel.py",
        "faults.py",
        "idle.py",
        "launch.py",
        "launchers.py",
        "moe/__init__.py",
        "moe/bench.py",
        "moe/compiling.py",
        "moe/lift.py",
        "moe/operands.py",
        "moe/plan.py",
        "moe/problem.py",
        "moe/routing.py",
        "moe/serving.py",
        "moe/whole.py",
        "numerics.py",
        "offline.py",
        "operands.py",
        "own_kernel.py",
        "plan.py",
        "rotation.py",
        "serve.py",
        "software.py",
        "timing.py",
        "tree.py",
        "turns.py",
        "warm_up.py",
    ]
};

/// Writes the worker to `folder` and returns the path to run with the interpreter, which is absolute: with a
/// launcher, the worker starts on another host that sees the same folder.
pub fn write(folder: &Utf8Path) -> io::Result<Utf8PathBuf> {
    let worker = folder.join(FOLDER);
    for folder in ["aiter", "families", "moe"] {
        fs_err::create_dir_all(worker.join(folder))?;
    }
    for (name, text) in FILES {
        let path = worker.join(name);
        // Not touched if equal, because a worker of another run may be importing it.
        if !fs_err::read(&path).is_ok_and(|present| present == text.as_bytes()) {
            write_atomic(&path, text.as_bytes())?;
        }
    }
    worker.canonicalize_utf8()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_worker_is_embedded() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/python/gpu_worker");
        let mut there: Vec<String> = ["", "aiter/", "families/", "moe/"]
            .iter()
            .flat_map(|folder| {
                let entries = fs_err::read_dir(format!("{source}/{folder}")).unwrap();
                entries.map(move |entry| {
                    format!("{folder}{}", entry.unwrap().file_name().to_str().unwrap())
                })
            })
            .filter(|name| matches!(Utf8Path::new(name).extension(), Some("py" | "cu")))
            .collect();
        there.sort();
        assert_eq!(there, FILES.map(|(name, _)| name.to_owned()));
    }
}
