//! Graphics processors: what a node has of them, what an app needs, and what of which an instance holds.
//!
//! Memory is what is asked for and shared out: several instances may be on one GPU, as long as what they were
//! given of it does not come to more than it has. A GPU is known by its place in what its node says that it has.
//! Until that is discovered an operator declares it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteCount, ParseError, text_type};

/// Which GPU it is, by the name that its operator gives all of its kind: `h100`, `rtx-4090`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuModel(String);

impl GpuModel {
    /// What a text of one looks like.
    pub const ALLOWED: &str =
        "1 to 40 lower-case letters, digits and single '-', such as h100 or rtx-4090";
}

impl FromStr for GpuModel {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let is_name = (1..=40).contains(&text.len()) && text.split('-').all(is_word);
        is_name
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| ParseError::new("GPU model", text, Self::ALLOWED))
    }
}

impl fmt::Display for GpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(GpuModel, { "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 40 });

/// The least memory that a GPU has, or that may be asked of one: less is a slip of the pen.
const LEAST_MEMORY: ByteCount = ByteCount::mib(1);

/// A GPU of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// Which it is.
    pub model: GpuModel,
    /// Its memory.
    pub memory: ByteCount,
}

/// GPUs that an operator declares, `MODEL:MEMORY` or `MODEL:MEMORY:COUNT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredGpus {
    /// What each of them is.
    pub gpu: Gpu,
    /// How many.
    pub count: u32,
}

impl DeclaredGpus {
    /// What a text of them looks like.
    pub const ALLOWED: &str = "MODEL:MEMORY or MODEL:MEMORY:COUNT with at least 1MiB and 1 to 16 of them, such as \
                               h100:80GiB:4";

    /// Each GPU of all of these, in their order.
    pub fn each(all: &[Self]) -> Vec<Gpu> {
        let of = |one: &Self| std::iter::repeat_n(one.gpu.clone(), one.count as usize);
        all.iter().flat_map(of).collect()
    }
}

impl FromStr for DeclaredGpus {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || ParseError::new("declaration of GPUs", text, Self::ALLOWED);
        let (model, rest) = text.split_once(':').ok_or_else(refuse)?;
        let (memory, count) = rest.split_once(':').unwrap_or((rest, "1"));
        let model = model.parse().map_err(|_| refuse())?;
        let memory: ByteCount = memory.parse().map_err(|_| refuse())?;
        let is_number = count.bytes().all(|byte| byte.is_ascii_digit());
        let count: u32 = count.parse().map_err(|_| refuse())?;
        let is_sane = memory >= LEAST_MEMORY && (1..=GpuNeed::MOST).contains(&count);
        (is_number && is_sane)
            .then_some(Self { gpu: Gpu { model, memory }, count })
            .ok_or_else(refuse)
    }
}

impl fmt::Display for DeclaredGpus {
    /// As it is read, to the byte.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpu: Gpu { model, memory: ByteCount(bytes) }, count } = self;
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20)];
        let whole = units.into_iter().find(|(_, shift)| bytes.is_multiple_of(1 << shift));
        match whole {
            Some((unit, shift)) => write!(f, "{model}:{}{unit}:{count}", bytes >> shift),
            None => write!(f, "{model}:{bytes}B:{count}"),
        }
    }
}

/// What one instance needs of GPUs. Of several all are on one node and of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuNeed {
    /// How many.
    pub count: u32,
    /// How much memory of each; the whole of each when absent, with nobody else on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteCount>,
    /// Which models will do; any when empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub models: BTreeSet<GpuModel>,
}

impl GpuNeed {
    /// The most that an instance may ask for: as many as the largest machines have.
    pub const MOST: u32 = 16;
    /// The least memory that it may ask of each.
    pub const LEAST_MEMORY: ByteCount = LEAST_MEMORY;

    /// Whether GPUs of a model will do.
    pub fn takes(&self, model: &GpuModel) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }
}

impl fmt::Display for GpuNeed {
    /// `1 GPU of h100 with 20 GiB`, `2 whole GPUs`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, memory, models } = self;
        let whole = if memory.is_none() { "whole " } else { "" };
        let plural = if *count == 1 { "" } else { "s" };
        write!(f, "{count} {whole}GPU{plural}")?;
        for (idx, model) in models.iter().enumerate() {
            write!(f, " {} {model}", if idx == 0 { "of" } else { "or" })?;
        }
        match memory {
            Some(memory) if *count > 1 => write!(f, " with {memory} each"),
            Some(memory) => write!(f, " with {memory}"),
            None => Ok(()),
        }
    }
}

/// What an instance holds of a GPU of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuShare {
    /// Which one, counted from 0 in the order of the node.
    pub index: u32,
    /// How much of its memory.
    pub memory: ByteCount,
}

/// What is held of the GPUs of a node: of each at most one share, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Vec<GpuShare>", into = "Vec<GpuShare>")]
#[schemars(with = "Vec<GpuShare>")]
pub struct GpuShares(BTreeMap<u32, ByteCount>);

impl GpuShares {
    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many GPUs something is held of.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The share of each.
    pub fn iter(&self) -> impl Iterator<Item = GpuShare> {
        self.0.iter().map(|(index, memory)| GpuShare { index: *index, memory: *memory })
    }

    /// What is held of one.
    pub fn of(&self, index: u32) -> ByteCount {
        self.0.get(&index).copied().unwrap_or_default()
    }

    /// This and `other` together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, |own, more| own.saturating_add(more))
    }

    /// What is left of this without `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.with(other, |own, less| own.saturating_sub(less))
    }

    /// The greater of each.
    #[must_use]
    pub fn most(&self, other: &Self) -> Self {
        self.with(other, Ord::max)
    }

    fn with(&self, other: &Self, change: impl Fn(u64, u64) -> u64) -> Self {
        let mut all = self.0.clone();
        for (index, ByteCount(memory)) in &other.0 {
            let own = all.entry(*index).or_default();
            *own = ByteCount(change(own.0, *memory));
        }
        all.retain(|_, memory| memory.0 > 0);
        Self(all)
    }
}

impl FromIterator<GpuShare> for GpuShares {
    fn from_iter<I: IntoIterator<Item = GpuShare>>(shares: I) -> Self {
        shares.into_iter().fold(Self::default(), |all, GpuShare { index, memory }| {
            all.plus(&Self([(index, memory)].into()))
        })
    }
}

impl From<Vec<GpuShare>> for GpuShares {
    fn from(shares: Vec<GpuShare>) -> Self {
        shares.into_iter().collect()
    }
}

impl From<GpuShares> for Vec<GpuShare> {
    fn from(shares: GpuShares) -> Self {
        shares.iter().collect()
    }
}

impl fmt::Display for GpuShares {
    /// Which GPUs, with commas between.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indices: Vec<_> = self.0.keys().map(ToString::to_string).collect();
        f.pad(&indices.join(","))
    }
}

/// A GPU as the location of its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeGpu {
    /// Which it is.
    pub model: GpuModel,
    /// Its memory.
    pub memory: ByteCount,
    /// What of that instances have been promised.
    #[serde(default)]
    pub promised: ByteCount,
    /// What of that those have that leave.
    #[serde(default)]
    pub leaving: ByteCount,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_declared_by_model_memory_and_number() {
        for (text, written) in [
            ("h100:80GiB", "h100:80GiB:1"),
            ("rtx-4090:24576MiB:2", "rtx-4090:24GiB:2"),
            ("l4:1MiB:16", "l4:1MiB:16"),
            ("t4:16000000001:1", "t4:16000000001B:1"),
        ] {
            let declared: DeclaredGpus = text.parse().unwrap();
            assert_eq!(declared.to_string(), written);
            assert_eq!(written.parse::<DeclaredGpus>().unwrap(), declared);
        }
        for bad in [
            "",
            "h100",
            "h100:",
            ":80GiB",
            "H100:80GiB",
            "h100:80",
            "h100:80GiB:0",
            "h100:80GiB:17",
            "h100:80GiB:+1",
            "h100:80GiB:1:1",
            "h--100:80GiB",
            "-h:80GiB",
            "h_100:80GiB",
            "h100:1.5GiB",
            "h100:99999999999TiB",
        ] {
            assert!(bad.parse::<DeclaredGpus>().is_err(), "{bad}");
        }
        assert!("a".repeat(41).parse::<GpuModel>().is_err());
        let all = ["h100:80GiB:2", "l4:24GiB"].map(|text| text.parse().unwrap());
        let each: Vec<_> =
            DeclaredGpus::each(&all).iter().map(|one| one.model.to_string()).collect();
        assert_eq!(each, ["h100", "h100", "l4"]);
    }

    #[test]
    fn a_need_is_told_in_words() {
        let models = |all: &[&str]| all.iter().map(|model| model.parse().unwrap()).collect();
        let need = |count, memory, all: &[&str]| GpuNeed { count, memory, models: models(all) };
        for (need, words) in [
            (need(1, Some(ByteCount::gib(20)), &["h100"]), "1 GPU of h100 with 20 GiB"),
            (
                need(2, Some(ByteCount::gib(20)), &["h100", "a100"]),
                "2 GPUs of a100 or h100 with 20 GiB each",
            ),
            (need(1, None, &[]), "1 whole GPU"),
            (need(4, None, &["l4"]), "4 whole GPUs of l4"),
        ] {
            assert_eq!(need.to_string(), words);
        }
        assert!(need(1, None, &[]).takes(&"t4".parse().unwrap()));
        assert!(!need(1, None, &["l4"]).takes(&"t4".parse().unwrap()));
    }

    #[test]
    fn shares_are_of_each_gpu_once_and_nothing_is_left_of_nothing() {
        let shares = |all: &[(u32, u64)]| -> GpuShares {
            all.iter()
                .map(|(index, memory)| GpuShare { index: *index, memory: ByteCount(*memory) })
                .collect()
        };
        let (a, b) = (shares(&[(1, 5), (0, 2), (1, 1)]), shares(&[(1, 4)]));
        assert_eq!((a.of(1), a.of(7), a.to_string().as_str()), (ByteCount(6), ByteCount(0), "0,1"));
        assert_eq!(a.plus(&b), shares(&[(0, 2), (1, 10)]));
        assert_eq!(a.minus(&a), GpuShares::default());
        assert_eq!(b.minus(&a).most(&shares(&[(3, 1)])), shares(&[(3, 1)]));
        let text = r#"[{"index":0,"memory":2},{"index":1,"memory":6}]"#;
        assert_eq!(serde_json::to_string(&a).unwrap(), text);
        assert_eq!(serde_json::from_str::<GpuShares>(text).unwrap(), a);
    }
}
