//! Whole-file writes that a kill cannot truncate, and reads that are sure to end.

use std::io::{self, Read as _, Write as _};

use camino::{Utf8DirEntry, Utf8Path};

/// Mode bits of a file that only its owner may read.
const PRIVATE: u32 = 0o600;

/// Replaces the file at `path` with `bytes`, or leaves what was there.
///
/// The bytes go to a temporary sibling, are synced, renamed over `path`, and the folder is synced,
/// so that after a crash a reader sees the old file or the new one. The mode bits of a file that
/// existed before are kept. Anything but a regular file (a device, a pipe) is refused and never replaced.
pub fn write_atomic(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    write_with_mode(path, bytes, mode_of(path))
}

/// [`write_atomic`] for a file that may hold secrets: only its owner may read it, from its first byte on.
pub fn write_private(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    write_with_mode(path, bytes, std::fs::Permissions::from_mode(PRIVATE))
}

fn write_with_mode(
    path: &Utf8Path,
    bytes: &[u8],
    permissions: std::fs::Permissions,
) -> io::Result<()> {
    replaceable(path)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_str().is_empty() => parent,
        _ => Utf8Path::new("."),
    };
    let named = |error: io::Error| io::Error::new(error.kind(), format!("write `{path}`: {error}"));
    let mut temporary = tempfile::Builder::new()
        .prefix(".gemmtune-")
        .permissions(permissions)
        .tempfile_in(folder)
        .map_err(named)?;
    temporary.write_all(bytes).map_err(named)?;
    temporary.as_file().sync_all().map_err(named)?;
    temporary
        .persist(path)
        .map_err(|error| named(error.error))?;
    sync_folder(folder)
}

/// Opens a regular file for reading. Anything else is refused without being opened: a pipe may never be written to, a
/// device may never end.
pub fn open(path: &Utf8Path) -> io::Result<fs_err::File> {
    // For a missing file or a folder the system's own error is clear.
    if fs_err::metadata(path).is_ok_and(|data| !data.is_file() && !data.is_dir()) {
        let message = format!(
            "read `{path}`: it is a device or a pipe, no regular file; where standard input can be read it is `-`"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    fs_err::File::open(path)
}

/// The bytes of a regular file.
pub fn read(path: &Utf8Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The text of a regular file.
pub fn read_text(path: &Utf8Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| {
        let message = format!("read `{path}`: it is not UTF-8 ({})", error.utf8_error());
        io::Error::new(io::ErrorKind::InvalidData, message)
    })
}

/// The entries of a folder, in no order. An error names the folder.
pub fn entries(folder: &Utf8Path) -> io::Result<Vec<Utf8DirEntry>> {
    let named = |error: io::Error| {
        let words = format!("read the folder `{folder}`: {error}");
        io::Error::new(error.kind(), words)
    };
    let found = folder.read_dir_utf8().map_err(named)?;
    found.map(|entry| entry.map_err(named)).collect()
}

/// Succeeds if a rename over `path` replaces a regular file or nothing.
///
/// For root a rename over `/dev/null` takes the device away from the whole machine; `/dev/stdout` is a link to whatever
/// standard output is.
pub fn replaceable(path: &Utf8Path) -> io::Result<()> {
    let special = fs_err::metadata(path).is_ok_and(|data| !data.is_file());
    let is_link = path.is_symlink();
    let of_the_system = || {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        folder.is_some_and(|folder| folder.starts_with("/dev") || folder.starts_with("/proc"))
    };
    if special || (is_link && of_the_system()) {
        let message =
            format!("write `{path}`: it is no regular file, and would be replaced by one");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}

/// Makes a rename or a new name in `folder` durable.
pub fn sync_folder(folder: &Utf8Path) -> io::Result<()> {
    fs_err::File::open(folder)?.sync_all()
}

fn mode_of(path: &Utf8Path) -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt as _;
    // 0o644 less the umask, as for any newly created file.
    fs_err::metadata(path).map_or_else(
        |_| std::fs::Permissions::from_mode(0o644),
        |data| data.permissions(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_named() {
        let (_keep, folder) = folder();
        fs_err::write(folder.join("a"), "").unwrap();
        assert_eq!(entries(&folder).unwrap().len(), 1);
        let error = entries(&folder.join("gone")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let words = format!("read the folder `{folder}/gone`: No such file");
        assert!(error.to_string().starts_with(&words), "{error}");
    }

    #[test]
    fn a_write_replaces_the_whole_file_and_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_keep, folder) = folder();
        let path = folder.join("table.csv");
        write_atomic(&path, b"a long first version").unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"second");
        assert_eq!(
            fs_err::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            fs_err::read_dir(&folder).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn what_is_no_regular_file_is_never_replaced() {
        use std::os::unix::fs::FileTypeExt as _;
        let (_keep, folder) = folder();
        let socket = folder.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = folder.join("link");
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        let said = [&socket, &link, &folder].map(|path| {
            let error = write_atomic(path, b"x").unwrap_err().to_string();
            error.replace(folder.as_str(), "[folder]")
        });
        insta::assert_snapshot!(said.join("\n"), @"
        write `[folder]/socket`: it is no regular file, and would be replaced by one
        write `[folder]/link`: it is no regular file, and would be replaced by one
        write `[folder]`: it is no regular file, and would be replaced by one
        ");
        let kind = fs_err::symlink_metadata(&socket).unwrap().file_type();
        assert!(kind.is_socket() && link.is_symlink());
        // Only checked, never written: a failing test must not damage the machine.
        for path in ["/dev/null", "/dev/stdout", "/proc/self/exe"] {
            assert!(replaceable(Utf8Path::new(path)).is_err(), "{path}");
        }
        assert!(replaceable(&folder.join("new.csv")).is_ok());
    }

    #[test]
    fn what_is_no_regular_file_is_never_opened() {
        let (_keep, folder) = folder();
        let pipe = folder.join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let latin = folder.join("latin");
        fs_err::write(&latin, b"caf\xe9").unwrap();
        let said = [&pipe, Utf8Path::new("/dev/zero"), &latin].map(|path| {
            let error = read_text(path).unwrap_err().to_string();
            error.replace(folder.as_str(), "[folder]")
        });
        insta::assert_snapshot!(said.join("\n"), @"
        read `[folder]/pipe`: it is a device or a pipe, no regular file; where standard input can be read it is `-`
        read `/dev/zero`: it is a device or a pipe, no regular file; where standard input can be read it is `-`
        read `[folder]/latin`: it is not UTF-8 (incomplete utf-8 byte sequence from index 3)
        ");
    }

    #[test]
    fn a_private_file_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_keep, folder) = folder();
        let path = folder.join("run.toml");
        fs_err::write(&path, "open").unwrap();
        write_private(&path, b"closed").unwrap();
        let mode = fs_err::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read_text(&path).unwrap(), "closed");
    }

    #[test]
    fn a_write_into_a_missing_folder_names_the_file() {
        let (_keep, folder) = folder();
        let error = write_atomic(&folder.join("missing/table.csv"), b"x").unwrap_err();
        let said = error.to_string().replace(folder.as_str(), "[folder]");
        // A name by chance follows, of the sibling that was to be renamed.
        let (said, _) = said.split_once(" at path ").unwrap();
        insta::assert_snapshot!(said, @"write `[folder]/missing/table.csv`: No such file or directory (os error 2)");
    }
}
