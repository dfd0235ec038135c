//! How text from another file or process is displayed: shortened, and without anything that a terminal would
//! interpret.

/// The most characters of foreign text in one message.
const WIDTH: usize = 80;

/// `text` for a message: at most 80 characters, control characters as escapes.
pub fn quoted(text: &str) -> String {
    cut(text, WIDTH)
}

/// `text` with control characters as escapes and at most `width` characters of it.
pub fn cut(text: &str, width: usize) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == width {
            shown.push('…');
            break;
        }
        if is_plain(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_default());
        }
    }
    shown
}

/// Whether a terminal displays the character as it is: neither a control character nor one that reorders text.
pub fn is_plain(character: char) -> bool {
    let reorders = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !character.is_control() && !reorders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_cut_and_cannot_drive_a_terminal() {
        assert_eq!(quoted("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(quoted("ü\u{202e}x"), "ü\\u{202e}x");
        let long = quoted(&"x".repeat(8_000_000));
        assert_eq!(long.chars().count(), 81);
    }
}
