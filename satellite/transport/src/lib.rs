//! The protocols by which a volume reaches a kernel or a VM: NBD and FUSE, without I/O.
