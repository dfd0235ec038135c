//! From a GEMM's shape to the kernel that runs it, with aiter's log lines.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::device::{Device, GemmError, split_k_fits};
use crate::fp8::{Bf16, QuantActivation, QuantWeight};
use crate::kernels::{self, Kernel};
use crate::measure::Dims;
use crate::table::{LIBTYPE, Row, Table, TableError};

/// Takes one log line, without its line end.
pub type LogSink = dyn Fn(&str) + Send + Sync;

/// A GEMM cannot be dispatched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DispatchError {
    /// The table cannot be read. Said anew for every GEMM.
    #[error("{0}")]
    Table(String),
    /// A row names a library that this runtime does not have.
    #[error("dispatch M={} N={} K={}: unsupported libtype `{libtype}`", .dims.m, .dims.n, .dims.k)]
    Libtype {
        /// The shape.
        dims: Dims,
        /// What the row says.
        libtype: String,
    },
    /// A row names a kernel that this runtime does not have.
    #[error(
        "gemm_a8w8_blockscale kernel '{kernel}' is not present in the compiled registry. The tuned CSV references a kernel that was not built into the reference engine for {gfx}."
    )]
    UnknownKernel {
        /// What the row says.
        kernel: String,
        /// The instruction set.
        gfx: &'static str,
    },
    /// The GEMM itself refused.
    #[error(transparent)]
    Gemm(#[from] GemmError),
}

/// What runs for a shape.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Its split-K exponent.
    pub split_k: u32,
    /// The M of the row that chose it; none when no row did.
    pub padded_m: Option<u64>,
}

enum State {
    Unread,
    Read(Option<Table>),
    Broken(String),
}

struct Inner {
    state: State,
    choices: HashMap<Dims, Result<Choice, DispatchError>>,
}

/// Looks shapes up in a table and runs what it finds.
///
/// The table is read at the first look-up, as aiter reads it at the first GEMM, and never again.
pub struct Dispatcher {
    device: Device,
    path: Option<PathBuf>,
    log_hits: bool,
    sink: Box<LogSink>,
    inner: Mutex<Inner>,
}

impl Dispatcher {
    /// A dispatcher over `path`, if any. `log_hits` is aiter's `AITER_LOG_TUNED_CONFIG`: hits are
    /// logged too; misses always are. Each distinct shape is logged once.
    pub fn new(device: Device, path: Option<PathBuf>, log_hits: bool, sink: Box<LogSink>) -> Self {
        let inner = Inner {
            state: State::Unread,
            choices: HashMap::new(),
        };
        Self {
            device,
            path,
            log_hits,
            sink,
            inner: Mutex::new(inner),
        }
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What runs for a shape.
    pub fn choice(&self, dims: Dims) -> Result<Choice, DispatchError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(choice) = inner.choices.get(&dims) {
            return choice.clone();
        }
        if matches!(inner.state, State::Unread) {
            inner.state = self.read();
        }
        let choice = match &inner.state {
            State::Broken(message) => return Err(DispatchError::Table(message.clone())),
            State::Read(table) => self.find(table.as_ref(), dims),
            State::Unread => unreachable!("read above"),
        };
        inner.choices.insert(dims, choice.clone());
        choice
    }

    /// Runs a GEMM with what [`Self::choice`] says.
    pub fn gemm(
        &self,
        x: &QuantActivation,
        weight: &QuantWeight,
        out: &mut [Bf16],
    ) -> Result<(), DispatchError> {
        let choice = self.choice(Dims {
            m: x.m,
            n: weight.n(),
            k: weight.k(),
        })?;
        Ok(self
            .device
            .gemm(choice.kernel, choice.split_k, x, weight, out)?)
    }

    fn read(&self) -> State {
        let Some(path) = &self.path else {
            return State::Read(None);
        };
        match Table::read(path) {
            Ok(table) => {
                if table.is_without_gfx() {
                    (self.sink)(&format!(
                        "[aiter] {} has no 'gfx' column -- falling back to cu_num-only key. Re-run the tuner or migrate the CSV to add a gfx column.",
                        path.display()
                    ));
                }
                State::Read(Some(table))
            }
            Err(error) => State::Broken(chain(&error)),
        }
    }

    fn find(&self, table: Option<&Table>, dims: Dims) -> Result<Choice, DispatchError> {
        let Dims { m, n, k } = dims;
        let cu_num = self.device.cu_num();
        let file = self.path.as_ref().map_or_else(
            || "(no table)".to_owned(),
            |path| path.display().to_string(),
        );
        let hit = table.and_then(|table| {
            table.find(
                self.device.gfx(),
                u64::from(cu_num),
                m as u64,
                n as u64,
                k as u64,
            )
        });
        let Some(hit) = hit else {
            (self.sink)(&format!(
                "[aiter] shape is M:{m}, N:{n}, K:{k}, not found tuned config in {file}, will use default config!"
            ));
            let kernel = kernels::default_kernel(self.device.isa());
            return Ok(Choice {
                kernel,
                split_k: 0,
                padded_m: None,
            });
        };
        let Row {
            libtype,
            split_k,
            kernel_name,
            ..
        } = hit.row;
        if self.log_hits {
            (self.sink)(&format!(
                "[aiter] shape is M:{m}, N:{n}, K:{k}, found padded_M: {}, N:{n}, K:{k} is tuned on cu_num = {cu_num} in {file} , kernel name is {kernel_name}!",
                hit.padded_m
            ));
        }
        if libtype != LIBTYPE {
            return Err(DispatchError::Libtype {
                dims,
                libtype: libtype.clone(),
            });
        }
        let kernel = kernels::by_name(self.device.isa(), kernel_name).ok_or_else(|| {
            DispatchError::UnknownKernel {
                kernel: kernel_name.clone(),
                gfx: self.device.gfx(),
            }
        })?;
        if !split_k_fits(*split_k, k) {
            return Err(GemmError::SplitK {
                split_k: *split_k,
                k,
            }
            .into());
        }
        Ok(Choice {
            kernel,
            split_k: *split_k,
            padded_m: Some(hit.padded_m),
        })
    }
}

fn chain(error: &TableError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::measure::{Operands, check_call};
    use std::sync::Arc;

    /// The file lives as long as the first part of the result.
    fn dispatcher(rows: &str) -> (tempfile::NamedTempFile, Dispatcher, Arc<Mutex<Vec<String>>>) {
        let text = crate::table::COLUMNS.join(",") + "\n" + rows;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        let (dispatcher, lines) = open(Some(file.path().to_owned()));
        (file, dispatcher, lines)
    }

    fn open(path: Option<PathBuf>) -> (Dispatcher, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let device = Device::with(Isa::best(), 1).unwrap();
        let sink = Box::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
        (Dispatcher::new(device, path, true, sink), lines)
    }

    fn row(m: usize, libtype: &str, split_k: u32, name: &str) -> String {
        format!(
            "{},1,{m},256,256,{libtype},0,{split_k},1.0,{name},0,0,0\n",
            Isa::best().name()
        )
    }

    #[test]
    fn hits_run_the_rows_kernel_and_misses_the_default_each_logged_once() {
        let name = kernels::all()[1].name();
        let (_file, dispatcher, lines) = dispatcher(&row(16, LIBTYPE, 1, name));
        for _ in 0..2 {
            let operands = Operands::seeded(
                Dims {
                    m: 3,
                    n: 256,
                    k: 256,
                },
                1,
            )
            .unwrap();
            let check = check_call(&operands, |out| {
                dispatcher.gemm(&operands.x, operands.weight(0), out)
            });
            assert!(check.unwrap().passes());
            let miss = dispatcher
                .choice(Dims {
                    m: 17,
                    n: 256,
                    k: 256,
                })
                .unwrap();
            assert_eq!(miss.kernel, kernels::default_kernel(Isa::best()));
            assert_eq!(miss.padded_m, None);
        }
        let choice = dispatcher
            .choice(Dims {
                m: 3,
                n: 256,
                k: 256,
            })
            .unwrap();
        assert_eq!(
            (choice.kernel.name(), choice.split_k, choice.padded_m),
            (name, 1, Some(16))
        );
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("[aiter] shape is M:3, N:256, K:256, found padded_M: 16, N:256, K:256 is tuned on cu_num = 1 in "));
        assert!(lines[0].ends_with(&format!(" , kernel name is {name}!")));
        assert!(
            lines[1].starts_with("[aiter] shape is M:17, N:256, K:256, not found tuned config in ")
        );
        assert!(lines[1].ends_with(", will use default config!"));
    }

    #[test]
    fn a_missing_table_is_an_error_at_every_gemm_and_no_table_is_none() {
        let (missing, _) = open(Some("/nonexistent/table.csv".into()));
        for _ in 0..2 {
            let error = missing.choice(Dims { m: 1, n: 1, k: 1 }).unwrap_err();
            assert!(
                error.to_string().contains("/nonexistent/table.csv"),
                "{error}"
            );
        }
        let (none, lines) = open(None);
        assert!(none.choice(Dims { m: 1, n: 1, k: 1 }).is_ok());
        assert!(lines.lock().unwrap()[0].contains("in (no table), will use default config!"));
    }

    #[test]
    fn a_row_that_this_engine_cannot_run_is_an_error_that_names_it() {
        let rows = row(1, "ck", 0, "a")
            + &row(2, LIBTYPE, 0, "b")
            + &row(3, LIBTYPE, 2, kernels::all()[0].name());
        let (_file, dispatcher, _) = dispatcher(&rows);
        let text = |m| {
            dispatcher
                .choice(Dims { m, n: 256, k: 256 })
                .unwrap_err()
                .to_string()
        };
        assert!(text(1).contains("unsupported libtype `ck`"));
        assert!(text(2).contains("kernel 'b' is not present in the compiled registry"));
        assert!(
            text(3).contains("splitK=2"),
            "two blocks cannot be four parts"
        );
    }
}
