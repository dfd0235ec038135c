//! Secrets: which names hold them, and how texts and documents are stripped of their values.
//!
//! A secret is recognised by the name it is stored under: a variable, an option of a command, a key of a document.
//! Its value is then also removed from texts that repeat it, such as the last line of a server's log.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::config::Config;

/// The replacement for a secret.
pub const MASK: &str = "***";

/// A name that contains one of these words holds a secret.
const WORDS: [&str; 9] = [
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
    "APIKEY",
    "AUTHORIZATION",
];

/// So does a name that ends in one of these followed by `KEY`.
const KEYS: [&str; 8] = [
    "API",
    "ACCESS",
    "PRIVATE",
    "AUTH",
    "ADMIN",
    "SIGNING",
    "ENCRYPTION",
    "MASTER",
];

/// A name that ends in `TOKEN` holds a secret, except after one of these: then it means a token of text.
const TEXT_TOKENS: [&str; 17] = [
    "PER", "EOS", "BOS", "PAD", "UNK", "SEP", "CLS", "MASK", "SPECIAL", "STOP", "START", "END",
    "THINK", "IMPLICIT", "IMAGE", "AUDIO", "VIDEO",
];

/// A shorter value is masked under its own name but not searched for elsewhere: it would match unrelated words.
const SHORTEST: usize = 8;

/// Whether what is called `name` (`HF_TOKEN`, `--api-key`, `apiKey`) is a secret.
///
/// `TOKENIZERS_PARALLELISM`, `SGLANG_MAX_TOKENS_PER_RANK` and `SSL_PASSWORD_FILE` are not secrets.
pub fn is_secret(name: &str) -> bool {
    let words = words(name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [.., "FILE" | "PATH" | "DIR"] => false,
        [.., before, "KEY" | "KEYS"] if KEYS.contains(before) => true,
        [.., before, "TOKEN"] => !TEXT_TOKENS.contains(before),
        ["TOKEN"] => true,
        words => words.iter().any(|word| WORDS.contains(word)),
    }
}

/// The words of a name, in upper case: `hfToken`, `hf-token` and `HF_TOKEN` have the same.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for character in name.chars() {
        let starts = !character.is_ascii_alphanumeric() || (was_lower && character.is_uppercase());
        if starts {
            words.push(String::new());
        }
        if character.is_ascii_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.push(character.to_ascii_uppercase());
        }
        was_lower = character.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Secrets known by value, to be removed from whatever repeats them.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Longest first, so that none is masked only partially.
    values: Vec<String>,
}

impl Secrets {
    /// The secrets of a configuration, and of the environment (names and values) that its server inherits.
    pub fn of(config: &Config, inherited: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut secrets = Self::default();
        let commands = [&config.server.command, &config.benchmark.command];
        for command in commands.into_iter().flatten() {
            secrets.add_command(command);
        }
        let set = config.server.env.clone();
        for (name, value) in set.into_iter().chain(inherited) {
            if is_secret(&name) {
                secrets.add(&value);
            }
        }
        secrets
    }

    /// Adds the values of a command's secret options.
    pub fn add_command(&mut self, argv: &[String]) {
        for (option, value) in secret_options(argv) {
            let inline = argv[option].split_once('=').map(|(_, value)| value);
            if let Some(value) = inline.or_else(|| argv.get(value).map(String::as_str)) {
                self.add(value);
            }
        }
    }

    fn add(&mut self, value: &str) {
        if value.len() >= SHORTEST {
            self.values.push(value.to_owned());
            self.values
                .sort_by_key(|value| std::cmp::Reverse(value.len()));
        }
    }

    /// `text` without secrets: neither known values, nor values under a secret name (`HF_TOKEN=…`, `--api-key …`,
    /// `"api_key": "…"`, `Bearer …`, `https://user:…@host`).
    pub fn mask<'text>(&self, text: &'text str) -> Cow<'text, str> {
        let mut masked = Cow::Borrowed(text);
        for value in &self.values {
            if masked.contains(value) {
                masked = Cow::Owned(masked.replace(value, MASK));
            }
        }
        match named(&masked) {
            Some(text) => Cow::Owned(text),
            None => masked,
        }
    }

    /// Removes secrets from a document: values of secret keys, words after secret options, and secrets in texts.
    pub fn mask_json(&self, document: &mut Value) {
        match document {
            Value::String(text) => {
                if let Cow::Owned(masked) = self.mask(text) {
                    *text = masked;
                }
            }
            Value::Array(items) => {
                let words: Vec<String> = items
                    .iter()
                    .map(|item| item.as_str().unwrap_or_default().to_owned())
                    .collect();
                for (option, value) in secret_options(&words) {
                    if option != value && items.get(value).is_some_and(Value::is_string) {
                        items[value] = MASK.into();
                    }
                }
                for item in items {
                    self.mask_json(item);
                }
            }
            Value::Object(entries) => {
                for (name, value) in entries {
                    match value {
                        Value::String(text)
                            if is_secret(name) && is_value(text) && !is_count(name, text) =>
                        {
                            *value = MASK.into();
                        }
                        value => self.mask_json(value),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} secrets", self.values.len())
    }
}

/// A command without the values of its secret options.
pub fn masked_command(argv: &[String]) -> Vec<String> {
    let mut masked = argv.to_vec();
    for (option, value) in secret_options(argv) {
        if option != value {
            MASK.clone_into(&mut masked[value]);
        }
    }
    let secrets = Secrets::default();
    masked
        .iter()
        .map(|word| secrets.mask(word).into_owned())
        .collect()
}

/// The words of a command line, of whatever kind, without the values of its secret options.
pub fn masked(argv: &[impl AsRef<str>]) -> Vec<String> {
    let argv: Vec<String> = argv.iter().map(|word| word.as_ref().to_owned()).collect();
    masked_command(&argv)
}

/// Whether a command line contains nothing that would be masked.
pub fn is_open(argv: &[impl AsRef<str>]) -> bool {
    let words = argv.iter().map(AsRef::as_ref);
    masked(argv).iter().map(String::as_str).eq(words)
}

/// Positions of a command's secret options and of their values: the same word for `--api-key=…`.
fn secret_options(argv: &[String]) -> Vec<(usize, usize)> {
    let option = |at: usize| {
        let word = argv[at].strip_prefix('-')?;
        match word.split_once('=') {
            Some((name, _)) => is_secret(name).then_some((at, at)),
            None => (is_secret(word) && at + 1 < argv.len()).then_some((at, at + 1)),
        }
    };
    (0..argv.len()).filter_map(option).collect()
}

/// A name, what binds it to a value, and where the value begins: an option with a blank, a name with `=`, or a
/// quoted name with a colon.
static BOUND: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?x)
        (?: ^ | [^\w-] ) -{1,2} (?<option> [A-Za-z][\w-]* ) ['"]? (?: \s*,\s* | [\ \t]+ )
        | (?<name> [A-Za-z_][\w.-]* ) ['"]? \s* = \s*
        | ['"] (?<key> [A-Za-z_][\w.-]* ) ['"] \s* : \s*
        | (?<bearer> (?i: bearer ) ) \s+
        | :// (?<user> [^/\s:@'"]* ) :
        "#,
    )
    .expect("a constant expression")
});

/// A value: quoted, or up to what ends a word.
static VALUE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"^(?:"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|[^\s"'`,;)\]}]+)"#)
        .expect("a constant expression")
});

/// The password of a URL, up to the host.
static PASSWORD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"^[^/\s@'"]+@"#).expect("a constant expression"));

/// `text` without the values under secret names; `None` if there are none.
fn named(text: &str) -> Option<String> {
    let mut masked = String::new();
    // `text` is copied up to one position and searched from the other.
    let (mut copied, mut from) = (0, 0);
    while let Some(found) = BOUND.captures_at(text, from) {
        let whole = found.get(0)?;
        from = whole.end();
        let rest = &text[from..];
        let secret = |group: &str| {
            found
                .name(group)
                .is_some_and(|name| is_secret(name.as_str()))
        };
        let value = if found.name("user").is_some() {
            PASSWORD.find(rest).map(|value| value.end() - 1)
        } else if found.name("bearer").is_some()
            || ["option", "name", "key"].into_iter().any(secret)
        {
            let name = found.name("name").or_else(|| found.name("key"));
            let name = name.filter(|name| !text[..name.start()].ends_with('-'));
            let value = VALUE.find(rest).filter(|value| {
                let value = value.as_str();
                is_value(value) && !name.is_some_and(|name| is_count(name.as_str(), value))
            });
            // An option without a value is followed by the next option.
            let is_option = found.name("option").is_some();
            value
                .filter(|value| !(is_option && value.as_str().starts_with('-')))
                .map(|value| value.end())
        } else {
            None
        };
        if let Some(length) = value {
            masked.push_str(&text[copied..from]);
            let quote = rest
                .chars()
                .next()
                .filter(|first| matches!(first, '"' | '\''));
            masked.extend(quote);
            masked.push_str(MASK);
            masked.extend(quote);
            from += length;
            copied = from;
        }
    }
    (copied > 0).then(|| masked + &text[copied..])
}

/// Whether a text is a secret's value: an empty text, a reference to a variable and words that mean "none" are not.
fn is_value(text: &str) -> bool {
    let bare = text.trim_matches(['"', '\'']);
    !matches!(
        bare,
        "" | MASK | "None" | "null" | "True" | "False" | "true" | "false" | "…"
    ) && !bare.starts_with('$')
}

/// Whether this is the column `token` of aiter's fused-MoE tables: a number of tokens, at most 131072.
fn is_count(name: &str, text: &str) -> bool {
    let bare = text.trim_matches(['"', '\'', ':']);
    name == "token" && bare.len() <= 6 && bare.bytes().all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        Secrets::default().mask(text).into_owned()
    }

    #[test]
    fn secret_names_are_told_from_names_that_look_like_them() {
        for name in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "my_password",
            "OPENAI_API_KEY",
            "--api-key",
            "--admin-api-key",
            "--hf-token",
            "--ssl-keyfile-password",
            "apiKey",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "token",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "TOKENIZERS_PARALLELISM",
            "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
            "--max-total-tokens",
            "--tokenizer-path",
            "SGLANG_USE_PER_TOKEN",
            "eos_token",
            "HF_TOKEN_PATH",
            "cache_key",
            "KEYBOARD",
            "",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn values_under_secret_names_are_masked_in_any_notation() {
        for (text, shown) in [
            ("HF_TOKEN=hf_abc serve", "HF_TOKEN=*** serve"),
            ("serve --api-key sk-1 --tp 2", "serve --api-key *** --tp 2"),
            ("serve --api-key=sk-1", "serve --api-key=***"),
            (
                "ServerArgs(api_key='sk-1', tp=2)",
                "ServerArgs(api_key='***', tp=2)",
            ),
            (r#"{"api_key": "sk-1"}"#, r#"{"api_key": "***"}"#),
            (r#"HF_TOKEN = "a b" # x"#, r#"HF_TOKEN = "***" # x"#),
            (r#"["--hf-token", "hf_a"]"#, r#"["--hf-token", "***"]"#),
            (
                "docker run -e HF_TOKEN=hf_a i",
                "docker run -e HF_TOKEN=*** i",
            ),
            (
                "-H 'Authorization: Bearer abc'",
                "-H 'Authorization: Bearer ***'",
            ),
            ("HF_TOKEN = \"a b", "HF_TOKEN = \"***\""),
            ("http://me:pass@proxy:3128/", "http://me:***@proxy:3128/"),
            ("token=1234567 x", "token=*** x"),
            ("HF_TOKEN=128", "HF_TOKEN=***"),
            ("--token 128", "--token ***"),
            ("--token=128", "--token=***"),
        ] {
            assert_eq!(masked(text), shown, "{text}");
        }
        for text in [
            "api_key=None, tokenizer='x', max_total_tokens=5",
            "HF_TOKEN=$HF_TOKEN",
            "serve --api-key --tp 2",
            "http://127.0.0.1:30000/health",
            "TOKENIZERS_PARALLELISM=false",
            "no row has token=100; that of token=128 serves",
            "token=5: so many tokens are looked up at 8",
        ] {
            assert_eq!(masked(text), text);
        }
    }

    #[test]
    fn a_value_that_is_known_is_masked_wherever_it_is_repeated() {
        let mut secrets = Secrets::default();
        let argv = ["serve", "--api-key", "sk-12345678", "--port", "1"].map(str::to_owned);
        secrets.add_command(&argv);
        assert_eq!(secrets.mask("refused sk-12345678!"), "refused ***!");
        assert_eq!(
            masked_command(&argv),
            ["serve", "--api-key", "***", "--port", "1"]
        );
        assert_eq!(format!("{secrets:?}"), "1 secrets");
        let mut short = Secrets::default();
        short.add_command(&["--api-key=on".to_owned()]);
        assert_eq!(short.mask("once upon"), "once upon");
    }

    #[test]
    fn a_document_is_masked_by_key_by_option_and_by_text() {
        let mut document = serde_json::json!({
            "argv": ["serve", "--api-key", "sk-1", "--tp", 2],
            "env": { "HF_TOKEN": "hf_abc", "CU_NUM": "80", "HTTP_PROXY": "http://u:p@h" },
            "api_key": null,
            "token": "64",
            "last": "api_key='sk-1'",
        });
        Secrets::default().mask_json(&mut document);
        assert_eq!(
            document,
            serde_json::json!({
                "argv": ["serve", "--api-key", "***", "--tp", 2],
                "env": { "HF_TOKEN": "***", "CU_NUM": "80", "HTTP_PROXY": "http://u:***@h" },
                "api_key": null,
                "token": "64",
                "last": "api_key='***'",
            })
        );
    }

    #[test]
    fn a_long_hostile_text_is_masked_in_linear_time() {
        let text = "a=".repeat(50_000);
        let started = std::time::Instant::now();
        assert_eq!(masked(&text).len(), text.len());
        assert!(started.elapsed().as_secs() < 60, "in linear time");
    }
}
