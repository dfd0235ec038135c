//! SHA-256 digests by which contents are identified.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// SHA-256 of `bytes` in hexadecimal.
pub fn whole(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Its first 16 digits: enough to tell the files of one run apart.
pub fn short(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes)[..8])
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
