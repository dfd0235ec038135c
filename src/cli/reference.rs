//! The pages under `docs/reference/` are generated from the code, and every command that is printed anywhere is
//! checked against the argument definitions. Tests only: the binary contains none of it.

use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use serde_json::Value;

use super::Cli;
use crate::workload::config::Config;

/// The variable that makes these tests write the pages instead of comparing them.
const UPDATE: &str = "GEMMTUNE_UPDATE_DOCS";

fn repository() -> &'static Utf8Path {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares the file at `path` of the repository with `made`.
fn in_step(path: &str, made: &str) {
    let file = repository().join(path);
    if std::env::var_os(UPDATE).is_some() {
        fs_err::create_dir_all(file.parent().unwrap()).unwrap();
        return fs_err::write(&file, made).unwrap();
    }
    let stands = fs_err::read_to_string(&file).unwrap_or_default();
    assert!(
        stands == made,
        "{path} is not what the code says; update it with `{UPDATE}=1 cargo test --lib cli::reference`\n{}",
        similar::TextDiff::from_lines(&*stands, made).unified_diff()
    );
}

#[test]
fn the_reference_of_the_commands_is_in_step_with_their_definitions() {
    let mut root = Cli::command();
    root.build();
    let mut page = "# Commands\n\n<!-- Made from the code: see src/cli/reference.rs. -->\n\n\
         What `gemmtune COMMAND --help` prints. The documents that `--json` prints have \
         [schemas](../schemas.md).\n"
        .to_owned();
    add_commands(&mut page, &root);
    in_step("docs/reference/commands.md", &page);
}

fn add_commands(page: &mut String, command: &clap::Command) {
    let name = command
        .get_bin_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned();
    let help = command.clone().term_width(100).render_long_help();
    let help = help.to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(
        page,
        "\n## `{name}`\n\n```text\n{}\n```\n",
        lines.join("\n").trim_end()
    );
    for inner in command.get_subcommands() {
        if !inner.is_hide_set() && inner.get_name() != "help" {
            add_commands(page, inner);
        }
    }
}

#[test]
fn the_reference_of_the_configuration_is_in_step_with_its_types() {
    let schema = serde_json::to_value(schemars::schema_for!(Config)).unwrap();
    in_step(
        "docs/schemas/gemmtune-toml.json",
        &format!("{}\n", serde_json::to_string_pretty(&schema).unwrap()),
    );

    let example = example();
    Config::parse(&example).expect("the example of the module's documentation is a configuration");
    let mut page = format!(
        "# `gemmtune.toml`\n\n<!-- Made from the code: see src/cli/reference.rs. -->\n\n\
         `gemmtune init` writes this file, `gemmtune run` reads it. Unknown names are refused. Editors that check TOML \
         against a schema can use [gemmtune-toml.json](../schemas/gemmtune-toml.json).\n\n```toml\n{example}```\n"
    );
    for (table, property) in properties(&schema) {
        let tail = if required(&schema, table) {
            ""
        } else {
            " May be left out."
        };
        add_table(&mut page, &schema, table, property, tail);
    }
    in_step("docs/reference/gemmtune-toml.md", &page);
}

/// The example in the module documentation of `workload::config`.
fn example() -> String {
    include_str!("../workload/config.rs")
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .skip_while(|line| *line != "```toml")
        .skip(1)
        .take_while(|line| *line != "```")
        .fold(String::new(), |text, line| text + line + "\n")
}

fn add_table(page: &mut String, schema: &Value, table: &str, property: &Value, tail: &str) {
    let definition = resolved(schema, property);
    let _ = write!(
        page,
        "\n## `[{table}]`\n\n{}{tail}\n\n| name | type | default | meaning |\n|---|---|---|---|\n",
        words(property, definition, table)
    );
    let mut inner = Vec::new();
    for (name, property) in properties(definition) {
        let target = resolved(schema, property);
        let default = match property.get("default") {
            Some(Value::Null) | None if required(definition, name) => "**required**".to_owned(),
            Some(Value::Null) | None => String::new(),
            Some(value) => format!("`{value}`"),
        };
        let _ = writeln!(
            page,
            "| `{name}` | {} | {default} | {} |",
            kind(schema, property),
            words(property, target, table)
        );
        if target.get("properties").is_some() {
            inner.push((format!("{table}.{name}"), property));
        }
    }
    for (name, property) in inner {
        add_table(page, schema, &name, property, "");
    }
}

/// The definition that a property refers to, or the property itself.
fn resolved<'a>(schema: &'a Value, property: &'a Value) -> &'a Value {
    let reference = property
        .get("$ref")
        .or_else(|| property.pointer("/anyOf/0/$ref"))
        .and_then(Value::as_str);
    reference.map_or(property, |reference| {
        schema
            .pointer(reference.trim_start_matches('#'))
            .expect("schemars refers to its own definitions")
    })
}

fn properties(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value))
}

fn required(schema: &Value, name: &str) -> bool {
    schema["required"]
        .as_array()
        .is_some_and(|names| names.iter().any(|required| required == name))
}

/// The doc comment of a field, else of its type, as one table cell and without the leading name.
fn words(property: &Value, definition: &Value, table: &str) -> String {
    let text = [property, definition]
        .into_iter()
        .find_map(|value| value.get("description")?.as_str())
        .unwrap_or_default()
        .replace('\n', " ")
        .replace('|', "\\|");
    let text = text
        .strip_prefix(&format!("`[{table}]`: "))
        .unwrap_or(&text);
    if text.starts_with("gemmtune") {
        return text.to_owned();
    }
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(characters).collect()
    })
}

fn kind(schema: &Value, property: &Value) -> String {
    let target = resolved(schema, property);
    if let Some(choices) = target.get("oneOf").and_then(Value::as_array) {
        let choices: Vec<String> = choices
            .iter()
            .filter_map(|choice| choice.get("const").map(|value| format!("`{value}`")))
            .collect();
        return choices.join(", ");
    }
    if target.get("properties").is_some() {
        return "table".to_owned();
    }
    let name = match &target["type"] {
        Value::Array(names) => names[0].as_str(),
        name => name.as_str(),
    };
    match name.expect("every other property has a type") {
        "array" if target["items"]["type"] == "string" => "list of strings".to_owned(),
        "array" => "list of tables".to_owned(),
        "object" => "table of strings".to_owned(),
        other => other.to_owned(),
    }
}

#[test]
fn every_command_in_the_pages_is_one_that_is_taken() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in files(&["docs", "examples", "."], "md") {
        let text = fs_err::read_to_string(&page).unwrap();
        for line in printed_commands(&text) {
            seen += 1;
            if let Err(why) = taken(&line, false) {
                wrong.push(format!("{page}: {line}\n    {why}"));
            }
        }
    }
    assert!(seen > 15, "only {seen} commands were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_command_that_a_message_names_is_one_that_is_taken() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    let sources = files(&["src"], "rs");
    for file in sources
        .iter()
        .filter(|file| !file.ends_with("cli/reference.rs"))
    {
        let text = fs_err::read_to_string(file).unwrap();
        // A long message is wrapped with a backslash at the end of the line.
        let unwrapped = text
            .split("\\\n")
            .map(str::trim_start)
            .collect::<Vec<_>>()
            .concat();
        for line in unwrapped.lines() {
            for quoted in line.split('`').skip(1).step_by(2) {
                // A command whose name is filled in later cannot be checked here.
                let named = quoted
                    .strip_prefix("gemmtune ")
                    .map(|rest| rest.strip_prefix("help ").unwrap_or(rest))
                    .is_some_and(|rest| {
                        rest.starts_with(|first: char| first.is_ascii_lowercase() || first == '-')
                    });
                if named && !quoted.contains(['|', '…']) {
                    seen += 1;
                    if let Err(why) = taken(quoted, true) {
                        wrong.push(format!("{file}: {quoted}\n    {why}"));
                    }
                }
            }
        }
    }
    assert!(seen > 60, "only {seen} commands were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The files with this extension below the folders; `.` is not searched recursively.
fn files(folders: &[&str], ending: &str) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        let Ok(entries) = repository().join(folder).read_dir_utf8() else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().into_path();
            if path.is_dir() && *folder != "." {
                let inner = path.strip_prefix(repository()).unwrap().to_owned();
                found.extend(files(&[inner.as_str()], ending));
            } else if path.extension() == Some(ending) {
                found.push(path);
            }
        }
    }
    found
}

/// The command lines in a page's code blocks that start gemmtune, without comments. Synopses (with `[`, `…` or `...`)
/// and lines of other languages are skipped.
fn printed_commands(page: &str) -> Vec<String> {
    let mut fenced = false;
    let mut commands = Vec::new();
    let joined = page.replace("\\\n", " ");
    for line in joined.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if !fenced && !line.starts_with("    ") {
            continue;
        }
        let line = line.split(" #").next().unwrap_or_default();
        for part in line.split("&&").flat_map(|part| part.split([';', '|'])) {
            let part = part.split(" >").next().unwrap_or_default().trim();
            let part = part.split(" 2>").next().unwrap_or_default();
            let part = part.strip_prefix("run: ").unwrap_or(part);
            let part = part.strip_prefix("! ").unwrap_or(part);
            if part.starts_with("gemmtune ") && !part.contains(['[', '…']) && !part.contains("...")
            {
                commands.push(part.to_owned());
            }
        }
    }
    commands
}

/// Whether the argument definitions accept the line. In a sentence (`inline`) required arguments may be missing, and
/// values may be placeholders.
fn taken(line: &str, inline: bool) -> Result<(), String> {
    let arguments = shlex::split(line).ok_or("the quotes do not match")?;
    match Cli::try_parse_from(arguments) {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
            ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::InvalidValue
            | ErrorKind::ValueValidation
                if inline =>
            {
                Ok(())
            }
            _ => Err(error
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()),
        },
    }
}

#[test]
fn an_unknown_option_or_command_would_be_noticed() {
    assert!(taken("gemmtune run -c gemmtune.toml", true).is_err());
    assert!(taken("gemmtune tunes", true).is_err());
    assert!(taken("gemmtune lookup", true).is_ok());
    assert!(taken("gemmtune lookup", false).is_err());
    assert_eq!(
        printed_commands(
            "    gemmtune lint a.csv && gemmtune merge a.csv -o b.csv # both\n    X=1 \\\n    y\n"
        ),
        ["gemmtune lint a.csv", "gemmtune merge a.csv -o b.csv"]
    );
}
