//! The two kinds of range in the protocol: the part of a blob that a client wants, and the place of
//! a chunk in an upload.

use std::ops::Range;

/// What a `Range` header asks of a body of known length.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it: there is no such header, or one that RFC 9110 lets a server ignore.
    Whole,
    /// These bytes; not empty.
    Part(Range<u64>),
    /// Bytes that are not there.
    Unsatisfiable,
}

impl Wanted {
    /// Reads a `Range` header. Several ranges at once are answered with the whole: no puller sends
    /// them, and a multipart answer has been a way to make servers work for nothing.
    pub(crate) fn parse(header: Option<&str>, length: u64) -> Self {
        let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
            return Self::Whole;
        };
        let Some((first, last)) = spec.trim().split_once('-') else {
            return Self::Whole;
        };
        let (start, end) = match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1)),
            (Some(first), None) if last.is_empty() => (first, length),
            (None, Some(suffix)) if first.is_empty() && suffix > 0 => {
                (length.saturating_sub(suffix), length)
            }
            (None, Some(0)) if first.is_empty() => return Self::Unsatisfiable,
            _ => return Self::Whole,
        };
        if start < length { Self::Part(start..end.min(length)) } else { Self::Unsatisfiable }
    }
}

/// Reads the `Content-Range` of a chunk, `first-last`, as a half-open range. Some clients write
/// `bytes ` before it, and a total after a `/`, as HTTP does elsewhere.
pub(crate) fn chunk(header: &str) -> Option<Range<u64>> {
    let spec = header.trim();
    let spec = spec.strip_prefix("bytes ").unwrap_or(spec);
    let spec = spec.split_once('/').map_or(spec, |(range, _total)| range);
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..last.checked_add(1)?)
}

/// Digits alone: `parse` would take a sign too.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_parts() {
        for (header, expected) in [
            (None, Wanted::Whole),
            (Some("bytes=0-9"), Wanted::Part(0..10)),
            (Some("bytes=0-0"), Wanted::Part(0..1)),
            (Some("bytes=5-"), Wanted::Part(5..10)),
            (Some("bytes=5-99"), Wanted::Part(5..10)),
            (Some("bytes=-3"), Wanted::Part(7..10)),
            (Some("bytes=-30"), Wanted::Part(0..10)),
            (Some("bytes=-0"), Wanted::Unsatisfiable),
            (Some("bytes=10-"), Wanted::Unsatisfiable),
            (Some("bytes=10-20"), Wanted::Unsatisfiable),
            (Some("bytes=0-18446744073709551615"), Wanted::Part(0..10)),
            (Some("bytes=3-2"), Wanted::Whole),
            (Some("bytes=0-1,3-4"), Wanted::Whole),
            (Some("bytes=+1-2"), Wanted::Whole),
            (Some("bytes=-"), Wanted::Whole),
            (Some("lines=1-2"), Wanted::Whole),
        ] {
            assert_eq!(Wanted::parse(header, 10), expected, "{header:?}");
        }
        assert_eq!(Wanted::parse(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
        assert_eq!(Wanted::parse(Some("bytes=-1"), 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn places_of_chunks() {
        for (header, expected) in [
            ("0-9", Some(0..10)),
            ("bytes 5-5/100", Some(5..6)),
            ("9-0", None),
            ("-5", None),
            ("5-", None),
            ("0-18446744073709551615", None),
            ("", None),
        ] {
            assert_eq!(chunk(header), expected, "{header}");
        }
    }
}
