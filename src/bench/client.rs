//! One completion request to an OpenAI-style server, streamed and timed.

use std::io::BufReader;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::sse::Events;

/// Deadline of a query about the server itself (not a completion).
const QUESTION_DEADLINE: Duration = Duration::from_secs(10);

/// The longest part of a server's error text that is kept.
const LONGEST_ERROR: usize = 300;

/// Why a request failed. The text is kept in the result file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No answer, a reset, or the deadline passed.
    #[error("{0}")]
    Transport(String),
    #[error("no end of the answer within {0:?}")]
    Deadline(Duration),
    /// A status other than 200.
    #[error("HTTP {status}: {body}")]
    Status {
        status: u16,
        /// The start of the body.
        body: String,
    },
    /// The server reported it in the stream.
    #[error("the server reported: {0}")]
    Server(String),
    /// An event that is not a completion.
    #[error("an event is no completion: {0}")]
    Malformed(String),
    /// The stream ended before the answer did.
    #[error("the answer ended early, after {pieces} pieces: {cause}")]
    CutOff { pieces: usize, cause: String },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

/// A completion request: where it goes, its prompt and its limits.
#[derive(Clone, Debug)]
pub struct Completion<'a> {
    /// Base URL, for example `http://127.0.0.1:30000`.
    pub url: &'a str,
    /// Model name as the server knows it.
    pub model: &'a str,
    /// The request's `prompt` field: text, or a list of token ids.
    pub prompt: Value,
    /// Tokens to generate; the end-of-text token is ignored.
    pub output_len: usize,
    /// When to give up, from the start of the request to its last byte.
    pub deadline: Duration,
}

/// A finished answer. Times are seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// From sending the request to the first piece.
    pub ttft: f64,
    /// Seconds between successive pieces.
    pub itls: Vec<f64>,
    /// From sending the request to the last piece.
    pub e2e: f64,
    /// Text of each piece, in order; a piece is a token unless the server groups them.
    pub pieces: Vec<String>,
    /// Prompt tokens as the server counts them.
    pub prompt_tokens: Option<u64>,
    /// Generated tokens as the server counts them.
    pub completion_tokens: Option<u64>,
}

impl Answer {
    /// Generated tokens: the server's count, else the number of pieces.
    pub fn tokens(&self) -> u64 {
        self.completion_tokens.unwrap_or(self.pieces.len() as u64)
    }

    pub fn text(&self) -> String {
        self.pieces.concat()
    }
}

/// Sends the request and reads the answer as it arrives. `stop` is called after each piece.
pub fn complete(
    completion: &Completion<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Answer, RequestError> {
    let body = json!({
        "model": completion.model,
        "prompt": completion.prompt,
        "max_tokens": completion.output_len,
        "temperature": 0.0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": { "include_usage": true },
    })
    .to_string();
    let url = format!("{}/v1/completions", completion.url.trim_end_matches('/'));
    let failed = |error: ureq::Error| named(&error, completion.deadline);
    let started = Instant::now();
    let mut response = agent(completion.deadline)
        .post(&url)
        .header("content-type", "application/json")
        .send(body.as_bytes())
        .map_err(failed)?;
    if response.status() != 200 {
        let text = response.body_mut().read_to_string().unwrap_or_default();
        return Err(RequestError::Status {
            status: response.status().as_u16(),
            body: shortened(text.trim()),
        });
    }
    let mut events = Events::new(BufReader::new(response.body_mut().as_reader()));
    let mut answer = Answer::default();
    let (mut last, mut ended) = (started, false);
    loop {
        if stop() {
            return Err(RequestError::Stopped);
        }
        let event = match events.next() {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(error) => {
                return Err(
                    match named(&ureq::Error::from(error), completion.deadline) {
                        RequestError::Transport(cause) => RequestError::CutOff {
                            pieces: answer.pieces.len(),
                            cause,
                        },
                        other => other,
                    },
                );
            }
        };
        let now = Instant::now();
        if event == "[DONE]" {
            ended = true;
            break;
        }
        let event: Value =
            serde_json::from_str(&event).map_err(|_| RequestError::Malformed(shortened(&event)))?;
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            let text = error.get("message").and_then(Value::as_str);
            return Err(RequestError::Server(shortened(
                &text.map_or_else(|| error.to_string(), str::to_owned),
            )));
        }
        if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
            answer.prompt_tokens = usage["prompt_tokens"].as_u64().or(answer.prompt_tokens);
            answer.completion_tokens = usage["completion_tokens"]
                .as_u64()
                .or(answer.completion_tokens);
        }
        let Some(choice) = event["choices"].get(0) else {
            continue; // the event that carries only the usage
        };
        let text = choice["text"].as_str().unwrap_or_default();
        let finished = !choice["finish_reason"].is_null();
        ended |= finished;
        // A token may have no text of its own yet (half of a character); the event that only carries the finish
        // reason is not a token.
        if !text.is_empty() || !finished {
            let since = |moment: Instant| now.duration_since(moment).as_secs_f64();
            if answer.pieces.is_empty() {
                answer.ttft = since(started);
            } else {
                answer.itls.push(since(last));
            }
            answer.e2e = since(started);
            last = now;
            answer.pieces.push(text.to_owned());
        }
    }
    if !ended || answer.pieces.is_empty() {
        return Err(RequestError::CutOff {
            pieces: answer.pieces.len(),
            cause: "no end was announced".to_owned(),
        });
    }
    Ok(answer)
}

/// The server's resolved arguments: `/server_info`, or `/get_server_info` of SGLang 0.5.5. `None` when the server has
/// neither or does not answer with JSON.
pub fn server_info(url: &str) -> Option<Value> {
    ["server_info", "get_server_info"].iter().find_map(|path| {
        let url = format!("{}/{path}", url.trim_end_matches('/'));
        let mut response = agent(QUESTION_DEADLINE).get(&url).call().ok()?;
        if response.status() != 200 {
            return None;
        }
        let text = response.body_mut().read_to_string().ok()?;
        serde_json::from_str(&super::result::strict_json(&text)).ok()
    })
}

/// Whether `/health` answers 200 within `deadline`.
pub fn is_up(url: &str, deadline: Duration) -> bool {
    let url = format!("{}/health", url.trim_end_matches('/'));
    agent(deadline)
        .get(&url)
        .call()
        .is_ok_and(|response| response.status() == 200)
}

/// The first model that `/v1/models` lists.
pub fn first_model(url: &str) -> Option<String> {
    let url = format!("{}/v1/models", url.trim_end_matches('/'));
    let mut response = agent(QUESTION_DEADLINE).get(&url).call().ok()?;
    let text = response.body_mut().read_to_string().ok()?;
    let models: Value = serde_json::from_str(&text).ok()?;
    Some(models["data"].get(0)?["id"].as_str()?.to_owned())
}

/// Empties the server's prefix cache (`POST /flush_cache`); returns whether the server accepted.
pub fn flush_cache(url: &str) -> bool {
    let url = format!("{}/flush_cache", url.trim_end_matches('/'));
    agent(QUESTION_DEADLINE)
        .post(&url)
        .send_empty()
        .is_ok_and(|response| response.status() == 200)
}

/// A new connection for each request, so that a server that closes idle connections causes no failures; no proxy,
/// whatever the environment specifies, because the server is named by its address.
fn agent(deadline: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(deadline))
        .http_status_as_error(false)
        .max_idle_connections(0)
        .proxy(None)
        .build()
        .new_agent()
}

fn named(error: &ureq::Error, deadline: Duration) -> RequestError {
    match error {
        ureq::Error::Timeout(_) => RequestError::Deadline(deadline),
        ureq::Error::Io(inner) if inner.kind() == std::io::ErrorKind::TimedOut => {
            RequestError::Deadline(deadline)
        }
        error => RequestError::Transport(shortened(&error.to_string())),
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= LONGEST_ERROR {
        return text.to_owned();
    }
    let start: String = text.chars().take(LONGEST_ERROR).collect();
    format!("{start}…")
}
