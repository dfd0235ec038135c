//! Ports for the servers that tests start. A server is started several times on one port and nothing listens in between, so
//! a port that is only found free may be given out twice.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;

/// Below the ports that Linux hands out by itself (`ip_local_port_range` begins at 32768): none of these is given to a
/// connection or to a listener on port 0.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port on which nothing listens and that no other test of this user gets before this process ends: each is a lock on a
/// file, which the system releases however the process ends.
pub(crate) fn reserve() -> u16 {
    let user = fs_err::metadata("/proc/self").unwrap().uid();
    let locks = std::env::temp_dir().join(format!("gemmtune-test-ports-{user}"));
    fs_err::create_dir_all(&locks).unwrap();
    // Processes begin at different places, so that they seldom meet.
    let start = std::process::id() as usize * 37 % PORTS.len();
    PORTS
        .cycle()
        .skip(start)
        .take(PORTS.len())
        .find(|port| {
            let lock = File::create(locks.join(port.to_string())).unwrap();
            let free = lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", *port)).is_ok();
            if free {
                std::mem::forget(lock);
            }
            free
        })
        .expect("a free port")
}
