//! Continuous batching: which tokens go into the next forward.
//!
//! One thread owns model, caches and queue. Prompts come first, as in SGLang: while a request waits and
//! a place is free, the next forward holds prompt tokens (M = their number, at most one chunk), else one
//! token of every running request (M = their number). Greedy sampling.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::linear::LinearPath;
use crate::log::Log;
use crate::model::{Cache, ForwardError, Model, Segment};

/// A request to the scheduler.
#[derive(Debug)]
pub struct Request {
    /// Prompt tokens, at least one, below the vocabulary size.
    pub prompt: Vec<u32>,
    /// Tokens to make at most; at least one.
    pub max_tokens: usize,
    /// Whether the end-of-answer token does not end the answer.
    pub ignore_eos: bool,
    /// How many of the likeliest tokens to report beside the chosen one.
    pub top: usize,
    /// Where what happens is sent; a closed channel cancels the request.
    pub events: UnboundedSender<Event>,
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, best first, as many as the request asked for.
    pub top: Vec<(u32, f32)>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was made.
    Token(Token),
    /// The answer is complete.
    Done(Finish),
    /// The answer cannot be completed.
    Failed(String),
}

/// Why an answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// `max_tokens` were made, or the context is full.
    Length,
    /// The model ended it.
    Stop,
}

/// Limits of the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that run at a time.
    pub max_running: usize,
    /// Prompt tokens in one forward.
    pub chunk: usize,
}

/// Decode steps between two lines in the log (SGLang `--decode-log-interval`, default 40).
const DECODE_LOG_INTERVAL: usize = 40;

/// How long an idle scheduler sleeps before it looks whether it should stop.
const IDLE: Duration = Duration::from_millis(50);

struct Running {
    request: Request,
    cache: Cache,
    /// Prompt tokens already in the cache.
    prefilled: usize,
    last: u32,
    made: usize,
}

/// The scheduler; lives on its own thread.
pub struct Scheduler {
    model: Model,
    path: Arc<LinearPath>,
    log: Arc<Log>,
    limits: Limits,
    /// Requests after which a forward never returns, if that fault is on.
    hang_after: Option<usize>,
    stop: Arc<AtomicBool>,
    waiting: VecDeque<Running>,
    running: Vec<Running>,
    admitted: usize,
    decode_steps: usize,
    decode_tokens: usize,
    decode_since: Instant,
}

impl Scheduler {
    /// A scheduler that stops soon after `stop` is set. `hang_after` is a fault: with that many
    /// requests accepted, it hangs.
    pub fn new(
        model: Model,
        path: Arc<LinearPath>,
        log: Arc<Log>,
        limits: Limits,
        hang_after: Option<usize>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            model,
            path,
            log,
            limits,
            hang_after,
            stop,
            waiting: VecDeque::new(),
            running: Vec::new(),
            admitted: 0,
            decode_steps: 0,
            decode_tokens: 0,
            decode_since: Instant::now(),
        }
    }

    /// Answers one short request and returns its error, if any: proof that every layer can run.
    ///
    /// One prompt token and one made token, so that warm-up adds no shape that serving has not.
    pub fn warm_up(&mut self) -> Result<(), ForwardError> {
        let mut cache = self.model.cache();
        let mut token = 0;
        for _ in 0..2 {
            let mut segments = [Segment {
                cache: &mut cache,
                tokens: &[token],
            }];
            let logits = self.model.forward(&self.path, &mut segments)?;
            token = choose(&logits[0], 0)?.id;
        }
        Ok(())
    }

    /// Serves requests until told to stop or until nobody can send any more.
    pub fn run(mut self, requests: &Receiver<Request>) {
        let mut open = true;
        while !self.stop.load(Ordering::Relaxed) {
            if self.waiting.is_empty() && self.running.is_empty() {
                if !open {
                    return;
                }
                match requests.recv_timeout(IDLE) {
                    Ok(request) => self.accept(request),
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => open = false,
                }
            }
            while let Ok(request) = requests.try_recv() {
                self.accept(request);
            }
            if self.hang_after.is_some_and(|after| self.admitted >= after) {
                std::thread::sleep(IDLE);
                continue;
            }
            self.waiting.retain(|one| !one.request.events.is_closed());
            self.running.retain(|one| !one.request.events.is_closed());
            self.step();
        }
        for one in self.waiting.iter().chain(&self.running) {
            let _ = one
                .request
                .events
                .send(Event::Failed("the server is shutting down".to_owned()));
        }
    }

    fn accept(&mut self, request: Request) {
        self.admitted += 1;
        let cache = self.model.cache();
        self.waiting.push_back(Running {
            request,
            cache,
            prefilled: 0,
            last: 0,
            made: 0,
        });
    }

    fn step(&mut self) {
        if !self.waiting.is_empty() && self.running.len() < self.limits.max_running {
            self.prefill();
        } else if !self.running.is_empty() {
            self.decode();
        }
    }

    fn prefill(&mut self) {
        let mut batch = Vec::new();
        let mut budget = self.limits.chunk;
        while budget > 0 && self.running.len() + batch.len() < self.limits.max_running {
            let Some(one) = self.waiting.pop_front() else {
                break;
            };
            let take = budget.min(one.request.prompt.len() - one.prefilled);
            budget -= take;
            batch.push((one, take));
        }
        let tokens: usize = batch.iter().map(|(_, take)| take).sum();
        self.log.line(&format!(
            "Prefill batch, #new-seq: {}, #new-token: {tokens}, #cached-token: 0, token usage: 0.00, #running-req: {}, #queue-req: {}, ",
            batch.len(),
            self.running.len(),
            self.waiting.len(),
        ));
        let mut segments: Vec<Segment<'_>> = batch
            .iter_mut()
            .map(|(one, take)| Segment {
                tokens: &one.request.prompt[one.prefilled..one.prefilled + *take],
                cache: &mut one.cache,
            })
            .collect();
        let logits = self.model.forward(&self.path, &mut segments);
        drop(segments);
        let logits = match logits {
            Ok(logits) => logits,
            Err(error) => {
                self.fail(batch.into_iter().map(|(one, _)| one), &error);
                return;
            }
        };
        for ((mut one, take), logits) in batch.into_iter().zip(logits).rev() {
            one.prefilled += take;
            if one.prefilled < one.request.prompt.len() {
                // Only the last of a batch can be cut; it is the next one's first.
                self.waiting.push_front(one);
            } else if let Some(one) = self.advance(one, &logits) {
                self.running.push(one);
            }
        }
    }

    fn decode(&mut self) {
        let mut batch = std::mem::take(&mut self.running);
        if self.decode_steps.is_multiple_of(DECODE_LOG_INTERVAL) {
            let held: usize = batch.iter().map(|one| one.cache.positions()).sum();
            let rate =
                self.decode_tokens as f64 / self.decode_since.elapsed().as_secs_f64().max(1e-6);
            self.log.line(&format!(
                "Decode batch, #running-req: {}, #token: {held}, token usage: 0.00, cuda graph: False, gen throughput (token/s): {rate:.2}, #queue-req: {}, ",
                batch.len(),
                self.waiting.len(),
            ));
            self.decode_tokens = 0;
            self.decode_since = Instant::now();
        }
        self.decode_steps += 1;
        self.decode_tokens += batch.len();
        let mut segments: Vec<Segment<'_>> = batch
            .iter_mut()
            .map(|one| Segment {
                cache: &mut one.cache,
                tokens: std::slice::from_ref(&one.last),
            })
            .collect();
        let logits = self.model.forward(&self.path, &mut segments);
        drop(segments);
        match logits {
            Ok(logits) => {
                for (one, logits) in batch.into_iter().zip(logits) {
                    let one = self.advance(one, &logits);
                    self.running.extend(one);
                }
            }
            Err(error) => self.fail(batch.into_iter(), &error),
        }
    }

    /// Samples a request's next token; nothing when that ended it.
    fn advance(&self, mut one: Running, logits: &[f32]) -> Option<Running> {
        let token = match choose(logits, one.request.top) {
            Ok(token) => token,
            Err(error) => {
                self.log.line(&format!("Request failed: {error}"));
                let _ = one.request.events.send(Event::Failed(error.to_string()));
                return None;
            }
        };
        let id = token.id;
        one.last = id;
        one.made += 1;
        let _ = one.request.events.send(Event::Token(token));
        let config = self.model.config();
        let finish = if config.eos == Some(id) && !one.request.ignore_eos {
            Finish::Stop
        } else if one.made == one.request.max_tokens || one.cache.positions() == config.context {
            Finish::Length
        } else {
            return Some(one);
        };
        let _ = one.request.events.send(Event::Done(finish));
        None
    }

    fn fail(&self, batch: impl Iterator<Item = Running>, error: &ForwardError) {
        self.log
            .line(&format!("Scheduler hit an exception: {error}"));
        for one in batch {
            let _ = one.request.events.send(Event::Failed(error.to_string()));
        }
    }
}

/// The likeliest token (the lowest id on ties) and the `top` likeliest.
fn choose(logits: &[f32], top: usize) -> Result<Token, ForwardError> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return Err(ForwardError::NotFinite);
    }
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    let max = logits[best];
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    let logprob = |logit: f32| (f64::from(logit - max) - sum.ln()) as f32;
    let mut order: Vec<u32> = Vec::new();
    if top > 0 {
        order.extend(0..logits.len() as u32);
        order.sort_by(|a, b| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then(a.cmp(b))
        });
        order.truncate(top);
    }
    let top = order
        .into_iter()
        .map(|id| (id, logprob(logits[id as usize])))
        .collect();
    Ok(Token {
        id: best as u32,
        logprob: logprob(max),
        top,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dispatch::Dispatcher;
    use crate::linear::LogSwitches;
    use crate::log::tests::Captured;
    use std::sync::mpsc;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn scheduler(limits: Limits, nan_above_m: Option<usize>) -> (Scheduler, Captured) {
        let config = crate::config::ModelConfig {
            hidden: 128,
            intermediate: 128,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 64,
            vocab: 50,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            context: 40,
            eos: None,
            qk_norm: true,
        };
        let captured = Captured::default();
        let log = Arc::new(Log::new(Box::new(captured.clone()), false));
        let device = Device::with(crate::kernels::Isa::best(), 2).unwrap();
        let model = Model::seeded(config, 1, device.pool(), &mut |_, _| true)
            .unwrap()
            .unwrap();
        let sink = Arc::clone(&log);
        let dispatcher = Dispatcher::new(device, None, false, Box::new(move |line| sink.raw(line)));
        let path = LinearPath::new(
            dispatcher,
            Arc::clone(&log),
            LogSwitches::default(),
            nan_above_m,
        );
        let stop = Arc::new(AtomicBool::new(false));
        (
            Scheduler::new(model, Arc::new(path), log, limits, None, stop),
            captured,
        )
    }

    fn request(prompt: &[u32], max_tokens: usize) -> (Request, UnboundedReceiver<Event>) {
        let (events, receiver) = unbounded_channel();
        let request = Request {
            prompt: prompt.to_vec(),
            max_tokens,
            ignore_eos: false,
            top: 2,
            events,
        };
        (request, receiver)
    }

    fn answers(scheduler: Scheduler, requests: Vec<Request>) {
        let (sender, receiver) = mpsc::channel();
        for request in requests {
            sender.send(request).unwrap();
        }
        drop(sender);
        scheduler.run(&receiver);
    }

    fn tokens(mut events: UnboundedReceiver<Event>) -> (Vec<u32>, Option<Event>) {
        let mut tokens = Vec::new();
        let mut end = None;
        while let Ok(event) = events.try_recv() {
            match event {
                Event::Token(Token { id, logprob, top }) => {
                    assert!(logprob <= 0.0 && top[0] == (id, logprob) && top[1].1 <= logprob);
                    tokens.push(id);
                }
                other => end = Some(other),
            }
        }
        (tokens, end)
    }

    #[test]
    fn prompts_are_batched_in_chunks_and_every_answer_is_that_of_the_request_alone() {
        let prompts: [&[u32]; 4] = [&[1, 2, 3, 4, 5], &[7; 9], &[3], &[9, 8, 7, 6]];
        let alone: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                let (one, events) = request(prompt, 6);
                answers(
                    scheduler(
                        Limits {
                            max_running: 8,
                            chunk: 64,
                        },
                        None,
                    )
                    .0,
                    vec![one],
                );
                tokens(events)
            })
            .collect();
        let (scheduler, captured) = scheduler(
            Limits {
                max_running: 3,
                chunk: 8,
            },
            None,
        );
        let (requests, events): (Vec<_>, Vec<_>) =
            prompts.iter().map(|prompt| request(prompt, 6)).unzip();
        answers(scheduler, requests);
        for (events, alone) in events.into_iter().zip(alone) {
            let together = tokens(events);
            assert_eq!(together, alone);
            assert_eq!(together.0.len(), 6);
            assert_eq!(together.1, Some(Event::Done(Finish::Length)));
        }
        let text = captured.text();
        assert!(text.contains("M:8, N:256, K:128"), "a full chunk: {text}");
        assert!(
            text.contains("Prefill batch, #new-seq: 2, #new-token: 8, "),
            "{text}"
        );
        assert!(text.contains("Decode batch, #running-req: 3, "), "{text}");
    }

    #[test]
    fn an_answer_ends_where_the_context_does() {
        let (one, events) = request(&[1; 38], 100);
        answers(
            scheduler(
                Limits {
                    max_running: 1,
                    chunk: 64,
                },
                None,
            )
            .0,
            vec![one],
        );
        assert_eq!(
            tokens(events).0.len(),
            3,
            "38 positions, two more, and one token after them"
        );
    }

    #[test]
    fn logits_that_are_not_finite_fail_the_request_and_not_the_next_one() {
        let (long, long_events) = request(&[1, 2, 3], 2);
        let (short, short_events) = request(&[1], 2);
        answers(
            scheduler(
                Limits {
                    max_running: 1,
                    chunk: 64,
                },
                Some(2),
            )
            .0,
            vec![long, short],
        );
        let (made, end) = tokens(long_events);
        assert!(made.is_empty());
        assert!(matches!(end, Some(Event::Failed(text)) if text.contains("not finite")));
        assert_eq!(tokens(short_events).0.len(), 2);
    }

    #[test]
    fn a_request_nobody_listens_to_is_dropped() {
        let (one, events) = request(&[1], 30);
        drop(events);
        let (scheduler, captured) = scheduler(
            Limits {
                max_running: 1,
                chunk: 64,
            },
            None,
        );
        answers(scheduler, vec![one]);
        assert!(!captured.text().contains("Prefill"));
    }
}
