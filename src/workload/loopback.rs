//! Requests to this host bypass any proxy that the environment names.
//!
//! A proxy cannot reach the loopback of another machine, so with one a server is never found ready, and a benchmark
//! client measures the proxy. Our own requests use none ([`agent`]); children are configured the same way.

use std::time::Duration;

use super::env::{self, Environment};

/// Variables that name a proxy, as curl, Python's urllib, requests and aiohttp read them.
const PROXIES: [&str; 6] = [
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
];

/// Variables that list the hosts to reach without a proxy. Python reads the first if both are set.
const EXCEPTIONS: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// Names of this host's loopback interface.
const LOOPBACK: [&str; 3] = ["127.0.0.1", "localhost", "::1"];

/// A blocking HTTP client that uses no proxy and whose every call ends within `limit`, whatever its status.
pub fn agent(limit: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}

/// If a child's environment has a proxy, excludes loopback from it.
pub fn take_no_proxy(environment: &mut Environment) {
    let value = |name: &str| match environment.get(name) {
        Some(value) => value.clone(),
        None => env::variable(name),
    };
    let is_set = |name: &&str| value(name).is_some_and(|value| !value.is_empty());
    if !PROXIES.iter().any(is_set) {
        return;
    }
    let mut hosts: Vec<String> = Vec::new();
    let given = EXCEPTIONS.iter().filter_map(|name| value(name));
    let given: Vec<String> = given.collect();
    let given = given.iter().flat_map(|hosts| hosts.split(','));
    for host in given.map(str::trim).chain(LOOPBACK) {
        if !host.is_empty() && !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    }
    for name in EXCEPTIONS {
        environment.insert(name.to_owned(), Some(hosts.join(",")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, Option<&str>)]) -> Environment {
        pairs
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.map(str::to_owned)))
            .collect()
    }

    #[test]
    fn a_child_behind_a_proxy_asks_loopback_without_it() {
        let mut child = environment(&[
            ("http_proxy", Some("http://proxy:3128")),
            ("NO_PROXY", Some("internal, localhost")),
            ("no_proxy", Some(".lan")),
        ]);
        take_no_proxy(&mut child);
        for name in EXCEPTIONS {
            assert_eq!(
                child[name].as_deref(),
                Some(".lan,internal,localhost,127.0.0.1,::1"),
                "{name}"
            );
        }
    }

    #[test]
    fn a_child_without_a_proxy_is_left_as_it_is() {
        // Removed, in case this test runs behind one.
        let none: Vec<_> = PROXIES.iter().map(|name| (*name, None)).collect();
        let mut child = environment(&none);
        let before = child.clone();
        take_no_proxy(&mut child);
        assert_eq!(child, before);
    }
}
