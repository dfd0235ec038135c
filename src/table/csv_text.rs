//! CSV in memory: lines may have any number of cells when they are read, and the last one ends in a newline when it is written.

/// `bytes` without a byte order mark, which pandas drops.
pub fn unmarked(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// A reader of `bytes` that keeps blanks around cells. It fails only on text that is not UTF-8.
pub fn reader(bytes: &[u8]) -> csv::Reader<&[u8]> {
    let mut builder = csv::ReaderBuilder::new();
    builder.flexible(true).from_reader(unmarked(bytes))
}

/// The same, without blanks around cells.
pub fn trimmed(bytes: &[u8]) -> csv::Reader<&[u8]> {
    let mut builder = csv::ReaderBuilder::new();
    let builder = builder.flexible(true).trim(csv::Trim::All);
    builder.from_reader(unmarked(bytes))
}

/// Reads the records of `bytes` one after the other, the header first; false at the end.
pub fn records(bytes: &[u8]) -> impl FnMut(&mut csv::ByteRecord) -> bool {
    let mut builder = csv::ReaderBuilder::new();
    let builder = builder.has_headers(false).flexible(true);
    let mut reader = builder.from_reader(unmarked(bytes));
    // Reading from memory with `flexible` cannot fail: there is no IO and no wrong cell count.
    move |record| reader.read_byte_record(record).unwrap_or(false)
}

/// A CSV of `records` below `header`.
pub fn text(
    header: impl IntoIterator<Item: AsRef<str>>,
    records: impl IntoIterator<Item: IntoIterator<Item: AsRef<str>>>,
) -> String {
    let mut writer = csv::WriterBuilder::new()
        .flexible(true)
        .from_writer(Vec::new());
    // Writing to memory cannot fail, and cells that are text make text.
    let _ = writer.write_record(header.into_iter().map(|cell| cell.as_ref().to_owned()));
    for record in records {
        let _ = writer.write_record(record.into_iter().map(|cell| cell.as_ref().to_owned()));
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}
