//! aiter CSV tables from elsewhere, to be evaluated as they are (`run --table`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use camino::{Utf8DirEntry, Utf8Path};

use crate::problem::Op;
use crate::proc::quoted;
use crate::run::error::{Error, ErrorKind};
use crate::store::file::entries;
use crate::table::aiter::{Row, Table, TableError};
use crate::table::family::{self, Family};
use crate::tune::tuned::TunedTable;

/// Reads the rows of `ops` from `path`, a table or a folder of tables. The operation of a row follows from the file's
/// name, as for aiter, otherwise from its kernel's name. If neither tells, it is the tuned operation, if that is only one.
pub(super) fn take(ops: &[Op], path: &Utf8Path) -> Result<Vec<TunedTable>, Error> {
    let mut taken = BTreeMap::<Op, Table>::new();
    let mut others = Vec::new();
    let folder = path.is_dir();
    let files = if folder {
        let files = entries(path).map_err(|error| Error::file(&error))?;
        let files = files.into_iter().map(Utf8DirEntry::into_path);
        files
            .filter(|file| file.extension() == Some("csv"))
            .collect()
    } else {
        vec![path.to_owned()]
    };
    for file in &files {
        let bytes = crate::store::file::read(file).map_err(|error| Error::file(&error))?;
        let read = match Table::read(file.as_str(), &bytes, None) {
            // One of aiter's folders contains tables of other kinds too.
            Err(TableError::OtherFamily { .. } | TableError::NotGemm { .. }) if folder => continue,
            read => read.map_err(|error| {
                Error::caused(ErrorKind::Usage, &error).hint(format!(
                    "`gemmtune lint {}` says more about it",
                    quoted(file)
                ))
            })?,
        };
        let named = match family::of_file_name(file.as_str()) {
            Some(Family::Op(op)) => Some(op),
            _ => None,
        };
        for (op, table) in by_operation(&read, named, ops) {
            let Some(tuned) = op.filter(|op| ops.contains(op)) else {
                others.push(op);
                continue;
            };
            match taken.entry(tuned) {
                Entry::Vacant(place) => {
                    place.insert(table);
                }
                Entry::Occupied(place) => {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!(
                            "`{}` and `{}` both have rows of {}",
                            place.get().name,
                            table.name,
                            table.op
                        ),
                    )
                    .hint("`gemmtune merge` makes one table of them"));
                }
            }
        }
    }
    if taken.is_empty() {
        return Err(nothing(ops, path, &others));
    }
    let named = |(op, table): (Op, Table)| {
        let name = if ops.len() > 1 {
            format!("table-{op}.csv")
        } else {
            "table.csv".to_owned()
        };
        TunedTable::csv(&name, &table)
    };
    Ok(taken.into_iter().map(named).collect())
}

/// The rows of `table` by operation; `None` if it is unknown.
fn by_operation(table: &Table, named: Option<Op>, ops: &[Op]) -> Vec<(Option<Op>, Table)> {
    let said = |row: &Row| row.kernel_name.as_deref().and_then(Op::of_kernel_name);
    let only = match ops {
        [only] => Some(*only),
        _ => None,
    };
    let fallback = table.rows.iter().find_map(said).or(only);
    let mut parts = BTreeMap::<Option<Op>, Vec<Row>>::new();
    for row in &table.rows {
        let op = named.or_else(|| said(row)).or(fallback);
        parts.entry(op).or_default().push(row.clone());
    }
    let part = |(op, rows): (Option<Op>, Vec<Row>)| {
        let of = Table {
            op: op.unwrap_or(table.op),
            rows,
            ..table.clone()
        };
        (op, of)
    };
    parts.into_iter().map(part).collect()
}

/// The error if `path` has no usable row; `others` are the operations of the rows that it has.
fn nothing(ops: &[Op], path: &Utf8Path, others: &[Option<Op>]) -> Error {
    let list = |ops: &[Op]| {
        let names: Vec<&str> = ops.iter().map(|op| op.name()).collect();
        names.join(" and ")
    };
    let found: Vec<Op> = others.iter().copied().flatten().collect();
    let runs = list(ops);
    let error = |what: String| Error::new(ErrorKind::Usage, what);
    if !found.is_empty() {
        return error(format!(
            "`{path}` is a table of {}, and the server runs {runs}",
            list(&found)
        ));
    }
    if others.is_empty() {
        return error(format!("`{path}` has no row of {runs}"));
    }
    error(format!(
        "`{path}` does not say of which operation its rows are, and the server runs {runs}"
    ))
    .hint("give it a name as aiter's tables have, such as `a8w8_blockscale_tuned_gemm.csv`")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use camino::Utf8PathBuf;

    use super::*;

    const BOTH: [Op; 2] = [Op::Bpreshuffle, Op::Blockscale];

    /// A folder of tables, each with rows of these kernels.
    fn folder(tables: &[(&str, &[&str])]) -> (tempfile::TempDir, Utf8PathBuf) {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        for (name, kernels) in tables {
            let mut text = "cu_num,M,N,K,kernelId,splitK,us,kernelName\n".to_owned();
            for (m, kernel) in kernels.iter().enumerate() {
                writeln!(text, "304,{},512,7168,0,0,4.5,{kernel}", m + 1).unwrap();
            }
            fs_err::write(folder.join(name), text).unwrap();
        }
        (keep, folder)
    }

    /// M of the rows that were taken for each operation.
    fn taken(ops: &[Op], path: &Utf8Path) -> Result<Vec<(Op, Vec<u32>)>, String> {
        let tables = take(ops, path).map_err(|error| error.to_string())?;
        let rows = |op: &Op| {
            let rows = tables.iter().flat_map(|table| table.csv_rows(*op));
            (*op, rows.map(|row| row.m).collect())
        };
        Ok(ops.iter().map(rows).collect())
    }

    /// Kernels whose names belong to one operation alone (`testdata` and `problem/op`).
    fn own(op: Op) -> String {
        format!("{}x", op.aiter().unwrap().own_names)
    }

    #[test]
    fn rows_of_two_operations_in_one_table_go_to_the_operation_of_their_kernels() {
        let (channel, block) = (own(Op::Bpreshuffle), own(Op::Blockscale));
        let (_keep, folder) = folder(&[("mine.csv", &[&channel, &block, &channel])]);
        let table = folder.join("mine.csv");
        assert_eq!(
            taken(&BOTH, &table).unwrap(),
            [(Op::Bpreshuffle, vec![1, 3]), (Op::Blockscale, vec![2])]
        );
        assert_eq!(
            taken(&BOTH[1..], &table).unwrap(),
            [(Op::Blockscale, vec![2])]
        );
    }

    #[test]
    fn a_folder_has_a_table_for_each_operation_by_their_names() {
        let (_keep, folder) = folder(&[
            ("a8w8_bpreshuffle_tuned_gemm-1.csv", &["k", "l"]),
            ("a8w8_blockscale_tuned_gemm.csv", &["k"]),
            ("a8w8_tuned_gemm.csv", &["k"]),
            ("tuned_fmoe.csv", &["k"]),
        ]);
        assert_eq!(
            taken(&BOTH, &folder).unwrap(),
            [(Op::Bpreshuffle, vec![1, 2]), (Op::Blockscale, vec![1])]
        );
        let again = folder.join("other_a8w8_blockscale_tuned_gemm.csv");
        fs_err::copy(folder.join("a8w8_blockscale_tuned_gemm.csv"), again).unwrap();
        let refused = taken(&BOTH, &folder).unwrap_err();
        assert!(
            refused.contains("both have rows of gemm_a8w8_blockscale"),
            "{refused}"
        );
    }

    #[test]
    fn rows_of_no_operation_are_the_one_that_is_tuned_and_refused_where_several_are() {
        let (_keep, folder) = folder(&[("table.csv", &["k"]), ("a8w8_tuned_gemm.csv", &["k"])]);
        let table = folder.join("table.csv");
        assert_eq!(
            taken(&BOTH[..1], &table).unwrap(),
            [(Op::Bpreshuffle, vec![1])]
        );
        let refused = taken(&BOTH, &table).unwrap_err();
        assert!(
            refused.contains("does not say of which operation"),
            "{refused}"
        );
        let refused = taken(&BOTH[..1], &folder.join("a8w8_tuned_gemm.csv")).unwrap_err();
        assert!(
            refused.contains("is a table of gemm_a8w8, and the server runs gemm_a8w8_bpreshuffle"),
            "{refused}"
        );
    }
}
