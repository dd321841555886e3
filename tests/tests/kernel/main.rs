//! What needs a kernel with drivers that the machine's own may lack: in virtual machines.

#![expect(clippy::print_stdout, reason = "what a test measured is read in its output")]

mod device;
mod machine;
mod nbd;
mod power;
mod thin;
mod ublk;
