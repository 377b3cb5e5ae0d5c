//! Opens a layer's bytes whatever they are compressed with.
//!
//! The bytes decide, not the media type: docker and containerd do the same, and clients are known to
//! push plain tar under a gzip type. Nothing is lost by that, because the DiffID of the decompressed
//! bytes is checked whichever way they were found. The media type only has to be one of a layer.

use std::io::{self, BufRead, Read};

use crate::limits::Limits;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip, one member or several.
    Gzip,
    /// zstd, one frame or several.
    Zstd,
}

/// Media types of layers without the suffix that names the compression.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

impl Compression {
    /// What a media type declares, or `None` when it is not one of a file system layer.
    pub fn declared_by(media_type: &str) -> Option<Self> {
        let rest = LAYER_TYPES.iter().find_map(|layer| media_type.strip_prefix(layer))?;
        match rest {
            "" => Some(Self::None),
            "+gzip" | ".gzip" => Some(Self::Gzip),
            "+zstd" | ".zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// What the first bytes of a layer are. A zstd stream may begin with a skippable frame.
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A reader of a layer's tar bytes.
pub(crate) enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of `source` and sets the decoder up.
    pub fn open(mut source: R, limits: &Limits) -> io::Result<Self> {
        let first = source.fill_buf()?;
        Ok(match Compression::of(first) {
            Compression::None => Self::Plain(source),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(limits.zstd_window_log)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// The source below.
    pub fn source(&self) -> &R {
        match self {
            Self::Plain(source) => source,
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_layer_media_types() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.config.v1+json", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
        ] {
            assert_eq!(Compression::declared_by(media_type), expected, "{media_type}");
        }
    }

    #[test]
    fn reads_several_members_and_frames_and_refuses_half_ones() {
        let gzip = |text: &[u8]| {
            let mut decoder = flate2::read::GzEncoder::new(text, flate2::Compression::fast());
            let mut bytes = Vec::new();
            decoder.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let zstd = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9].to_vec();
        let read = |bytes: &[u8]| {
            let mut text = Vec::new();
            Decoder::open(bytes, &Limits::default())
                .and_then(|mut decoder| decoder.read_to_end(&mut text))
                .map(|_| text)
        };
        let whole = [
            [gzip(b"one"), gzip(b"two")].concat(),
            [zstd(b"one"), zstd(b"two")].concat(),
            [skippable, zstd(b"one"), zstd(b"two")].concat(),
            b"onetwo".to_vec(),
        ];
        for bytes in &whole {
            assert_eq!(read(bytes).unwrap(), b"onetwo");
        }
        for bytes in &whole[..3] {
            assert!(read(&bytes[..bytes.len() - 1]).is_err());
            assert!(read(&[&bytes[..], b"garbage"].concat()).is_err());
        }
    }

    #[test]
    fn refuses_a_zstd_window_above_the_limit() {
        let text = vec![7; 1 << 20];
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(20).unwrap();
        io::copy(&mut text.as_slice(), &mut encoder).unwrap();
        let bytes = encoder.finish().unwrap();
        let read = |zstd_window_log| {
            let limits = Limits { zstd_window_log, ..Limits::default() };
            Decoder::open(bytes.as_slice(), &limits)
                .and_then(|mut decoder| io::copy(&mut decoder, &mut io::sink()))
        };
        assert_eq!(read(20).unwrap(), 1 << 20);
        assert!(read(15).is_err());
    }
}
