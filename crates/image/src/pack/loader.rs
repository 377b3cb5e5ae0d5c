//! Which shared libraries a program needs, found as glibc's loader finds them.
//!
//! For a name without a slash the loader looks: in the RPATH of the file that needs it and of the
//! files that led to that one, unless the file has a RUNPATH; in the RUNPATH; in the cache; in the
//! system's directories. `LD_LIBRARY_PATH` of whoever packs is not consulted, for the image would not
//! have it.
//!
//! The image has no cache, and the program has another directory there. A library that was found by
//! either is reached through `LD_LIBRARY_PATH` in the image; all others are found as they are here.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use super::cache;
use super::elf::{Architecture, Elf};
use super::{During as _, PackError};

const CACHE: &str = "/etc/ld.so.cache";
/// Without these glibc resolves no host names; it opens them by name when it needs them. Newer
/// glibcs have the first two built in and keep the files for older programs.
const FOR_NAMES: [&str; 3] = ["libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];

/// The loader of a program and the libraries that it will want.
#[derive(Debug, Default)]
pub(super) struct Libraries {
    /// As the loader names them, the loader itself first.
    pub(super) paths: Vec<PathBuf>,
    /// Where the image's loader would not look by itself.
    extra_dirs: BTreeSet<PathBuf>,
}

/// A directory to look in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    dir: PathBuf,
    /// True when it is named by where the program lies, which is elsewhere in the image.
    moves: bool,
}

/// A file whose libraries are to be found.
struct Wanting {
    path: PathBuf,
    elf: Elf,
    is_program: bool,
    /// The RPATHs of the files that led here, nearest first.
    inherited: Vec<Place>,
}

struct Search {
    architecture: Architecture,
    cache: HashMap<String, Vec<PathBuf>>,
    system: Vec<PathBuf>,
}

impl Libraries {
    /// Finds all libraries of a program; none for a static one.
    pub(super) fn find(program: &Path, elf: &Elf) -> Result<Self, PackError> {
        let Some(loader) = &elf.interpreter else {
            return match elf.needed.is_empty() {
                true => Ok(Self::default()),
                false => Err(PackError::NotExecutable {
                    path: program.to_owned(),
                    reason: "it is a shared library".to_owned(),
                }),
            };
        };
        let loader_name = loader.file_name().unwrap_or_default().to_string_lossy();
        if !loader_name.starts_with("ld-linux") {
            return Err(PackError::Loader { program: program.to_owned(), loader: loader.clone() });
        }
        std::fs::metadata(loader).during("find the loader", loader)?;
        let search = Search::new(elf.architecture);
        let mut found = Self { paths: vec![loader.clone()], extra_dirs: BTreeSet::new() };
        let mut known = BTreeSet::from([loader_name.into_owned()]);
        let mut queue = VecDeque::from([Wanting {
            path: program.to_owned(),
            elf: elf.clone(),
            is_program: true,
            inherited: Vec::new(),
        }]);
        while let Some(wanting) = queue.pop_front() {
            let optional = if wanting.is_program { &FOR_NAMES[..] } else { &[] };
            let needed = wanting.elf.needed.iter().map(String::as_str);
            let needed = needed.map(|name| (name, true));
            for (name, must) in needed.chain(optional.iter().map(|name| (*name, false))) {
                if !known.insert(name.to_owned()) {
                    continue;
                }
                match search.find(name, &wanting) {
                    Ok(library) => found.add(library, &wanting, &mut queue),
                    Err(_) if !must => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    fn add(&mut self, found: Found, by: &Wanting, queue: &mut VecDeque<Wanting>) {
        let Found { path, elf, extra } = found;
        if let (true, Some(dir)) = (extra, path.parent()) {
            self.extra_dirs.insert(dir.to_owned());
        }
        self.paths.push(path.clone());
        queue.push_back(Wanting { path, elf, is_program: false, inherited: by.rpaths() });
    }

    /// The `LD_LIBRARY_PATH` that the image needs, if any.
    pub(super) fn search_path(&self) -> Option<String> {
        let dirs: Vec<_> = self.extra_dirs.iter().map(|dir| dir.to_string_lossy()).collect();
        (!dirs.is_empty()).then(|| dirs.join(":"))
    }
}

struct Found {
    path: PathBuf,
    elf: Elf,
    /// True when the image's loader needs to be told the directory.
    extra: bool,
}

impl Search {
    fn new(architecture: Architecture) -> Self {
        let mut cache: HashMap<String, Vec<PathBuf>> = HashMap::new();
        // Without a cache the loader looks in the system's directories, and so do we.
        for (name, path) in cache::parse(&std::fs::read(CACHE).unwrap_or_default()) {
            cache.entry(name).or_default().push(path);
        }
        let triplet = architecture.triplet();
        let system = ["/lib", "/usr/lib"]
            .into_iter()
            .flat_map(|dir| [format!("{dir}/{triplet}"), format!("{dir}64"), dir.to_owned()])
            .map(PathBuf::from)
            .collect();
        Self { architecture, cache, system }
    }

    fn find(&self, name: &str, by: &Wanting) -> Result<Found, PackError> {
        let places = by.places();
        let mut searched: Vec<String> = Vec::new();
        if name.contains('/') {
            let place = expand(name, by);
            if let Some(place) = place
                && let Some(elf) = Elf::read_library(&place.dir, self.architecture)
            {
                // The path itself is what the loader opens; a library path would not help it.
                let (path, extra) = (place.dir, false);
                return Ok(Found { path, elf, extra });
            }
            searched.push(name.to_owned());
        } else {
            let named = places.iter().map(|place| (place.dir.join(name), place.moves));
            let cached = self.cache.get(name).into_iter().flatten();
            let cached = cached.map(|path| {
                let is_system =
                    path.parent().is_some_and(|dir| self.system.iter().any(|s| s == dir));
                (path.clone(), !is_system)
            });
            let system = self.system.iter().map(|dir| (dir.join(name), false));
            for (path, extra) in named.chain(cached).chain(system) {
                if let Some(elf) = Elf::read_library(&path, self.architecture) {
                    return Ok(Found { path, elf, extra });
                }
            }
            searched.extend(places.iter().map(|place| place.dir.display().to_string()));
            searched.push(CACHE.to_owned());
            searched.extend(self.system.iter().map(|dir| dir.display().to_string()));
        }
        Err(PackError::MissingLibrary {
            name: name.to_owned(),
            needed_by: by.path.clone(),
            searched,
        })
    }
}

impl Wanting {
    /// This file's RPATH and those that it inherits.
    fn rpaths(&self) -> Vec<Place> {
        let own = match self.elf.runpath.is_empty() {
            true => self.expand_all(&self.elf.rpath),
            false => Vec::new(),
        };
        [own, self.inherited.clone()].concat()
    }

    /// Where its libraries are looked for before the system's places.
    fn places(&self) -> Vec<Place> {
        match self.elf.runpath.is_empty() {
            true => self.rpaths(),
            false => self.expand_all(&self.elf.runpath),
        }
    }

    fn expand_all(&self, dirs: &[String]) -> Vec<Place> {
        dirs.iter().filter_map(|dir| expand(dir, self)).collect()
    }
}

/// A path with `$ORIGIN` replaced; `None` when it has a variable that only the loader knows, or is
/// relative to wherever the program is started.
fn expand(dir: &str, of: &Wanting) -> Option<Place> {
    let origin = of.path.parent()?.to_str()?;
    let expanded = dir.replace("${ORIGIN}", origin).replace("$ORIGIN", origin);
    let place = Place { moves: of.is_program && expanded != dir, dir: expanded.into() };
    let is_clear = place.dir.is_absolute() && !place.dir.to_string_lossy().contains('$');
    is_clear.then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanting(is_program: bool, rpath: &[&str], runpath: &[&str]) -> Wanting {
        let own = |dirs: &[&str]| dirs.iter().map(|dir| (*dir).to_owned()).collect();
        Wanting {
            path: "/opt/app/bin/app".into(),
            elf: Elf {
                architecture: Architecture::X86_64,
                interpreter: None,
                needed: Vec::new(),
                rpath: own(rpath),
                runpath: own(runpath),
            },
            is_program,
            inherited: vec![Place { dir: "/inherited".into(), moves: false }],
        }
    }

    #[test]
    fn places_follow_the_loaders_rules() {
        for (rpath, runpath, expected) in [
            (vec!["/r"], vec![], "/r /inherited"),
            (vec!["/r"], vec!["/run"], "/run"),
            (vec!["$ORIGIN/../lib"], vec![], "/opt/app/bin/../lib! /inherited"),
            (vec![], vec!["${ORIGIN}", "$LIB/x", "relative", ""], "/opt/app/bin!"),
        ] {
            let places = wanting(true, &rpath, &runpath).places();
            let text: Vec<_> = places
                .iter()
                .map(|place| {
                    format!("{}{}", place.dir.display(), if place.moves { "!" } else { "" })
                })
                .collect();
            assert_eq!(text.join(" "), expected);
        }
        // A library keeps its directory in the image, so its origin stays true.
        assert!(!wanting(false, &["$ORIGIN"], &[]).places()[0].moves);
    }
}
