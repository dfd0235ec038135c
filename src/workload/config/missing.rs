//! What a configuration still lacks: all of it, by name, with the question `gemmtune init` left for it.

use super::BackendKind;

/// A name that has to be given and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Dotted name.
    pub name: String,
    /// Line of the `# ?` question for it, from 1.
    pub line: Option<usize>,
    /// Why it is unknown, or what it is for.
    pub why: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = self.line {
            write!(formatter, "line {line}: ")?;
        }
        write!(formatter, "{}: {}", self.name, self.why)
    }
}

/// What `text` lacks. Nothing for a text that is not TOML: that error comes first.
pub fn missing(text: &str) -> Vec<Missing> {
    let Ok(document) = text.parse::<toml::Table>() else {
        return Vec::new();
    };
    let has = |table: &str, name: &str| {
        document
            .get(table)
            .and_then(|table| table.get(name))
            .is_some()
    };
    let has_any = |table: &str, names: &[&str]| names.iter().any(|name| has(table, name));
    let kind = document.get("backend").and_then(|table| table.get("kind"));
    let is_built_in = kind
        .cloned()
        .and_then(|kind| kind.try_into().ok())
        .is_some_and(BackendKind::is_built_in);
    let needed = [
        (
            has("workload", "name"),
            "workload.name",
            "a short name for the run folder",
        ),
        (
            has_any("server", &["command", "script"]),
            "server.command",
            "how the server is started; or `server.script`",
        ),
        (
            has_any("benchmark", &["command", "builtin", "loads"]),
            "benchmark.command",
            "how it is measured; or `benchmark.builtin`, gemmtune's own load",
        ),
        (
            has("benchmark", "results") || !has("benchmark", "command"),
            "benchmark.results",
            "the file that the benchmark appends its results to",
        ),
        (
            kind.is_some(),
            "backend.kind",
            "what is tuned: aiter, sglang-triton, sglang-families or reference",
        ),
        (
            has("backend", "python") || is_built_in,
            "backend.python",
            "the interpreter that runs the server",
        ),
    ];
    let questions = questions(text);
    needed
        .into_iter()
        .filter(|(given, ..)| !given)
        .map(|(_, name, what)| {
            let asked = questions.iter().find(|question| question.name == name);
            asked.cloned().unwrap_or_else(|| Missing {
                name: name.to_owned(),
                line: None,
                why: what.to_owned(),
            })
        })
        .collect()
}

/// The lines `# ? name = … # why` of a draft.
fn questions(text: &str) -> Vec<Missing> {
    let mut table = "";
    let mut questions = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            table = name.trim_matches(['[', ']']);
        }
        let asked = line
            .strip_prefix("# ?")
            .and_then(|rest| rest.split_once('='));
        if let Some((name, rest)) = asked {
            let why = rest.split_once('#').map_or(rest, |(_, why)| why);
            questions.push(Missing {
                name: format!("{table}.{}", name.trim()),
                line: Some(index + 1),
                why: why.trim().to_owned(),
            });
        }
    }
    questions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_missing_is_named_with_its_question() {
        let text = "[workload]\nname = \"w\"\n# ? model = … # optional\n[server]\n\
                    # ? command = … # it is started inside `docker run` at line 4\n\
                    [benchmark]\ncommand = [\"bench\"]\n[backend]\nkind = \"aiter\"\n";
        let said: Vec<String> = missing(text).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "line 5: server.command: it is started inside `docker run` at line 4",
                "benchmark.results: the file that the benchmark appends its results to",
                "backend.python: the interpreter that runs the server",
            ]
        );
        let names = |text| {
            missing(text)
                .into_iter()
                .map(|missing| missing.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(""),
            [
                "workload.name",
                "server.command",
                "benchmark.command",
                "backend.kind",
                "backend.python"
            ]
        );
        assert!(names("[workload\n").is_empty());
        assert!(
            names("workload.name = 'w'\nserver.script = 's'\nbenchmark.loads = []\nbackend.kind = 'reference'").is_empty()
        );
    }
}
