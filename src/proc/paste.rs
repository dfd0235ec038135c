//! Commands that a person can paste into a shell.

/// A word as a shell reads it: quoted where necessary.
pub fn quoted(word: impl AsRef<str>) -> String {
    let word = word.as_ref();
    // A word with a NUL byte cannot be an argument at all.
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), Into::into)
}

/// A command line, quoted for a shell.
pub fn line<'word>(argv: impl IntoIterator<Item = &'word String>) -> String {
    let words: Vec<String> = argv.into_iter().map(quoted).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_blanks_in_a_path_reads_back_as_it_is() {
        let argv = ["gemmtune", "run", "/my runs/a'b"].map(str::to_owned);
        assert_eq!(shlex::split(&line(&argv)).unwrap(), argv);
        assert_eq!(quoted("/runs/latest"), "/runs/latest");
    }
}
