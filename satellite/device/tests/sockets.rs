//! Sockets, streams and wake-ups, on both backends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{on_both, pattern};
use nix::libc::{EBADF, EBUSY, ECANCELED, ECONNREFUSED, EINVAL, ENOBUFS};
use stor_device::reactor::MAX_OPS;
use stor_device::{Buf, Choice, Outcome, Piece, Reactor, Shared};

#[test]
fn an_echo_of_many_pieces_keeps_every_byte_in_order() {
    on_both(|d| {
        let (client, server) = d.connection();
        let body = pattern(3 << 20, 1);
        let mut buf = Buf::new(body.len());
        buf.copy_from_slice(&body);
        let shared = Shared::from(buf);
        let mut pieces = d.reactor.pieces();
        let mut expected = Vec::new();
        for nth in 0..200_usize {
            let small = pattern(nth % 150, nth as u64);
            expected.extend_from_slice(&small);
            pieces.push(Piece::copy(&small));
            let range = nth * 7_000..nth * 7_000 + nth * 63;
            expected.extend_from_slice(&body[range.clone()]);
            pieces.push(Piece::Shared(shared.clone(), range));
        }
        pieces.push(Piece::whole(shared));
        expected.extend_from_slice(&body);
        d.reactor.send(client, pieces, 1);
        let there = d.receive(server, expected.len());
        assert!(there == expected, "bytes arrived changed");
        assert_eq!(d.count(1), expected.len());
        d.reactor.send(server, vec![Piece::Bytes(there.into())], 2);
        let back = d.receive(client, expected.len());
        assert!(back == expected, "bytes came back changed");
        assert_eq!(d.count(2), expected.len());
    });
}

#[test]
fn a_send_to_a_slow_reader_goes_on_by_itself() {
    on_both(|d| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let len = 24 << 20;
        let go = Arc::new(AtomicBool::new(false));
        let may_read = Arc::clone(&go);
        let reader = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            while !may_read.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
            }
            let mut all = Vec::new();
            let mut part = vec![0; 70_000];
            while all.len() < len {
                let count = stream.read(&mut part).unwrap();
                assert!(count > 0);
                all.extend_from_slice(&part[..count]);
            }
            all
        });
        d.reactor.connect(addr, 1);
        let Ok(Outcome::Connected(fd)) = d.until(1).result else {
            panic!("connect failed")
        };
        let data = pattern(len, 5);
        let pieces = data
            .chunks(100_001)
            .map(|chunk| Piece::Bytes(chunk.into()))
            .collect();
        d.reactor.send(fd, pieces, 2);
        // More than any socket buffer holds: it cannot be done before the reader starts.
        assert!(d.whatever_comes(Duration::from_millis(50)).is_empty());
        go.store(true, Ordering::SeqCst);
        assert_eq!(d.count(2), len);
        assert!(reader.join().unwrap() == data, "bytes arrived changed");
    });
}

#[test]
fn the_end_of_a_stream_is_a_count_of_zero() {
    on_both(|d| {
        let (client, server) = d.connection();
        d.reactor.recv(server, Buf::new(100), 0, 1);
        assert!(d.whatever_comes(Duration::ZERO).is_empty());
        d.reactor.send(client, vec![Piece::copy(b"bye")], 2);
        assert_eq!(d.count(2), 3);
        d.reactor.close(client);
        let first = d.until(1);
        assert_eq!(first.result.unwrap(), Outcome::Count(3));
        assert_eq!(&first.buf.unwrap()[..3], b"bye");
        for token in [3, 4] {
            d.reactor.recv(server, Buf::new(100), 0, token);
            assert_eq!(d.count(token), 0);
        }
    });
}

#[test]
fn recv_fills_the_buffer_from_where_it_is_told() {
    on_both(|d| {
        let (client, server) = d.connection();
        let mut buf = d.pool.take(16);
        buf.fill(b'.');
        d.reactor.send(client, vec![Piece::copy(b"abcdefghijklmnop")], 1);
        d.reactor.recv(server, buf, 10, 2);
        let completion = d.until(2);
        assert_eq!(completion.result.unwrap(), Outcome::Count(6));
        assert_eq!(&completion.buf.unwrap()[..], b"..........abcdef");
        assert_eq!(d.receive(server, 10), b"ghijklmnop");
        d.reactor.recv(server, d.pool.take(16), 16, 3);
        assert_eq!(d.errno(3), EINVAL);
    });
}

#[test]
fn a_refused_connection_is_an_error_and_its_name_goes_stale() {
    on_both(|d| {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let fd = d.reactor.connect(addr, 1);
        assert_eq!(d.errno(1), ECONNREFUSED);
        d.reactor.send(fd, vec![Piece::copy(b"x")], 2);
        assert_eq!(d.errno(2), EBADF);
        d.reactor.close(fd);
    });
}

#[test]
fn closing_cancels_what_is_in_flight_and_closes_the_descriptor() {
    on_both(|d| {
        let (listener, _) = d.listener();
        let (client, server) = d.connection();
        let (pipe_in, pipe_out) = rustix::pipe::pipe().unwrap();
        let pipe = d.reactor.register(pipe_in).unwrap();
        d.reactor.accept(listener, 1);
        d.reactor.recv(client, Buf::new(100), 0, 2);
        d.reactor.poll_in(client, 3);
        d.reactor
            .send(client, vec![Piece::Bytes(vec![0; 64 << 20].into())], 4);
        d.reactor.read_stream(pipe, Buf::new(10), 5);
        assert!(d.whatever_comes(Duration::from_millis(20)).is_empty());
        // This one is queued and never reaches the kernel.
        d.reactor.recv(client, Buf::new(100), 0, 6);
        for fd in [listener, client, pipe] {
            d.reactor.close(fd);
        }
        for token in 1..=6 {
            let completion = d.until(token);
            let error = completion.result.expect_err("should be cancelled");
            assert_eq!(error.raw_os_error(), Some(ECANCELED), "operation {token}");
            assert_eq!(
                completion.buf.is_some(),
                [2, 5, 6].contains(&token),
                "buffer of {token}"
            );
        }
        // The other ends see that it is closed.
        let mut rest = 0;
        loop {
            d.reactor.recv(server, d.pool.take(1 << 20), 0, 7);
            match d.until(7).result {
                Ok(Outcome::Count(0)) | Err(_) => break,
                Ok(Outcome::Count(count)) => rest += count,
                other => panic!("{other:?}"),
            }
        }
        assert!(rest < 64 << 20);
        assert_eq!(rustix::io::write(&pipe_out, b"x"), Err(rustix::io::Errno::PIPE));
    });
}

#[test]
fn using_a_closed_descriptor_is_an_error_even_when_its_place_is_taken_again() {
    on_both(|d| {
        let (client, server) = d.connection();
        d.reactor.close(client);
        let (other, peer) = d.connection();
        d.reactor.send(client, vec![Piece::copy(b"x")], 1);
        d.reactor.recv(client, Buf::new(10), 0, 2);
        d.reactor.poll_in(client, 3);
        for token in [1, 2, 3] {
            let completion = d.until(token);
            assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(EBADF));
            assert_eq!(completion.buf.is_some(), token == 2);
        }
        d.reactor.close(client);
        d.reactor.send(other, vec![Piece::copy(b"still open")], 4);
        assert_eq!(d.receive(peer, 10), b"still open");
        d.reactor.recv(server, Buf::new(10), 0, 5);
        assert_eq!(d.count(5), 0);
    });
}

#[test]
fn a_waker_wakes_from_another_thread_again_and_again() {
    on_both(|d| {
        let waker = d.reactor.waker();
        let (ask, asked) = mpsc::sync_channel::<()>(1);
        let woken = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&woken);
        let thread = std::thread::spawn(move || {
            while asked.recv().is_ok() {
                flag.store(true, Ordering::SeqCst);
                waker.wake();
                waker.wake();
            }
        });
        for _ in 0..100 {
            ask.send(()).unwrap();
            while !woken.swap(false, Ordering::SeqCst) {
                // Without a limit: a lost wake-up hangs the test.
                d.reactor.wait(None, &mut Vec::new()).unwrap();
            }
        }
        drop(ask);
        thread.join().unwrap();
    });
}

#[test]
fn waiting_ends_with_its_timeout() {
    on_both(|d| {
        assert!(d.whatever_comes(Duration::from_millis(5)).is_empty());
        assert!(d.whatever_comes(Duration::ZERO).is_empty());
    });
}

#[test]
fn a_thousand_operations_in_flight_all_complete_once() {
    on_both(|d| {
        let mut pairs = Vec::new();
        for _ in 0..500 {
            let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
            pairs.push((
                d.reactor.register(one.into()).unwrap(),
                d.reactor.register(two.into()).unwrap(),
            ));
        }
        for (nth, (one, two)) in pairs.iter().enumerate() {
            let token = nth as u64 * 4;
            d.reactor.recv(*one, d.pool.take(8), 0, token);
            d.reactor.recv(*two, d.pool.take(8), 0, token + 1);
        }
        assert!(d.whatever_comes(Duration::from_millis(5)).is_empty());
        for (nth, (one, two)) in pairs.iter().enumerate() {
            let token = nth as u64 * 4;
            d.reactor
                .send(*one, vec![Piece::copy(&(token + 1).to_le_bytes())], token + 2);
            d.reactor
                .send(*two, vec![Piece::copy(&token.to_le_bytes())], token + 3);
        }
        for token in 0..pairs.len() as u64 * 4 {
            let completion = d.until(token);
            assert_eq!(completion.result.unwrap(), Outcome::Count(8));
            if let Some(buf) = completion.buf {
                assert_eq!(buf[..8], token.to_le_bytes());
            }
        }
        assert!(d.whatever_comes(Duration::ZERO).is_empty());
    });
}

#[test]
fn dropping_ends_what_is_in_flight() {
    for choice in [Choice::Auto, Choice::Epoll] {
        let mut reactor = Reactor::new(choice).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = reactor.register(listener.accept().unwrap().0.into()).unwrap();
        let listener = reactor.register(listener.into()).unwrap();
        reactor.accept(listener, 1);
        reactor.recv(ours, Buf::new(1 << 20), 0, 2);
        reactor.send(
            ours,
            vec![Piece::Bytes(vec![1; 32 << 20].into()), Piece::copy(b"x")],
            3,
        );
        let mut out = Vec::new();
        reactor.wait(Some(Duration::from_millis(20)), &mut out).unwrap();
        assert!(out.is_empty(), "{out:?}");
        reactor.recv(ours, Buf::new(100), 0, 4);
        drop(reactor);
        // The kernel has nothing left to write this to.
        let mut rest = Vec::new();
        let end = peer.read_to_end(&mut rest);
        assert!(rest.len() < 32 << 20, "{end:?}");
        let sent = (0..100).try_for_each(|_| {
            std::thread::sleep(Duration::from_millis(1));
            peer.write_all(b"anybody there?")
        });
        assert!(sent.is_err(), "the socket is still open");
    }
}

#[test]
fn a_second_send_on_a_descriptor_is_refused() {
    if cfg!(debug_assertions) {
        return; // It is an assertion there.
    }
    on_both(|d| {
        let (client, _server) = d.connection();
        d.reactor.send(client, vec![Piece::copy(b"one")], 1);
        d.reactor.send(client, vec![Piece::copy(b"two")], 2);
        assert_eq!(d.errno(2), EBUSY);
        assert_eq!(d.count(1), 3);
    });
}

#[test]
fn streams_are_read_and_written_in_one_piece() {
    on_both(|d| {
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (read, write) = rustix::pipe::pipe_with(flags).unwrap();
        let (read, write) = (
            d.reactor.register(read).unwrap(),
            d.reactor.register(write).unwrap(),
        );
        d.reactor.poll_in(read, 1);
        d.reactor.read_stream(read, d.pool.take(4096), 2);
        assert!(d.whatever_comes(Duration::from_millis(5)).is_empty());
        d.reactor
            .write_stream(write, vec![Piece::copy(b"head"), Piece::copy(b"body")], 3);
        assert_eq!(d.count(3), 8);
        d.done(1);
        let completion = d.until(2);
        assert_eq!(completion.result.unwrap(), Outcome::Count(8));
        assert_eq!(&completion.buf.unwrap()[..8], b"headbody");
        d.reactor
            .write_stream(write, (0..65).map(|_| Piece::copy(b"x")).collect(), 4);
        assert_eq!(d.errno(4), EINVAL);
        d.reactor.close(write);
        d.reactor.read_stream(read, d.pool.take(4096), 5);
        assert_eq!(d.count(5), 0);
    });
}

#[test]
fn an_empty_send_completes_and_a_range_outside_is_refused() {
    on_both(|d| {
        let (client, _server) = d.connection();
        d.reactor.send(client, vec![Piece::copy(b"")], 1);
        assert_eq!(d.count(1), 0);
        d.reactor
            .send(client, vec![Piece::Shared(Buf::new(10).into(), 4..11)], 2);
        assert_eq!(d.errno(2), EINVAL);
    });
}

#[test]
fn what_is_too_much_is_refused_and_the_rest_goes_on() {
    on_both(|d| {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let read = d.reactor.register(read).unwrap();
        for token in 0..MAX_OPS as u64 {
            d.reactor.poll_in(read, token);
        }
        d.reactor.read_stream(read, Buf::new(10), MAX_OPS as u64);
        let completion = d.until(MAX_OPS as u64);
        assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(ENOBUFS));
        assert!(completion.buf.is_some());
        rustix::io::write(&write, b"x").unwrap();
        let mut done = 0;
        while done < MAX_OPS {
            done += d.whatever_comes(Duration::from_secs(10)).len();
        }
        assert_eq!((done, d.reactor.in_flight()), (MAX_OPS, 0));
    });
}

#[test]
fn a_descriptor_can_be_asked_while_it_is_open() {
    on_both(|d| {
        let (client, server) = d.connection();
        let ours = rustix::net::getsockname(d.reactor.descriptor(client).unwrap()).unwrap();
        let theirs = rustix::net::getpeername(d.reactor.descriptor(server).unwrap()).unwrap();
        assert_eq!(Some(ours), theirs);
        for fd in [client, server] {
            assert!(rustix::net::sockopt::tcp_nodelay(d.reactor.descriptor(fd).unwrap()).unwrap());
        }
        d.reactor.close(client);
        assert!(d.reactor.descriptor(client).is_none());
    });
}
