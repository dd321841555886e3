//! Time that goes on while the machine sleeps, and which boot it belongs to.

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since boot, including suspend. Never goes back; comparable between processes of one boot.
pub fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // The kernel's clock starts at zero and its nanoseconds are below 10^9.
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Names this boot: a time of [`boottime`] means nothing under another one.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward() {
        let first = boottime();
        let second = boottime();
        assert!(first > Duration::ZERO && second >= first);
    }

    #[test]
    fn the_boot_has_one_name() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
