//! The list of commands that `gemmtune --help` prints, in groups, since clap supports a single heading for all of
//! them.

use std::fmt::Write as _;

use clap::Subcommand as _;
use clap::builder::{StyledStr, Styles};

/// Each heading with its commands, in the order in which users need them.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "The loop",
        &["demo", "init", "doctor", "run", "status", "undo", "report"],
    ),
    (
        "Shapes and tables",
        &["shapes", "plan", "tune", "lookup", "lint", "merge"],
    ),
    ("Source trees", &["trace", "instrument", "switch"]),
    ("Measurements", &["bench", "compare", "probe", "profile"]),
    ("Other", &["reference-server", "completions", "man", "help"]),
];

/// clap's text for the `help` command, which is not among our definitions.
const HELP: &str = "Print this message or the help of the given command";

/// The template of the top-level help.
pub(super) fn template() -> StyledStr {
    let styles = Styles::styled();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let commands = super::Command::augment_subcommands(clap::Command::new("gemmtune"));
    let widest = GROUPS
        .iter()
        .flat_map(|(_, names)| *names)
        .map(|name| name.len())
        .max();
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (heading, names) in GROUPS {
        let _ = writeln!(text, "\n{header}{heading}:{header:#}");
        for name in names {
            let about = commands
                .find_subcommand(name)
                .and_then(clap::Command::get_about)
                .map_or_else(|| HELP.to_owned(), ToString::to_string);
            let width = widest.unwrap_or(0);
            let _ = writeln!(text, "  {literal}{name:<width$}{literal:#}  {about}");
        }
    }
    let _ = write!(
        text,
        "\n{header}Options:{header:#}\n{{options}}{{after-help}}"
    );
    text.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_that_is_shown_stands_in_one_group() {
        let mut root = super::super::Cli::command();
        root.build();
        let shown: Vec<&str> = root
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(clap::Command::get_name)
            .collect();
        let grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        assert_eq!(
            grouped.iter().collect::<BTreeSet<_>>(),
            shown.iter().collect::<BTreeSet<_>>()
        );
        assert_eq!(grouped.len(), shown.len(), "a command stands in two groups");
    }

    #[test]
    fn the_list_fits_a_terminal_of_80_columns() {
        let help = super::super::Cli::command().render_help().to_string();
        let commands = help.split("Options:").next().unwrap();
        for line in commands.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
