//! The real tuner of the fused MoE, unmodified, at 303a583c and at the checkout's HEAD: healthy, and through what goes wrong. Its rows are
//! looked up by the tree's own code. Kernels are the stand-ins of `tests/aiter/cpu`.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::workload::env::variable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::fused_moe::{HEADER, call, remarks, tokens};
use crate::real::trees;
use crate::support::{Ran, Site, write};

/// The kernel of the first stage that wins for 8 and 32 tokens where nothing strikes: the fastest by the stand-ins' formula.
const WINNER: &str =
    "moe_ck2stages_gemm1_256x32x128x128_1x4_MulABScaleExpertWeightA8W8blkscale_v1*";

/// Kernels that do both stages.
const ONE_STAGE: &str = "_ZN5aiter*fmoe_bf16*";

/// A call that a CPU can compute: four experts of 256 x 128.
fn small(token: u32) -> String {
    call(token).replace(",7168,256,257,9,", ",256,128,4,2,")
}

struct Case {
    revision: String,
    tree: Utf8PathBuf,
    python: String,
}

/// Both revisions; GEMMTUNE_AITER_ONLY names one.
fn executed() -> Vec<Case> {
    let python = variable("GEMMTUNE_AITER_PYTHON").expect("tests/aiter/run sets it");
    let only = variable("GEMMTUNE_AITER_ONLY");
    let wanted = only.map_or_else(
        || vec!["303a583c".to_owned(), "HEAD".to_owned()],
        |only| vec![only],
    );
    let of = |revision: String| Case {
        tree: trees()[&revision].clone(),
        python: python.clone(),
        revision,
    };
    wanted.into_iter().map(of).collect()
}

impl Case {
    /// Calls of `tokens`, and faults as `kind@kernel:tokens`.
    fn site(&self, tokens: &[u32], faults: &[(&str, &str, u32)]) -> Site {
        let lines: Vec<String> = tokens.iter().map(|token| small(*token)).collect();
        self.site_of(&lines, faults)
    }

    fn site_of(&self, lines: &[String], faults: &[(&str, &str, u32)]) -> Site {
        let site = Site::real(&self.tree, &self.python, &[]);
        let text = format!("{HEADER}\n{}\n", lines.join("\n"));
        write(&site.folder.join("s.csv"), &text);
        let faults: Vec<String> = faults
            .iter()
            .map(|(kind, kernel, token)| format!("{kind}@moe:{kernel}:{token}x*"))
            .collect();
        site.env("CPU_FAULTS", &faults.join(";"))
            // The machine may be busy; nothing is compiled.
            .args(&["--limit", "task=25s", "--limit", "silence=60s"])
            .args(&["--limit", "build=20s"])
    }

    fn is_new(&self) -> bool {
        self.revision == "HEAD"
    }

    /// As `lookup`, `lint` and `merge` call it.
    fn rules(&self) -> &'static str {
        if self.is_new() { "H" } else { "P" }
    }

    /// Tables that the tree ships, merged with the one of `site`, which has precedence.
    fn merged(&self, site: &Site) -> Utf8PathBuf {
        let configs = self.tree.join("aiter/configs");
        let mut tables = vec![
            site.folder.join("out/tuned_fmoe.csv"),
            configs.join("tuned_fmoe.csv"),
        ];
        let models = configs.join("model_configs").read_dir_utf8().unwrap();
        let mut shipped: Vec<Utf8PathBuf> = models
            .map(|entry| entry.unwrap().into_path())
            .filter(|path| path.extension() == Some("csv"))
            .filter(|path| path.as_str().contains("tuned_fmoe"))
            .filter(|path| !path.as_str().contains("untuned"))
            .collect();
        shipped.sort();
        tables.extend(shipped);
        let merged = site.folder.join("merged.csv");
        let mut args: Vec<&str> = tables.iter().map(|path| path.as_str()).collect();
        args.extend(["--revision", self.rules(), "--activation", "Silu"]);
        args.extend(["-o", merged.as_str()]);
        let (code, said) = gemmtune(site, "merge", &args);
        assert_eq!(code, Some(0), "{said}");
        merged
    }

    /// What the tree's own `fused_moe` takes of `table` for `tokens`: its log line's kernels, taken apart by `fmoe/ask.py`.
    fn asked_of_aiter(&self, site: &Site, table: &Utf8Path, tokens: &[u64]) -> Vec<Value> {
        let env = |name: &str| site.env.iter().rev().find(|(known, _)| known == name);
        let value = |name: &str| env(name).unwrap().1.clone();
        let fp8 = if value("GPU_ARCHS") == "gfx942" {
            "torch.float8_e4m3fnuz"
        } else {
            "torch.float8_e4m3fn"
        };
        let questions: Vec<Value> = tokens
            .iter()
            .map(|token| {
                json!({
                    "M": token, "model_dim": 256, "inter_dim": 128, "expert": 4, "topk": 2, "act": "Silu",
                    "dtype": "torch.bfloat16", "q_dtype_w": fp8, "q_type": "per_128x128", "g1u1": true,
                    "doweight": false, "shuffled": true, "ep": false,
                })
            })
            .collect();
        let cu: u32 = value("CU_NUM").parse().unwrap();
        let group = json!({
            "table": table, "gfx": value("GPU_ARCHS"), "cu": cu, "flydsl": false, "bypass": false,
            "questions": questions,
        });
        let script = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/aiter/fmoe/ask.py");
        let mut child = Command::new(&self.python)
            .arg(script)
            .envs(site.env.iter().map(|(name, value)| (name, value)))
            .env("PYTHONPATH", &self.tree)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{group}").unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find(|line| line.starts_with("[{"));
        let error = String::from_utf8_lossy(&output.stderr);
        let line = line.unwrap_or_else(|| panic!("no answer: {text} {error}"));
        serde_json::from_str(line).unwrap()
    }

    /// `site`'s rows hold: `lint` has no finding, `lookup` finds each, and so does aiter in the table merged with what it ships.
    fn rows_are_found(&self, site: &Site, ran: &Ran) {
        let (code, said) = gemmtune(site, "lint", &["out/tuned_fmoe.csv"]);
        assert_eq!(code, Some(0), "{said}");
        let merged = self.merged(site);
        let arch = ran.json["device"]["arch"].as_str().unwrap();
        let units = ran.json["device"]["cu_num"].to_string();
        let card = ["--gfx", arch, "--cu", &units, "--revision", self.rules()];
        for table in ["out/tuned_fmoe.csv", merged.as_str()] {
            let files = ["--json", "--table", table, "--shapes", "s.csv"];
            let (_, said) = gemmtune(site, "lookup", &[&files[..], &card].concat());
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["hits"], ran.list("rows").len(), "{table}: {said}");
        }
        let tokens = tokens(ran, "rows");
        let answers = self.asked_of_aiter(site, &merged, &tokens);
        assert_eq!(answers.len(), tokens.len());
        for (taken, answer) in ran.list("rows").iter().zip(answers) {
            let row = &taken["row"];
            let second = match row["kernelName2"].as_str().unwrap() {
                "" => "nan".to_owned(),
                name => format!("'{name}'"),
            };
            let first = format!("'{}'", row["kernelName1"].as_str().unwrap());
            assert_eq!(answer["kernels"], json!([first, second]), "{answer}");
            let stage = if row["run_1stage"] == "1" {
                "1stage"
            } else {
                "2stage"
            };
            assert_eq!(answer["stage"], stage, "{answer}");
            assert_eq!(answer["xbf16"], row["xbf16"] == "1", "{answer}");
            assert_eq!(
                answer["then"][0].to_string(),
                row["block_m"].as_str().unwrap()
            );
        }
    }

    #[expect(clippy::print_stderr, reason = "the record of what was run")]
    fn told(&self, what: &str, ran: &Ran, began: Instant) {
        eprintln!(
            "{} fused_moe: {what}: exit {}, {} rows, {} failed, {} left out, {} starts, {:.0} s",
            self.revision,
            ran.code.unwrap_or(-1),
            ran.list("rows").len(),
            ran.list("failed").len(),
            ran.list("not_reached").len(),
            ran.json["attempts"],
            began.elapsed().as_secs_f64()
        );
    }
}

fn gemmtune(site: &Site, command: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_gemmtune"));
    let output = program
        .current_dir(&site.folder)
        .arg(command)
        .args(args)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), text.concat())
}

fn row(ran: &Ran, token: u32) -> &Value {
    let of = |one: &&Value| one["shape"]["token"] == token;
    &ran.list("rows").iter().find(of).unwrap()["row"]
}

fn candidates(site: &Site, attempt: &str) -> String {
    fs_err::read_to_string(
        site.folder
            .join(format!("out/attempts/{attempt}/candidates.csv")),
    )
    .unwrap()
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn healthy_calls_become_rows_that_the_trees_own_look_up_finds() {
    for case in executed() {
        let began = Instant::now();
        let site = case.site(&[8, 32, 64], &[]);
        let ran = site.run(&[]);
        case.told("healthy workers", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(tokens(&ran, "rows"), [8, 32, 64]);
        for token in [8, 32, 64] {
            let row = row(&ran, token);
            assert_eq!(
                (&row["err1"], &row["err2"]),
                (&"0.0%".into(), &"0.0%".into())
            );
        }
        // First stages in assembly and of CK, split ones at 303a583c only, second stages, both in one.
        let each = if case.is_new() {
            18 + 10 + 6
        } else {
            12 + 6 + 4
        };
        let all = candidates(&site, "01");
        assert_eq!(all.lines().count(), 1 + each, "{all}");
        assert_eq!(all.contains("blkscaleSplitk"), !case.is_new(), "{all}");
        assert!(!case.tree.join("aiter/configs/profile_fmoe.csv").exists());
        case.rows_are_found(&site, &ran);
        site.nothing_is_left();
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn rows_of_one_stage_of_split_k_and_of_raw_routing_are_taken_kept_and_found() {
    for case in executed() {
        let began = Instant::now();
        let faults = [
            ("us=9", "*_novs_silu_1tg_32x128E", 8),
            ("us=2", "*blkscaleSplitk*", 16),
            ("us=9", "*_flat_pf3E", 16),
        ];
        let site = case.site(&[8, 16], &faults);
        let ran = site.run(&[]);
        case.told("one stage, split K, raw routing", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let one = row(&ran, 8);
        let text = |row: &Value, column: &str| row[column].as_str().unwrap().to_owned();
        assert!(
            text(one, "kernelName1").ends_with("_novs_silu_1tg_32x128E"),
            "{one}"
        );
        let told = [
            "run_1stage",
            "kernelName2",
            "us2",
            "err2",
            "ksplit",
            "block_m",
        ];
        assert_eq!(
            told.map(|column| text(one, column)),
            ["1", "", "0.0", "0.0%", "0", "32"]
        );
        let other = row(&ran, 16);
        if case.is_new() {
            assert!(
                text(other, "kernelName1").ends_with("_flat_pf3E"),
                "{other}"
            );
            let told = ["run_1stage", "flat", "xbf16", "block_m"];
            assert_eq!(told.map(|column| text(other, column)), ["1", "1", "0", "1"]);
        } else {
            assert!(
                text(other, "kernelName1").contains("blkscaleSplitk"),
                "{other}"
            );
            assert_eq!(
                ["run_1stage", "ksplit"].map(|column| text(other, column)),
                ["0", "2"]
            );
        }
        case.rows_are_found(&site, &ran);
        // Kept: the same command has nothing to do.
        let ran = site.run(&[]);
        assert_eq!(
            (ran.code, tokens(&ran, "resumed").len()),
            (Some(0), 2),
            "{}",
            ran.stderr
        );
        assert_eq!(row(&ran, 8)["run_1stage"], "1");
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn on_gfx950_kernels_that_quantise_by_themselves_are_rows_too() {
    for case in executed() {
        let began = Instant::now();
        let faults = [("us=9", "*blockscaleBf16_g1u1_vs_pf2_silu_16x128E", 8)];
        let lines = [small(8).replace("fnuz", "fn")];
        let site = case
            .site_of(&lines, &faults)
            .env("GPU_ARCHS", "gfx950")
            .env("CU_NUM", "256");
        let ran = site.run(&[]);
        case.told("gfx950", &ran, began);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let row = row(&ran, 8);
        // 303a583c has no such kernels.
        assert_eq!(row["xbf16"] == "1", case.is_new(), "{row}");
        assert_eq!(row["run_1stage"] == "1", case.is_new(), "{row}");
        case.rows_are_found(&site, &ran);
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn wrong_numbers_are_no_row_and_the_next_best_is() {
    for case in executed() {
        let began = Instant::now();
        let faults = [
            ("nan", WINNER, 8),
            ("err=0.17", "*gemm2*", 64),
            ("wrong", ONE_STAGE, 64),
            ("us=0.0001", WINNER, 32),
            ("us=0.0001", "moe_ck2stages_gemm2_256x32*", 32),
        ];
        let site = case.site(&[8, 32, 64], &faults);
        let ran = site.run(&[]);
        case.told("NaN, wrong numbers, a time no device reaches", &ran, began);
        assert_eq!(ran.code, Some(15), "{}", ran.stderr);
        assert_eq!(
            (tokens(&ran, "rows"), tokens(&ran, "failed")),
            (vec![8], vec![32, 64])
        );
        let name = row(&ran, 8)["kernelName1"].as_str().unwrap();
        assert!(!name.starts_with(WINNER.trim_end_matches('*')), "{name}");
        let reason = |at: usize| ran.list("failed")[at]["reason"].as_str().unwrap();
        assert!(reason(0).contains("refused"), "{}", reason(0));
        assert!(
            reason(1).contains("no candidate gave right numbers"),
            "{}",
            reason(1)
        );
        // Asked to, it takes them, and says so.
        let wider = case.site(&[64], &faults).args(&["--err-ratio", "0.2"]);
        let ran = wider.run(&[]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(row(&ran, 64)["err2"], "17.0%");
        let said =
            "up to 20.0 % of a stage's numbers wrong, and 10.0 % is what is allowed otherwise";
        assert!(remarks(&ran).contains(said), "{}", remarks(&ran));
        assert_eq!(ran.list("rows")[0]["above_default"], true);
        assert_eq!(ran.json["err_ratio"], 0.2);
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn calls_that_no_kernel_can_do_cost_the_others_nothing() {
    for case in executed() {
        let began = Instant::now();
        // One that every kernel refuses, and one whose blocks of 128 do not come out even, which the script itself raises over.
        let odd = small(16).replace(",256,128,4,2,", ",256,192,4,2,");
        let lines = [small(8), small(32), odd, small(64)];
        let site = case.site_of(&lines, &[("unsupported", "*", 32)]);
        let ran = site.run(&[]);
        case.told("calls no kernel can do", &ran, began);
        assert_eq!(ran.code, Some(15), "{}", ran.stderr);
        assert_eq!(
            (tokens(&ran, "rows"), tokens(&ran, "failed")),
            (vec![8, 64], vec![32, 16])
        );
        let reason = ran.list("failed")[0]["reason"].as_str().unwrap();
        assert!(reason.contains("does not support this problem"), "{reason}");
        case.rows_are_found(site_with(&site, &[8, 64]), &ran);
    }
}

/// `site` with calls of `tokens` in its file.
fn site_with<'a>(site: &'a Site, tokens: &[u32]) -> &'a Site {
    let lines: Vec<String> = tokens.iter().map(|token| small(*token)).collect();
    let text = format!("{HEADER}\n{}\n", lines.join("\n"));
    write(&site.folder.join("s.csv"), &text);
    site
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_worker_that_dies_costs_its_candidate() {
    for case in executed() {
        let began = Instant::now();
        let site = case.site(&[8, 32, 64], &[("exit", WINNER, 32)]);
        let ran = site.run(&[]);
        case.told("a worker that dies", &ran, began);
        lost_the_winner_of_32(&site, &ran);
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_kernel_that_hangs_costs_its_candidate() {
    for case in executed() {
        let began = Instant::now();
        let site = case.site(&[8, 32, 64], &[("hang", WINNER, 32)]);
        let ran = site.run(&[]);
        case.told("a kernel that hangs", &ran, began);
        lost_the_winner_of_32(&site, &ran);
    }
}

fn lost_the_winner_of_32(site: &Site, ran: &Ran) {
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(tokens(ran, "rows"), [8, 32, 64]);
    let name = row(ran, 32)["kernelName1"].as_str().unwrap();
    assert!(!name.starts_with(WINNER.trim_end_matches('*')), "{name}");
    assert!(
        remarks(ran).contains("given up by the tuner's own time limit"),
        "{}",
        remarks(ran)
    );
    site.nothing_is_left();
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn an_interrupt_and_the_same_command_again() {
    for case in executed() {
        let began = Instant::now();
        let mut site = case.site(&[8, 32, 64], &[]).args(&["--batch", "1"]);
        let child = site.start();
        site.wait_for_rows(1);
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        case.told("Ctrl-C after the first row", &ran, began);
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        site.nothing_is_left();
        let kept = tokens(&ran, "rows");
        assert!((1..3).contains(&kept.len()), "{kept:?}");
        site.without_fault();
        let ran = site.run(&[]);
        case.told("the same command again", &ran, began);
        assert_eq!(
            (ran.code, tokens(&ran, "rows")),
            (Some(0), vec![8, 32, 64]),
            "{}",
            ran.stderr
        );
        assert_eq!(tokens(&ran, "resumed"), kept);
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_kill_of_gemmtune_keeps_the_rows_and_the_next_run_goes_on() {
    for case in executed() {
        let began = Instant::now();
        // One worker hangs, as the one that outlives its tuner otherwise.
        let mut site = case
            .site(&[8, 32, 64], &[("hang", WINNER, 32)])
            .args(&["--batch", "1"]);
        let mut child = site.start();
        site.wait_for_rows(1);
        std::thread::sleep(Duration::from_secs(15));
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        site.nothing_is_left();
        site.without_fault();
        let ran = site.run(&[]);
        case.told("SIGKILL of gemmtune, and the command again", &ran, began);
        assert_eq!(
            (ran.code, tokens(&ran, "rows")),
            (Some(0), vec![8, 32, 64]),
            "{}",
            ran.stderr
        );
        assert_eq!(tokens(&ran, "resumed"), [8]);
        site.nothing_is_left();
    }
}

#[test]
#[ignore = "needs an aiter checkout: tests/aiter/run CHECKOUT"]
fn a_kill_of_the_tuner_starts_it_again() {
    for case in executed() {
        let began = Instant::now();
        let site = case.site(&[8, 32, 64], &[]).args(&["--batch", "1"]);
        let child = site.start();
        site.wait_for_rows(1);
        let until = Instant::now() + Duration::from_secs(120);
        // The first call's tuner has ended by then, or is about to: the next one is meant.
        while !site.folder.join("out/attempts/02/stdout.log").exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_secs(5));
        site.kill_the_tuner();
        let ran = Ran::of(child.wait_with_output().unwrap());
        case.told("SIGKILL of the tuner", &ran, began);
        assert_eq!(
            (ran.code, tokens(&ran, "rows")),
            (Some(0), vec![8, 32, 64]),
            "{}",
            ran.stderr
        );
        assert!(
            ran.json["attempts"].as_u64().unwrap() > 2,
            "{}",
            remarks(&ran)
        );
        assert!(
            remarks(&ran).contains("it died with exit code 137"),
            "{}",
            remarks(&ran)
        );
        site.nothing_is_left();
    }
}
