//! A trace of torch.profiler, read as a stream: files hold millions of events, of which kernels, step spans and graph
//! launches are kept.
//!
//! The format is Chrome's: an object with `traceEvents`, or the array alone. An event has `ph` ("X": with a
//! duration), `cat`, `name`, `pid`, `tid`, `ts` and `dur` in µs, and `args`. Types are not relied on: a field of
//! another type counts as absent, and text that is not JSON is an error.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, BufReader, Read as _};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::log::input;

/// A trace larger than this when unpacked does not hold a few steps: 16 times the largest that SGLang's own guide
/// mentions.
const MOST_BYTES: u64 = 8 << 30;

/// Most kernels kept: ten thousand steps of a thousand kernels each.
const MOST_KERNELS: usize = 10_000_000;

/// Most names kept; a server runs a few hundred kernels.
const MOST_NAMES: usize = 100_000;

/// No valid clock reads this many µs: three thousand years since 1970.
const LATEST: f64 = 1e17;

/// Bytes of a name that are kept: templates of CUTLASS reach a few thousand.
const LONGEST_NAME: usize = 8192;

/// A trace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It cannot be opened or unpacked.
    #[error("read the trace `{path}`")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is cut off.
    #[error("read the trace `{path}`: it ends early, so it was cut off or is still being written")]
    Torn { path: Utf8PathBuf },
    /// It is not JSON, or not in this format.
    #[error("read the trace `{path}`")]
    Form {
        path: Utf8PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// It has more than a profile of a few steps can have.
    #[error("read the trace `{path}`: it has more than {most}")]
    TooLarge {
        path: Utf8PathBuf,
        /// What exceeds its limit.
        most: String,
    },
    /// Nothing ran on a device, as in a trace of the CPU alone.
    #[error(
        "use the trace `{0}`: it holds no GPU kernels, so it was recorded without the activity \"GPU\", or nothing was served meanwhile"
    )]
    NoKernels(Utf8PathBuf),
}

/// A run of a kernel, a copy or a fill on the device. Times are µs on the trace's clock.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kernel {
    pub(super) start: f64,
    pub(super) end: f64,
    /// Index of its name in the trace.
    pub(super) name: u32,
    /// The launch it belongs to; all kernels of a graph have the same.
    pub(super) correlation: u64,
}

/// A named span on a stream: a `record_function` around launches, as seen on the device.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) start: f64,
    pub(super) end: f64,
    pub(super) label: String,
    pub(super) stream: String,
    /// The `record_function` it belongs to; there is a copy on each stream that it launched on.
    pub(super) record: Option<u64>,
}

/// One device of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Device {
    /// Its identifier in the trace (`pid`).
    pub(super) id: String,
    /// Kernels, copies and fills, by start.
    pub(super) kernels: Vec<Kernel>,
    /// Spans of steps, by start.
    pub(super) spans: Vec<Span>,
}

/// What is kept of a trace: kernels, step spans and graph launches by device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    pub(super) names: Vec<String>,
    /// Devices that ran something.
    pub(super) devices: Vec<Device>,
    /// Correlations of graph launches.
    pub(super) graphs: BTreeSet<u64>,
    /// Name of the device.
    pub(super) device_name: Option<String>,
    /// The process's rank among all, where the trace records it.
    pub(super) rank: Option<u64>,
}

/// Reads the trace at `path`, compressed or not.
pub fn read(path: &Utf8Path) -> Result<Trace, ProfileError> {
    let failed = |source| ProfileError::Read {
        path: path.to_owned(),
        source,
    };
    let torn = || ProfileError::Torn {
        path: path.to_owned(),
    };
    // Decompression reads ahead, so for a file of a few bytes truncation shows here.
    let input = input::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => torn(),
        _ => failed(error),
    })?;
    let mut input = BufReader::with_capacity(1 << 20, input.take(MOST_BYTES));
    let read = serde_json::from_reader::<_, Document>(&mut input);
    let document = match read {
        Ok(document) => document,
        Err(_) if input.get_ref().limit() == 0 => {
            return Err(ProfileError::TooLarge {
                path: path.to_owned(),
                most: format!("{} GiB", MOST_BYTES >> 30),
            });
        }
        Err(error) if is_cut(&error) => return Err(torn()),
        Err(source) if source.is_io() => return Err(failed(source.into())),
        Err(source) => {
            return Err(ProfileError::Form {
                path: path.to_owned(),
                source,
            });
        }
    };
    if let Some(most) = document.reading.beyond {
        return Err(ProfileError::TooLarge {
            path: path.to_owned(),
            most: most.to_owned(),
        });
    }
    let trace = document.into_trace();
    if trace.devices.is_empty() {
        return Err(ProfileError::NoKernels(path.to_owned()));
    }
    Ok(trace)
}

fn is_cut(error: &serde_json::Error) -> bool {
    error.is_eof() || error.io_error_kind() == Some(io::ErrorKind::UnexpectedEof)
}

/// The state while reading.
#[derive(Default)]
struct Reading {
    trace: Trace,
    name_of: HashMap<String, u32>,
    device_of: HashMap<String, usize>,
    kept: usize,
    /// What exceeds its limit.
    beyond: Option<&'static str>,
}

impl Reading {
    fn take(&mut self, event: &Event) {
        let Some(kind) = Kind::of(&event.cat) else {
            return;
        };
        match kind {
            Kind::Launch => {
                let is_graph = matches!(
                    event.name.text(),
                    Some("cudaGraphLaunch" | "cuGraphLaunch" | "hipGraphLaunch")
                );
                if is_graph && let Some(correlation) = event.args.correlation.whole() {
                    self.trace.graphs.insert(correlation);
                }
            }
            Kind::Kernel | Kind::Span => {
                let (Some(name), Some(start), Some(length)) =
                    (event.name.text(), event.ts.number(), event.dur.number())
                else {
                    return;
                };
                let end = start + length;
                let is_a_time = |us: f64| us.abs() < LATEST;
                if event.ph.text() != Some("X")
                    || length < 0.0
                    || !is_a_time(start)
                    || !is_a_time(end)
                {
                    return;
                }
                if kind == Kind::Span && !super::steps::is_step(name) {
                    return;
                }
                self.kept += 1;
                if self.kept > MOST_KERNELS {
                    self.beyond = Some("ten million kernels");
                    return;
                }
                let device = self.device(event.pid.label());
                if kind == Kind::Span {
                    self.trace.devices[device].spans.push(Span {
                        start,
                        end,
                        label: cut(name).to_owned(),
                        stream: event.tid.label(),
                        record: event.args.external.whole().filter(|record| *record > 0),
                    });
                    return;
                }
                let Some(name) = self.name(cut(name)) else {
                    self.beyond = Some("a hundred thousand names of kernels");
                    return;
                };
                self.trace.devices[device].kernels.push(Kernel {
                    start,
                    end,
                    name,
                    correlation: event.args.correlation.whole().unwrap_or(0),
                });
            }
        }
    }

    fn device(&mut self, id: String) -> usize {
        if let Some(&device) = self.device_of.get(&id) {
            return device;
        }
        let device = self.trace.devices.len();
        self.trace.devices.push(Device {
            id: id.clone(),
            ..Device::default()
        });
        self.device_of.insert(id, device);
        device
    }

    fn name(&mut self, name: &str) -> Option<u32> {
        if let Some(&known) = self.name_of.get(name) {
            return Some(known);
        }
        let index = self.trace.names.len();
        if index >= MOST_NAMES {
            return None;
        }
        self.trace.names.push(name.to_owned());
        self.name_of.insert(name.to_owned(), index as u32);
        Some(index as u32)
    }
}

/// `name`, truncated to the longest that is kept.
fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(LONGEST_NAME)]
}

/// The categories that matter; Kineto has spelled them in both cases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kernel,
    Span,
    Launch,
}

impl Kind {
    fn of(category: &Loose) -> Option<Self> {
        match category.text()? {
            "kernel" | "Kernel" | "gpu_memcpy" | "Memcpy" | "gpu_memset" | "Memset" => {
                Some(Self::Kernel)
            }
            "gpu_user_annotation" => Some(Self::Span),
            "cuda_runtime" | "cuda_driver" | "Runtime" => Some(Self::Launch),
            _ => None,
        }
    }
}

/// Deserialises a document into a trace.
#[derive(Default)]
struct Document {
    reading: Reading,
}

impl Document {
    fn into_trace(self) -> Trace {
        let mut trace = self.reading.trace;
        trace.devices.retain(|device| !device.kernels.is_empty());
        for device in &mut trace.devices {
            device
                .kernels
                .sort_by(|one, other| one.start.total_cmp(&other.start));
            device
                .spans
                .sort_by(|one, other| one.start.total_cmp(&other.start));
        }
        trace
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Document;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a trace: an object with `traceEvents`, or its array")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut document = Document::default();
                let mut found = false;
                while let Some(key) = map.next_key::<Loose>()? {
                    match key.text() {
                        Some("traceEvents") => {
                            found = true;
                            map.next_value_seed(Events(&mut document.reading))?;
                        }
                        Some("deviceProperties") => {
                            let devices: Vec<Property> = map.next_value()?;
                            let name = devices.first().and_then(|device| device.name.text());
                            document.reading.trace.device_name =
                                name.map(|name| cut(name).to_owned());
                        }
                        Some("distributedInfo") => {
                            let process: Process = map.next_value()?;
                            document.reading.trace.rank = process.rank.whole();
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                if found {
                    Ok(document)
                } else {
                    Err(serde::de::Error::missing_field("traceEvents"))
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Document, A::Error> {
                let mut document = Document::default();
                Events(&mut document.reading).visit_seq(seq)?;
                Ok(document)
            }
        }
        deserializer.deserialize_any(Whole)
    }
}

/// Deserialises events one at a time, so that only what is kept is in memory.
struct Events<'a>(&'a mut Reading);

impl<'de> serde::de::DeserializeSeed<'de> for Events<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Events<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(event) = seq.next_element::<Event>()? {
            if self.0.beyond.is_none() {
                self.0.take(&event);
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Property {
    #[serde(default)]
    name: Loose,
}

#[derive(Deserialize)]
struct Process {
    #[serde(default)]
    rank: Loose,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Event {
    ph: Loose,
    cat: Loose,
    name: Loose,
    pid: Loose,
    tid: Loose,
    ts: Loose,
    dur: Loose,
    args: Args,
}

/// The arguments of an event that are used.
#[derive(Default)]
struct Args {
    correlation: Loose,
    external: Loose,
}

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Args;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Args, A::Error> {
                let mut args = Args::default();
                while let Some(key) = map.next_key::<Loose>()? {
                    match key.text() {
                        Some("correlation") => args.correlation = map.next_value()?,
                        Some("External id") => args.external = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(args)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Args, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Args::default())
            }

            fn visit_str<E>(self, _: &str) -> Result<Args, E> {
                Ok(Args::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<Args, E> {
                Ok(Args::default())
            }

            fn visit_i64<E>(self, _: i64) -> Result<Args, E> {
                Ok(Args::default())
            }

            fn visit_f64<E>(self, _: f64) -> Result<Args, E> {
                Ok(Args::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<Args, E> {
                Ok(Args::default())
            }

            fn visit_unit<E>(self) -> Result<Args, E> {
                Ok(Args::default())
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A value of any type: a number, a text, or something that is ignored.
#[derive(Debug, Default)]
enum Loose {
    Number(f64),
    Text(String),
    #[default]
    Other,
}

impl Loose {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A finite number; some versions quote theirs.
    fn number(&self) -> Option<f64> {
        let number = match self {
            Self::Number(number) => *number,
            Self::Text(text) => text.parse().ok()?,
            Self::Other => return None,
        };
        number.is_finite().then_some(number)
    }

    fn whole(&self) -> Option<u64> {
        self.number()
            .filter(|number| *number >= 0.0)
            .map(|number| number as u64)
    }

    /// The value as a name.
    fn label(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => cut(text).to_owned(),
            Self::Other => String::new(),
        }
    }
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Loose;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }

            fn visit_str<E>(self, text: &str) -> Result<Loose, E> {
                Ok(Loose::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Loose, E> {
                Ok(Loose::Text(text))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Loose, E> {
                Ok(Loose::Number(number as f64))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Loose, E> {
                Ok(Loose::Number(number as f64))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Loose, E> {
                Ok(Loose::Number(number))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Loose, E> {
                Ok(Loose::Other)
            }

            fn visit_unit<E>(self) -> Result<Loose, E> {
                Ok(Loose::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Loose::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Loose::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
