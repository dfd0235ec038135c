//! Rows as they are written to the tuner's files.
//!
//! The tuner rewrites its CSV in place after each batch, without a lock: a reader may find it empty, or truncated
//! anywhere. Only lines with a line end are used, and a row that was seen once is kept even if it disappears.

use camino::{Utf8Path, Utf8PathBuf};

use crate::problem::Op;
use crate::table::aiter::{Row, Table};

/// The complete rows of the table in `bytes`.
pub(super) fn whole(bytes: &[u8], op: Op) -> Vec<Row> {
    let end = memchr::memrchr(b'\n', bytes).map_or(0, |end| end + 1);
    match Table::read("the tuner's table", &bytes[..end], Some(op)) {
        Ok(table) => table
            .rows
            .into_iter()
            .filter(|row| row.us.is_some() && row.cu_num.is_some())
            .collect(),
        // Empty or truncated in its header: it is being written.
        Err(_) => Vec::new(),
    }
}

/// The complete rows of the file at `path`; empty if it does not exist yet.
pub(super) fn read(path: &Utf8Path, op: Op) -> Vec<Row> {
    fs_err::read(path).map_or_else(|_| Vec::new(), |bytes| whole(&bytes, op))
}

/// A file that grows or is rewritten.
#[derive(Debug)]
pub(super) struct Watched {
    path: Utf8PathBuf,
    seen: Option<(u64, std::time::SystemTime)>,
}

impl Watched {
    pub(super) fn new(path: Utf8PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Whether it has changed since the last call.
    pub(super) fn changed(&mut self) -> bool {
        let now = fs_err::metadata(&self.path)
            .ok()
            .and_then(|data| Some((data.len(), data.modified().ok()?)));
        let changed = now != self.seen;
        self.seen = now;
        changed && now.is_some()
    }

    pub(super) fn path(&self) -> &Utf8Path {
        &self.path
    }
}

/// Reads the lines that were added to a log since the last call.
#[derive(Debug)]
pub(super) struct Tail {
    path: Utf8PathBuf,
    offset: u64,
    rest: Vec<u8>,
}

impl Tail {
    pub(super) fn new(path: Utf8PathBuf) -> Self {
        Self {
            path,
            offset: 0,
            rest: Vec::new(),
        }
    }

    /// Complete lines; with `all`, also a last one without a line end.
    pub(super) fn lines(&mut self, all: bool) -> Vec<String> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        // A log that cannot be read now is read later; meanwhile it counts as silent.
        if let Ok(mut file) = fs_err::File::open(&self.path)
            && file.seek(SeekFrom::Start(self.offset)).is_ok()
            && let Ok(read) = file.read_to_end(&mut self.rest)
        {
            self.offset += read as u64;
        }
        let end = match memchr::memrchr(b'\n', &self.rest) {
            Some(end) => end + 1,
            None => 0,
        };
        let end = if all { self.rest.len() } else { end };
        let rest = self.rest.split_off(end);
        let whole = std::mem::replace(&mut self.rest, rest);
        String::from_utf8_lossy(&whole)
            .split(['\n', '\r'])
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Number of bytes read.
    pub(super) fn read(&self) -> u64 {
        self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "cu_num,M,N,K,libtype,kernelId,splitK,us,kernelName,tflops,bw,errRatio\n\
        304,16,256,512,cktile,5,0,3.241,a8w8_blockscale_cktile_x,1.29,45.5,0.0\n\
        304,32,256,512,ck,7,0,4.5,a8w8_blockscale_1x128x128_y,1.29,45.5,0.0\n";

    #[test]
    fn a_table_cut_anywhere_gives_a_prefix_of_its_rows() {
        let full = whole(TABLE.as_bytes(), Op::Blockscale);
        assert_eq!(full.len(), 2);
        for end in 0..TABLE.len() {
            let cut = whole(&TABLE.as_bytes()[..end], Op::Blockscale);
            assert_eq!(cut, full[..cut.len()], "cut at {end}");
        }
    }

    #[test]
    fn a_tail_gives_whole_lines_once() {
        let keep = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(keep.path().join("log")).unwrap();
        let mut tail = Tail::new(path.clone());
        assert!(tail.lines(false).is_empty());
        let write = |text: &str| {
            use std::io::Write as _;
            let mut file = fs_err::File::options()
                .create(true)
                .append(true)
                .open(&path)
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        write("one\ntw");
        assert_eq!(tail.lines(false), ["one"]);
        write("o\r10 %\rthree");
        assert!(tail.lines(false).is_empty());
        assert_eq!(tail.lines(true), ["two", "10 %", "three"]);
    }
}
