//! Files a command names: what it reads, what it writes, and that these are never the same.

use std::io::{self, Read as _};

use camino::Utf8Path;

use crate::run::error::{Error, ErrorKind};
use crate::store::file::replaceable;

/// The bytes of the file at `path`; of standard input for `-`.
pub(super) fn read(path: &Utf8Path) -> io::Result<Vec<u8>> {
    if path != "-" {
        return fs_err::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Refuses an output that is no regular file, or one of the inputs under whatever name: a second path to it, or a link.
pub(super) fn refuse_overwriting<'input>(
    output: &Utf8Path,
    inputs: impl IntoIterator<Item = &'input Utf8Path>,
) -> Result<(), Error> {
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

/// Device and inode of what the path leads to.
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
