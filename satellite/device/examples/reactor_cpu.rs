//! CPU time per operation of the reactor, on loopback and on disk.
//!
//! `cargo run --release -p stor-device --example reactor_cpu -- [io_uring|epoll|blocking] [DEPTH] [BYTES] [TURNS]`
//!
//! One thread sends requests of BYTES and waits for answers of 64 bytes, another answers them; DEPTH requests
//! are under way. Prints CPU microseconds per round trip of each thread, system time included, which hold on
//! noisy machines where wall-clock time does not. Then the same for direct 4 KiB writes to a file in /var/tmp.
#![allow(clippy::print_stdout, reason = "a program for people")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a measurement, not a product"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use stor_device::file::{OpenData, open_data};
use stor_device::{BufPool, Choice, Completion, Fd, Outcome, Piece, Reactor, Shared, Sync};

const ANSWER: usize = 64;
const RECV: u64 = 1;
const SEND: u64 = 2;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| args.get(at).map_or(default, |text| text.parse().unwrap());
    let choice = match args.first().map(String::as_str) {
        Some("epoll") => Some(Choice::Epoll),
        Some("blocking") => None,
        _ => Some(Choice::IoUring),
    };
    let (depth, bytes, turns) = (number(1, 1), number(2, 4160), number(3, 200_000));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || match choice {
        Some(choice) => answer(choice, listener, bytes, turns),
        None => answer_blocking(&listener, bytes, turns),
    });
    let client = match choice {
        Some(choice) => ask(choice, addr, depth, bytes, turns),
        None => ask_blocking(addr, bytes, turns),
    };
    println!(
        "client {client:.2} us, server {:.2} us per round trip",
        server.join().unwrap()
    );
    if let Some(choice) = choice {
        println!(
            "disk {:.2} us per 4 KiB write",
            write_file(choice, depth, turns.min(20_000))
        );
    }
}

fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

fn per_turn(since: Duration, turns: usize) -> f64 {
    cpu().saturating_sub(since).as_secs_f64() * 1e6 / f64::from(u32::try_from(turns).unwrap())
}

/// One end: sends messages of one size and receives messages of another.
struct Side {
    reactor: Reactor,
    fd: Fd,
    pool: BufPool,
    payload: Shared,
    receive: usize,
    out: Vec<Completion>,
}

impl Side {
    fn new(mut reactor: Reactor, fd: Fd, send: usize, receive: usize) -> Self {
        let pool = BufPool::new();
        let buf = pool.take(64 << 10);
        reactor.recv(fd, buf, 0, RECV);
        let payload = pool.take(send - ANSWER.min(send)).into();
        Self {
            reactor,
            fd,
            pool,
            payload,
            receive,
            out: Vec::new(),
        }
    }

    fn send(&mut self, messages: usize) {
        let mut pieces = self.reactor.pieces();
        for _ in 0..messages {
            pieces.push(Piece::copy(&[1; ANSWER]));
            if !self.payload.is_empty() {
                pieces.push(Piece::whole(self.payload.clone()));
            }
        }
        self.reactor.send(self.fd, pieces, SEND);
    }

    /// Exchanges messages until `turns` were received; answers the CPU time per turn.
    fn run(&mut self, mut to_send: usize, turns: usize) -> f64 {
        let start = cpu();
        let (mut received, mut partial, mut sent, mut sending) = (0, 0, 0, false);
        while received < turns || sent < turns || sending {
            let now = to_send.min(16).min(turns - sent);
            if now > 0 && !sending {
                self.send(now);
                to_send -= now;
                sent += now;
                sending = true;
            }
            // Nothing but our own send is left at the end.
            let limit = if received < turns {
                None
            } else {
                Some(Duration::from_millis(1))
            };
            self.reactor.wait(limit, &mut self.out).unwrap();
            let mut out = std::mem::take(&mut self.out);
            for completion in out.drain(..) {
                let Ok(Outcome::Count(count)) = completion.result else {
                    panic!("{completion:?}")
                };
                if completion.token == SEND {
                    sending = false;
                    continue;
                }
                assert!(count > 0, "the other side went away");
                partial += count;
                received += partial / self.receive;
                to_send += partial / self.receive;
                partial %= self.receive;
                if received < turns {
                    self.reactor.recv(self.fd, completion.buf.unwrap(), 0, RECV);
                }
            }
            self.out = out;
        }
        per_turn(start, turns)
    }
}

fn ask(choice: Choice, addr: SocketAddr, depth: usize, bytes: usize, turns: usize) -> f64 {
    let mut reactor = Reactor::new(choice).unwrap();
    reactor.connect(addr, 9);
    let Outcome::Connected(fd) = first(&mut reactor) else {
        panic!()
    };
    Side::new(reactor, fd, bytes, ANSWER).run(depth, turns)
}

fn answer(choice: Choice, listener: TcpListener, bytes: usize, turns: usize) -> f64 {
    let mut reactor = Reactor::new(choice).unwrap();
    let listener = reactor.register(listener.into()).unwrap();
    reactor.accept(listener, 9);
    let Outcome::Accepted(fd) = first(&mut reactor) else {
        panic!()
    };
    let mut side = Side::new(reactor, fd, ANSWER, bytes);
    let used = side.run(0, turns);
    assert!(side.pool.kept() <= 1 << 20);
    used
}

fn first(reactor: &mut Reactor) -> Outcome {
    let mut out = Vec::new();
    while out.is_empty() {
        reactor.wait(None, &mut out).unwrap();
    }
    out.pop().unwrap().result.unwrap()
}

fn ask_blocking(addr: SocketAddr, bytes: usize, turns: usize) -> f64 {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    let (request, mut reply) = (vec![1; bytes], [0; ANSWER]);
    let start = cpu();
    for _ in 0..turns {
        stream.write_all(&request).unwrap();
        stream.read_exact(&mut reply).unwrap();
    }
    per_turn(start, turns)
}

fn answer_blocking(listener: &TcpListener, bytes: usize, turns: usize) -> f64 {
    let mut stream = listener.accept().unwrap().0;
    stream.set_nodelay(true).unwrap();
    let mut request = vec![0; bytes];
    let start = cpu();
    for _ in 0..turns {
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&[1; ANSWER]).unwrap();
    }
    per_turn(start, turns)
}

fn write_file(choice: Choice, depth: usize, turns: usize) -> f64 {
    let path = format!("/var/tmp/stor-reactor-cpu-{}", std::process::id());
    let size = 64 << 20;
    let file = open_data(path.as_ref(), OpenData::Create { size }).unwrap();
    fs::remove_file(&path).unwrap();
    rustix::fs::fallocate(&file.fd, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    let mut reactor = Reactor::new(choice).unwrap();
    let fd = reactor.register(file.fd).unwrap();
    let data = Shared::from(BufPool::new().take(4096));
    let mut out = Vec::new();
    let (mut started, mut ended) = (0, 0);
    // First touch of each block converts it, which is another story.
    for block in 0..size >> 12 {
        reactor.write_at(fd, data.clone(), 0..4096, block << 12, Sync::No, 0);
    }
    while reactor.in_flight() > 0 {
        reactor.wait(None, &mut out).unwrap();
    }
    out.clear();
    let process = || -> Duration { clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap() };
    let start = process();
    while ended < turns {
        while started - ended < depth && started < turns {
            let block = (started as u64 * 7919) % (size >> 12);
            reactor.write_at(fd, data.clone(), 0..4096, block << 12, Sync::No, 0);
            started += 1;
        }
        reactor.wait(None, &mut out).unwrap();
        for completion in out.drain(..) {
            completion.result.unwrap();
            ended += 1;
        }
    }
    process().saturating_sub(start).as_secs_f64() * 1e6 / f64::from(u32::try_from(turns).unwrap())
}
