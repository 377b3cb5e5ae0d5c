//! What a loader reads of an ELF file before it runs it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::read::{ReadCache, ReadRef};

use super::{During as _, PackError};

/// A processor for which programs can be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    Aarch64,
    Riscv64,
}

impl Architecture {
    fn of(machine: elf::Machine) -> Option<Self> {
        match machine {
            elf::EM_X86_64 => Some(Self::X86_64),
            elf::EM_AARCH64 => Some(Self::Aarch64),
            elf::EM_RISCV => Some(Self::Riscv64),
            _ => None,
        }
    }

    /// As image configs name it.
    pub(super) fn oci_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
            Self::Riscv64 => "riscv64",
        }
    }

    /// As Debian names the directories of its libraries.
    pub(super) fn triplet(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux-gnu",
            Self::Aarch64 => "aarch64-linux-gnu",
            Self::Riscv64 => "riscv64-linux-gnu",
        }
    }
}

/// The parts of an ELF file that say what else must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Elf {
    pub(super) architecture: Architecture,
    /// The loader; `None` for a static program and for most libraries.
    pub(super) interpreter: Option<PathBuf>,
    /// Names of libraries.
    pub(super) needed: Vec<String>,
    /// Where the loader looks first for this file's libraries and theirs.
    pub(super) rpath: Vec<String>,
    /// Where the loader looks for this file's libraries; replaces `rpath` when there is one.
    pub(super) runpath: Vec<String>,
}

impl Elf {
    /// Reads a program, or says in words why the file is none.
    pub(super) fn read(path: &Path) -> Result<Self, PackError> {
        let mut file = File::open(path).during("open", path)?;
        let mut start = Vec::new();
        let reading = file.by_ref().take(256).read_to_end(&mut start);
        reading.during("read", path)?;
        if let Some(line) = start.strip_prefix(b"#!") {
            let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            return Err(PackError::Script {
                path: path.to_owned(),
                interpreter: String::from_utf8_lossy(line).trim().to_owned(),
            });
        }
        let refuse = |reason: String| PackError::NotExecutable { path: path.to_owned(), reason };
        match Self::parse(&ReadCache::new(file)) {
            Ok(Ok(elf)) => Ok(elf),
            Ok(Err(reason)) => Err(refuse(reason.to_owned())),
            Err(error) => Err(refuse(format!("it is not a sound ELF file ({error})"))),
        }
    }

    /// Reads a library; `None` when the file is not one for this architecture, which a loader passes
    /// over too.
    pub(super) fn read_library(path: &Path, architecture: Architecture) -> Option<Self> {
        let file = File::open(path).ok()?;
        let elf = Self::parse(&ReadCache::new(file)).ok()?.ok()?;
        (elf.architecture == architecture).then_some(elf)
    }

    fn parse<'data>(data: impl ReadRef<'data>) -> object::read::Result<Result<Self, &'static str>> {
        match object::FileKind::parse(data) {
            Ok(object::FileKind::Elf64) => {}
            Ok(object::FileKind::Elf32) => return Ok(Err("it is for a 32-bit processor")),
            _ => return Ok(Err("it is not an ELF file")),
        }
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let Some(architecture) = Architecture::of(header.e_machine(endian)) else {
            return Ok(Err("it is for a processor that is not supported"));
        };
        if ![elf::ET_EXEC, elf::ET_DYN].contains(&header.e_type(endian)) {
            return Ok(Err("it is an object file or a core dump"));
        }
        let mut found = Self {
            architecture,
            interpreter: None,
            needed: Vec::new(),
            rpath: Vec::new(),
            runpath: Vec::new(),
        };
        let segments = header.program_headers(endian, data)?;
        for segment in segments {
            if let Some(interpreter) = segment.interpreter(endian, data)? {
                found.interpreter = Some(OsStr::from_bytes(interpreter).into());
            }
            if let Some(dynamic) = segment.dynamic(endian, data)? {
                let value = |tag| {
                    let entry = dynamic.iter().find(|entry| entry.tag(endian) == tag);
                    entry.map_or(0, |entry| entry.val(endian))
                };
                let (address, size) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ));
                let mut strings: &[u8] = &[];
                for segment in segments {
                    // One that cannot be read has no part of the table.
                    if let Ok(Some(bytes)) = segment.data_range(endian, data, address, size) {
                        strings = bytes;
                    }
                }
                let entries = dynamic
                    .iter()
                    .map(|entry| (entry.tag(endian), entry.val(endian)))
                    .take_while(|(tag, _)| *tag != elf::DT_NULL);
                for (tag, offset) in entries {
                    found.add(tag, || text_at(strings, offset));
                }
            }
        }
        Ok(Ok(found))
    }

    fn add(&mut self, tag: elf::DynamicTag, text: impl Fn() -> String) {
        let dirs = || text().split(':').map(str::to_owned).collect();
        match tag {
            elf::DT_NEEDED => self.needed.push(text()),
            elf::DT_RPATH => self.rpath = dirs(),
            elf::DT_RUNPATH => self.runpath = dirs(),
            _ => {}
        }
    }
}

fn text_at(strings: &[u8], offset: u64) -> String {
    let rest =
        usize::try_from(offset).ok().and_then(|offset| strings.get(offset..)).unwrap_or_default();
    let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
