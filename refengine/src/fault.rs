//! Faults that a test may switch on, one by one.

use std::str::FromStr;

/// A way in which the server misbehaves on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `die-while-loading`: the server ends with an error when half the weights are there.
    DieWhileLoading,
    /// `hang-at-start`: loading never ends; `/health` stays 503.
    HangAtStart,
    /// `hang-in-request[=N]`: the N-th request (1 when not given) and all others are never answered.
    HangInRequest(usize),
    /// `torn-log-lines`: every third record is torn by the one that follows it.
    TornLogLines,
    /// `nan-above-m=M`: GEMMs of more than M rows give NaN, so requests fail and `/gemm_check` says
    /// `finite: false`.
    NanAboveM(usize),
    /// `child-ignores-sigterm`: a child in a session of its own ignores SIGTERM and outlives the server.
    ChildIgnoresSigterm,
}

impl Fault {
    /// Every fault as it is written, with what it does.
    pub const HELP: &'static str = "die-while-loading: end with an error when half the weights are there; \
hang-at-start: never become ready; \
hang-in-request[=N]: never answer the N-th request (default 1) or any other from then on; \
torn-log-lines: tear every third log record; \
nan-above-m=M: GEMMs of more than M rows give NaN; \
child-ignores-sigterm: leave a child in its own session that ignores SIGTERM (it ends by itself after ten minutes)";
}

/// The text is not a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no fault `{0}`; faults are: {help}", help = Fault::HELP)]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, argument) = match text.split_once('=') {
            Some((name, argument)) => match argument.parse() {
                Ok(argument) => (name, Some(argument)),
                Err(_) => return Err(UnknownFault(text.to_owned())),
            },
            None => (text, None),
        };
        match (name, argument) {
            ("die-while-loading", None) => Ok(Self::DieWhileLoading),
            ("hang-at-start", None) => Ok(Self::HangAtStart),
            ("hang-in-request", count) => Ok(Self::HangInRequest(count.unwrap_or(1))),
            ("torn-log-lines", None) => Ok(Self::TornLogLines),
            ("nan-above-m", Some(m)) => Ok(Self::NanAboveM(m)),
            ("child-ignores-sigterm", None) => Ok(Self::ChildIgnoresSigterm),
            _ => Err(UnknownFault(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_with_their_arguments_and_nothing_else_is() {
        assert_eq!("hang-in-request".parse(), Ok(Fault::HangInRequest(1)));
        assert_eq!("hang-in-request=3".parse(), Ok(Fault::HangInRequest(3)));
        assert_eq!("nan-above-m=0".parse(), Ok(Fault::NanAboveM(0)));
        for text in [
            "",
            "nan-above-m",
            "nan-above-m=x",
            "torn-log-lines=1",
            "hang",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }
}
