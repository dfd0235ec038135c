//! TCP ports that processes listen on, from `/proc`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses that one of `pids` listens on, as the network namespace of the first one sees them.
pub fn listening(pids: &[u32]) -> Vec<SocketAddr> {
    let Some(first) = pids.first() else {
        return Vec::new();
    };
    let sockets: BTreeSet<u64> = pids.iter().flat_map(|pid| sockets(*pid)).collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let rows = ["tcp", "tcp6"].iter().flat_map(|table| {
        fs_err::read_to_string(format!("/proc/{first}/net/{table}"))
            .unwrap_or_default()
            .lines()
            .filter_map(listener)
            .collect::<Vec<_>>()
    });
    rows.filter(|(_, inode)| sockets.contains(inode))
        .map(|(address, _)| address)
        .collect()
}

/// Inodes of a process's sockets.
fn sockets(pid: u32) -> Vec<u64> {
    let folder = fs_err::read_dir(format!("/proc/{pid}/fd"));
    folder
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let target = fs_err::read_link(entry.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect()
}

/// Address and inode of a row of `/proc/net/tcp` or `tcp6` in state LISTEN (0A, `include/net/tcp_states.h`).
fn listener(row: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = row.split_ascii_whitespace().collect();
    if *fields.get(3)? != "0A" {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of eight digits is a word in the machine's byte order.
    let words: Vec<[u8; 4]> = (0..address.len() / 8)
        .map(|at| u32::from_str_radix(&address[at * 8..at * 8 + 8], 16).map(u32::to_ne_bytes))
        .collect::<Result<_, _>>()
        .ok()?;
    let address = match words.as_slice() {
        [only] => IpAddr::V4(Ipv4Addr::from(*only)),
        [_, _, _, _] => {
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some((SocketAddr::new(address, port), fields.get(9)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_and_a_connection_is_none() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else {
                continue; // no IPv6 here
            };
            let here = listener.local_addr().unwrap();
            let other = std::net::TcpStream::connect(here).unwrap();
            let found = listening(&[std::process::id()]);
            assert!(found.contains(&here), "{found:?}");
            assert!(!found.contains(&other.local_addr().unwrap()));
        }
        assert!(listening(&[]).is_empty());
    }
}
