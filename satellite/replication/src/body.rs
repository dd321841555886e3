//! What travels behind a header.

/// A message's payload. `P` is the shell's handle on data (a shared buffer); it is moved and cloned here,
/// never looked into.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Body<P> {
    /// Nothing.
    #[default]
    None,
    /// Bytes of the volume.
    Data(P),
    /// Bytes of the protocol: a roster, words of a map.
    Bytes(Vec<u8>),
}

impl<P> Body<P> {
    /// The protocol bytes; empty for the others.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::None | Self::Data(_) => &[],
        }
    }
}
