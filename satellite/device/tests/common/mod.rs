//! A reactor with its completions, and the two backends to run each test on.
#![allow(dead_code, unreachable_pub)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use stor_device::{BufPool, Choice, Completion, Fd, Outcome, Reactor};

/// Runs a test on both backends. Where io_uring is not allowed, says so and runs on epoll alone.
pub fn on_both(test: impl Fn(&mut Driver)) {
    match Reactor::new(Choice::IoUring) {
        Ok(reactor) => test(&mut Driver::new(reactor, "io_uring")),
        Err(error) => stor_skip::skipped("reactor on io_uring", error),
    }
    test(&mut Driver::new(Reactor::new(Choice::Epoll).unwrap(), "epoll"));
}

pub struct Driver {
    pub reactor: Reactor,
    pub pool: BufPool,
    got: Vec<Completion>,
}

impl Driver {
    fn new(reactor: Reactor, backend: &str) -> Self {
        assert_eq!(reactor.backend(), backend);
        Self {
            reactor,
            pool: BufPool::new(),
            got: Vec::new(),
        }
    }

    /// The completion with this token; a test that waits in vain fails.
    pub fn until(&mut self, token: u64) -> Completion {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(at) = self.got.iter().position(|one| one.token == token) {
                return self.got.remove(at);
            }
            assert!(
                Instant::now() < deadline,
                "no completion {token} on {}",
                self.reactor.backend()
            );
            self.reactor
                .wait(Some(Duration::from_secs(1)), &mut self.got)
                .unwrap();
        }
    }

    /// Everything that completes within a short while; for checking that something does not.
    pub fn whatever_comes(&mut self, within: Duration) -> Vec<Completion> {
        self.reactor.wait(Some(within), &mut self.got).unwrap();
        std::mem::take(&mut self.got)
    }

    pub fn count(&mut self, token: u64) -> usize {
        let completion = self.until(token);
        match completion.result {
            Ok(Outcome::Count(count)) => count,
            other => panic!("operation {token}: {other:?}"),
        }
    }

    pub fn done(&mut self, token: u64) {
        assert_eq!(self.until(token).result.unwrap(), Outcome::Done);
    }

    pub fn errno(&mut self, token: u64) -> i32 {
        let result = self.until(token).result;
        result.expect_err("should have failed").raw_os_error().unwrap()
    }

    /// Two ends of a TCP connection, both in the reactor: (connected, accepted).
    pub fn connection(&mut self) -> (Fd, Fd) {
        let (listener, addr) = self.listener();
        self.reactor.accept(listener, 9001);
        self.reactor.connect(addr, 9002);
        let Ok(Outcome::Accepted(accepted)) = self.until(9001).result else {
            panic!("accept failed")
        };
        let Ok(Outcome::Connected(connected)) = self.until(9002).result else {
            panic!("connect failed")
        };
        self.reactor.close(listener);
        (connected, accepted)
    }

    pub fn listener(&mut self) -> (Fd, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        (self.reactor.register(listener.into()).unwrap(), addr)
    }

    /// Receives exactly this many bytes.
    pub fn receive(&mut self, fd: Fd, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let buf = self.pool.take((len - all.len()).min(100_000));
            self.reactor.recv(fd, buf, 0, 9003);
            let completion = self.until(9003);
            let Ok(Outcome::Count(count)) = completion.result else {
                panic!("{completion:?}")
            };
            assert!(count > 0, "the stream ended after {} of {len} bytes", all.len());
            all.extend_from_slice(&completion.buf.unwrap()[..count]);
        }
        all
    }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32).to_le_bytes()[0]
        })
        .collect()
}
