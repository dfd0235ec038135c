//! Which server and which kernels a configuration names.

use std::sync::Arc;

use crate::engine::ports::{Backend, FusedMoeKernels};
use crate::kernel;
use crate::proc::Keeper;
use crate::run::error::{Error, ErrorKind};
use crate::server;
use crate::server::sglang::Site;
use crate::workload::config::{self, BackendKind};

/// The backend of a configuration.
pub fn of(config: &config::Config, keeper: &Keeper) -> Result<Backend, Error> {
    Ok(match config.backend.kind {
        BackendKind::Reference => {
            let kernels = kernel::reference::Reference::new(config, keeper);
            Backend {
                server: Arc::new(server::reference::Reference),
                kernels: Some(Arc::new(kernels)),
                fused_moe: None,
            }
        }
        #[cfg(test)]
        BackendKind::Toy => Backend {
            server: Arc::new(server::toy::Toy),
            kernels: Some(Arc::new(kernel::toy::Toy)),
            fused_moe: None,
        },
        BackendKind::SglangTriton => {
            let site = Arc::new(Site::new(config, keeper)?);
            Backend {
                server: site.clone(),
                fused_moe: beside(config, &site),
                kernels: Some(Arc::new(kernel::sglang_triton::SglangTriton::new(site))),
            }
        }
        BackendKind::SglangFamilies => {
            let site = Arc::new(Site::new(config, keeper)?);
            Backend {
                server: site.clone(),
                fused_moe: beside(config, &site),
                kernels: Some(Arc::new(kernel::sglang_families::SglangFamilies::new(site))),
            }
        }
        BackendKind::SglangMoe => {
            if config.backend.table.is_some() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "`run --table` judges no table of fused MoE",
                )
                .hint("leave `--table` out: a race of its sizes takes minutes"));
            }
            let site = Arc::new(Site::new(config, keeper)?);
            Backend {
                server: site.clone(),
                kernels: None,
                fused_moe: Some(Arc::new(kernel::sglang_moe::SglangMoe::new(site, config))),
            }
        }
        BackendKind::AiterTriton => {
            let site = Arc::new(Site::new(config, keeper)?);
            Backend {
                server: site.clone(),
                kernels: Some(Arc::new(kernel::aiter_triton::AiterTriton::new(
                    site, config,
                ))),
                fused_moe: None,
            }
        }
        BackendKind::Aiter => {
            let site = Arc::new(Site::new(config, keeper)?);
            let aiter = Arc::new(kernel::aiter::Aiter::new(site.clone(), config));
            let experts = || -> Arc<dyn FusedMoeKernels> {
                Arc::new(kernel::aiter::AiterMoe::new(aiter.clone()))
            };
            Backend {
                server: site,
                fused_moe: config.tunes_fused_moe().then(experts),
                kernels: Some(aiter),
            }
        }
    })
}

/// SGLang's Triton kernels for the fused MoE, if they should be tuned beside the dense GEMMs.
fn beside(config: &config::Config, site: &Arc<Site>) -> Option<Arc<dyn FusedMoeKernels>> {
    config.tunes_fused_moe().then(|| {
        Arc::new(kernel::sglang_moe::SglangMoe::new(site.clone(), config))
            as Arc<dyn FusedMoeKernels>
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use camino::{Utf8Path, Utf8PathBuf};

    use super::*;
    use crate::engine::{Engine, Finish, Surroundings};
    use crate::proc::{Interrupt, keeper};
    use crate::run::documents::{Document as _, Verified};
    use crate::run::event::Notice;
    use crate::run::stage::Stage;
    use crate::server::toy;
    use crate::store::run_dir::RunDir;
    use crate::workload::config::Config;

    /// Where the script of `keeper_of_tests` leaves its arguments, a line each.
    const ARGUMENTS: &str = "GEMMTUNE_TOY_KEEPER";

    /// gemmtune's keeper is a subcommand of its program. Here this test binary is it, behind a script that hands the arguments on.
    fn keeper_of_tests(folder: &Utf8Path) -> Keeper {
        let script = folder.join("keeper");
        let program = std::env::current_exe().unwrap();
        let text = format!(
            "#!/bin/sh\n{ARGUMENTS}=$(printf '%s\\n' \"$@\")\nexport {ARGUMENTS}\n\
             exec '{}' --exact --ignored --nocapture backend::tests::keep\n",
            program.display()
        );
        crate::store::file::write_atomic(&script, text.as_bytes()).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs_err::set_permissions(&script, executable).unwrap();
        Keeper::new(script)
    }

    #[test]
    #[ignore = "the keeper of the test below"]
    #[expect(
        clippy::disallowed_methods,
        reason = "a process of its own, which is told what to keep"
    )]
    fn keep() {
        let arguments = std::env::var(ARGUMENTS).unwrap();
        let arguments: Vec<&str> = arguments.lines().collect();
        let (options, command) =
            arguments.split_at(arguments.iter().position(|word| *word == "--").unwrap());
        let after = |name: &str| -> u64 {
            let at = options.iter().position(|word| *word == name).unwrap();
            options[at + 1].parse().unwrap()
        };
        let command: Vec<String> = command[1..].iter().map(ToString::to_string).collect();
        let grace = Duration::from_millis(after("--grace-ms"));
        let (_, error) = keeper::keep(after("--lifeline-fd") as u32, grace, false, &command);
        assert!(error.is_none(), "{error:?}");
    }

    /// Nothing listens on it.
    fn free_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    #[test]
    fn a_server_and_kernels_that_no_other_room_has_heard_of_go_through_the_loop() {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        let run = RunDir::create(&folder, "toy", jiff::Timestamp::now()).unwrap();
        let port = free_port();
        let config = format!(
            "[workload]\nname = \"toy\"\n\
             [server]\ncommand = {:?}\nport = {port}\nenv = {{ {} = \"{port}\" }}\n\
             [benchmark]\nbuiltin = {{ concurrency = 1, prompts = 2, input_len = 8, output_len = 2 }}\n\
             [backend]\nkind = \"toy\"\n[compare]\npairs = 1\n",
            toy::command(),
            toy::PORT
        );
        let mut told = Vec::new();
        let mut observer = |notice: &Notice| told.push(format!("{notice:?}"));
        let with = Surroundings {
            backend: of,
            keeper: keeper_of_tests(&folder),
            interrupt: Interrupt::new(),
            observer: &mut observer,
            command: "a test".to_owned(),
        };
        let mut engine = Engine::begin(run.clone(), Config::parse(&config).unwrap(), with).unwrap();
        let finish = engine
            .run(Stage::Report)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(finish, Finish::Complete);
        for stage in Stage::ALL {
            assert!(engine.state().has_finished(stage), "{stage:?}");
        }

        // What served was the row that was deployed, and after an undo none is.
        let read = |path: Utf8PathBuf| fs_err::read_to_string(path).unwrap();
        let verified: Verified = serde_json::from_str(&read(Verified::path(&run))).unwrap();
        let engagement = verified.engagement;
        assert_eq!((engagement.hit, engagement.looked_up()), (1, 1));
        let report: serde_json::Value =
            serde_json::from_str(&read(run.path().join("report.json"))).unwrap();
        assert_eq!(report["comparison"]["pairs"], 1, "{report}");
        let table = run.deploy().join("a9w9_toy_tuned_gemm.csv");
        assert!(table.is_file());
        engine.undo("the test is over").unwrap();
        assert!(!table.exists());
    }
}
