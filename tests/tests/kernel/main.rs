//! What needs a kernel with drivers that the machine's own may lack: in virtual machines.

mod machine;
mod nbd;
mod power;
mod thin;
