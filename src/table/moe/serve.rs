//! Which rows a server uses for its up and its down projection.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value};

use super::default::{Layer, default_config};
use super::folders::{Found, Tables};
use super::name::TableName;
use super::release::{Mismatch, Release};
use crate::store::file;
use crate::table::nearest;
use crate::table::sglang_json::{Config, ConfigError, Params};

/// The server that looks a table up.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// SGLang's release.
    pub release: Release,
    /// `triton.__version__` of its interpreter.
    pub triton: &'a str,
}

/// Where a projection's row comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From a table.
    File {
        path: Utf8PathBuf,
        /// The Triton version whose folder it is in, if that is not the running one.
        other_triton: Option<String>,
    },
    /// There is no table of the down projection: the up projection's row serves both.
    UpRow,
    /// There is no table.
    Default,
}

/// The row of one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Where it comes from.
    pub source: Source,
    /// The key nearest to M; of two equally near the first in the file.
    pub key: Option<i64>,
    /// 1-based line of that key.
    pub line: Option<u64>,
    /// The parameters that the kernel is launched with.
    pub config: Map<String, Value>,
}

impl Chosen {
    /// A numeric parameter of the configuration.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.config.get(name).and_then(Value::as_i64)
    }
}

/// The rows for one forward pass, and whether they work.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// The up projection's row.
    pub up: Chosen,
    /// The down projection's row, as it is launched.
    pub down: Chosen,
    /// `BLOCK_SIZE_M` of the down row in its file, if the up row's replaces it.
    pub overridden: Option<i64>,
    /// The exception the runtime raises, if it does.
    pub raises: Option<String>,
    /// Why the kernel computes wrong numbers, if it does.
    pub wrong: Option<String>,
}

/// Why a table cannot be read as the runtime reads it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file cannot be read.
    #[error("read the table")]
    Read(#[from] std::io::Error),
    /// It is not a JSON object: Python's parser raises.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The search, or loading the file, raises.
    #[error("{0}")]
    Raises(String),
}

/// The tables as a server process has them; those of both projections are read once.
#[derive(Clone, Debug)]
pub struct Pair {
    name: TableName,
    release: Release,
    up: Option<(Source, Config)>,
    down: Option<(Source, Config)>,
}

impl Pair {
    /// Finds and reads the tables of the up and the down projection of `name`.
    pub fn find(tables: &Tables, name: &TableName, server: Server<'_>) -> Result<Self, ServeError> {
        let table = |down: bool| -> Result<Option<(Source, Config)>, ServeError> {
            let mut name = name.with_down(down);
            name.per_channel &= server.release.names_channels();
            let found = tables
                .search(&name, server.release, server.triton)
                .map_err(|error| ServeError::Raises(error.to_string()))?;
            let other_triton = match &found {
                Found::OtherTriton { triton, .. } => Some(triton.clone()),
                _ => None,
            };
            let Some(path) = found.path() else {
                return Ok(None);
            };
            let config = read(path)?;
            // An empty table is false in Python: the default runs.
            let source = Source::File {
                path: path.to_owned(),
                other_triton,
            };
            Ok((!config.entries.is_empty()).then_some((source, config)))
        };
        Ok(Self {
            name: name.with_down(false),
            release: server.release,
            up: table(false)?,
            down: table(true)?,
        })
    }

    /// The tables that are read: up, then down.
    pub fn sources(&self) -> [Option<&Source>; 2] {
        [self.up.as_ref(), self.down.as_ref()].map(|table| table.map(|(source, _)| source))
    }

    /// The rows that serve a forward of `tokens`.
    pub fn serve(&self, tokens: u32) -> Result<Served, ServeError> {
        let m = self.release.looked_up_m(tokens);
        let up = match &self.up {
            Some((source, config)) => row(source.clone(), config, m)?,
            None => Chosen {
                source: Source::Default,
                key: None,
                line: None,
                config: default_config(self.layer(), m, &self.name.device_name, self.release),
            },
        };
        let mut down = match &self.down {
            Some((source, config)) => row(source.clone(), config, m)?,
            None if up.source == Source::Default => up.clone(),
            None => Chosen {
                source: Source::UpRow,
                ..up.clone()
            },
        };
        let (mut raises, mut overridden) = (None, None);
        let [of_up, of_down] = [&up, &down].map(|row| row.number("BLOCK_SIZE_M"));
        if of_up != of_down {
            match self.release.mismatch() {
                Mismatch::Raises => {
                    raises = Some(format!(
                        "an AssertionError: BLOCK_SIZE_M is {} in the up row and {} in the down row",
                        shown(of_up),
                        shown(of_down)
                    ));
                }
                Mismatch::Overridden => {
                    overridden = of_down;
                    down.config.insert("BLOCK_SIZE_M".to_owned(), of_up.into());
                }
            }
        }
        if up.config.contains_key("USE_TMA") && !self.release.takes_tma_of_up_row() {
            raises.get_or_insert_with(|| {
                "an error at the launch: USE_TMA of an up row is taken out from 0.5.18 on only"
                    .to_owned()
            });
        }
        let wrong = [("up", &up), ("down", &down)]
            .into_iter()
            .find_map(|(which, row)| beyond_scale_block(&self.name, row.number("BLOCK_SIZE_K")?).then_some((which, row)))
            .map(|(which, row)| {
                format!(
                    "the {which} row's BLOCK_SIZE_K of {} spans several scale blocks and one scale is used for all",
                    shown(row.number("BLOCK_SIZE_K"))
                )
            });
        Ok(Served {
            up,
            down,
            overridden,
            raises,
            wrong,
        })
    }

    fn layer(&self) -> Layer<'_> {
        Layer {
            experts: self.name.experts,
            dtype: self.name.dtype.as_deref(),
            block_shape: self.name.block_shape,
        }
    }
}

/// Whether a tile of `block_size_k` columns extends beyond one scale block: the kernel loads one vector of scales for
/// each step along K (`offs_ks = k_start // group_k`), so that it would multiply part of the tile by another block's
/// scale.
pub fn beyond_scale_block(name: &TableName, block_size_k: i64) -> bool {
    name.block_shape.is_some_and(|(_, block_k)| {
        let block_k = i64::from(block_k);
        block_size_k > 0 && block_k > 0 && block_k % block_size_k != 0
    })
}

fn shown(number: Option<i64>) -> String {
    number.map_or_else(|| "absent".to_owned(), |number| number.to_string())
}

fn read(path: &Utf8Path) -> Result<Config, ServeError> {
    Ok(Config::read(path.as_str(), &file::read(path)?)?)
}

fn row(source: Source, config: &Config, m: u32) -> Result<Chosen, ServeError> {
    let nearest = nearest::row(config, m).map_err(|error| ServeError::Raises(error.to_string()))?;
    let Some((key, params)) = nearest else {
        return Err(ServeError::Raises("a table without rows".to_owned()));
    };
    let Params::Object(pairs) = params else {
        return Err(ServeError::Raises(
            nearest::Unusable::NoObject(key).to_string(),
        ));
    };
    let line = config
        .entries
        .iter()
        .rev()
        .find(|entry| entry.m == Some(key))
        .map(|entry| entry.line);
    Ok(Chosen {
        source,
        key: Some(key),
        line,
        config: pairs.iter().cloned().collect(),
    })
}
