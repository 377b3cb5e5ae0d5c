//! How much of its disk a location gives to images.

use std::fmt;
use std::str::FromStr;

use crate::{ByteCount, ParseError};

/// How much room images may take on the disk of a location that keeps them for its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MirrorSize(Size);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Bytes(ByteCount),
    Percent(u8),
}

impl MirrorSize {
    /// What a text of it looks like.
    pub const ALLOWED: &str =
        "0 for none, a size such as 50GiB, or a percentage of the disk from 1% to 90%: 10%";

    /// Nothing is kept.
    pub const NONE: Self = Self(Size::Bytes(ByteCount(0)));

    /// The largest part of a disk that may be asked for: some of it is always left to others.
    const MOST: u8 = 90;

    /// How much that is of a disk of this size.
    pub fn of(self, disk: ByteCount) -> ByteCount {
        match self.0 {
            Size::Bytes(bytes) => bytes,
            Size::Percent(percent) => {
                // No overflow: the widened product is divided again.
                let part = u128::from(disk.0) * u128::from(percent) / 100;
                ByteCount(u64::try_from(part).unwrap_or(u64::MAX))
            }
        }
    }
}

impl Default for MirrorSize {
    fn default() -> Self {
        Self(Size::Percent(10))
    }
}

impl FromStr for MirrorSize {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let size = match text.strip_suffix('%') {
            Some(digits) => {
                let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
                let percent = digits.parse().ok().filter(|percent| is_plain && *percent > 0);
                percent.filter(|percent| *percent <= Self::MOST).map(Size::Percent)
            }
            None => text.parse().ok().map(Size::Bytes),
        };
        size.map(Self).ok_or_else(|| ParseError::new("size of a mirror", text, Self::ALLOWED))
    }
}

impl fmt::Display for MirrorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Size::Bytes(ByteCount(0)) => f.write_str("0"),
            // As it is read again, to the byte.
            Size::Bytes(ByteCount(bytes)) if bytes.is_multiple_of(1 << 20) => {
                write!(f, "{}MiB", bytes >> 20)
            }
            Size::Bytes(ByteCount(bytes)) => write!(f, "{bytes}B"),
            Size::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_as_it_is_read() {
        for (text, shown) in [
            ("0", "0"),
            ("0B", "0"),
            ("50GiB", "51200MiB"),
            ("1kB", "1000B"),
            ("1%", "1%"),
            ("90%", "90%"),
        ] {
            let size: MirrorSize = text.parse().unwrap();
            assert_eq!((size.to_string().as_str(), shown.parse()), (shown, Ok(size)));
        }
        assert_eq!("0".parse(), Ok(MirrorSize::NONE));
        for bad in ["", "%", "0%", "91%", "+5%", "5 %", "256%", "-1", "many", "10%%", "1.5%"] {
            let error = bad.parse::<MirrorSize>().unwrap_err().to_string();
            assert!(error.contains("from 1% to 90%") && error.contains(bad), "{bad}: {error}");
        }
    }

    #[test]
    fn a_percentage_is_one_of_a_disk_of_any_size() {
        assert_eq!(MirrorSize::default().of(ByteCount(1000)), ByteCount(100));
        assert_eq!(MirrorSize::default().of(ByteCount(u64::MAX)).0, u64::MAX / 10);
        assert_eq!("5B".parse::<MirrorSize>().unwrap().of(ByteCount(1000)), ByteCount(5));
    }
}
