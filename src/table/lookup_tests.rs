use super::*;

fn table(text: &str, op: Op) -> Table {
    Table::read("t.csv", text.as_bytes(), Some(op)).unwrap()
}

fn shape(op: Op, m: u32, dtype: &str) -> Shape {
    Shape {
        op,
        m,
        n: 512,
        k: 7168,
        dtype: dtype.to_owned(),
    }
}

#[test]
fn padding_goes_up_on_the_fine_grid_and_down_past_8192_on_the_coarse_one() {
    let fine = |m| padded_m(0, m, 512, 7168);
    assert_eq!(
        [0, 1, 16, 257, 1025, 4097].map(fine),
        [0, 16, 16, 288, 1088, 4224]
    );
    assert_eq!(padded_m(1, 0, 512, 1), 1);
    assert_eq!(padded_m(1, 9000, 4097, 1), 8192);
    assert_eq!(padded_m(1, 9000, 4096, 1), 16384, "4096 is not above 4096");
    assert_eq!(padded_m(2, 77, 4097, 1), 77);
    assert_eq!(padded_m(0, u32::MAX, 1, 1), u32::MAX, "no overflow");
    assert_eq!(padded_m(1, u32::MAX, 1, 1), u32::MAX, "no overflow");
}

#[test]
fn a_finer_row_beats_a_faster_coarse_one() {
    let table = table(
        "cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName\n\
         304,128,512,7168,ck,1,0,1.0,coarse\n\
         304,112,512,7168,ck,2,0,9.0,fine\n",
        Op::Blockscale,
    );
    let rules = Rules::new(Op::Blockscale, Revision::P);
    let resolver = Resolver::new(&table, rules, "gfx942", 304).unwrap();
    let name = |m| {
        resolver
            .find(&shape(Op::Blockscale, m, ""))
            .row()
            .and_then(|row| row.kernel_name.clone())
    };
    assert_eq!(name(100).as_deref(), Some("fine"));
    assert_eq!(
        name(90).as_deref(),
        Some("coarse"),
        "90 pads to 96, which has no row"
    );
    assert_eq!(name(129), None);
}

#[test]
fn equal_rows_are_one_and_differing_rows_of_a_key_are_an_error() {
    let header = "cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName\n";
    let rules = Rules::new(Op::Blockscale, Revision::P);
    let same = format!("{header}304,16,512,7168,ck,1,0,1.0,a\n304,16,512,7168,ck,1,0,1.00,a\n");
    let same = table(&same, Op::Blockscale);
    assert!(Resolver::new(&same, rules, "gfx942", 304).is_ok());
    // A duplicate key of another GPU breaks this one's server too.
    let other = format!("{header}80,16,512,7168,ck,1,0,1.0,a\n80,16,512,7168,ck,1,0,2.0,a\n");
    let other = table(&other, Op::Blockscale);
    assert_eq!(
        Resolver::new(&other, rules, "gfx942", 304).unwrap_err(),
        LookupError::DuplicateKey {
            table: "t.csv".to_owned(),
            key: "M=16 N=512 K=7168 cu_num=80".to_owned(),
            first: 2,
            second: 3,
            count: 1
        }
    );
}

#[test]
fn a_gfx_column_is_a_key_from_its_revision_on_and_data_before() {
    let both = table(
        "gfx,cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName\n\
         gfx950,256,16,512,7168,ck,1,0,1.0,a\n\
         gfx1250,256,16,512,7168,ck,2,0,1.0,b\n",
        Op::Blockscale,
    );
    let at = |revision| Resolver::new(&both, Rules::new(Op::Blockscale, revision), "gfx950", 256);
    assert!(matches!(
        at(Revision::P),
        Err(LookupError::DuplicateKey { .. })
    ));
    let resolver = at(Revision::H).unwrap();
    let row = resolver.find(&shape(Op::Blockscale, 3, "")).row().unwrap();
    assert_eq!(row.kernel_id, Some(1));
    assert!(!resolver.falls_back_to_cu_num());
}

#[test]
fn bpreshuffle_is_exact_at_a_and_padded_from_b_on() {
    let rows = table(
        "cu_num,M,N,K,q_dtype_w,libtype,kernelId,splitK,us,kernelName\n\
         304,16,512,7168,torch.float8_e4m3fnuz,ck,1,0,1.0,a\n\
         304,16,512,7168,torch.int8,asm,2,0,1.0,b\n",
        Op::Bpreshuffle,
    );
    let found = |revision, m, dtype| {
        let rules = Rules::new(Op::Bpreshuffle, revision);
        let resolver = Resolver::new(&rows, rules, "gfx942", 304).unwrap();
        let found = resolver.find(&shape(Op::Bpreshuffle, m, dtype));
        found.row().and_then(|row| row.kernel_id)
    };
    assert_eq!(found(Revision::A, 3, ""), None);
    assert_eq!(found(Revision::A, 16, ""), Some(1));
    assert_eq!(
        found(Revision::B, 3, ""),
        Some(1),
        "the dtype of the architecture"
    );
    assert_eq!(found(Revision::H, 3, "torch.int8"), Some(2));
    assert_eq!(found(Revision::H, 3, "torch.float8_e4m3fn"), None);
}

#[test]
fn the_largest_row_serves_every_m_above_it_and_none_between() {
    let rows = table(
        "gfx,cu_num,M,N,K,q_dtype_w,libtype,kernelId,splitK,us,kernelName\n\
         gfx942,304,16,512,7168,torch.float8_e4m3fnuz,ck,1,0,1.0,a\n\
         gfx942,304,4096,512,7168,torch.float8_e4m3fnuz,ck,2,0,9.0,b\n\
         gfx942,80,65536,512,7168,torch.float8_e4m3fnuz,ck,3,0,9.0,c\n",
        Op::Bpreshuffle,
    );
    let found = |revision, m| {
        let rules = Rules::new(Op::Bpreshuffle, revision);
        let resolver = Resolver::new(&rows, rules, "gfx942", 304).unwrap();
        match resolver.find(&shape(Op::Bpreshuffle, m, "")) {
            Resolution::Hit { row, probe, .. } => Some((row.m, probe)),
            Resolution::Miss => None,
        }
    };
    assert_eq!(found(Revision::N, 70_000), Some((4096, Probe::Largest)));
    assert_eq!(found(Revision::N, 4096), Some((4096, Probe::Exact)));
    assert_eq!(found(Revision::N, 300), None, "512 has no row");
    assert_eq!(found(Revision::H, 70_000), None);
}

#[test]
fn the_a8w8_module_probes_by_itself() {
    let rows = table(
        "cu_num,M,N,K,q_dtype_w,kernelId,splitK,us,kernelName\n\
         304,96,512,7168,torch.int8,1,0,1.0,python\n\
         304,128,512,7168,torch.int8,2,0,1.0,module\n",
        Op::A8w8,
    );
    let resolver = Resolver::new(&rows, Rules::new(Op::A8w8, Revision::P), "gfx942", 304).unwrap();
    let asked = shape(Op::A8w8, 90, "torch.int8");
    assert_eq!(resolver.find(&asked).row().unwrap().kernel_id, Some(1));
    assert_eq!(
        resolver.find_in_a8w8_module(&asked).unwrap().kernel_id,
        Some(2)
    );
}

#[test]
fn a_number_that_is_no_key_costs_only_its_own_row() {
    // pandas 3.1.1 with the real `get_CKGEMM_config`: with 16.5, -16 and 99999999999 the column stays numeric.
    for odd in ["16.5", "-16", "99999999999", "1e400", ""] {
        let text = format!("cu_num,M,N,K,us\n304,{odd},512,7168,1.0\n304,32,512,7168,2.0\n");
        let table = table(&text, Op::Blockscale);
        let rules = Rules::new(Op::Blockscale, Revision::P);
        let resolver = Resolver::new(&table, rules, "gfx942", 304).unwrap();
        let row = resolver.find(&shape(Op::Blockscale, 20, "")).row();
        assert_eq!(row.unwrap().us, Some(2.0), "{odd}");
    }
}

#[test]
fn rows_that_differ_in_how_no_value_is_spelled_are_copies() {
    let read = |first: &str, second: &str| {
        let text = format!(
            "cu_num,M,N,K,us,kernelName\n304,16,512,7168,{first},a\n304,16,512,7168,{second},a\n"
        );
        let table = table(&text, Op::Blockscale);
        let rules = Rules::new(Op::Blockscale, Revision::P);
        Resolver::new(&table, rules, "gfx942", 304).is_ok()
    };
    assert!(read("nan", "") && read("NA", "None"));
    assert!(!read("Null", ""), "a tuner's word, not one of pandas'");
}

#[test]
fn a_table_the_runtime_cannot_use_is_refused_with_the_reason() {
    let refuse = |text: &str, op: Op| {
        let table = table(text, op);
        Resolver::new(&table, Rules::new(op, Revision::P), "gfx942", 304)
            .unwrap_err()
            .to_string()
    };
    let said = [
        ("cu_num,M,N,K\n304,1,2,3\n", Op::Bpreshuffle),
        ("cu_num, M,N,K\n304,1,2,3\n", Op::Blockscale),
        ("cu_num,M,N,K\n304,1,2,3,4\n", Op::Blockscale),
        ("cu_num,M,N,K\n304,x,2,3\n", Op::Blockscale),
        (
            "cu_num,M,N,K,kernelName\n304,1,2,3,\"a\n304,2,2,3,b\n",
            Op::Blockscale,
        ),
    ]
    .map(|(text, op)| format!("{text:?} as {op}\n    {}", refuse(text, op)));
    insta::assert_snapshot!("refused_tables", said.join("\n"));
}
