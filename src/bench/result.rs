//! Tolerant reader of `bench_serving` result files: one JSON object per run, appended.
//!
//! Python's `json.dumps` writes what JSON does not have: an unlimited request rate is the bare token
//! `Infinity`, a mean of nothing is `NaN`, and text that was not valid Unicode keeps lone surrogate
//! escapes. All three are accepted. Key names are those of SGLang's `bench_serving` (0.5.5 to 0.5.23). Some programs wrap a
//! run or several in one object, `{"config": …, "results": …}`: the keys around them are kept with each.

use std::borrow::Cow;
use std::fmt;

use camino::Utf8Path;
use serde_json::{Map, Value};

/// Where a run was read: file and line of its first character.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The file as the caller named it.
    pub file: String,
    /// Line number, from 1.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file, self.line)
    }
}

/// One benchmark run: the object `bench_serving` wrote for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Where it was read.
    pub source: Source,
    /// Every key and value as read; bare `Infinity`, `-Infinity` and `NaN` as strings of that name.
    pub fields: Map<String, Value>,
}

impl Run {
    /// The number under `key`, including a bare `Infinity` or `NaN`. `None` when the key is absent, null or not a
    /// number.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.fields.get(key)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => match text.as_str() {
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                "NaN" => Some(f64::NAN),
                _ => None,
            },
            _ => None,
        }
    }

    /// Requests that failed: from `failed`, else the non-empty strings of `errors` (which
    /// `bench_serving` writes with `--output-details`). `None` when the run has neither.
    pub fn failed(&self) -> Option<u64> {
        if let Some(failed) = self.fields.get("failed").and_then(Value::as_u64) {
            return Some(failed);
        }
        let errors = self.fields.get("errors")?.as_array()?;
        let failed = errors
            .iter()
            .filter(|error| error.as_str().is_some_and(|text| !text.is_empty()));
        Some(failed.count() as u64)
    }

    /// Position of this run's trial among all trials of both arms, where the program that ran them recorded it
    /// (`gemmtune.sequence`).
    pub fn sequence(&self) -> Option<u64> {
        self.fields.get("gemmtune")?.get("sequence")?.as_u64()
    }
}

/// A result file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened or is not UTF-8.
    #[error("read `{file}`")]
    Io {
        /// The file as the caller named it.
        file: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Text that is not JSON, or that ends inside a value.
    #[error("read `{file}:{line}`: {reason}")]
    Syntax {
        /// The file as the caller named it.
        file: String,
        /// Line of the error, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A JSON value that is not an object.
    #[error("read `{0}`: expected a JSON object, one per benchmark run")]
    NotAnObject(Source),
    /// The file holds no run at all.
    #[error("read `{0}`: the file holds no benchmark run")]
    Empty(String),
}

/// Reads every run of the file at `path`, in file order.
pub fn read(path: &Utf8Path) -> Result<Vec<Run>, ReadError> {
    let text = crate::store::file::read_text(path).map_err(|source| ReadError::Io {
        file: path.to_string(),
        source,
    })?;
    parse(path.as_str(), &text)
}

/// Reads every run in `text`; `file` is the name used in sources and errors. Objects may be one a line, spread over
/// lines, or the elements of one array.
pub fn parse(file: &str, text: &str) -> Result<Vec<Run>, ReadError> {
    let text = strict_json(text.trim_start_matches('\u{feff}'));
    let mut stream = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let mut runs = Vec::new();
    let (mut counted_to, mut line) = (0, 1);
    loop {
        let gap = &text[stream.byte_offset()..];
        let start = stream.byte_offset() + (gap.len() - gap.trim_start().len());
        line += text[counted_to..start].matches('\n').count();
        counted_to = start;
        let source = Source {
            file: file.to_owned(),
            line,
        };
        match stream.next() {
            None => break,
            Some(Ok(Value::Object(fields))) => {
                let runs_here = unwrapped(fields).into_iter();
                runs.extend(runs_here.map(|fields| Run {
                    source: source.clone(),
                    fields,
                }));
            }
            Some(Ok(Value::Array(elements))) => {
                for element in elements {
                    let Value::Object(fields) = element else {
                        return Err(ReadError::NotAnObject(source));
                    };
                    let runs_here = unwrapped(fields).into_iter();
                    runs.extend(runs_here.map(|fields| Run {
                        source: source.clone(),
                        fields,
                    }));
                }
            }
            Some(Ok(_)) => return Err(ReadError::NotAnObject(source)),
            Some(Err(error)) => {
                let (line, reason) = if error.is_eof() {
                    let reason =
                        "the last object is cut off; was the benchmark killed while writing?";
                    (line, reason.to_owned())
                } else if ends_in_string(&text[start..]) {
                    let reason =
                        "the object is cut off; was the benchmark killed while writing it?";
                    (line, reason.to_owned())
                } else {
                    (error.line(), error.to_string())
                };
                return Err(ReadError::Syntax {
                    file: file.to_owned(),
                    line,
                    reason,
                });
            }
        }
    }
    if runs.is_empty() {
        return Err(ReadError::Empty(file.to_owned()));
    }
    Ok(runs)
}

/// The runs in an object: itself, or those in the one member of it that holds some. The keys around them are added to
/// each.
fn unwrapped(mut fields: Map<String, Value>) -> Vec<Map<String, Value>> {
    if is_run(&fields) {
        return vec![fields];
    }
    let holds = |value: &Value| match value {
        Value::Object(inner) => is_run(inner),
        Value::Array(list) => {
            let mut list = list.iter().peekable();
            list.peek().is_some() && list.all(|one| one.as_object().is_some_and(is_run))
        }
        _ => false,
    };
    let places: Vec<String> = fields
        .iter()
        .filter(|(_, value)| holds(value))
        .map(|(key, _)| key.clone())
        .collect();
    let [place] = places.as_slice() else {
        return vec![fields];
    };
    let inner = match fields.remove(place) {
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let runs = inner.into_iter().filter_map(|run| match run {
        Value::Object(run) => Some(run),
        _ => None,
    });
    runs.map(|run| {
        let mut all = fields.clone();
        all.extend(run);
        all
    })
    .collect()
}

/// Whether an object is a run itself: it has measurements.
fn is_run(fields: &Map<String, Value>) -> bool {
    fields.keys().any(|key| {
        matches!(
            key.as_str(),
            "completed" | "duration" | "total_output_tokens"
        ) || key.ends_with("_throughput")
            || key.contains("tput_per_gpu")
    })
}

/// Whether the first line of `text` ends inside a string, as no JSON line does unless it is torn.
fn ends_in_string(text: &str) -> bool {
    let line = text.lines().next().unwrap_or("");
    serde_json::from_str::<Value>(line)
        .is_err_and(|error| error.is_eof() && error.to_string().contains("parsing a string"))
}

/// Converts what `json.dumps` may write to JSON: bare `Infinity`, `-Infinity` and `NaN` outside strings become
/// strings, lone surrogate escapes inside strings become U+FFFD. Line numbers are preserved.
pub fn strict_json(text: &str) -> Cow<'_, str> {
    const BARE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let bytes = text.as_bytes();
    let mut strict = String::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while at < bytes.len() {
        match (in_string, bytes[at]) {
            (_, b'"') => in_string = !in_string,
            (true, b'\\') => {
                if let Some(length) = lone_surrogate(&bytes[at..]) {
                    strict.push_str(&text[copied..at]);
                    strict.push_str("\\ufffd");
                    at += length;
                    copied = at;
                    continue;
                }
                // A surrogate pair is one unit: its low half must not be mistaken for a lone one.
                at += if surrogate(&bytes[at..]).is_some() {
                    12
                } else {
                    2
                };
                continue;
            }
            (false, b'-' | b'I' | b'N') => {
                if let Some(token) = BARE
                    .into_iter()
                    .find(|token| bytes[at..].starts_with(token.as_bytes()))
                {
                    strict.push_str(&text[copied..at]);
                    strict.push('"');
                    strict.push_str(token);
                    strict.push('"');
                    at += token.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    strict.push_str(&text[copied..]);
    Cow::Owned(strict)
}

/// The code unit of a `\uD800`…`\uDFFF` escape at the start of `bytes`.
fn surrogate(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    let unit = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    (0xd800..0xe000).contains(&unit).then_some(unit)
}

/// The length of a surrogate escape at the start of `bytes` that is not half of a pair.
fn lone_surrogate(bytes: &[u8]) -> Option<usize> {
    let first = surrogate(bytes)?;
    let paired = first < 0xdc00
        && bytes
            .get(6..)
            .and_then(surrogate)
            .is_some_and(|second| second >= 0xdc00);
    (!paired).then_some(6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_infinity_and_nan_are_read_outside_strings_only() {
        let text = "{\"request_rate\": Infinity, \"a\": -Infinity, \"b\": NaN, \"c\": -1.5, \
                    \"generated_texts\": [\"NaN is \\\"Infinity\\\"\"]}\n";
        let run = &parse("b.jsonl", text).unwrap()[0];
        assert_eq!(run.number("request_rate"), Some(f64::INFINITY));
        assert_eq!(run.number("a"), Some(f64::NEG_INFINITY));
        assert!(run.number("b").unwrap().is_nan());
        assert_eq!(run.number("c"), Some(-1.5));
        assert_eq!(run.fields["generated_texts"][0], "NaN is \"Infinity\"");
        assert_eq!(run.number("missing"), None);
    }

    #[test]
    fn lone_surrogates_are_replaced_and_pairs_kept() {
        let text = r#"{"t": "\ud83d\ude00 \ud83d! \ude00 \\ud83d"}"#;
        let run = &parse("b.jsonl", text).unwrap()[0];
        assert_eq!(run.fields["t"], "😀 \u{fffd}! \u{fffd} \\ud83d");
    }

    #[test]
    fn runs_know_their_line_whatever_the_layout() {
        let text = "\u{feff}{\"a\": 1}\n\n{\n \"a\": 2\n}\n[{\"a\": 3}, {\"a\": 4}]\n";
        let runs = parse("b.jsonl", text).unwrap();
        let lines: Vec<(usize, f64)> = runs
            .iter()
            .map(|run| (run.source.line, run.number("a").unwrap()))
            .collect();
        assert_eq!(lines, [(1, 1.0), (3, 2.0), (6, 3.0), (6, 4.0)]);
        assert_eq!(runs[1].source.to_string(), "b.jsonl:3");
    }

    #[test]
    fn a_cut_off_file_is_named_with_its_line() {
        let error = parse("b.jsonl", "{\"a\": 1}\n{\"a\": 2, \"b\":").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("read `b.jsonl:2`: the last object is cut off"),
            "{error}"
        );
        // A torn line, after which another program continued.
        let torn = "{\"a\": 1}\n{\"a\": 2, \"b\": \"x\n{\"a\": 3}\n";
        let error = parse("b.jsonl", torn).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("read `b.jsonl:2`: the object is cut off"),
            "{error}"
        );
        let error = parse("b.jsonl", "{\"a\": 1}\n{\"a\": oops}\n").unwrap_err();
        assert!(
            error.to_string().starts_with("read `b.jsonl:2`: expected"),
            "{error}"
        );
        assert!(matches!(parse("b.jsonl", " \n"), Err(ReadError::Empty(_))));
        assert!(matches!(
            parse("b.jsonl", "3\n"),
            Err(ReadError::NotAnObject(_))
        ));
    }

    #[test]
    fn wrapped_runs_are_found_and_keep_what_stands_around_them() {
        let one = r#"{"config": {"tp": 8}, "note": "x", "results": {"completed": 3, "note": "y"}}"#;
        let run = &parse("b", one).unwrap()[0];
        assert_eq!(run.number("completed"), Some(3.0));
        assert_eq!(run.fields["config"]["tp"], 8);
        assert_eq!(run.fields["note"], "y", "the run's own word");
        let two =
            r#"[{"runs": [{"duration": 1}, {"duration": 2}], "model": "m"}, {"duration": 3}]"#;
        let runs = parse("b", two).unwrap();
        let durations: Vec<_> = runs
            .iter()
            .map(|run| run.number("duration").unwrap())
            .collect();
        assert_eq!(durations, [1.0, 2.0, 3.0]);
        assert_eq!(runs[1].fields["model"], "m");
        // Two members with runs, or none: the object is left as it is.
        for text in [
            r#"{"a": {"duration": 1}, "b": {"duration": 2}}"#,
            r#"{"a": {"x": 1}, "b": []}"#,
        ] {
            let runs = parse("b", text).unwrap();
            assert!(
                runs.len() == 1 && runs[0].fields.contains_key("a"),
                "{runs:?}"
            );
        }
    }

    #[test]
    fn failed_requests_are_counted_from_either_key() {
        let failed = |text: &str| parse("b", text).unwrap()[0].failed();
        assert_eq!(failed(r#"{"errors": ["", "timeout", ""]}"#), Some(1));
        assert_eq!(failed(r#"{"failed": 2}"#), Some(2));
        assert_eq!(failed(r#"{"completed": 2}"#), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_either_reads_or_is_refused(text in "[\\\\u\"{}\\[\\]:,0-9a-fdNIinty \\n-]{0,60}") {
            let _ = parse("b.jsonl", &text);
        }

        #[test]
        fn valid_json_is_left_alone(texts in proptest::collection::vec(".{0,20}", 0..4)) {
            let document = serde_json::json!({ "texts": texts, "n": -3 }).to_string();
            proptest::prop_assert_eq!(strict_json(&document), document.as_str());
        }
    }
}
