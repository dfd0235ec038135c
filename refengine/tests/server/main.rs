//! The server end to end, over HTTP, in this process: a tiny model on a free port.

mod faults;
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gemmtune_refengine::kernels;
use gemmtune_refengine::linear::LogSwitches;
use gemmtune_refengine::server::{Options, ServerError};
use serde_json::{Value, json};
use support::*;

#[test]
fn the_same_answer_comes_whole_and_streamed_and_again() {
    let server = ready(options());
    let body = json!({"model": "tiny", "prompt": prompt(9), "max_tokens": 12, "logprobs": 2, "temperature": 0});
    let whole = server.complete(&body);
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        whole["usage"],
        json!({"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21})
    );
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(
        choice["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap()
            .len(),
        12
    );
    assert_eq!(
        server.complete(&body)["choices"],
        whole["choices"],
        "deterministic"
    );

    let mut streaming = body.clone();
    streaming["stream"] = true.into();
    let parts = server.stream(&streaming);
    assert_eq!(parts.last().unwrap(), "[DONE]");
    let parts: Vec<Value> = parts[..parts.len() - 1]
        .iter()
        .map(|part| serde_json::from_str(part).unwrap())
        .collect();
    assert_eq!(parts.len(), 13, "one per token and one that ends");
    let text: String = parts
        .iter()
        .map(|part| part["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, choice["text"].as_str().unwrap());
    assert_eq!(parts[12]["choices"][0]["finish_reason"], "length");
    assert_eq!(parts[12]["usage"], whole["usage"]);

    let words: Vec<String> = prompt(9).iter().map(|token| format!("t{token}")).collect();
    let mut text_prompt = body;
    text_prompt["prompt"] = words.join(" ").into();
    assert_eq!(server.complete(&text_prompt)["choices"], whole["choices"]);
    server.stop().0.unwrap();
}

#[test]
fn concurrent_requests_are_batched_and_each_gets_its_own_answer() {
    let server = ready(options());
    let bodies: Vec<Value> = (3..9)
        .map(|length| json!({"prompt": prompt(length), "max_tokens": 16, "ignore_eos": true}))
        .collect();
    let alone: Vec<Value> = bodies
        .iter()
        .map(|body| server.complete(body)["choices"][0]["token_ids"].clone())
        .collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(|| server.complete(body)["choices"][0]["token_ids"].clone()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(together, alone);
    let (outcome, log) = server.stop();
    outcome.unwrap();
    // Decode lines are sampled; requests that came together show in the prefill lines too.
    let batched = (2..=4).any(|count| {
        ["#running-req", "#new-seq"]
            .iter()
            .any(|name| log.text().contains(&format!("{name}: {count}")))
    });
    assert!(batched, "{}", log.text());
}

#[test]
fn the_resolved_arguments_and_the_models_are_told() {
    let table = TableFile::new("info", "");
    let server = ready(Options {
        table: Some(table.0.clone()),
        ..options()
    });
    let (status, info) = server.get("/server_info");
    assert_eq!(status, 200);
    assert_eq!(info["served_model_name"], "tiny");
    assert_eq!(info["port"], server.server.address().port());
    assert_eq!(info["table_path"], table.0.to_str().unwrap());
    assert_eq!(info["table_digest"].as_str().unwrap().len(), 64);
    assert_eq!(info["max_running_requests"], 4);
    assert_eq!(info["gfx"], kernels::Isa::best().name());
    assert!(
        info.as_object()
            .unwrap()
            .values()
            .all(|value| !value.is_object() && !value.is_array()),
        "flat"
    );
    assert_eq!(server.get("/v1/models").1["data"][0]["id"], "tiny");
    server.stop().0.unwrap();
}

#[test]
fn bad_requests_are_refused_with_the_reason_and_harm_nothing() {
    let server = ready(options());
    let refused = |body: Value, reason: &str| {
        let (status, answer) = server.post("/v1/completions", &body);
        assert_eq!(status, 400, "{body} {answer}");
        assert!(
            answer["message"].as_str().unwrap().contains(reason),
            "{answer}"
        );
    };
    refused(json!({"prompt": []}), "empty");
    refused(json!({"prompt": [200]}), "vocabulary");
    refused(json!({"prompt": [1], "temperature": 0.7}), "greedy");
    refused(json!({"prompt": [1], "max_tokens": 0}), "max_tokens");
    refused(json!({"prompt": [1], "max_tokens": 512}), "context");
    refused(
        json!({"prompt": [1], "max_tokens": 18_446_744_073_709_551_615u64}),
        "context",
    );
    refused(json!({"prompt": [1], "logprobs": 6}), "logprobs");
    refused(json!({"prompt": [-1]}), "prompt");
    refused(json!({"max_tokens": 3}), "prompt");
    refused(json!([]), "");
    assert_eq!(
        server
            .post("/gemm_check", &json!({"M": 0, "N": 1, "K": 1}))
            .0,
        400
    );
    assert_eq!(
        server
            .post(
                "/gemm_check",
                &json!({"M": 1u64 << 40, "N": 1u64 << 40, "K": 1})
            )
            .0,
        400
    );
    assert_eq!(server.get("/nowhere").0, 404);
    server.complete(&json!({"prompt": [1]}));
    server.stop().0.unwrap();
}

#[test]
fn tuned_rows_run_where_they_match_and_the_log_says_so() {
    let isa = kernels::Isa::best();
    let name = kernels::all()[1].name();
    // N and K of the tiny model's down projection; M = 16 serves 1 to 16 by the fine rounding.
    let row = format!(
        "{},2,16,256,320,reference,0,0,1.0,{name},0,0,0\n",
        isa.name()
    );
    let table = TableFile::new("tuned", &row);
    let server = ready(Options {
        table: Some(table.0.clone()),
        ..options()
    });
    let (status, check) = server.post(
        "/gemm_check",
        &json!({"M": 5, "N": 256, "K": 320, "seed": 3}),
    );
    assert_eq!(status, 200, "{check}");
    assert_eq!(check["kernelName"], name);
    assert_eq!(check["padded_M"], 16);
    assert!(
        check["finite"] == true && check["passes"] == true,
        "{check}"
    );
    assert!(check["relative_error"].as_f64().unwrap() < 0.004);
    let (_, check) = server.post("/gemm_check", &json!({"M": 17, "N": 256, "K": 320}));
    assert_eq!(check["kernelName"], kernels::default_kernel(isa).name());
    assert_eq!(check["padded_M"], Value::Null);
    let (_, log) = server.stop();
    let text = log.text();
    let hit = format!(
        "\n[aiter] shape is M:1, N:256, K:320, found padded_M: 16, N:256, K:320 is tuned on cu_num = 2 in {} , kernel name is {name}!\n",
        table.0.display()
    );
    assert!(text.contains(&hit), "{text}");
    assert!(
        text.contains("\n[aiter] shape is M:17, N:256, K:320, not found tuned config in "),
        "{text}"
    );
}

#[test]
fn a_missing_or_broken_table_fails_at_the_first_gemm() {
    for (rows, reason) in [
        (None, "No such file"),
        (Some("avx2,1\n"), "CSV"),
        (
            Some("a,2,1,1,1,ck,0,0,1,x,0,0,0\na,2,1,1,1,ck,1,0,1,x,0,0,0\n"),
            "DataFrame index must be unique",
        ),
    ] {
        let table = rows.map(|rows| TableFile::new("broken", rows));
        let path = table.as_ref().map_or_else(
            || PathBuf::from("/nonexistent.csv"),
            |table| table.0.clone(),
        );
        let server = start(Options {
            table: Some(path),
            ..options()
        });
        let error = server.server.wait().unwrap_err();
        assert!(
            matches!(&error, ServerError::WarmUp(text) if text.contains(reason)),
            "{error}"
        );
        assert!(
            server
                .log
                .text()
                .contains("Initialization failed. warmup error")
        );
    }
}

#[test]
fn shapes_and_dispatch_are_logged_for_every_layer() {
    let switches = LogSwitches {
        shapes: true,
        dispatch: true,
    };
    let server = ready(Options {
        switches,
        ..options()
    });
    server.complete(&json!({"prompt": prompt(7), "max_tokens": 3}));
    let (_, log) = server.stop();
    let text = log.text();
    assert_eq!(
        text.matches("[Fp8LinearMethod] block_quant w8a8_block_fp8_linear=")
            .count(),
        1
    );
    // Warm-up: two forwards; the request: a prompt and two more. Two layers of four.
    assert_eq!(text.matches("[GEMM_shape_dump]").count(), 5 * 2 * 4);
    assert_eq!(
        text.matches("csv_row: 7,512,256,torch.float8_e4m3fn\n")
            .count(),
        2
    );
    assert!(text.contains("layer.prefix='model.layers.1.self_attn.o_proj' block_size=[128, 128] | x.shape=(7, 256) weight.shape=(256, 256) | M=7 N=256 K=256 ("));
    let glued = text
        .split('\n')
        .find(|line| line.contains("Detected fp8 checkpoint"))
        .unwrap();
    assert!(glued.contains("it/s]["), "behind the bar: {glued}");
    assert!(text.contains("] The server is fired up and ready to roll!\n"));
    assert!(text.contains("\"POST /v1/completions HTTP/1.1\" 200 OK\n"));
}

#[test]
fn two_servers_with_the_same_seed_answer_alike_and_another_seed_answers_otherwise() {
    let body = json!({"prompt": prompt(20), "max_tokens": 8, "logprobs": 0});
    let answers = [1, 1, 2].map(|seed| {
        let server = ready(Options { seed, ..options() });
        let answer = server.complete(&body)["choices"].clone();
        server.stop().0.unwrap();
        answer
    });
    assert_eq!(answers[0], answers[1]);
    assert_ne!(answers[0], answers[2]);
}

#[test]
fn stopping_in_the_middle_of_an_answer_ends_soon() {
    let server = ready(options());
    let address = server.url("/v1/completions");
    let asking = std::thread::spawn(move || {
        let body = json!({"prompt": [1], "max_tokens": 500, "ignore_eos": true});
        answer(
            agent(Duration::from_secs(20))
                .post(address)
                .header("Content-Type", "application/json")
                .send(body.to_string()),
        )
    });
    while !server.log.text().contains("Prefill batch") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let stopped = Instant::now();
    server.stop().0.unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(4));
    // Told, if it had not been complete by then.
    assert!(matches!(asking.join().unwrap().0, 0 | 200 | 500));
}
