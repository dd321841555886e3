//! Handing descriptors to a child process, and taking them over in it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Lets a child keep these descriptors, under the numbers they have here (use `as_raw_fd` for its arguments).
/// Only this child: they stay closed-on-exec in our own process. The command owns them from now on.
pub fn keep_open(command: &mut Command, fds: Vec<OwnedFd>) {
    let keep = move || {
        for fd in &fds {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls: no allocation, no lock.
    unsafe { command.pre_exec(keep) };
}

/// Makes a child the leader of a session of its own, so that it outlives us and our terminal's signals.
pub fn own_session(command: &mut Command) {
    let detach = || rustix::process::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: as in `keep_open`: one system call.
    unsafe { command.pre_exec(detach) };
}

/// Takes over a descriptor that our parent left open for us ([`keep_open`]), named by number. Refuses
/// standard input, output and error and what is not open. Call it once per number, before other threads start:
/// nobody else in the process may own it.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a descriptor a parent hands over",
        ));
    }
    // SAFETY: only asked for its flags; if it is not open, the kernel says so.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(fd)?;
    // A descriptor our own process opened is closed on exec, as the standard library does it. One that came
    // through exec cannot be: this refuses to take a file away from its owner.
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the descriptor was not inherited",
        ));
    }
    fcntl_setfd(fd, flags | FdFlags::CLOEXEC)?;
    // SAFETY: open, came through exec, and marked so that a second call refuses it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd.as_raw_fd()) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_child_reads_from_a_kept_descriptor_and_only_that_child() {
        let (read, write) = io::pipe().unwrap();
        rustix::io::write(&write, b"handed over\n").unwrap();
        drop(write);
        let number = read.as_raw_fd();
        let script = format!("cat <&{number}");
        let mut command = Command::new("sh");
        command.arg("-c").arg(&script);
        keep_open(&mut command, vec![read.into()]);
        own_session(&mut command);
        let other = Command::new("sh").arg("-c").arg(&script).output().unwrap();
        assert!(!other.status.success(), "another child has the descriptor too");
        assert_eq!(command.output().unwrap().stdout, b"handed over\n");
    }

    #[test]
    fn what_was_not_inherited_is_refused() {
        let file = File::open("/etc/hostname").unwrap();
        assert!(inherited(file.as_raw_fd()).is_err());
        assert!(inherited(1).is_err());
        assert!(inherited(900).is_err());
    }

    #[test]
    fn an_inherited_descriptor_is_taken_once() {
        let file = File::open("/etc/hostname").unwrap();
        // As if it had come through exec.
        let number = rustix::io::dup(&file)
            .map(std::os::fd::IntoRawFd::into_raw_fd)
            .unwrap();
        let taken = inherited(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(inherited(number).is_err());
    }
}
