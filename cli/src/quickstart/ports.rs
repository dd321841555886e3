//! Ports on loopback: chosen once, kept ever after.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};

use super::process;
use crate::failure::{Exit, Failure};

/// The REST API's own port; the others follow it.
const FIRST_API: u16 = 3370;
/// Where ports of controllers among themselves and of replica servers are looked for.
const FIRST_INNER: u16 = 3400;
/// How many ports are tried before giving up.
const TRIED: u16 = 1000;

/// Hands out ports that are free now, each once.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    given: BTreeSet<u16>,
}

impl Ports {
    /// Does not hand out any of `taken`, even if nobody listens there now.
    pub(crate) fn without(taken: impl IntoIterator<Item = u16>) -> Self {
        Self {
            given: taken.into_iter().collect(),
        }
    }

    /// For a REST API.
    pub(crate) fn api(&mut self) -> Result<u16, Failure> {
        self.next(FIRST_API)
    }

    /// For anything else.
    pub(crate) fn inner(&mut self) -> Result<u16, Failure> {
        self.next(FIRST_INNER)
    }

    fn next(&mut self, first: u16) -> Result<u16, Failure> {
        for port in first..first.saturating_add(TRIED) {
            if !self.given.contains(&port) && is_free(port) {
                self.given.insert(port);
                return Ok(port);
            }
        }
        Err(
            Failure::failed(format!("no free port on 127.0.0.1 from {first} on"))
                .why(format!("{TRIED} were tried")),
        )
    }
}

/// Nobody listens there.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Refuses a port that somebody else has taken since it was chosen.
pub(crate) fn require_free(port: u16, whose: &str) -> Result<(), Failure> {
    if is_free(port) {
        return Ok(());
    }
    Err(
        Failure::new(Exit::Conflict, format!("port {port} on 127.0.0.1 is in use"))
            .why(format!(
                "it is the port of {whose} of this cluster, and {} listens there",
                process::listener(port).unwrap_or_else(|| "another program".to_owned())
            ))
            .help(format!(
                "stop that program (`ss -ltnp 'sport = :{port}'` shows it), then start again"
            )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_passed_over_and_named() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        let mut ports = Ports::default();
        assert_ne!(ports.next(port).unwrap(), port);
        let failure = require_free(port, "controller c1").unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert!(failure.what.contains(&port.to_string()), "{failure:?}");
        let me = format!("(process {})", std::process::id());
        assert!(failure.why.contains(&me), "{failure:?}");
    }

    #[test]
    fn no_port_is_given_twice() {
        let mut ports = Ports::without([FIRST_INNER]);
        let some: Vec<u16> = (0..5).map(|_| ports.inner().unwrap()).collect();
        assert_eq!(some.iter().collect::<BTreeSet<_>>().len(), 5);
        assert!(!some.contains(&FIRST_INNER));
    }
}
