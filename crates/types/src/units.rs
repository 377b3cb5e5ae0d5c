//! Units, so that no bare number crosses an interface.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Lack, ParseError};

/// A number of bytes. Written with a binary or decimal unit: `256MiB`, `1GB`; plain digits are bytes.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// `count` times 1024 x 1024 bytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// `count` times 1024 x 1024 x 1024 bytes.
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }
}

const BYTE_UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl FromStr for ByteCount {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || {
            ParseError::new("size", text, "a whole number and B, kB, KiB, MB, MiB, GB, GiB or TiB")
        };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (digits, unit) = trimmed.split_at(split);
        let unit = unit.trim_start();
        let factor = if unit.is_empty() {
            1
        } else {
            BYTE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?.1
        };
        let number: u64 = digits.parse().map_err(|_| refuse())?;
        number.checked_mul(factor).map(Self).ok_or_else(refuse)
    }
}

impl fmt::Display for ByteCount {
    /// The largest binary unit that keeps one decimal honest: `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let text = match units.iter().find(|(_, shift)| self.0 >= 1 << shift) {
            None => format!("{} B", self.0),
            Some((unit, shift)) if self.0.is_multiple_of(1 << shift) => {
                format!("{} {unit}", self.0 >> shift)
            }
            Some((unit, shift)) => {
                let tenths = u128::from(self.0) * 10 / (1 << shift);
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            }
        };
        f.pad(&text)
    }
}

/// Processor time, in thousandths of one core.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct MilliCpu(pub u32);

impl MilliCpu {
    /// The same in cores.
    pub fn cores(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl FromStr for MilliCpu {
    type Err = ParseError;
    /// Accepts cores (`0.5`, `2`) and thousandths (`500m`).
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse =
            || ParseError::new("cpu", text, "cores such as 0.5 or 2, or thousandths such as 500m");
        let milli = if let Some(milli) = text.strip_suffix('m') {
            milli.parse().map_err(|_| refuse())?
        } else {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
            if whole.is_empty() || fraction.len() > 3 || !digits(whole) || !digits(fraction) {
                return Err(refuse());
            }
            let whole: u32 = whole.parse().map_err(|_| refuse())?;
            let fraction: u32 = format!("{fraction:0<3}").parse().map_err(|_| refuse())?;
            whole.checked_mul(1000).and_then(|w| w.checked_add(fraction)).ok_or_else(refuse)?
        };
        if milli == 0 { Err(refuse()) } else { Ok(Self(milli)) }
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 1000, self.0 % 1000);
        let text = if fraction == 0 {
            whole.to_string()
        } else {
            format!("{whole}.{fraction:03}").trim_end_matches('0').to_owned()
        };
        f.pad(&text)
    }
}

/// An amount of what instances use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// Processor time. A node offers its cores times its overcommit factor.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: ByteCount,
    /// Room on the file system that holds writable layers and logs.
    #[serde(default)]
    pub disk: ByteCount,
}

impl Capacity {
    /// This and `other` together, at most what the types can hold.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu: MilliCpu(self.cpu.0.saturating_add(other.cpu.0)),
            memory: ByteCount(self.memory.0.saturating_add(other.memory.0)),
            disk: ByteCount(self.disk.0.saturating_add(other.disk.0)),
        }
    }

    /// What is left of this when `other` is taken, nothing where `other` is more.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu: MilliCpu(self.cpu.0.saturating_sub(other.cpu.0)),
            memory: ByteCount(self.memory.0.saturating_sub(other.memory.0)),
            disk: ByteCount(self.disk.0.saturating_sub(other.disk.0)),
        }
    }

    /// This so many times, at most what the types can hold.
    #[must_use]
    pub fn times(self, n: u32) -> Self {
        Self {
            cpu: MilliCpu(self.cpu.0.saturating_mul(n)),
            memory: ByteCount(self.memory.0.saturating_mul(n.into())),
            disk: ByteCount(self.disk.0.saturating_mul(n.into())),
        }
    }

    /// The lesser of each resource.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.min(other.cpu),
            memory: self.memory.min(other.memory),
            disk: self.disk.min(other.disk),
        }
    }

    /// The greater of each resource.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.max(other.cpu),
            memory: self.memory.max(other.memory),
            disk: self.disk.max(other.disk),
        }
    }

    /// True when `other` fits into this.
    pub fn holds(self, other: Self) -> bool {
        self.lacks_for(other).is_none()
    }

    /// The first resource of which this has too little for `other`.
    pub fn lack_for(self, other: Self) -> Option<Lack> {
        let lacks = [
            (self.cpu < other.cpu, Lack::Cpu),
            (self.memory < other.memory, Lack::Memory),
            (self.disk < other.disk, Lack::Disk),
        ];
        lacks.into_iter().find(|(is_short, _)| *is_short).map(|(_, lack)| lack)
    }

    /// What is missing for `other` to fit into this, as a phrase that names each resource and both
    /// amounts; nothing when it fits.
    pub fn lacks_for(self, other: Self) -> Option<String> {
        let lack = |name: &str, short: bool, needed: &dyn fmt::Display, free: &dyn fmt::Display| {
            short.then(|| format!("{needed} of {name} needed, {free} free"))
        };
        let lacks: Vec<String> = [
            lack("cpu", self.cpu < other.cpu, &other.cpu, &self.cpu),
            lack("memory", self.memory < other.memory, &other.memory, &self.memory),
            lack("disk", self.disk < other.disk, &other.disk, &self.disk),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!lacks.is_empty()).then(|| lacks.join("; "))
    }
}

/// A TCP or UDP port, 1 to 65535.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port with this number, unless it is 0.
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl FromStr for Port {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse().map(Self).map_err(|_| ParseError::new("port", text, "1 to 65535"))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("12", 12), ("1KiB", 1024), ("256MiB", 256 << 20), ("1 GB", 1_000_000_000)]
        {
            assert_eq!(text.parse::<ByteCount>().unwrap().0, bytes, "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "1 mib", "99999999999TiB"] {
            assert!(bad.parse::<ByteCount>().is_err(), "{bad}");
        }
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (256 << 20, "256 MiB")]
        {
            assert_eq!(ByteCount(bytes).to_string(), text);
        }
    }

    #[test]
    fn what_lacks_is_named() {
        let capacity = |cpu, memory, disk| Capacity {
            cpu: MilliCpu(cpu),
            memory: ByteCount::mib(memory),
            disk: ByteCount::mib(disk),
        };
        let free = capacity(500, 100, 64);
        assert!(free.holds(free) && free.holds(Capacity::default()));
        assert!(!free.holds(capacity(0, 0, 65)));
        assert_eq!(
            free.lacks_for(capacity(1000, 100, 1024)).unwrap(),
            "1 of cpu needed, 0.5 free; 1 GiB of disk needed, 64 MiB free"
        );
        assert_eq!(free.lack_for(capacity(1000, 100, 1024)), Some(Lack::Cpu));
        assert_eq!(free.lack_for(capacity(500, 101, 64)), Some(Lack::Memory));
        assert_eq!(
            (free.lack_for(capacity(0, 0, 65)), free.lack_for(free)),
            (Some(Lack::Disk), None)
        );
        assert_eq!((free.times(2), free.times(0)), (free.plus(free), Capacity::default()));
        let other = capacity(400, 200, 64);
        assert_eq!(
            (free.least(other), free.most(other)),
            (capacity(400, 100, 64), capacity(500, 200, 64))
        );
        assert_eq!(free.plus(free).minus(free), free);
    }

    #[test]
    fn cpus() {
        for (text, milli, back) in
            [("0.5", 500, "0.5"), ("2", 2000, "2"), ("250m", 250, "0.25"), ("1.125", 1125, "1.125")]
        {
            let cpu: MilliCpu = text.parse().unwrap();
            assert_eq!((cpu.0, cpu.to_string().as_str()), (milli, back));
        }
        for bad in ["", "0", ".5", "0.0001", "-1", "1e3", "m"] {
            assert!(bad.parse::<MilliCpu>().is_err(), "{bad}");
        }
    }
}
