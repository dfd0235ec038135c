//! Finds and opens logs: files, folders, compressed or not.

use std::io::{self, BufRead, BufReader, Read};

use camino::{Utf8Path, Utf8PathBuf};

use crate::store::file::entries;

/// What the first bytes of a compressed file are (RFC 1952; RFC 8878).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The bytes of `path`, decompressed if its first bytes say so; its name does not matter.
///
/// Plain files are read as they are up to their end at that moment, so a log may still be growing.
pub fn open(path: &Utf8Path) -> io::Result<Box<dyn Read>> {
    let mut file = fs_err::File::open(path)?;
    let mut start = [0; 4];
    let length = read_up_to(&mut file, &mut start)?;
    if length < 2 || !is_compressed(&start[..length]) {
        return Ok(Box::new(
            io::Cursor::new(start).take(length as u64).chain(file),
        ));
    }
    decompress(io::Cursor::new(start).take(length as u64).chain(file))
}

/// The bytes of `input`, decompressed if they say so.
pub fn decompressed(mut input: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut start = [0; 4];
    let length = read_up_to(&mut input, &mut start)?;
    let compressed = is_compressed(&start[..length]);
    let whole = io::Cursor::new(start).take(length as u64).chain(input);
    if compressed {
        decompress(whole)
    } else {
        Ok(Box::new(whole))
    }
}

/// Whether `path` is a regular file with plain bytes, which can be read a second time.
pub fn is_plain_file(path: &Utf8Path) -> bool {
    let read = || {
        let mut file = fs_err::File::open(path)?;
        if !file.metadata()?.is_file() {
            return Ok(false);
        }
        let mut start = [0; 4];
        let length = read_up_to(&mut file, &mut start)?;
        io::Result::Ok(!is_compressed(&start[..length]))
    };
    read().unwrap_or(false)
}

/// The files that `path` stands for: itself, or every file in the folder and its folders, sorted. Links to folders
/// are not followed, nor links to files that are found by themselves (`latest.log`).
pub fn files(path: &Utf8Path) -> io::Result<Vec<Utf8PathBuf>> {
    if !path.metadata()?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let root = path.canonicalize()?;
    let leads_out = |link: &Utf8Path| {
        let target = link.canonicalize();
        target.is_ok_and(|target| target.is_file() && !target.starts_with(&root))
    };
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder)? {
            let kind = entry.file_type()?;
            let path = entry.into_path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() || (kind.is_symlink() && leads_out(&path)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(&GZIP) || start.starts_with(&ZSTD) || is_skippable(start)
}

/// Whether a Zstandard frame without data starts here: pzstd and seekable writers put one before or behind each
/// frame with data (RFC 8878, 3.1.2).
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn decompress(input: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut input = BufReader::with_capacity(128 << 10, input);
    if input.fill_buf()?.starts_with(&GZIP) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input)));
    }
    let whole = Ahead {
        ahead: io::Cursor::default(),
        input,
    };
    Ok(Box::new(Frames {
        frame: next_frame(whole)?,
    }))
}

type Frame<R> = ruzstd::decoding::StreamingDecoder<Ahead<R>, ruzstd::decoding::FrameDecoder>;

/// Zstandard frames one after another, as `cat a.zst b.zst` and multi-threaded writers make them.
struct Frames<R: Read> {
    frame: Option<Frame<R>>,
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(frame) = &mut self.frame {
            let read = frame.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            if let Some(rest) = self.frame.take().map(Frame::into_inner) {
                self.frame = next_frame(rest)?;
            }
        }
        Ok(0)
    }
}

/// The next frame with data; `None` at the end of the input.
fn next_frame<R: Read>(mut input: Ahead<R>) -> io::Result<Option<Frame<R>>> {
    loop {
        let start = input.peek()?;
        if start.is_empty() {
            return Ok(None);
        }
        if !is_skippable(start) {
            return Frame::new(input).map(Some).map_err(io::Error::other);
        }
        let mut head = [0; 8];
        input.read_exact(&mut head)?;
        let [.., a, b, c, d] = head;
        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
        if io::copy(&mut (&mut input).take(length), &mut io::sink())? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// An input of which the next four bytes can be looked at before they are read.
struct Ahead<R> {
    ahead: io::Cursor<Vec<u8>>,
    input: R,
}

impl<R: Read> Ahead<R> {
    /// The next four bytes, fewer at the end. What was looked at before has to be read.
    fn peek(&mut self) -> io::Result<&[u8]> {
        let mut start = [0; 4];
        let length = read_up_to(self, &mut start)?;
        self.ahead = io::Cursor::new(start[..length].to_vec());
        Ok(self.ahead.get_ref())
    }
}

impl<R: Read> Read for Ahead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.ahead.read(buffer)? {
            0 => self.input.read(buffer),
            read => Ok(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
        (folder, path)
    }

    fn read(path: &Utf8Path) -> io::Result<String> {
        let mut text = String::new();
        open(path)?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(path: &Utf8Path, bytes: &[u8]) {
        fs_err::File::create(path)
            .unwrap()
            .write_all(bytes)
            .unwrap();
    }

    #[test]
    fn bytes_say_whether_a_file_is_compressed() {
        let (_keep, folder) = folder();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"one\n").unwrap();
        let one = gzip.finish().unwrap();
        let two = [one.as_slice(), one.as_slice()].concat();
        write(&folder.join("a.log"), &two);
        assert_eq!(read(&folder.join("a.log")).unwrap(), "one\none\n");
        assert!(!is_plain_file(&folder.join("a.log")));
        for plain in ["", "o", "one\n"] {
            write(&folder.join("b.gz"), plain.as_bytes());
            assert_eq!(read(&folder.join("b.gz")).unwrap(), plain);
            assert!(is_plain_file(&folder.join("b.gz")));
        }
        // Cut off in the middle: what was there is read, then the error comes.
        write(&folder.join("c.gz"), &two[..two.len() - 12]);
        assert!(read(&folder.join("c.gz")).is_err());
    }

    #[test]
    fn zstandard_frames_are_read_one_after_another() {
        let (_keep, folder) = folder();
        // A frame with a single raw block and no checksum (RFC 8878, 3.1.1): descriptor 0, window 1 KiB, last raw
        // block of four bytes.
        let frame = [
            0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00, 0x21, 0x00, 0x00, b'o', b'n', b'e', b'\n',
        ];
        write(&folder.join("a"), &[frame, frame].concat());
        assert_eq!(read(&folder.join("a")).unwrap(), "one\none\n");
        write(&folder.join("b"), &frame[..frame.len() - 2]);
        assert!(read(&folder.join("b")).is_err());
        // Frames without data, as pzstd writes them before each frame.
        let skip = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 9, 9, 9, 9];
        let mixed = [&skip[..], &frame, &skip, &skip, &frame, &skip].concat();
        write(&folder.join("c"), &mixed);
        assert_eq!(read(&folder.join("c")).unwrap(), "one\none\n");
        assert!(!is_plain_file(&folder.join("c")));
        write(&folder.join("d"), &mixed[..mixed.len() - 2]);
        assert!(read(&folder.join("d")).is_err(), "cut off");
    }

    #[test]
    fn a_folder_stands_for_every_file_below_it() {
        let (_keep, folder) = folder();
        fs_err::create_dir(folder.join("sub")).unwrap();
        write(&folder.join("b.log"), b"");
        write(&folder.join("sub/a.log"), b"");
        let link = |target: &Utf8Path, name: &str| {
            std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
        };
        link(&folder, "sub/loop");
        let both = [folder.join("b.log"), folder.join("sub/a.log")];
        assert_eq!(files(&folder).unwrap(), both);
        // A second name of the same log is no second log; one that leads out of the folder is a log of its own.
        link(Utf8Path::new("sub/a.log"), "latest.log");
        link(Utf8Path::new("gone.log"), "dead.log");
        assert_eq!(files(&folder).unwrap(), both);
        let (_other, elsewhere) = self::folder();
        write(&elsewhere.join("c.log"), b"");
        link(&elsewhere.join("c.log"), "c.log");
        assert_eq!(files(&folder).unwrap().len(), 3);
        assert!(files(&folder.join("none")).is_err());
    }
}
