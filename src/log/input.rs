//! Finds and opens logs: files, folders, compressed or not, in UTF-8 or in UTF-16 (which Windows PowerShell's `>` writes).

use std::io::{self, BufRead, BufReader, Read};

use camino::{Utf8Path, Utf8PathBuf};

use crate::store::file::{self, entries};

/// Magic numbers of compressed files (RFC 1952; RFC 8878).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The bytes of `path`, decompressed and converted to UTF-8 as its first bytes require; its name does not matter.
///
/// Plain files are read up to their end at that moment, so a log may still be growing.
pub fn open(path: &Utf8Path) -> io::Result<Box<dyn Read>> {
    let mut file = file::open(path)?;
    let mut start = [0; 4];
    let length = read_up_to(&mut file, &mut start)?;
    whole(start, length, file)
}

/// The bytes of `input`, decompressed and converted to UTF-8 as its first bytes require.
pub fn decompressed(mut input: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut start = [0; 4];
    let length = read_up_to(&mut input, &mut start)?;
    whole(start, length, input)
}

/// An input whose first `length` bytes were consumed by peeking.
fn whole(start: [u8; 4], length: usize, rest: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let input = io::Cursor::new(start).take(length as u64).chain(rest);
    if !is_compressed(&start[..length]) {
        return Ok(text(start, length, input));
    }
    let mut inner = decompress(input)?;
    let mut start = [0; 4];
    let length = read_up_to(&mut inner, &mut start)?;
    let inner = io::Cursor::new(start).take(length as u64).chain(inner);
    Ok(text(start, length, inner))
}

/// `input` as UTF-8, where its first bytes `start` identify it as UTF-16.
fn text(start: [u8; 4], length: usize, input: impl Read + 'static) -> Box<dyn Read> {
    match utf16(&start[..length]) {
        Some(order) => Box::new(Utf16 {
            input,
            order,
            odd: None,
            high: None,
            ready: io::Cursor::default(),
        }),
        None => Box::new(input),
    }
}

/// Whether `path` is a regular, uncompressed file, which can be read a second time.
pub fn is_plain_file(path: &Utf8Path) -> bool {
    let read = || {
        let mut file = file::open(path)?;
        let mut start = [0; 4];
        let length = read_up_to(&mut file, &mut start)?;
        let start = &start[..length];
        io::Result::Ok(!is_compressed(start) && utf16(start).is_none())
    };
    read().unwrap_or(false)
}

/// The files that `path` denotes: itself, or every file in the folder and its subfolders, sorted. Links to folders
/// are not followed, nor are links to files that are found anyway (`latest.log`).
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

/// Which byte of a UTF-16 unit comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Low,
    High,
}

/// Whether the first bytes of an input are UTF-16: by its byte order mark, else by two letters with zero bytes in
/// between.
fn utf16(start: &[u8]) -> Option<Order> {
    let letter = |byte: u8| (0x09..0x7f).contains(&byte);
    match *start {
        [0xff, 0xfe, ..] => Some(Order::Low),
        [0xfe, 0xff, ..] => Some(Order::High),
        [a, 0, b, 0] if letter(a) && letter(b) => Some(Order::Low),
        [0, a, 0, b] if letter(a) && letter(b) => Some(Order::High),
        _ => None,
    }
}

/// Converts UTF-16 to UTF-8 while reading; invalid units become U+FFFD, and a byte order mark at the beginning is
/// kept.
struct Utf16<R> {
    input: R,
    order: Order,
    /// First byte of a unit whose second has not been read.
    odd: Option<u8>,
    /// First half of a surrogate pair whose second has not been read.
    high: Option<u16>,
    ready: io::Cursor<Vec<u8>>,
}

impl<R: Read> Utf16<R> {
    /// Decodes the next characters; none at the end of the input.
    fn fill(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 << 10];
        let from = usize::from(self.odd.is_some());
        bytes[0] = self.odd.take().unwrap_or(0);
        let read = self.input.read(&mut bytes[from..]).inspect_err(|_| {
            // Read again after an interruption.
            self.odd = (from == 1).then_some(bytes[0]);
        })?;
        let end = read == 0;
        let (units, odd) = bytes[..from + read].as_chunks::<2>();
        self.odd = odd.first().copied().filter(|_| !end);
        let units = units.iter().map(|unit| match self.order {
            Order::Low => u16::from_le_bytes(*unit),
            Order::High => u16::from_be_bytes(*unit),
        });
        let mut units: Vec<u16> = self.high.take().into_iter().chain(units).collect();
        if !end
            && units
                .last()
                .is_some_and(|unit| (0xd800..0xdc00).contains(unit))
        {
            self.high = units.pop();
        }
        if end && !odd.is_empty() {
            units.push(0xfffd);
        }
        let text = String::from_utf16_lossy(&units);
        let empty = text.is_empty();
        self.ready = io::Cursor::new(text.into_bytes());
        // A surrogate pair or a unit may be split over two reads.
        if empty && !end { self.fill() } else { Ok(()) }
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.ready.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        self.fill()?;
        self.ready.read(buffer)
    }
}

fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(&GZIP) || start.starts_with(&ZSTD) || is_skippable(start)
}

/// Whether a Zstandard frame without data starts here: pzstd and seekable writers put one before or after each frame
/// with data (RFC 8878, 3.1.2).
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

/// Consecutive Zstandard frames, as `cat a.zst b.zst` and multi-threaded writers produce them.
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

/// An input whose next four bytes can be peeked at.
struct Ahead<R> {
    ahead: io::Cursor<Vec<u8>>,
    input: R,
}

impl<R: Read> Ahead<R> {
    /// The next four bytes, fewer at the end. What was peeked at before has to be read first.
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
        // Cut off in the middle: what was there is read, then the error follows.
        write(&folder.join("c.gz"), &two[..two.len() - 12]);
        assert!(read(&folder.join("c.gz")).is_err());
    }

    #[test]
    fn utf_16_is_read_as_utf_8_however_it_arrives() {
        let (_keep, folder) = folder();
        let log = "[aiter] shape is M:1, N:8\r\n\u{1f600} und ä\n";
        let units: Vec<u16> = log.encode_utf16().collect();
        let low: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let high: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for (mark, bytes) in [
            (&[0xff, 0xfe][..], &low),
            (&[0xfe, 0xff], &high),
            (&[], &low),
            (&[], &high),
        ] {
            let marked = [mark, bytes].concat();
            write(&folder.join("a.log"), &marked);
            let expected = [if mark.is_empty() { "" } else { "\u{feff}" }, log].concat();
            assert_eq!(read(&folder.join("a.log")).unwrap(), expected);
            assert!(
                !is_plain_file(&folder.join("a.log")),
                "it cannot be read in sections"
            );
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&marked).unwrap();
            write(&folder.join("a.gz"), &gzip.finish().unwrap());
            assert_eq!(read(&folder.join("a.gz")).unwrap(), expected);
            // One byte at a time, and cut inside a unit and inside a surrogate pair.
            let one = Utf16 {
                input: OneByte(io::Cursor::new(bytes.clone())),
                order: utf16(&bytes[..4]).unwrap(),
                odd: None,
                high: None,
                ready: io::Cursor::default(),
            };
            assert_eq!(io::read_to_string(one).unwrap(), log);
            for cut in 0..bytes.len() {
                write(&folder.join("b.log"), &marked[..mark.len() + cut]);
                let text = read(&folder.join("b.log")).unwrap();
                let whole = text.trim_end_matches(['\u{fffd}', '\0']);
                assert!(cut < 4 || expected.starts_with(whole), "{text:?}");
            }
        }
    }

    struct OneByte(io::Cursor<Vec<u8>>);

    impl Read for OneByte {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(1);
            self.0.read(&mut buffer[..length])
        }
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
        // A second name of the same log is not a second log; a link that leads out of the folder is a log of its own.
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
