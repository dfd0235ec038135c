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

/// Layers by the names used in a table.
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
    /// Layer name, N, K.
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
            .map(|layer| (layer.name.to_string(), layer.n, layer.k))
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
        .map(|layer| (&*layer.name, (layer.n, layer.k)))
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
fn a_server_is_split_as_it_reports_its_arguments() {
    // SGLang's `/server_info` with four of its some 300 arguments.
    let reported = serde_json::json!({
        "version": "0.5.16.post1", "tp_size": 4, "ep_size": 4, "dp_size": 4, "enable_dp_attention": false,
        "moe_dense_tp_size": null, "disable_shared_experts_fusion": true,
    });
    let four = Parallel::resolved(&reported, 1, false);
    let expected = Parallel {
        ep: 4,
        shared_experts_fusion: Some(false),
        release: "0.5.16.post1".parse().unwrap(),
        ..Parallel::tp(4)
    };
    assert_eq!(four, expected);
    let mut attention = reported.clone();
    attention["enable_dp_attention"] = true.into();
    assert_eq!(Parallel::resolved(&attention, 1, false).dp_attention, 4);
    // Another server, which reports something of its own.
    let other = serde_json::json!({"version": "main", "tp_size": "four", "ep_size": 0});
    assert_eq!(Parallel::resolved(&other, 2, false), Parallel::tp(2));
}

#[test]
fn qwen3_next_has_the_weights_of_the_table_aiter_ships_for_it() {
    // a8w8_blockscale_tuned_gemm_qwen3_next_80b_a3b.csv of aiter e4048607a5 has these at TP1, 2 and 4.
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

/// (N, K) that are planned for `name` at any of these TP.
fn weights(name: &str, sizes: &[u32]) -> BTreeSet<(u32, u32)> {
    let mut weights = BTreeSet::new();
    for tp in sizes {
        let prediction = model(name, *tp);
        assert_eq!(prediction.rejected, [] as [&str; 0], "{name} TP{tp}");
        weights.extend(prediction.weights().into_iter().map(|(n, k, _)| (n, k)));
    }
    weights
}

#[test]
fn deepseek_v4_has_the_weights_of_the_tables_aiter_ships_for_it() {
    // dsv4_a8w8_blockscale_bpreshuffle_tuned_gemm.csv and dsv4_a8w8_blockscale_tuned_gemm.csv of aiter e4048607a5,
    // without (7168, 7168), which is a projection of the draft layer.
    let shipped = [
        (768, 7168),
        (1536, 4096),
        (1536, 7168),
        (2048, 7168),
        (4096, 1024),
        (4096, 2048),
        (4096, 4096),
        (4096, 8192),
        (6144, 7168),
        (7168, 384),
        (7168, 768),
        (7168, 3072),
        (7168, 4096),
        (7168, 16384),
        (8192, 1024),
        (8192, 1536),
        (16384, 1536),
        (32768, 1024),
        (65536, 1536),
    ];
    let mut predicted = weights("deepseek-v4-flash", &[1, 8]);
    predicted.extend(weights("deepseek-v4-pro", &[1, 4, 8]));
    let missing: Vec<_> = shipped
        .iter()
        .filter(|nk| !predicted.contains(nk))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");

    let flash = model("deepseek-v4-flash", 1);
    let layers: Vec<_> = flash
        .layers
        .iter()
        .map(|layer| {
            (
                &*layer.name,
                layer.n,
                layer.k,
                layer.count,
                layer.replicated,
            )
        })
        .collect();
    assert_eq!(
        layers,
        [
            ("wqkv_a", 1536, 4096, 43, true),
            ("wq_b", 32768, 1024, 43, false),
            ("wo_b", 4096, 8192, 43, false),
            ("indexer.wq_b", 8192, 1024, 21, true),
            ("shared_experts.gate_up_proj", 4096, 4096, 43, false),
            ("shared_experts.down_proj", 4096, 2048, 43, false),
        ]
    );
    // CSA layers of the published config.
    let pro = model("deepseek-v4-pro", 8);
    let indexer = pro.layers.iter().find(|layer| layer.name == "indexer.wq_b");
    assert_eq!(indexer.map(|layer| layer.count), Some(30));
    insta::assert_snapshot!(flash.notes.join("\n"), @"
    wo_a is a batched GEMM over groups of heads, which has tables of its own; compressors stay bf16
    routed experts run in the fused MoE operation, which has tables of its own
    its experts are FP4, which SGLang's FP8 kernel does not run
    ");
    // Eight groups cannot be split over sixteen ranks.
    let rejected = model("deepseek-v4-flash", 16).rejected;
    insta::assert_snapshot!(rejected.join("\n"), @"
    o_groups = 8 cannot be split over 16 ranks
    wo_b: nothing is left of it on a rank
    ");
}

#[test]
fn glm_5_has_the_weights_of_the_tables_aiter_ships_for_it_and_5_2_fewer_indexers() {
    // glm5_a8w8_blockscale_bpreshuffle_tuned_gemm.csv and a8w8_bpreshuffle_tuned_gemm_glm5.2.csv of aiter e4048607a5.
    let shipped = BTreeSet::from([
        (128, 6144),
        (2048, 2048),
        (2624, 6144),
        (3072, 6144),
        (3584, 512),
        (4096, 2048),
        (6144, 1536),
        (6144, 2048),
    ]);
    assert_eq!(weights("glm-5", &[8]), shipped);
    let shipped = [(2624, 6144), (4096, 2048), (6144, 4096), (7168, 512)];
    assert!(weights("glm-5.2", &[4]).is_superset(&BTreeSet::from(shipped)));
    // Layers 0, 1, 2 and then every fourth select tokens; the others have no indexer.
    let indexers = |name| {
        let prediction = model(name, 8);
        let layers = prediction.layers.into_iter();
        layers
            .filter(|layer| layer.name.starts_with("indexer."))
            .map(|layer| layer.count)
            .collect::<Vec<_>>()
    };
    assert_eq!(indexers("glm-5"), [78, 78]);
    assert_eq!(indexers("glm-5.2"), [21, 21]);
}

#[test]
fn qwen3_5_has_the_weights_of_the_tables_aiter_ships_for_it() {
    // a8w8_blockscale_tuned_gemm_qwen36_27b.csv of aiter e4048607a5: TP2, 4 and 8.
    let shipped = BTreeSet::from([
        (2048, 5120),
        (3584, 5120),
        (4096, 5120),
        (4352, 5120),
        (5120, 768),
        (5120, 1536),
        (5120, 2176),
        (5120, 3072),
        (5120, 4352),
        (5120, 8704),
        (7168, 5120),
        (8192, 5120),
        (8704, 5120),
        (17408, 5120),
    ]);
    assert_eq!(weights("qwen3.5-27b", &[2, 4, 8]), shipped);
    // a8w8_blockscale_tuned_gemm_qwen3_5_397b_a13b.csv and a8w8_blockscale_bpreshuffle_tuned_gemm_qwen3.5_397b.csv.
    let shipped = [(256, 4096), (2560, 4096), (4096, 128), (4096, 1024)];
    assert_eq!(weights("qwen3.5-397b-a17b", &[8]), BTreeSet::from(shipped));
    let attention = [(4608, 4096), (5120, 4096), (4096, 2048)];
    assert!(weights("qwen3.5-397b-a17b", &[4]).is_superset(&BTreeSet::from(attention)));
    // Ten full-attention layers of forty.
    let small = model("qwen3.5-35b-a3b", 1);
    let counts: Vec<_> = small
        .layers
        .iter()
        .map(|layer| (&*layer.name, layer.count))
        .collect();
    assert_eq!(counts[..2], [("qkv_proj", 10), ("o_proj", 10)]);
    assert_eq!(counts[2], ("linear_attn.in_proj_qkvz", 30));
}

#[test]
fn gemma_4_has_heads_of_two_sizes() {
    let prediction = model("gemma-4-31b", 1);
    let layers: Vec<_> = prediction
        .layers
        .iter()
        .map(|layer| (&*layer.name, layer.n, layer.k, layer.count))
        .collect();
    assert_eq!(
        layers,
        [
            ("qkv_proj (sliding)", 16384, 5376, 50),
            ("o_proj (sliding)", 5376, 8192, 50),
            ("qkv_proj (global)", 20480, 5376, 10),
            ("o_proj (global)", 5376, 16384, 10),
            ("gate_up_proj", 43008, 5376, 60),
            ("down_proj", 5376, 21504, 60),
        ]
    );
}

#[test]
fn kimi_k2_and_minimax_m2_5_are_planned_as_their_classes_are() {
    let kimi: BTreeSet<_> = weights("kimi-k2", &[8]);
    let of_k2 = [
        (2112, 7168),
        (1536, 1536),
        (2048, 512),
        (7168, 1024),
        (512, 7168),
        (7168, 256),
    ];
    assert!(kimi.is_superset(&BTreeSet::from(of_k2)), "{kimi:?}");
    // a8w8_blockscale_bpreshuffle_tuned_gemm_mm2.5.csv of aiter e4048607a5 has the first.
    let mini = BTreeSet::from([(8192, 3072), (3072, 6144)]);
    assert_eq!(weights("minimax-m2.5", &[1]), mini);
}

#[test]
fn models_whose_layers_are_not_known_are_refused_by_name() {
    let error = |bytes: &[u8]| predict(bytes, &Parallel::tp(1)).unwrap_err().to_string();
    let mut said = ["kimi-k3", "mimo-v2-flash", "nemotron-h-nano-30b-a3b"]
        .map(|name| error(&config(name)))
        .to_vec();
    let mut config: serde_json::Value = serde_json::from_slice(&config("qwen3-8b")).unwrap();
    config["architectures"] = serde_json::json!(["BrandNewForCausalLM"]);
    said.push(error(&serde_json::to_vec(&config).unwrap()));
    // How it is quantised does not matter for a refusal.
    said.push(error(br#"{"architectures": ["NemotronHForCausalLM"]}"#));
    // A class alone does not make a text part of another kind known.
    config["architectures"] = serde_json::json!(["Qwen3VLForConditionalGeneration"]);
    config["text_config"] = serde_json::json!({"model_type": "kimi_linear"});
    said.push(error(&serde_json::to_vec(&config).unwrap()));
    // Without a class the model type decides.
    config.as_object_mut().unwrap().remove("architectures");
    config.as_object_mut().unwrap().remove("text_config");
    assert!(predict(&serde_json::to_vec(&config).unwrap(), &Parallel::tp(1)).is_ok());
    config["model_type"] = "brand_new".into();
    said.push(error(&serde_json::to_vec(&config).unwrap()));
    insta::assert_snapshot!(said.join("\n"), @"
    predict the layers of `KimiK3ForConditionalGeneration`: its linear-attention layers (KDA) merge their projections differently on each platform, which is not predicted
    predict the layers of `MiMoV2FlashForCausalLM`: its sliding-window layers have other heads than its full-attention layers, which is not predicted
    predict the layers of `NemotronHForCausalLM`: it mixes state-space (Mamba) layers with attention, and their projections are not predicted
    predict the model's layers: `BrandNewForCausalLM` is no architecture whose layers gemmtune knows, and a guess would plan weights that the model does not have
    predict the layers of `NemotronHForCausalLM`: it mixes state-space (Mamba) layers with attention, and their projections are not predicted
    predict the layers of `Qwen3VLForConditionalGeneration`: its linear-attention layers (KDA) merge their projections differently on each platform, which is not predicted
    predict the model's layers: `brand_new` is no architecture whose layers gemmtune knows, and a guess would plan weights that the model does not have
    ");
}

#[test]
fn a_key_that_changes_weights_is_refused_by_name_where_the_family_does_not_have_it() {
    let with = |key: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_slice(&config("qwen3-8b")).unwrap();
        config[key] = value;
        predict(&serde_json::to_vec(&config).unwrap(), &Parallel::tp(1))
    };
    let mut said = Vec::new();
    for key in [
        "o_lora_rank",
        "o_groups",
        "global_head_dim",
        "kv_lora_rank",
        "index_n_heads",
        "linear_num_value_heads",
        "linear_attn_config",
        "kda_num_heads",
        "mamba_d_state",
        "hybrid_override_pattern",
        "swa_num_key_value_heads",
        "moe_latent_size",
        "attn_output_gate",
        "attn_type_list",
        "shared_intermediate_size",
    ] {
        said.push(with(key, serde_json::json!(7)).unwrap_err().to_string());
        for off in [
            serde_json::json!(null),
            serde_json::json!(0),
            serde_json::json!(false),
        ] {
            assert!(with(key, off).is_ok(), "{key}");
        }
    }
    let kinds = serde_json::json!(["full_attention", "conv"]);
    said.push(with("layer_types", kinds).unwrap_err().to_string());
    insta::assert_snapshot!(said.join("\n"), @"
    predict the layers of `Qwen3ForCausalLM`: the config's `o_lora_rank` changes them (a low-rank output projection), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `o_groups` changes them (a grouped output projection), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `global_head_dim` changes them (heads of another size in full-attention layers), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `kv_lora_rank` changes them (latent attention), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `index_n_heads` changes them (an indexer of sparse attention), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `linear_num_value_heads` changes them (linear attention), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `linear_attn_config` changes them (linear attention), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `kda_num_heads` changes them (Kimi Delta Attention), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `mamba_d_state` changes them (state-space layers), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `hybrid_override_pattern` changes them (layers of several kinds), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `swa_num_key_value_heads` changes them (other heads in sliding-window layers), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `moe_latent_size` changes them (experts of a smaller width), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `attn_output_gate` changes them (a gate beside each query), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `attn_type_list` changes them (layers of several kinds), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: the config's `shared_intermediate_size` changes them (a shared MLP), which gemmtune does not predict for this architecture
    predict the layers of `Qwen3ForCausalLM`: `layer_types` has `conv`, which is not predicted
    ");
    // MiniMax-M2's config lists each of its layers as full attention.
    assert!(with("attn_type_list", serde_json::json!([1, 1])).is_ok());
    assert!(with("attn_type_list", serde_json::json!([1, 0])).is_err());
    assert!(with("v_head_dim", 128.into()).is_ok(), "as head_dim");
    assert!(with("v_head_dim", 64.into()).is_err());
    let notes = with("adapter_rank", 16.into()).unwrap().notes;
    insta::assert_snapshot!(notes.join("\n"), @"the config has keys that may size a layer and that gemmtune does not know: adapter_rank; compare the plan with the shapes of a server's log");
    assert_eq!(
        with("vision_head_dim", 16.into()).unwrap().notes,
        [] as [&str; 0]
    );
}

#[test]
fn lists_with_fewer_entries_than_layers_are_refused() {
    let said = [
        ("deepseek-v4-flash", "compress_ratios"),
        ("gemma-4-31b", "layer_types"),
    ]
    .map(|(name, key)| {
        let mut config: serde_json::Value = serde_json::from_slice(&config(name)).unwrap();
        let part = if name.starts_with("gemma") {
            &mut config["text_config"]
        } else {
            &mut config
        };
        part[key].as_array_mut().unwrap().truncate(5);
        let error = predict(&serde_json::to_vec(&config).unwrap(), &Parallel::tp(1)).unwrap_err();
        error.to_string()
    });
    insta::assert_snapshot!(said.join("\n"), @"
    predict the model's layers: `compress_ratios` does not name all 43 layers
    predict the model's layers: `layer_types` does not name all 60 layers
    ");
}

#[test]
fn per_channel_models_are_told_which_operation_they_need() {
    let prediction = model("glm-4.6", 8);
    assert_eq!(prediction.scheme, Scheme::PerChannel);
    insta::assert_snapshot!(prediction.notes.join("\n"), @"
    routed experts run in the fused MoE operation, which has tables of its own
    per-channel weights never reach gemm_a8w8_blockscale: they need gemm_a8w8_bpreshuffle tuned
    ");
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
        .map(|layer| (&*layer.name, layer.count))
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
    let fp8 = r#""model_type": "llama", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}"#;
    let with = |rest: &str| format!("{{{fp8}, {rest}}}");
    let quantised =
        |method: &str| format!(r#"{{"quantization_config": {{"quant_method": "{method}"}}}}"#);
    let texts = [
        "{".to_owned(),
        "[]".to_owned(),
        "{}".to_owned(),
        format!("{{{fp8}}}"),
        with(r#""num_hidden_layers": -3"#),
        with(r#""num_hidden_layers": 16777216, "hidden_size": 8"#),
        quantised("quark"),
        quantised("modelopt"),
        quantised("awq"),
        quantised("fp8"),
    ];
    let said = texts.map(|text| format!("{text}\n    {}", error(&text)));
    insta::assert_snapshot!("refused_configs", said.join("\n"));
}

#[test]
fn a_multimodal_config_is_read_through_its_text_part() {
    let inner: serde_json::Value = serde_json::from_slice(&config("qwen3-14b")).unwrap();
    let outer = serde_json::json!({
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "hidden_size": 64,
        "text_config": inner,
    });
    let prediction = predict(&serde_json::to_vec(&outer).unwrap(), &Parallel::tp(2)).unwrap();
    assert_eq!(prediction.weights(), model("qwen3-14b", 2).weights());
    assert_eq!(prediction.architecture, "Qwen3VLForConditionalGeneration");
}
