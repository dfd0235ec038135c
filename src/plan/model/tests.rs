use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn config(name: &str) -> Vec<u8> {
    fs_err::read(format!(
        "{}/testdata/models/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

fn model(name: &str, tp: u32) -> Prediction {
    predict(&config(name), &Parallel::tp(tp)).unwrap()
}

/// The layers a table calls by these names.
fn name_of(layer: &str) -> &str {
    match layer {
        "fused_qkv_a" => "fused_qkv_a_proj_with_mqa",
        "dense gate_up" | "gate_up_proj" => "gate_up_proj",
        "dense down" | "down_proj" => "down_proj",
        "shared gate_up" => "shared_experts.gate_up_proj",
        "shared down" => "shared_experts.down_proj",
        "indexer wq_b" => "indexer.wq_b",
        "indexer wk" => "indexer.wk",
        other => other,
    }
}

#[test]
fn every_layer_of_every_table_is_predicted_and_no_other() {
    /// Layer, N, K.
    type Layers = BTreeSet<(String, u32, u32)>;
    let mut expected: BTreeMap<(String, u32), Layers> = BTreeMap::new();
    let mut rejected: BTreeSet<(String, u32)> = BTreeSet::new();
    let text = include_str!("../../../testdata/models/expected.csv");
    for line in text.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let key = (cells[0].to_owned(), cells[2].parse::<u32>().unwrap());
        match (cells[3].parse(), cells[4].parse()) {
            (Ok(n), Ok(k)) => {
                expected
                    .entry(key)
                    .or_default()
                    .insert((name_of(cells[1]).to_owned(), n, k));
            }
            _ => {
                rejected.insert(key);
            }
        }
    }
    assert_eq!(expected.len(), 11 * 4);
    for ((name, tp), layers) in expected {
        let prediction = model(&name, tp);
        if rejected.contains(&(name.clone(), tp)) {
            assert_eq!(
                prediction.rejected.len(),
                2,
                "{name} TP{tp}: {:?}",
                prediction.rejected
            );
            continue;
        }
        assert_eq!(prediction.rejected, [] as [&str; 0], "{name} TP{tp}");
        let predicted: BTreeSet<_> = prediction
            .layers
            .iter()
            .map(|layer| (layer.name.to_owned(), layer.n, layer.k))
            .collect();
        assert_eq!(predicted, layers, "{name} TP{tp}");
    }
}

#[test]
fn deepseek_v3_at_tp8_has_the_weights_that_a_dump_holds() {
    let prediction = model("deepseek-v3", 8);
    let weights = prediction.weights();
    // Without the shared experts, which are fused into the routed ones by default.
    assert_eq!(
        weights,
        [
            (2112, 7168, 61),
            (3072, 1536, 61),
            (4096, 512, 61),
            (4608, 7168, 3),
            (7168, 2048, 61),
            (7168, 2304, 3)
        ]
    );
    let unfused = Parallel {
        shared_experts_fusion: Some(false),
        ..Parallel::tp(8)
    };
    let unfused = predict(&config("deepseek-v3"), &unfused).unwrap().weights();
    assert!(unfused.contains(&(512, 7168, 58)) && unfused.contains(&(7168, 256, 58)));
}

#[test]
fn attention_ranks_and_dense_ranks_may_differ_from_tp() {
    let parallel = Parallel {
        dp_attention: 8,
        moe_dense_tp: Some(1),
        ..Parallel::tp(8)
    };
    let prediction = predict(&config("deepseek-v3"), &parallel).unwrap();
    let sizes: BTreeMap<_, _> = prediction
        .layers
        .iter()
        .map(|layer| (layer.name, (layer.n, layer.k)))
        .collect();
    assert_eq!(sizes["o_proj"], (7168, 16384));
    assert_eq!(sizes["gate_up_proj"], (36864, 7168));
    assert_eq!(sizes["shared_experts.down_proj"], (7168, 256));
    let bad = Parallel {
        dp_attention: 3,
        ..Parallel::tp(8)
    };
    assert!(matches!(
        predict(&config("deepseek-v3"), &bad),
        Err(ModelError::BadParallel { .. })
    ));
    assert!(matches!(
        predict(&config("deepseek-v3"), &Parallel::tp(0)),
        Err(ModelError::BadParallel { .. })
    ));
}

#[test]
fn qwen3_next_has_the_weights_of_the_table_aiter_ships_for_it() {
    // a8w8_blockscale_tuned_gemm_qwen3_next_80b_a3b.csv of aiter e4048607a5 holds these at TP1, 2 and 4.
    let shipped = BTreeSet::from([
        (256, 2048),
        (1024, 2048),
        (2048, 128),
        (2048, 512),
        (2048, 1024),
        (2048, 2048),
        (2048, 4096),
        (2560, 2048),
        (3072, 2048),
        (4608, 2048),
        (6144, 2048),
        (9216, 2048),
        (12288, 2048),
    ]);
    let mut predicted = BTreeSet::new();
    for tp in [1, 2, 4] {
        let prediction = model("qwen3-next-80b-a3b", tp);
        assert_eq!(prediction.rejected, [] as [&str; 0]);
        predicted.extend(prediction.weights().into_iter().map(|(n, k, _)| (n, k)));
    }
    assert!(
        predicted.is_superset(&shipped),
        "{:?}",
        shipped.difference(&predicted)
    );
    let counts = model("qwen3-next-80b-a3b", 1).weights();
    assert!(
        counts.contains(&(9216, 2048, 12)) && counts.contains(&(12288, 2048, 36)),
        "{counts:?}"
    );
}

#[test]
fn per_channel_models_are_told_which_operation_they_need() {
    let prediction = model("glm-4.6", 8);
    assert_eq!(prediction.scheme, Scheme::PerChannel);
    assert!(
        prediction
            .notes
            .iter()
            .any(|note| note.contains("gemm_a8w8_bpreshuffle"))
    );
    let weights: BTreeSet<_> = [8, 4]
        .into_iter()
        .flat_map(|tp| model("glm-4.6", tp).weights())
        .map(|(n, k, _)| (n, k))
        .collect();
    // The six weights of aiter's table for GLM-4.7.
    let shipped = [
        (1792, 5120),
        (5120, 1536),
        (3072, 5120),
        (3584, 5120),
        (5120, 3072),
        (6144, 5120),
    ];
    assert_eq!(weights, BTreeSet::from(shipped));
}

#[test]
fn modules_left_out_of_quantisation_are_left_out_of_the_plan() {
    let mut config: serde_json::Value = serde_json::from_slice(&config("qwen3-8b")).unwrap();
    config["num_hidden_layers"] = 2.into();
    config["quantization_config"]["modules_to_not_convert"] = serde_json::json!([
        "lm_head",
        "model.layers.0.mlp",
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj"
    ]);
    let bytes = serde_json::to_vec(&config).unwrap();
    let prediction = predict(&bytes, &Parallel::tp(1)).unwrap();
    let counts: BTreeMap<_, _> = prediction
        .layers
        .iter()
        .map(|layer| (layer.name, layer.count))
        .collect();
    assert_eq!(
        counts,
        BTreeMap::from([("qkv_proj", 2), ("gate_up_proj", 1), ("down_proj", 1)])
    );
    assert_eq!(
        prediction.notes,
        ["o_proj is not quantised in this checkpoint"]
    );
}

#[test]
fn configs_that_predict_nothing_say_why() {
    let error = |text: &str| {
        predict(text.as_bytes(), &Parallel::tp(1))
            .unwrap_err()
            .to_string()
    };
    assert!(error("{").starts_with("read the model's config"));
    assert!(error("[]").contains("no JSON object"));
    assert!(error("{}").contains("quantization_config"));
    let fp8 = r#""quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}"#;
    assert_eq!(
        error(&format!("{{{fp8}}}")),
        "predict the model's layers: its config has no `num_hidden_layers`"
    );
    let with = |rest: &str| format!("{{{fp8}, {rest}}}");
    assert!(error(&with(r#""num_hidden_layers": -3"#)).contains("`num_hidden_layers` is -3"));
    assert!(
        error(&with(r#""num_hidden_layers": 16777216, "hidden_size": 8"#))
            .contains("num_hidden_layers")
    );
    for method in ["quark", "modelopt", "awq"] {
        let text = format!(r#"{{"quantization_config": {{"quant_method": "{method}"}}}}"#);
        assert!(error(&text).contains(method));
    }
    let per_tensor = r#"{"quantization_config": {"quant_method": "fp8"}}"#;
    assert!(error(per_tensor).contains("one scale per tensor"));
}

#[test]
fn a_multimodal_config_is_read_through_its_text_part() {
    let inner: serde_json::Value = serde_json::from_slice(&config("qwen3-14b")).unwrap();
    let outer = serde_json::json!({
        "architectures": ["SomeVLForConditionalGeneration"],
        "hidden_size": 64,
        "text_config": inner,
    });
    let prediction = predict(&serde_json::to_vec(&outer).unwrap(), &Parallel::tp(2)).unwrap();
    assert_eq!(prediction.weights(), model("qwen3-14b", 2).weights());
    assert_eq!(prediction.architecture, "SomeVLForConditionalGeneration");
}
