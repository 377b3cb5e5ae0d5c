//! The images of a node: how far each is there, how large it is, and what keeps it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteCount, Digest, ParseError, Timestamp, text_type};

/// The annotation of a blob that was converted of a layer, which says of which: its DiffID. Nodes have such layers
/// of neighbours, where their location says that they may.
pub const DIFF_ID_ANNOTATION: &str = "dev.longshore.image.layer.diff-id";

/// How far an image is on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ImageState {
    /// Nothing of it is there, as far as is known.
    Absent,
    /// It is on its way. Sizes are of its layers as the registry stores them.
    Pulling {
        /// What has come, or was there before.
        done: ByteCount,
        /// All of it; zero before its manifest is there.
        of: ByteCount,
    },
    /// It is whole and on the disk.
    Complete,
    /// The same, and instances use it.
    Mounted,
}

impl fmt::Display for ImageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Absent => "absent".to_owned(),
            Self::Pulling { of: ByteCount(0), .. } => "pulling".to_owned(),
            Self::Pulling { done, of } => format!("pulling {done} of {of}"),
            Self::Complete => "complete".to_owned(),
            Self::Mounted => "mounted".to_owned(),
        };
        f.pad(&text)
    }
}

/// Why an image stays on a node when room is made there.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum HoldReason {
    /// An instance uses it, or is about to.
    Instance,
    /// It is of a release that runs at the location, or should.
    Release,
    /// It is of the release that an app would be rolled back to.
    Rollback,
    /// Somebody wished that it is there.
    Prewarm,
    /// Somebody wished that it is there whatever else needs the room.
    Pin,
    /// Something that only a later release of Longshore knows.
    #[serde(other)]
    Other,
}

impl fmt::Display for HoldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Instance => "instance",
            Self::Release => "release",
            Self::Rollback => "rollback",
            Self::Prewarm => "prewarm",
            Self::Pin => "pin",
            Self::Other => "other",
        })
    }
}

/// What keeps an image on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct ImageHold {
    /// Why.
    pub reason: HoldReason,
    /// For whom: an instance, a release as `default/web r3`, who wished it.
    pub by: String,
}

/// An image of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeImage {
    /// The digest by which a release pins it.
    pub digest: Digest,
    /// How far it is there.
    #[serde(flatten)]
    pub state: ImageState,
    /// What it takes on the disk, with layers that others use too.
    pub size: ByteCount,
    /// When an instance last began or ended to use it; when it came, where none did.
    pub last_used: Timestamp,
    /// What keeps it there; where that is nothing, it goes when room is needed, the least recently used first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<ImageHold>,
    /// Why it is not there although somebody wished it, as far as something stood in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// True when trying again does not help.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub given_up: bool,
}

/// When images that nothing keeps leave a disk: over the high mark, until it is at the low one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskMarks {
    low: u8,
    high: u8,
}

impl DiskMarks {
    /// What a text of them looks like.
    pub const ALLOWED: &str =
        "LOW-HIGH, two whole percentages of the disk from 1 to 99, the first one lower: 75-85";

    /// So much of a disk of that size.
    fn part(percent: u8, total: ByteCount) -> ByteCount {
        // No overflow: the widened product is divided again.
        let part = u128::from(total.0) * u128::from(percent) / 100;
        ByteCount(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// How much of a disk may be in use when it has been cleared.
    pub fn low_of(self, total: ByteCount) -> ByteCount {
        Self::part(self.low, total)
    }

    /// Above how much in use it is cleared.
    pub fn high_of(self, total: ByteCount) -> ByteCount {
        Self::part(self.high, total)
    }
}

impl Default for DiskMarks {
    fn default() -> Self {
        Self { low: 75, high: 85 }
    }
}

impl FromStr for DiskMarks {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let percent = |text: &str| {
            let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u8>().ok().filter(|number| is_plain && (1..=99).contains(number))
        };
        let marks = text.split_once('-').and_then(|(low, high)| {
            let (low, high) = (percent(low)?, percent(high)?);
            (low < high).then_some(Self { low, high })
        });
        marks.ok_or_else(|| ParseError::new("pair of marks", text, Self::ALLOWED))
    }
}

impl fmt::Display for DiskMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.low, self.high)
    }
}

text_type!(DiskMarks, { "pattern": "^[1-9][0-9]?-[1-9][0-9]?$" });

/// How much of the network pulls may take together, in bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullRate(Option<ByteCount>);

impl PullRate {
    /// What a text of it looks like.
    pub const ALLOWED: &str =
        "unlimited, or a size of at least 64KiB that may come each second: 50MiB";

    /// The least: slower than that, a source would look as if it had stopped.
    const LEAST: ByteCount = ByteCount(64 << 10);

    /// How long so many bytes should take; nothing where that is not limited.
    pub fn time_of(self, n_bytes: u64) -> Option<std::time::Duration> {
        let rate = self.0?.0;
        // No overflow: the product is widened, and a rate is at least 64 KiB.
        let micros = u128::from(n_bytes) * 1_000_000 / u128::from(rate);
        Some(std::time::Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
    }
}

impl FromStr for PullRate {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "unlimited" {
            return Ok(Self(None));
        }
        let rate = text.parse::<ByteCount>().ok().filter(|rate| *rate >= Self::LEAST);
        let refuse = || ParseError::new("rate", text, Self::ALLOWED);
        rate.map(|rate| Self(Some(rate))).ok_or_else(refuse)
    }
}

impl fmt::Display for PullRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unlimited"),
            // As it is read again, to the byte.
            Some(ByteCount(rate)) if rate.is_multiple_of(1 << 20) => write!(f, "{}MiB", rate >> 20),
            Some(ByteCount(rate)) => write!(f, "{rate}B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_written_as_they_are_read() {
        for text in ["75-85", "1-2", "98-99"] {
            assert_eq!(text.parse::<DiskMarks>().unwrap().to_string(), text);
        }
        for bad in [
            "", "85", "85-75", "75-75", "0-85", "75-100", "-5-85", "75-85%", "+7-85", "7 -85",
            "75-256",
        ] {
            let error = bad.parse::<DiskMarks>().unwrap_err();
            assert!(error.to_string().contains("the first one lower"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_rate_is_written_as_it_is_read_and_has_a_least() {
        for (text, shown) in [
            ("unlimited", "unlimited"),
            ("50MiB", "50MiB"),
            ("64KiB", "65536B"),
            ("1MB", "1000000B"),
        ] {
            let rate: PullRate = text.parse().unwrap();
            assert_eq!((rate.to_string().as_str(), shown.parse()), (shown, Ok(rate)));
        }
        for bad in ["", "0", "65535", "fast", "-1MiB", "Unlimited"] {
            let error = bad.parse::<PullRate>().unwrap_err();
            assert!(error.to_string().contains("unlimited, or a size"), "{bad}: {error}");
        }
        let rate: PullRate = "64KiB".parse().unwrap();
        assert_eq!(rate.time_of(32 << 10), Some(std::time::Duration::from_millis(500)));
        assert!(rate.time_of(u64::MAX).is_some(), "no overflow");
        assert_eq!(PullRate::default().time_of(1), None);
    }

    #[test]
    fn marks_are_parts_of_a_disk_of_any_size() {
        let marks = DiskMarks::default();
        assert_eq!(marks.low_of(ByteCount(1000)), ByteCount(750));
        assert_eq!(marks.high_of(ByteCount(1000)), ByteCount(850));
        assert_eq!(marks.high_of(ByteCount(u64::MAX)).0, u64::MAX / 100 * 85 + 12);
    }

    #[test]
    fn an_image_of_a_later_release_is_read() {
        let image = NodeImage {
            digest: Digest::from_sha256([7; 32]),
            state: ImageState::Pulling { done: ByteCount::mib(3), of: ByteCount::mib(10) },
            size: ByteCount(5),
            last_used: Timestamp(9),
            holds: vec![ImageHold { reason: HoldReason::Other, by: "it".to_owned() }],
            note: None,
            given_up: false,
        };
        let mut json = serde_json::to_value(&image).unwrap();
        assert_eq!((&json["state"], &json["done"]), (&"pulling".into(), &(3 << 20).into()));
        json["holds"][0]["reason"] = "whim".into();
        json["more"] = true.into();
        assert_eq!(serde_json::from_value::<NodeImage>(json).unwrap(), image);
        assert_eq!(image.state.to_string(), "pulling 3 MiB of 10 MiB");
        assert!(HoldReason::Instance < HoldReason::Prewarm);
    }
}
