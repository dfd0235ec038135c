//! The server's port: free before a server is started.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::proc::Interrupt;
use crate::run::error::{Error, ErrorKind};

/// A server that was killed a moment ago holds its port until the kernel has released its memory and devices.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How often a port that is still in use is tried again.
const POLL: Duration = Duration::from_millis(100);

/// Waits for at most `patience` until nothing listens on `port`: another server there would respond in place of ours,
/// and be measured.
pub(crate) fn wait_for_port(
    port: u16,
    patience: Duration,
    interrupt: &Interrupt,
) -> Result<(), Error> {
    let until = Instant::now() + patience;
    loop {
        let Err(error) = TcpListener::bind(("127.0.0.1", port)) else {
            return Ok(());
        };
        if Instant::now() >= until {
            return Err(Error::new(
                ErrorKind::Environment,
                format!(
                    "port {port} of this host is not free ({error}): something else would be measured"
                ),
            )
            .hint(
                "stop the other server, or change the port in the server command and in `server.port`",
            ));
        }
        if interrupt.sleep(POLL) {
            return Err(Error::interrupted());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_stays_taken_is_refused_with_its_number() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = wait_for_port(port, Duration::ZERO, &Interrupt::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        insta::assert_snapshot!(error.to_string().replace(&port.to_string(), "[port]"), @"port [port] of this host is not free (Address already in use (os error 98)): something else would be measured");
    }

    #[test]
    fn a_port_that_a_dying_server_still_holds_is_waited_for() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                drop(holder);
            });
            wait_for_port(port, Duration::from_secs(60), &Interrupt::new()).unwrap();
        });
    }
}
