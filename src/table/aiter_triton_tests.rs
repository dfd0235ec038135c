use super::*;

const VECTORS: &str = include_str!("../../testdata/lookup/aiter-triton/vectors.csv");
const FILES: &str = include_str!("../../testdata/lookup/aiter-triton/files.json");

fn configs(keys: &[String]) -> Configs {
    let whole: Map<String, Value> = keys
        .iter()
        .map(|key| (key.clone(), serde_json::json!({})))
        .collect();
    Configs::read(&serde_json::to_vec(&whole).unwrap()).unwrap()
}

#[test]
fn the_key_is_the_one_that_aiters_own_code_takes_at_every_revision() {
    let files: BTreeMap<String, Vec<String>> = serde_json::from_str(FILES).unwrap();
    let mut checked = 0;
    for line in VECTORS.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let revision: Revision = cells[0].parse().unwrap();
        let keys = files.get(&format!("{},{}", cells[1], cells[2]));
        let file = configs(keys.unwrap_or(&files["default"]));
        let m = cells[3].parse().unwrap();
        let found = file.find(revision.into(), m).map_or("", |(key, _)| key);
        assert_eq!(found, cells[4], "{line}");
        checked += 1;
    }
    assert_eq!(checked, 896);
}

const NEW: Rules = Rules::Bounds { from: 1 };
const OLD: Rules = Rules::Bounds { from: 4 };

#[test]
fn the_most_called_m_of_each_bucket_is_raced() {
    let counted = |m, records| CountedShape {
        shape: crate::problem::Shape {
            op: crate::problem::Op::Blockscale,
            m,
            n: 512,
            k: 7168,
            dtype: String::new(),
        },
        records,
    };
    let shapes = [
        counted(1, 5),
        counted(3, 1),
        counted(4, 1),
        counted(100, 9),
        counted(65, 2),
        counted(9000, 1),
    ];
    let raced = |rules| -> Vec<u32> {
        let raced = representatives(&shapes, rules);
        raced.iter().map(|one| one.shape.m).collect()
    };
    assert_eq!(raced(NEW), [1, 4, 100, 9000]);
    assert_eq!(raced(OLD), [1, 100, 9000]);
}

#[test]
fn a_bucket_ends_where_the_next_one_begins() {
    let ends = |rules: Rules| [1, 3, 4, 5, 64, 65, 8192, 9000].map(|m| rules.ends(m));
    assert_eq!(
        ends(NEW),
        [
            (1, 1),
            (2, 4),
            (2, 4),
            (5, 8),
            (33, 64),
            (65, 128),
            (4097, 8192),
            (8193, 9000)
        ]
    );
    assert_eq!(ends(OLD)[..3], [(1, 4), (1, 4), (1, 4)]);
    // Every M of a bucket has the same bounds, and they are in the bucket.
    for m in 1..9000 {
        let (first, last) = NEW.ends(m);
        assert!((first..=last).contains(&m));
        assert_eq!(NEW.bucket(first), NEW.bucket(last));
        assert!(first == 1 || NEW.bucket(first - 1) != NEW.bucket(first));
    }
}

#[test]
fn a_name_is_read_back_as_written_and_others_are_none() {
    for text in [
        "gfx942-GEMM-A8W8_BLOCKSCALE.json",
        "gfx950-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
        "gfx950-GEMM-A8W8_BLOCKSCALE_PRESHUFFLED-N=1536-K=4096.json",
    ] {
        let name: FileName = text.parse().unwrap();
        assert_eq!(name.to_string(), text);
        assert_eq!(name.default_of().weight, None);
    }
    for text in [
        "gfx950-FUSED-GEMM-A8W8_BLOCKSCALE-A16W16.json",
        "gfx942-GEMM-A8W8_BLOCKSCALE-N=0512-K=7168.json",
        "gfx942-GEMM-A8W8_BLOCKSCALE-N=512.json",
        "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168",
        "GEMM-A8W8_BLOCKSCALE.json",
    ] {
        assert_eq!(text.parse::<FileName>(), Err(OtherName), "{text}");
    }
}

fn file(text: &str) -> Configs {
    Configs::read(text.as_bytes()).unwrap()
}

const WHOLE: &str = r#"{"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4,
    "num_stages": 2, "NUM_KSPLIT": 1}"#;

#[test]
fn a_sound_file_has_no_fault() {
    let text = format!(r#"{{"M_LEQ_8": {WHOLE}, "any": {WHOLE}}}"#);
    assert_eq!(file(&text).faults(Rules::from(Revision::H)), []);
}

#[test]
fn what_stops_a_server_is_told_before_what_is_only_useless() {
    let small_tile = WHOLE.replace("\"BLOCK_SIZE_K\": 128", "\"BLOCK_SIZE_K\": 64");
    let incomplete = WHOLE.replace("\"num_warps\": 4,", "");
    let text = format!(
        r#"{{"M_LEQ_1": {WHOLE}, "M_LEQ_8": {small_tile}, "M_LEQ_16": {incomplete}, "M_LEQ_24": {WHOLE}}}"#
    );
    let faults = file(&text).faults(Rules::from(Revision::P));
    let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(words.join("\n"), @"
    no key holds for M = 32 and there is no `any`: aiter raises KeyError
    `M_LEQ_8` has BLOCK_SIZE_K = 64; the kernel asserts that it is the scale block, 128
    `M_LEQ_16` lacks num_warps
    `M_LEQ_1` is never looked for: its bound is none that aiter tries
    `M_LEQ_24` is never looked for: its bound is none that aiter tries
    ");
    let fatal: Vec<bool> = faults.iter().map(Fault::is_fatal).collect();
    assert_eq!(fatal, [true, true, true, false, false]);
    assert!(
        !file(&text)
            .faults(Rules::from(Revision::H))
            .contains(&Fault::NeverFound {
                key: "M_LEQ_1".to_owned()
            }),
        "e4048607 looks for 1"
    );
}

#[test]
fn what_is_no_file_of_configurations_is_refused() {
    for text in ["[]", "{\"any\": 3}", "{"] {
        assert!(Configs::read(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn files_of_aiters_other_gemms_are_refused_by_what_they_are_of() {
    for name in [
        "gfx942-GEMM-A8W8_BLOCKSCALE-N=512-K=7168.json",
        "gfx950-GEMM-A8W8_BLOCKSCALE.json",
        "N=512,K=7168,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json",
        "a8w8_blockscale_tuned_gemm.csv",
    ] {
        assert_eq!(refusal(name), None, "{name}");
    }
    let said = [
        "gfx950-GEMM-A8W8_BLOCKSCALE_PRESHUFFLED-N=1536-K=4096.json",
        "gfx942-GEMM-A8W8-N=2880-K=4096.json",
        "gfx942-GEMM-A8W8.json",
        "gfx950-GEMM-A8W8_PER_TOKEN_SCALE-N=1024-K=8192.json",
        "gfx942-GEMM-A16W16-N=128-K=2880.json",
        "gfx942-BATCHED_GEMM-A8W8-A_PER_TOKEN_GROUP_PREQUANT_W_PER_BATCHED_TENSOR_QUANT-N=128-K=512.json",
    ]
    .map(|name| refusal(name).unwrap());
    insta::assert_snapshot!(said.join("\n"), @"
    it is of the GEMM for preshuffled weights, which SGLang never calls itself: rows of aiter's CSV tables whose libtype is triton do
    it is of a GEMM with a scale for each row, which SGLang never calls: such weights run `gemm_a8w8_bpreshuffle`
    it is of a GEMM with a scale for each row, which SGLang never calls: such weights run `gemm_a8w8_bpreshuffle`
    it is of a GEMM with a scale for each row, which SGLang never calls: such weights run `gemm_a8w8_bpreshuffle`
    it is of another of aiter's Triton kernels, for which no row is tuned
    it is of the batched GEMM of MLA's absorbed projections, for which no row is tuned
    ");
}
