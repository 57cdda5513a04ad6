//! What is in a tar: where each part of each sample lies, and what is wrong.
//!
//! Headers alone are read. Memory grows with the samples in the archive, at most one for each 512 bytes of it. Links,
//! devices, sparse files, GNU long names, foreign or oversized extension headers, names that leave the archive and sizes
//! beyond it are problems, never followed.

use std::collections::HashMap;
use std::io::{Read, Seek};

use serde::{Deserialize, Serialize};
use tar::{Archive, EntryType, PaxExtensions};

use crate::codec::Encoding;
use crate::layout::{Part, parse_name};

/// The unit of a tar, in bytes.
pub const BLOCK: u64 = 512;
/// The largest extension header that is read, in bytes. Python writes about 30 of them a member, for the time.
const PAX_MAX: u64 = 16 * 1024;
/// Problems that are kept of one archive; a hostile one could hold millions.
const PROBLEMS_MAX: usize = 1000;

/// Where a member's bytes lie in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub size: u64,
    /// How a tensor there is encoded.
    pub encoding: Encoding,
}

impl Span {
    /// Where the next header would be.
    pub fn end(&self) -> u64 {
        self.offset + self.size.next_multiple_of(BLOCK)
    }
}

/// A sample's parts, as far as they are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The sample's key.
    pub key: String,
    /// Latent, embedding, prompt.
    pub parts: [Option<Span>; 3],
}

impl Entry {
    /// The names of the missing parts, or none if the sample is whole.
    pub fn missing(&self) -> Option<String> {
        let missing = Part::ALL.iter().filter(|p| self.parts[**p as usize].is_none());
        let names: Vec<_> = missing.map(|p| p.name()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// Something wrong in an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The member's name as it stands there, or the sample's key; empty if it is the archive itself.
    pub member: String,
    /// What is wrong.
    pub reason: String,
}

/// The contents of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// The samples, in the order of their first members.
    pub entries: Vec<Entry>,
    /// What is wrong with the archive itself and its members; that a sample lacks a part is not among it.
    pub problems: Vec<Problem>,
    /// Whether the archive's end is marked; if not, its writer may have been cut off.
    pub ended: bool,
    /// Members that are no part of a sample.
    pub ignored: u64,
}

impl Scan {
    fn problem(&mut self, member: impl Into<String>, reason: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { member: member.into(), reason: reason.into() });
        }
    }
}

/// Scans an archive of `len` bytes. Never fails: what cannot be read is a problem of the scan, and ends it.
pub fn scan<R: Read + Seek>(source: R, len: u64) -> Scan {
    let mut scan = Scan::default();
    let mut walk = Walk { len, end: 0, path: None, slots: HashMap::new() };
    let mut archive = Archive::new(source);
    match archive.entries_with_seek() {
        Ok(entries) => {
            // Raw: the library would otherwise read long names and extensions of any size into memory.
            for entry in entries.raw(true) {
                let went_on = entry.map_err(|e| walk.unreadable(&e));
                if let Err(reason) = went_on.and_then(|entry| walk.member(&mut scan, entry)) {
                    scan.problem("", reason);
                    return scan;
                }
            }
        }
        Err(e) => scan.problem("", format!("not a tar archive: {e}")),
    }
    if walk.path.is_some() {
        scan.problem("", "ends after an extension header: its writer was cut off");
    }
    scan.ended = len >= walk.end + BLOCK;
    scan
}

struct Walk {
    len: u64,
    end: u64,
    /// The name that an extension header gives the next member; empty if it gives none.
    path: Option<Vec<u8>>,
    slots: HashMap<String, usize>,
}

impl Walk {
    fn unreadable(&self, e: &std::io::Error) -> String {
        match self.len.checked_sub(self.end) {
            Some(rest) if rest < BLOCK => format!("cut off within a header, {rest} bytes after byte {}", self.end),
            _ => format!("unreadable header after byte {}: {e}", self.end),
        }
    }

    /// Takes a member in. An error ends the scan.
    fn member<R: Read>(&mut self, scan: &mut Scan, mut entry: tar::Entry<'_, R>) -> Result<(), String> {
        let (offset, size) = (entry.raw_file_position(), entry.size());
        let name = entry.header().path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&name[..name.len().min(300)]).into_owned();
        let fits = size.checked_next_multiple_of(BLOCK).and_then(|s| s.checked_add(offset));
        match fits {
            Some(end) if offset + size <= self.len => self.end = end,
            _ => return Err(format!("'{shown}' claims {size} bytes at {offset}, the file has {}: cut off", self.len)),
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::XHeader | EntryType::XGlobalHeader => return self.extension(&mut entry, kind, size),
            EntryType::Directory => self.path = None,
            EntryType::Regular | EntryType::Continuous => {
                let name = self.path.take().filter(|p| !p.is_empty()).unwrap_or(name);
                self.file(scan, &name, offset, size);
            }
            _ => {
                self.path = None;
                scan.problem(shown, format!("is a {}: only plain files are read", describe(kind)));
            }
        }
        Ok(())
    }

    fn extension<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, kind: EntryType, size: u64) -> Result<(), String> {
        let at = entry.raw_header_position();
        if size > PAX_MAX {
            return Err(format!("the extension header at byte {at} has {size} bytes, more than {PAX_MAX}"));
        }
        if kind == EntryType::XHeader && self.path.is_some() {
            return Err(format!("two extension headers for one member at byte {at}"));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        entry.read_to_end(&mut bytes).map_err(|e| format!("unreadable extension header at byte {at}: {e}"))?;
        let mut path = Vec::new();
        for extension in PaxExtensions::new(&bytes) {
            let extension = extension.map_err(|e| format!("malformed extension header at byte {at}: {e}"))?;
            match extension.key_bytes() {
                b"path" => path = extension.value_bytes().to_vec(),
                // A size here overrides the header's, and readers disagree on where the next member then begins.
                b"size" => return Err(format!("the extension header at byte {at} changes the member's size")),
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(format!("the extension header at byte {at} makes the member a sparse file"));
                }
                _ => {}
            }
        }
        match kind {
            EntryType::XHeader => self.path = Some(path),
            _ if path.is_empty() => {}
            _ => return Err(format!("the extension header at byte {at} names all members '{}'", lossy(&path))),
        }
        Ok(())
    }

    fn file(&mut self, scan: &mut Scan, name: &[u8], offset: u64, size: u64) {
        let member = match parse_name(name) {
            Ok(Some(member)) => member,
            Ok(None) => return scan.ignored += 1,
            Err(reason) => return scan.problem(lossy(name), format!("{reason}: refused")),
        };
        let span = Span { offset, size, encoding: member.encoding };
        let slot = *self.slots.entry(member.key).or_insert_with_key(|key| {
            scan.entries.push(Entry { key: key.clone(), parts: [None; 3] });
            scan.entries.len() - 1
        });
        let part = &mut scan.entries[slot].parts[member.part as usize];
        if part.is_some() {
            let reason = format!("a second {} of one sample: duplicate key", member.part.name());
            return scan.problem(lossy(name), reason);
        }
        *part = Some(span);
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(300)]).into_owned()
}

fn describe(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Link => "hard link",
        EntryType::Symlink => "symbolic link",
        EntryType::Char | EntryType::Block | EntryType::Fifo => "device or pipe",
        EntryType::GNULongName | EntryType::GNULongLink => "GNU long name",
        EntryType::GNUSparse => "sparse file",
        _ => "member of an unknown kind",
    }
}
