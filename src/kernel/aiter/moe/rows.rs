//! Rows of aiter's fused-MoE tuner as candidates: every cell by its column, so that nothing the tuner wrote is lost.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::table::fmoe::table::{Row, Table};
use crate::tune::protocol::Candidate;

/// The rows of a tuned table, both parsed and as they are.
pub(super) fn candidates(bytes: &[u8]) -> Vec<(Row, Candidate)> {
    let Ok(table) = Table::read("the tuned table", bytes) else {
        return Vec::new();
    };
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
    let mut found = Vec::new();
    for record in reader.records().flatten() {
        let line = record.position().map_or(0, csv::Position::line);
        let Some(row) = table.rows.iter().find(|row| row.line == line) else {
            continue;
        };
        let cells = table.columns.iter().zip(record.iter());
        let cells: Map<String, Value> = cells
            .map(|(column, cell)| (column.clone(), Value::from(cell)))
            .collect();
        found.push((row.clone(), Value::Object(cells)));
    }
    found
}

/// A CSV table of `rows`.
pub(super) fn csv<'c>(rows: impl IntoIterator<Item = &'c Candidate>) -> String {
    let rows: Vec<&Map<String, Value>> = rows.into_iter().filter_map(Value::as_object).collect();
    let columns: BTreeSet<&String> = rows.iter().flat_map(|row| row.keys()).collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Writing to memory cannot fail.
    let _ = writer.write_record(columns.iter().map(|column| column.as_str()));
    for row in rows {
        let cell = |column: &&String| row.get(*column).and_then(Value::as_str).unwrap_or("");
        let _ = writer.write_record(columns.iter().map(cell));
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}

/// A candidate as look-ups read it.
pub(super) fn row(candidate: &Candidate) -> Option<Row> {
    let table = Table::read("a row", csv([candidate]).as_bytes()).ok()?;
    table.rows.into_iter().next()
}

/// The kernels that a row names; empty strings if it names none.
pub(super) fn kernels(row: &Row) -> [String; 2] {
    [0, 1].map(|stage| row.kernels[stage].as_deref().unwrap_or("").to_owned())
}

/// Whether two rows specify the same: kernels, stages, tile and split.
pub(super) fn same(one: &Row, other: &Row) -> bool {
    let asks = |row: &Row| (row.kernels.clone(), row.run_1stage, row.block_m, row.ksplit);
    asks(one) == asks(other)
}

/// The kernels of a candidate, for display.
pub(super) fn name(candidate: &Candidate) -> String {
    let text = |column: &str| candidate[column].as_str().filter(|text| !text.is_empty());
    let kernels: Vec<&str> = ["kernelName1", "kernelName2"]
        .into_iter()
        .filter_map(text)
        .filter(|name| !name.eq_ignore_ascii_case("nan"))
        .collect();
    match (kernels.is_empty(), text("block_m")) {
        (true, _) => "aiter's own choice".to_owned(),
        (false, Some(tile)) => format!("{}, block_m {tile}", kernels.join(" and ")),
        (false, None) => kernels.join(" and "),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two rows as the tuner writes them: of two stages and of one.
    pub(in super::super) const TABLE: &str = "cu_num,token,model_dim,inter_dim,expert,topk,act_type,dtype,q_dtype_a,q_dtype_w,q_type,use_g1u1,doweight_stage1,block_m,ksplit,us1,kernelName1,err1,us2,kernelName2,err2,us,run_1stage,tflops,bw,_tag\n\
        304,64,7168,256,257,9,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0,32,0,40.5,a,0.0%,32.25,b,7.1%,72.75,0,1.0,2.0,\n\
        304,128,7168,256,257,9,ActivationType.Silu,torch.bfloat16,torch.float8_e4m3fnuz,torch.float8_e4m3fnuz,QuantType.per_1x128,1,0,32,0,40.5,c,0.0%,0,,0.0%,40.5,1,1.0,2.0,\n";

    #[test]
    fn a_row_goes_through_a_candidate_and_back_with_every_cell() {
        let found = candidates(TABLE.as_bytes());
        assert_eq!(found.len(), 2);
        for (read, candidate) in &found {
            assert_eq!(candidate.as_object().unwrap().len(), 26);
            let back = row(candidate).unwrap();
            assert!(same(&back, read));
            assert_eq!((back.numbers(), back.us), (read.numbers(), read.us));
        }
        assert_eq!(name(&found[0].1), "a and b, block_m 32");
        assert_eq!(name(&found[1].1), "c, block_m 32");
        assert_eq!(name(&Value::Null), "aiter's own choice");
        assert_eq!(kernels(&found[1].0), ["c", ""]);
        let both = csv(found.iter().map(|(_, candidate)| candidate));
        assert_eq!(candidates(both.as_bytes()).len(), 2);
    }
}
