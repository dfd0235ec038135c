//! SGLang as a server: its interpreter and what that imports, the overlay, and whether every rank was instrumented.

mod profiler;

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};

use crate::engine::ports::{Profiler, Server};
use crate::log::summary::LogSummary;
use crate::overlay::{self, OverlayOptions};
use crate::proc::{Interrupt, Keeper};
use crate::run::error::{Error, ErrorKind};
use crate::store::run_dir::RunDir;
use crate::tree::locate::{self, Answer, Entry, Question};
use crate::tree::package::Package;
use crate::tree::version;
use crate::tune::protocol::Device;
use crate::workload::config::{Config, Launch};
use crate::workload::env;
use crate::workload::env::Environment;

/// The module of SGLang that the overlay hooks first: the tree it is loaded from is the tree that serves.
const HOOKED: &str = "sglang.srt.layers.quantization.fp8_utils";

/// An SGLang installation as the configured server would import it.
#[derive(Debug)]
pub(crate) struct Site {
    /// Starts the interpreter.
    pub(crate) keeper: Keeper,
    pub(crate) python: Utf8PathBuf,
    entry: Entry,
    folder: Option<Utf8PathBuf>,
    env: Environment,
    sglang_root: Option<Utf8PathBuf>,
    tp: u32,
    config: Config,
}

impl Site {
    /// The installation that a configuration names.
    pub(crate) fn new(config: &Config, keeper: &Keeper) -> Result<Self, Error> {
        let python = config.backend.python.clone().ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                "the configuration does not say which interpreter runs the server",
            )
            .hint("set `backend.python` in gemmtune.toml")
        })?;
        let server = &config.server;
        let mut env: Environment = server
            .unset
            .iter()
            .map(|name| (name.clone(), None))
            .collect();
        let set = server.env.iter();
        env.extend(set.map(|(name, value)| (name.clone(), Some(value.clone()))));
        Ok(Self {
            keeper: keeper.clone(),
            python,
            entry: entry(config),
            folder: server.cwd.clone(),
            env,
            sglang_root: config.backend.sglang_root.clone(),
            tp: config.workload.tp,
            config: config.clone(),
        })
    }

    /// Runs the interpreter in the server's environment and returns where it imports packages from.
    pub(crate) fn look(&self) -> Result<Answer, Error> {
        let question = Question {
            python: self.python.clone(),
            entry: self.entry,
            folder: self.folder.clone(),
            env: self.env.clone().into_iter().collect(),
        };
        let answer = locate::ask(&self.keeper, &question, &Interrupt::new())
            .map_err(|error| Error::caused(ErrorKind::Environment, &error))?;
        if answer.ignores_environment {
            return Err(Error::new(
                ErrorKind::Environment,
                format!(
                    "`{}` ignores PYTHONPATH (-E or -I), so an overlay cannot work",
                    self.python
                ),
            )
            .hint("start the server without -E and -I"));
        }
        Ok(answer)
    }

    /// The SGLang tree that the interpreter imports; an error unless it is the intended one and a release that can be
    /// tuned.
    pub(crate) fn sglang(&self, answer: &Answer) -> Result<Package, Error> {
        let environment =
            |error: &dyn std::error::Error| Error::caused(ErrorKind::Environment, error);
        let folder = answer
            .folder("sglang")
            .map_err(|error| environment(&error))?;
        if let Some(root) = &self.sglang_root {
            answer
                .imports_from("sglang", root)
                .map_err(|error| environment(&error))?;
        }
        let package = Package::find(folder).map_err(|error| environment(&error))?;
        let known = answer
            .distribution("sglang")
            .map(|distribution| distribution.version.as_str());
        version::served(package.version.as_deref().or(known))
            .map_err(|error| Error::new(ErrorKind::Environment, error.to_string()))?;
        Ok(package)
    }

    /// The value of a variable for the server, before gemmtune adds anything.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        match self.env.get(name) {
            Some(value) => value.clone(),
            None => env::variable(name),
        }
    }

    /// A remark on what makes every server start slower than necessary.
    pub(crate) fn slow_starts(&self) -> Option<String> {
        // 61 to 75 s instead of 42 to 50 s for SGLang 0.5.16 (docs/evidence/sglang-h100, sglang-h200).
        self.variable("PYTHONDONTWRITEBYTECODE")
            .filter(|value| !value.is_empty())
            .map(|_| {
                "PYTHONDONTWRITEBYTECODE is set: modules that were never compiled are compiled again at every server start"
                    .to_owned()
            })
    }

    /// Remarks on the device and on what its server runs.
    pub(crate) fn remarks(&self, device: &Device) -> Vec<String> {
        let several =
            (device.visible > 1).then(|| format!("{} devices are visible", device.visible));
        let unread = self.config.unread_tables(&device.name);
        self.slow_starts()
            .into_iter()
            .chain(several)
            .chain(unread)
            .collect()
    }

    /// The server's environment, relative to our own.
    pub(crate) fn environment(&self) -> &Environment {
        &self.env
    }

    /// Writes the overlay into the run folder, and returns the environment that starts a server with it.
    pub(crate) fn overlay(
        &self,
        run: &RunDir,
        options: &OverlayOptions,
    ) -> Result<Environment, Error> {
        let folder = run.overlay();
        overlay::write(&folder).map_err(|error| Error::file(&error))?;
        let variables = overlay::environment(&folder, options, |name| self.variable(name));
        Ok(variables
            .into_iter()
            .map(|(name, value)| (name, Some(value)))
            .collect())
    }

    /// Refuses records that do not come from every rank, or that come from a tree other than `package`.
    pub(crate) fn check_records(
        &self,
        log_summary: &LogSummary,
        package: &Utf8Path,
    ) -> Result<(), Error> {
        if log_summary.hellos.is_empty() {
            return Err(Error::new(
                ErrorKind::NoShapes,
                "no process of the server loaded the overlay, so nothing was recorded",
            )
            .hint("the launch command must keep the PYTHONPATH it is given (extend it, do not replace it) and start Python without -E, -I or -S"));
        }
        for (module, file) in &log_summary.modules {
            if module == HOOKED {
                locate::ran_from(Utf8Path::new(file), package)
                    .map_err(|error| Error::new(ErrorKind::Environment, error.to_string()))?;
            }
        }
        let ranks: BTreeSet<u32> = log_summary
            .hellos
            .iter()
            .filter_map(|hello| hello.rank)
            .collect();
        let world = log_summary
            .hellos
            .iter()
            .filter_map(|hello| hello.world)
            .max();
        let world = world.unwrap_or(self.tp);
        // A process that never learnt its rank can only be distinguished by a second rank.
        let silent: Vec<String> = (0..world)
            .filter(|rank| !ranks.contains(rank))
            .map(|rank| rank.to_string())
            .collect();
        if silent.is_empty() || (world == 1 && ranks.is_empty()) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoShapes,
            format!(
                "{} of {world} ranks recorded nothing: {}",
                silent.len(),
                silent.join(", ")
            ),
        )
        .hint("every rank needs the same PYTHONPATH; ranks on other hosts need the run folder on a shared path"))
    }
}

impl Server for Site {
    /// Where the server's interpreter looks before its own packages; the variable may be unset.
    fn surroundings(&self) -> BTreeMap<String, String> {
        let path = self.variable("PYTHONPATH").unwrap_or_default();
        BTreeMap::from([("PYTHONPATH".to_owned(), path)])
    }

    fn capture_env(&self, run: &RunDir, records: &Utf8Path) -> Result<Environment, Error> {
        self.overlay(run, &OverlayOptions::capture(records.to_owned()))
    }

    fn check_capture(&self, log_summary: &LogSummary) -> Result<(), Error> {
        let package = self.sglang(&self.look()?)?;
        self.check_records(log_summary, &package.folder)
    }

    fn profiler(&self) -> Option<&dyn Profiler> {
        Some(self)
    }
}

fn entry(config: &Config) -> Entry {
    match config.launch() {
        Ok(Launch::Command(command)) if !command.iter().any(|word| word == "-m") => Entry::Script,
        _ => Entry::Module,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::record::Hello;

    const CONFIG: &str = r#"
[workload]
name = "w"
tp = 2
[server]
command = ["python3", "-m", "sglang.launch_server"]
env = { SGLANG_USE_AITER = "1" }
unset = ["CU_NUM"]
[benchmark]
builtin = { concurrency = 1, prompts = 1, input_len = 8, output_len = 8 }
[backend]
kind = "sglang-triton"
python = "/opt/venv/bin/python3"
"#;

    fn site() -> Site {
        let config = Config::parse(CONFIG).unwrap();
        Site::new(&config, &Keeper::new("/usr/bin/gemmtune".into())).unwrap()
    }

    fn recorded(ranks: &[Option<u32>]) -> LogSummary {
        let mut log_summary = LogSummary::default();
        for (pid, rank) in (1..).zip(ranks) {
            log_summary.hellos.insert(Hello {
                pid,
                rank: *rank,
                world: rank.map(|_| 2),
                version: 1,
            });
        }
        log_summary
    }

    #[test]
    fn every_rank_has_to_have_recorded() {
        let site = site();
        let said = |ranks: &[Option<u32>]| {
            let tree = Utf8Path::new("/opt/sglang");
            let refused = site.check_records(&recorded(ranks), tree).err();
            refused.map(|error| error.to_string())
        };
        assert_eq!(said(&[None, Some(0), Some(1)]), None);
        assert_eq!(
            said(&[None, Some(1)]).unwrap(),
            "1 of 2 ranks recorded nothing: 0"
        );
        assert!(said(&[None]).unwrap().starts_with("2 of 2 ranks"));
        assert!(said(&[]).unwrap().starts_with("no process of the server"));
    }

    #[test]
    fn records_of_another_tree_are_refused() {
        let mut log_summary = recorded(&[Some(0), Some(1)]);
        let file = "/elsewhere/sglang/srt/layers/quantization/fp8_utils.py";
        log_summary
            .modules
            .insert((HOOKED.to_owned(), file.to_owned()));
        let refused = site().check_records(&log_summary, Utf8Path::new("/opt/sglang"));
        assert!(refused.unwrap_err().to_string().contains(file));
    }

    #[test]
    fn the_servers_environment_is_the_configured_one() {
        let site = site();
        assert_eq!(site.variable("SGLANG_USE_AITER").as_deref(), Some("1"));
        assert_eq!(site.environment().get("CU_NUM"), Some(&None));
        assert_eq!(site.entry, Entry::Module);
    }
}
