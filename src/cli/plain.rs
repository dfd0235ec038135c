//! Text that is safe for a terminal: without control sequences, and without long quotations of input.

use std::fmt::Write as _;

use camino::Utf8Path;

use crate::table::moe::name::TableName;

/// Most characters shown of a quotation.
const QUOTE: usize = 80;

/// Most characters shown of a line of a message: another program's output (a log, a parser's error) can be one line
/// of megabytes.
const LINE: usize = 1000;

/// The longest name that a file can have on Linux (`NAME_MAX`).
const NAME: usize = 255;

/// `text` with every character that would control a terminal escaped: escape sequences, backspaces and bidirectional
/// control characters may come from files that gemmtune only reads.
pub(super) fn escaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if steers(character) {
            let _ = write!(plain, "{}", character.escape_unicode());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// A JSON document, in which only strings can contain such characters, with them escaped as JSON does.
pub(super) fn escaped_json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if steers(character) {
            let _ = write!(plain, "\\u{:04x}", u32::from(character));
        } else {
            plain.push(character);
        }
    }
    plain
}

fn steers(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        // Line and paragraph separators, and the marks of the bidirectional algorithm (Unicode UAX #9).
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        character => character.is_control(),
    }
}

/// Shortens long quotations and long lines of a message: text between two of `marks` is a quotation, unless it is a
/// command to paste or a path on this machine.
pub(super) fn cut(text: &str, marks: &[char]) -> String {
    let lines: Vec<String> = text.split('\n').map(|line| cut_line(line, marks)).collect();
    lines.join("\n")
}

fn cut_line(line: &str, marks: &[char]) -> String {
    let mut short = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(marks) {
        let mark = rest[start..].chars().next().unwrap_or('`');
        let inside = &rest[start + mark.len_utf8()..];
        let end = inside.find(mark).unwrap_or(inside.len());
        short.push_str(&rest[..start]);
        short.push(mark);
        let quoted = &inside[..end];
        if quoted.len() > QUOTE && !is_ours(quoted) {
            short.push_str(&shortened(quoted, QUOTE));
        } else {
            short.push_str(quoted);
        }
        rest = &inside[end..];
        if let Some(after) = rest.strip_prefix(mark) {
            short.push(mark);
            rest = after;
        }
    }
    short.push_str(rest);
    shortened(&short, LINE)
}

/// Whether a quotation is one of gemmtune's commands, a path that exists or could, or a table's name: these must stay
/// usable.
fn is_ours(quoted: &str) -> bool {
    let beside = || Utf8Path::new(quoted).parent().is_some_and(Utf8Path::exists);
    quoted.starts_with("gemmtune ")
        || (quoted.contains('/') && beside())
        || (quoted.len() <= NAME && quoted.parse::<TableName>().is_ok())
}

fn shortened(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let start: String = text.chars().take(most).collect();
    format!("{start}… ({length} characters)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        let hostile = "a\u{1b}]0;title\u{7}\r\u{8}\u{9b}31mred\u{202e}\nb\tc é";
        let plain = escaped(hostile);
        assert_eq!(
            plain,
            "a\\u{1b}]0;title\\u{7}\\u{d}\\u{8}\\u{9b}31mred\\u{202e}\nb\tc é"
        );
        let json = escaped_json("{\"a\": \"\u{9b}1m\u{202e}\"}\n");
        assert_eq!(json, "{\"a\": \"\\u009b1m\\u202e\"}\n");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["a"], "\u{9b}1m\u{202e}");
    }

    #[test]
    fn quotations_are_cut_and_commands_and_paths_are_not() {
        let long = "x".repeat(5000);
        let cut_long = format!("{}… (5000 characters)", "x".repeat(80));
        for (text, shown) in [
            (
                format!("read `{long}` here"),
                format!("read `{cut_long}` here"),
            ),
            (
                format!("is \"{long}\", no"),
                format!("is \"{cut_long}\", no"),
            ),
            (format!("open `{long}"), format!("open `{cut_long}")),
        ] {
            assert_eq!(cut(&text, &['`', '"']), shown);
        }
        let whole = [
            format!("run `gemmtune run {}`", "x".repeat(200)),
            format!("read `/{}`", "x".repeat(200)),
            "`a` and `b`".to_owned(),
            "`E=128,N=768,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128]_down.json`"
                .to_owned(),
        ];
        for text in whole {
            assert_eq!(cut(&text, &['`', '"']), text);
        }
        assert_eq!(
            cut(&long, &['`']).chars().count(),
            1000 + "… (5000 characters)".chars().count()
        );
    }
}
