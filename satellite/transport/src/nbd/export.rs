//! What a server offers: one volume with its size, limits and abilities.

/// Longest name of an export, bytes. The protocol allows 4096; a volume's name is far shorter.
pub const MAX_EXPORT_NAME: usize = 256;

/// «the maximum payload size SHOULD be at least 2^25»: what every client assumes when nobody told it more.
const DEFAULT_MAX_BLOCK: u32 = 32 << 20;

/// Largest value that `NBD_INFO_BLOCK_SIZE` allows as the minimum block size.
const LARGEST_MIN_BLOCK: u32 = 1 << 16;

/// An export as its clients see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Name; the empty name finds it as well.
    pub name: String,
    /// For people, shown by `nbdinfo`. May be empty.
    pub description: String,
    /// Size, bytes.
    pub size: u64,
    /// Refuse everything that writes.
    pub read_only: bool,
    /// Offsets and lengths are multiples of it; others are refused with `EINVAL`.
    pub min_block: u32,
    /// At and above it no read-modify-write is needed.
    pub preferred_block: u32,
    /// Longest read or write, bytes.
    pub max_block: u32,
    /// A flush on one connection covers the writes answered on every other one.
    pub multi_conn: bool,
    /// `TRIM` is worth sending.
    pub trim: bool,
    /// `WRITE_ZEROES` is worth sending.
    pub write_zeroes: bool,
    /// `WRITE_ZEROES` without a way faster than writing fails at once with `ENOTSUP` when asked so.
    pub fast_zero: bool,
}

/// An [`Export`] that can't be served.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExportError {
    /// Longer than [`MAX_EXPORT_NAME`].
    #[error("the export's name has {0} bytes, at most {MAX_EXPORT_NAME} are allowed")]
    Name(usize),
    /// The description does not fit an option reply.
    #[error("the export's description has {0} bytes, at most {MAX_EXPORT_NAME} are allowed")]
    Description(usize),
    /// Block sizes the protocol does not allow.
    #[error(
        "block sizes {min}/{preferred}/{max} are not allowed: minimum and preferred are powers of two, the \
         minimum at most {LARGEST_MIN_BLOCK}, the preferred at least 512 and the minimum, the largest at \
         least the preferred"
    )]
    BlockSizes {
        /// Minimum.
        min: u32,
        /// Preferred.
        preferred: u32,
        /// Largest payload.
        max: u32,
    },
    /// The last bytes could not be reached.
    #[error("the size {size} is not a multiple of the smallest block {min_block}")]
    Size {
        /// Size, bytes.
        size: u64,
        /// Minimum block.
        min_block: u32,
    },
}

impl Export {
    /// A writable export in blocks of 4096 bytes with flush, FUA, trim and write zeroes.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size,
            read_only: false,
            min_block: 4096,
            preferred_block: 4096,
            max_block: DEFAULT_MAX_BLOCK,
            multi_conn: false,
            trim: true,
            write_zeroes: true,
            fast_zero: false,
        }
    }

    /// Whether clients can be told of it.
    pub fn check(&self) -> Result<(), ExportError> {
        if self.name.len() > MAX_EXPORT_NAME {
            return Err(ExportError::Name(self.name.len()));
        }
        if self.description.len() > MAX_EXPORT_NAME {
            return Err(ExportError::Description(self.description.len()));
        }
        let (min, preferred, max) = (self.min_block, self.preferred_block, self.max_block);
        let allowed = min.is_power_of_two()
            && min <= LARGEST_MIN_BLOCK
            && preferred.is_power_of_two()
            && preferred >= min.max(512)
            && max >= preferred;
        if !allowed {
            return Err(ExportError::BlockSizes { min, preferred, max });
        }
        if !self.size.is_multiple_of(u64::from(min)) {
            return Err(ExportError::Size {
                size: self.size,
                min_block: min,
            });
        }
        Ok(())
    }

    /// Whether a client that asks for `name` means this export.
    pub(crate) fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// The transmission flags of `NBD_INFO_EXPORT`. `DF` «MUST leave this flag clear if structured replies
    /// have not been negotiated».
    pub(crate) fn transmission_flags(&self, structured: bool) -> u16 {
        const HAS_FLAGS: u16 = 1;
        const READ_ONLY: u16 = 1 << 1;
        const SEND_FLUSH: u16 = 1 << 2;
        const SEND_FUA: u16 = 1 << 3;
        const SEND_TRIM: u16 = 1 << 5;
        const SEND_WRITE_ZEROES: u16 = 1 << 6;
        const SEND_DF: u16 = 1 << 7;
        const CAN_MULTI_CONN: u16 = 1 << 8;
        const SEND_FAST_ZERO: u16 = 1 << 11;

        let zeroes = self.write_zeroes && !self.read_only;
        [
            (true, HAS_FLAGS | SEND_FLUSH | SEND_FUA),
            (self.read_only, READ_ONLY),
            (self.trim && !self.read_only, SEND_TRIM),
            (zeroes, SEND_WRITE_ZEROES),
            (zeroes && self.fast_zero, SEND_FAST_ZERO),
            (structured, SEND_DF),
            (self.multi_conn, CAN_MULTI_CONN),
        ]
        .into_iter()
        .filter(|(has, _)| *has)
        .fold(0, |flags, (_, flag)| flags | flag)
    }
}
