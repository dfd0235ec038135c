//! `gemmtune tune --compile-only`, and how a race uses its results.

use camino::Utf8PathBuf;

use super::{BackendArg, TuneArgs, shapes_of, tune_moe};
use crate::cli::printer::Printer;
use crate::problem::Op;
use crate::proc::{Keeper, RunError};
use crate::run::error::{Error, ErrorKind};
use crate::tune::backends::compiled::Compiled;
use crate::tune::compile_only::{self as compiling, CompileError, Kernel, Target};

/// Compiles for a GPU that is not present.
pub(super) fn run(
    args: &TuneArgs,
    target: Target,
    bytes: &[u8],
    printer: &Printer,
) -> Result<(), Error> {
    let (shapes, tasks);
    let kernel = match args.backend {
        BackendArg::SglangTriton => {
            shapes = shapes_of(args, bytes, Op::TritonBlockFp8)?;
            let block = args.block;
            Kernel::SglangTriton {
                shapes: &shapes,
                block,
            }
        }
        BackendArg::SglangMoe => {
            tasks = tune_moe::problems(&args.shapes, bytes, args.block)?;
            let block = args.block;
            Kernel::SglangMoe {
                tasks: &tasks,
                block,
            }
        }
        BackendArg::AiterTriton => {
            shapes = shapes_of(args, bytes, Op::Blockscale)?;
            let root = args.aiter.aiter_root.as_deref();
            Kernel::AiterTriton {
                shapes: &shapes,
                root,
            }
        }
        BackendArg::Reference | BackendArg::SglangFamilies | BackendArg::Aiter => {
            let what = "compile for another GPU: only the candidates of sglang-triton, sglang-moe and aiter-triton can be";
            return Err(Error::new(ErrorKind::Usage, what));
        }
    };
    let keeper = Keeper::this_binary()
        .map_err(|error| Error::to(ErrorKind::Environment, "find this program", error))?;
    let request = compiling::Request {
        target,
        kernel,
        python: &args.python,
        folder: &args.output,
    };
    let report = compiling::run(&request, &keeper, &crate::cli::interrupt()?).map_err(|error| {
        let interrupted = matches!(&error, CompileError::Run(RunError::Interrupted(_)));
        let kind = if interrupted {
            ErrorKind::Interrupted
        } else {
            ErrorKind::Environment
        };
        Error::to(kind, "compile the candidates", error)
            .hint("`--python` names an interpreter that imports Triton; SGLang's kernel is taken from its packages, aiter's from `--aiter-root`")
    })?;
    if printer.is_json() {
        return printer.json(&report);
    }
    printer.say(report.to_text());
    Ok(())
}

/// Earlier compile results: the files named, else those in the output folder.
pub(super) fn before(args: &TuneArgs) -> Result<Vec<Compiled>, Error> {
    let files = if args.compiled.is_empty() {
        Compiled::files_in(&args.output)
    } else {
        args.compiled.clone()
    };
    let read = |file: &Utf8PathBuf| {
        Compiled::read(file).map_err(|error| {
            Error::to(ErrorKind::Usage, &format!("use `{file}`"), error)
                .hint("`gemmtune tune --compile-only` writes such a file")
        })
    };
    files.iter().map(read).collect()
}
