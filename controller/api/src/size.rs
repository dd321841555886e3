//! Sizes: what people and Kubernetes write (`10Gi`, `500Mi`, `1T`, `1.5Gi`, bare numbers are bytes), how they
//! are shown, and which ones a volume may have.
//!
//! Promises: parsing never rounds. What is not a whole number of bytes is refused, as is what does not fit.

use thiserror::Error;

/// Volumes are multiples of this many bytes.
pub const BLOCK: u64 = 4096;
/// Smallest volume.
pub const MIN_VOLUME: u64 = 1 << 20;
/// Largest volume.
pub const MAX_VOLUME: u64 = 64 << 40;

/// Longest text that is looked at as a size.
const MAX_TEXT: usize = 40;

const FORM: &str = "write a number of bytes, or a number with Ki, Mi, Gi, Ti (powers of 1024) or k, M, G, T \
                    (powers of 1000), such as 10Gi";

/// Why a size is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not a number with a suffix.
    #[error("{text:?} is not a size; {FORM}")]
    Form {
        /// What was given, cut to a printable length.
        text: String,
    },
    /// The number is followed by a suffix that is none.
    #[error("{suffix:?} in {text:?} is not a unit of size; {FORM}")]
    Unit {
        /// What was given.
        text: String,
        /// Its suffix.
        suffix: String,
    },
    /// Below zero.
    #[error("{text:?} is negative; a size is not")]
    Negative {
        /// What was given.
        text: String,
    },
    /// Not whole bytes.
    #[error("{text:?} is not a whole number of bytes")]
    Fraction {
        /// What was given.
        text: String,
    },
    /// More than 2^64 - 1 bytes.
    #[error("{text:?} is more than any size can be")]
    Overflow {
        /// What was given.
        text: String,
    },
    /// Below [`MIN_VOLUME`].
    #[error("{bytes} bytes are too few for a volume; the smallest is 1 MiB (1Mi), the largest 64 TiB (64Ti)")]
    VolumeTooSmall {
        /// What was asked for.
        bytes: u64,
    },
    /// Above [`MAX_VOLUME`].
    // In bytes: rounded, a size just above the largest would read like the largest.
    #[error(
        "{bytes} bytes are too many for a volume; the smallest is 1 MiB (1Mi), the largest 64 TiB (64Ti)"
    )]
    VolumeTooLarge {
        /// What was asked for.
        bytes: u64,
    },
}

/// Bytes in a text such as `10Gi`.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let given = text.trim();
    let owned = || given.chars().take(MAX_TEXT).collect::<String>();
    if given.chars().count() > MAX_TEXT {
        return Err(SizeError::Form { text: owned() });
    }
    if given.starts_with('-') {
        return Err(SizeError::Negative { text: owned() });
    }
    let end = given
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(given.len());
    let (number, suffix) = given.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || fraction.contains('.') {
        return Err(SizeError::Form { text: owned() });
    }
    let overflow = || SizeError::Overflow { text: owned() };
    let mantissa: u128 = digits.parse().map_err(|_| overflow())?;
    let unit = unit(suffix).ok_or_else(|| SizeError::Unit {
        text: owned(),
        suffix: suffix.to_owned(),
    })?;
    let places = u32::try_from(fraction.len()).map_err(|_| overflow())?;
    let divisor = 10_u128.checked_pow(places).ok_or_else(overflow)?;
    let product = mantissa.checked_mul(unit).ok_or_else(overflow)?;
    if product % divisor != 0 {
        return Err(SizeError::Fraction { text: owned() });
    }
    u64::try_from(product / divisor).map_err(|_| overflow())
}

/// What a suffix multiplies by. `GiB` and `GB` are understood as `Gi` and `G`; `K` as `k`.
fn unit(suffix: &str) -> Option<u128> {
    let bare = match suffix {
        "" | "B" => return Some(1),
        other => other.strip_suffix('B').unwrap_or(other),
    };
    let (letter, base) = match bare.strip_suffix('i') {
        Some(letter) => (letter, 1024_u128),
        None => (bare, 1000),
    };
    let power = match letter {
        "k" | "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        "P" => 5,
        "E" => 6,
        _ => return None,
    };
    base.checked_pow(power)
}

/// A size for people: `10.0 GiB`, `512 B`.
pub fn format(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut shown = "";
    let mut tenths = u128::from(bytes) * 10;
    for unit in UNITS {
        tenths = (tenths + 512) / 1024;
        shown = unit;
        if tenths < 10_240 {
            break;
        }
    }
    format!("{}.{} {shown}", tenths / 10, tenths % 10)
}

/// The size a volume gets that was asked for with `bytes`: rounded up to a multiple of [`BLOCK`].
pub fn check_volume(bytes: u64) -> Result<u64, SizeError> {
    if bytes < MIN_VOLUME {
        return Err(SizeError::VolumeTooSmall { bytes });
    }
    match bytes.checked_next_multiple_of(BLOCK) {
        Some(rounded) if rounded <= MAX_VOLUME => Ok(rounded),
        _ => Err(SizeError::VolumeTooLarge { bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10Gi", 10 << 30),
            ("500Mi", 500 << 20),
            ("1T", 1_000_000_000_000),
            ("1.5Gi", 3 << 29),
            ("0.5k", 500),
            (".5Ki", 512),
            ("2.", 2),
            ("64Ti", 64 << 40),
            (" 1GiB ", 1 << 30),
            ("1GB", 1_000_000_000),
            ("15Ei", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        let text = |t: &str| t.to_owned();
        for bad in ["", ".", "Gi", "1.2.3", "ten", "+5", &"1".repeat(41)] {
            assert!(
                matches!(parse(bad), Err(SizeError::Form { .. } | SizeError::Unit { .. })),
                "{bad}"
            );
        }
        for bad in ["1g", "1m", "1i", "10 Gi", "1Gi5", "0x10"] {
            assert!(matches!(parse(bad), Err(SizeError::Unit { .. })), "{bad}");
        }
        assert_eq!(parse("-1Gi"), Err(SizeError::Negative { text: text("-1Gi") }));
        assert_eq!(parse("0.1Gi"), Err(SizeError::Fraction { text: text("0.1Gi") }));
        assert_eq!(parse("1.5"), Err(SizeError::Fraction { text: text("1.5") }));
        assert_eq!(parse("16Ei"), Err(SizeError::Overflow { text: text("16Ei") }));
        let long = "9".repeat(40);
        assert_eq!(parse(&long), Err(SizeError::Overflow { text: long }));
    }

    #[test]
    fn shown_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (10 << 30, "10.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(format(bytes), text);
        }
    }

    #[test]
    fn sizes_of_volumes() {
        assert_eq!(check_volume(0), Err(SizeError::VolumeTooSmall { bytes: 0 }));
        assert_eq!(
            check_volume(MIN_VOLUME - 1),
            Err(SizeError::VolumeTooSmall {
                bytes: MIN_VOLUME - 1
            })
        );
        assert_eq!(check_volume(MIN_VOLUME), Ok(MIN_VOLUME));
        assert_eq!(check_volume(MIN_VOLUME + 1), Ok(MIN_VOLUME + BLOCK));
        assert_eq!(check_volume(MAX_VOLUME), Ok(MAX_VOLUME));
        assert_eq!(check_volume(MAX_VOLUME - 1), Ok(MAX_VOLUME));
        assert_eq!(
            check_volume(MAX_VOLUME + 1),
            Err(SizeError::VolumeTooLarge {
                bytes: MAX_VOLUME + 1
            })
        );
        assert_eq!(
            check_volume(u64::MAX),
            Err(SizeError::VolumeTooLarge { bytes: u64::MAX })
        );
        let told = check_volume(0).unwrap_err().to_string();
        assert!(told.contains("1Mi") && told.contains("64Ti"), "{told}");
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes: u64) {
            prop_assert_eq!(parse(&bytes.to_string()), Ok(bytes));
        }

        #[test]
        fn binary_units_are_shifts(n in 0_u64..1 << 20, power in 0_usize..4) {
            let suffix = ["Ki", "Mi", "Gi", "Ti"][power];
            let shift = 10 * (u32::try_from(power).unwrap() + 1);
            prop_assert_eq!(parse(&format!("{n}{suffix}")), Ok(n << shift));
        }

        #[test]
        fn anything_else_is_an_error_and_no_panic(text in "\\PC{0,50}|[0-9.kKMGTPEiB-]{0,45}") {
            if let Err(error) = parse(&text) {
                prop_assert!(error.to_string().len() < 400);
            }
        }

        #[test]
        fn what_is_shown_is_within_a_twentieth(bytes in 1024_u64..) {
            let shown = format(bytes).replace(' ', "");
            let tenths: u128 = shown.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap();
            let unit = unit(shown.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')).unwrap();
            let (near, exact) = (tenths * unit / 10, u128::from(bytes));
            prop_assert!(near.abs_diff(exact) * 20 <= exact, "{} shown as {}", bytes, shown);
        }
    }
}
