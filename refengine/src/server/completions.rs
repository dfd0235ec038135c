//! `/v1/completions`: greedy answers, whole or streamed.
//!
//! There is no tokenizer file. A prompt given as text is split at white space; the word `t17` is token
//! 17, any other word a token by its hash. Answers are written as such words, so text round-trips.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::App;
use super::http::{error, now};
use crate::scheduler::{Event, Finish, Request, Token};

/// Likeliest tokens that a request may ask for (the limit of OpenAI's completions API).
const MAX_TOP: usize = 5;

/// A request body; fields that do not change greedy answers are ignored.
#[derive(Deserialize)]
pub(super) struct Body {
    prompt: Prompt,
    #[serde(default = "default_max_tokens")]
    max_tokens: usize,
    #[serde(default)]
    temperature: f64,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    ignore_eos: bool,
    #[serde(default)]
    logprobs: Option<usize>,
    #[serde(default = "one")]
    n: usize,
    #[serde(default)]
    echo: bool,
}

/// OpenAI's default.
fn default_max_tokens() -> usize {
    16
}

fn one() -> usize {
    1
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    fn tokens(&self, vocab: usize) -> Result<Vec<u32>, String> {
        let tokens: Vec<u32> = match self {
            Self::Tokens(tokens) => tokens.clone(),
            Self::Text(text) => text
                .split_whitespace()
                .map(|word| token(word, vocab))
                .collect(),
        };
        if tokens.is_empty() {
            return Err("the prompt is empty".to_owned());
        }
        match tokens.iter().find(|token| **token as usize >= vocab) {
            Some(token) => Err(format!(
                "token {token} is not below the vocabulary size {vocab}"
            )),
            None => Ok(tokens),
        }
    }
}

/// The token of a word.
fn token(word: &str, vocab: usize) -> u32 {
    let named = word
        .strip_prefix('t')
        .and_then(|digits| digits.parse::<u32>().ok());
    named
        .filter(|token| (*token as usize) < vocab)
        .unwrap_or_else(|| {
            // FNV-1a, 32 bits.
            let hash = word.bytes().fold(0x811c_9dc5u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            hash % vocab as u32
        })
}

fn word(token: u32) -> String {
    format!("t{token} ")
}

/// What all parts of one answer repeat.
struct Answer {
    id: String,
    created: u64,
    model: String,
    prompt_tokens: usize,
    logprobs: bool,
}

impl Answer {
    /// One JSON document of the answer. The last one, with the reason it ended and the number of tokens
    /// made, has the usage.
    fn part(&self, text: &str, tokens: &[Token], end: Option<(Finish, usize)>) -> Value {
        let logprobs = self.logprobs.then(|| {
            let top = |token: &Token| -> Map<_, _> {
                token
                    .top
                    .iter()
                    .map(|(id, logprob)| (word(*id), json!(logprob)))
                    .collect()
            };
            json!({
                "tokens": tokens.iter().map(|token| word(token.id)).collect::<Vec<_>>(),
                "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
                "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            })
        });
        let usage = end.map(|(_, made)| {
            json!({
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": made,
                "total_tokens": self.prompt_tokens + made,
            })
        });
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "text": text,
                "token_ids": tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
                "logprobs": logprobs,
                "finish_reason": end.map(|(finish, _)| match finish {
                    Finish::Length => "length",
                    Finish::Stop => "stop",
                }),
            }],
            "usage": usage,
        })
    }
}

/// The handler.
pub(super) async fn complete(
    State(app): State<Arc<App>>,
    body: Result<Json<Body>, JsonRejection>,
) -> Response {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let body = match body {
        Ok(Json(body)) => body,
        Err(rejection) => return error(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    if !app.is_ready() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the server is not ready");
    }
    let prompt = match check(&body, app.config.vocab, app.config.context) {
        Ok(prompt) => prompt,
        Err(message) => return error(StatusCode::BAD_REQUEST, message),
    };
    let answer = Answer {
        id: format!("cmpl-{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
        created: now(),
        model: app.options.name(),
        prompt_tokens: prompt.len(),
        logprobs: body.logprobs.is_some(),
    };
    let (events, receiver) = unbounded_channel();
    let request = Request {
        prompt,
        max_tokens: body.max_tokens,
        ignore_eos: body.ignore_eos,
        top: body.logprobs.unwrap_or(0),
        events,
    };
    let sent = {
        let requests = app.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests
            .as_ref()
            .is_some_and(|requests| requests.send(request).is_ok())
    };
    if !sent {
        return error(
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is shutting down",
        );
    }
    if body.stream {
        streamed(answer, receiver)
    } else {
        whole(&answer, receiver).await
    }
}

fn check(body: &Body, vocab: usize, context: usize) -> Result<Vec<u32>, String> {
    let prompt = body.prompt.tokens(vocab)?;
    if body.temperature != 0.0 {
        return Err("only greedy sampling: temperature must be 0".to_owned());
    }
    if body.n != 1 || body.echo {
        return Err("n must be 1 and echo false".to_owned());
    }
    if body.max_tokens == 0 {
        return Err("max_tokens must be at least 1".to_owned());
    }
    if body.logprobs.is_some_and(|top| top > MAX_TOP) {
        return Err(format!("logprobs must be at most {MAX_TOP}"));
    }
    if prompt.len().saturating_add(body.max_tokens) > context {
        return Err(format!(
            "{} prompt tokens and max_tokens={} exceed the context of {context}",
            prompt.len(),
            body.max_tokens
        ));
    }
    Ok(prompt)
}

async fn whole(answer: &Answer, mut events: UnboundedReceiver<Event>) -> Response {
    let mut tokens = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Token(token) => tokens.push(token),
            Event::Done(finish) => {
                let text: String = tokens.iter().map(|token| word(token.id)).collect();
                return Json(answer.part(&text, &tokens, Some((finish, tokens.len()))))
                    .into_response();
            }
            Event::Failed(message) => return error(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
    error(StatusCode::INTERNAL_SERVER_ERROR, "the scheduler ended")
}

/// What a stream still has to say.
enum Said {
    Tokens,
    Mark,
    All,
}

fn streamed(answer: Answer, events: UnboundedReceiver<Event>) -> Response {
    let start = (answer, events, Said::Tokens, 0usize);
    let stream =
        futures_util::stream::unfold(start, |(answer, mut events, said, made)| async move {
            let (data, said, made) = match said {
                Said::All => return None,
                Said::Mark => ("[DONE]".to_owned(), Said::All, made),
                Said::Tokens => match events.recv().await {
                    Some(Event::Token(token)) => {
                        let part = answer.part(&word(token.id), &[token], None);
                        (part.to_string(), Said::Tokens, made + 1)
                    }
                    Some(Event::Done(finish)) => (
                        answer.part("", &[], Some((finish, made))).to_string(),
                        Said::Mark,
                        made,
                    ),
                    Some(Event::Failed(message)) => (failure(&message), Said::Mark, made),
                    None => (failure("the scheduler ended"), Said::Mark, made),
                },
            };
            let event = Ok::<_, Infallible>(sse::Event::default().data(data));
            Some((event, (answer, events, said, made)))
        });
    Sse::new(stream).into_response()
}

fn failure(message: &str) -> String {
    json!({"error": {"object": "error", "message": message, "type": "InternalServerError", "code": 500}}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_read_back_as_the_tokens_they_are() {
        let text: String = [3, 99, 0].map(word).concat();
        assert_eq!(Prompt::Text(text).tokens(100), Ok(vec![3, 99, 0]));
        let words = Prompt::Text("to be or t100 not".to_owned())
            .tokens(100)
            .unwrap();
        assert!(words.len() == 5 && words.iter().all(|token| *token < 100));
        assert!(Prompt::Text("  ".to_owned()).tokens(100).is_err());
        assert!(Prompt::Tokens(vec![1, 100]).tokens(100).is_err());
    }
}
