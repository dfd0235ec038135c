//! Files that a command names: input, output, and a check that they are never the same.

use std::io::{self, Read as _, Write as _};

use camino::Utf8Path;

use super::printer::Printer;
use crate::run::error::{Error, ErrorKind};
use crate::store::file::{self, replaceable, write_atomic};

/// The bytes of the file at `path`; of standard input for `-`.
pub(super) fn read(path: &Utf8Path) -> io::Result<Vec<u8>> {
    if path != "-" {
        return file::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes the requested file, atomically. A stream that is named like a file (`/dev/stdout`, `/dev/null`, a terminal)
/// is written to and never replaced.
pub(super) fn write(path: &Utf8Path, bytes: &[u8], printer: &Printer) -> Result<(), Error> {
    let failed = |error| Error::to(ErrorKind::Environment, "write the output", error);
    match stream(path) {
        Some(Stream::Output) => printer.data(bytes),
        Some(Stream::Error) => io::stderr().write_all(bytes).map_err(failed),
        Some(Stream::Device) => fs_err::OpenOptions::new()
            .append(true)
            .open(path)
            .and_then(|mut device| device.write_all(bytes))
            .map_err(failed),
        None => write_atomic(path, bytes).map_err(failed),
    }
}

/// A destination that is not a file on disk.
pub(super) enum Stream {
    Output,
    Error,
    Device,
}

/// The stream that `path` leads to. A disk is not one and is refused, as is a pipe that may have no reader.
pub(super) fn stream(path: &Utf8Path) -> Option<Stream> {
    use std::os::unix::fs::FileTypeExt as _;
    match path.as_str() {
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => Some(Stream::Output),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => Some(Stream::Error),
        path => fs_err::metadata(path)
            .is_ok_and(|data| data.file_type().is_char_device())
            .then_some(Stream::Device),
    }
}

/// Refuses an output that can be neither written to nor replaced, or that is one of the inputs under another name: a
/// second path to it, or a link.
pub(super) fn refuse_overwriting<'input>(
    output: &Utf8Path,
    inputs: impl IntoIterator<Item = &'input Utf8Path>,
) -> Result<(), Error> {
    if stream(output).is_some() {
        return Ok(());
    }
    replaceable(output).map_err(|error| {
        Error::to(ErrorKind::Usage, "use the output", error)
            .hint("name a new file with -o, or an old table that may be replaced")
    })?;
    let written = identity(output);
    let same = inputs
        .into_iter()
        .find(|input| output == *input || (written.is_some() && written == identity(input)));
    match same {
        Some(input) => Err(Error::new(
            ErrorKind::Usage,
            format!("`{output}` is the input `{input}`, which is never written"),
        )
        .hint("name another file with -o")),
        None => Ok(()),
    }
}

/// Device and inode of the file that the path leads to.
fn identity(path: &Utf8Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let data = fs_err::metadata(path).ok()?;
    Some((data.dev(), data.ino()))
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;

    use super::*;

    #[test]
    fn a_device_is_written_to_and_stays_one() {
        use std::os::unix::fs::FileTypeExt as _;
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let link = folder.join("null");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        refuse_overwriting(&link, []).unwrap();
        write(&link, b"x", &Printer::new(false)).unwrap();
        assert!(link.is_symlink());
        let kind = fs_err::metadata("/dev/null").unwrap().file_type();
        assert!(kind.is_char_device());
        let failure = write(&folder, b"x", &Printer::new(false)).unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::Environment);
    }

    #[test]
    fn an_output_that_is_an_input_under_another_name_is_refused() {
        let keep = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(keep.path().to_owned()).unwrap();
        let input = folder.join("a.csv");
        fs_err::write(&input, b"x").unwrap();
        let link = folder.join("link.csv");
        std::os::unix::fs::symlink(&input, &link).unwrap();
        let hard = folder.join("hard.csv");
        fs_err::hard_link(&input, &hard).unwrap();
        for output in [&input, &folder.join("./a.csv"), &link, &hard] {
            let failure = refuse_overwriting(output, [input.as_path()]).unwrap_err();
            assert_eq!(failure.kind(), ErrorKind::Usage, "{output}");
        }
        let missing = folder.join("new.csv");
        assert!(refuse_overwriting(&missing, [input.as_path(), &folder.join("none")]).is_ok());
        assert!(
            refuse_overwriting(&missing, [missing.as_path()]).is_err(),
            "an input that is not there yet is an input still"
        );
    }
}
