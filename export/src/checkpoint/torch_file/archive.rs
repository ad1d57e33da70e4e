//! The directories of a zip archive of stored entries.
//!
//! An archive states the place and size of each entry twice: in the central directory at its end, and around the entry.
//! Both must agree. Sizes and places beyond 4 GiB are in the fields of zip64. Compressed and encrypted entries,
//! comments and archives on several disks are refused; torch writes none of them.
//!
//! Source: the ZIP file format specification (APPNOTE.TXT), 4.3.6 to 4.5.3. torch deviates in two ways that are
//! accepted: the sizes of a local header are 0 although its zip64 field has them, and an entry without bytes has no data
//! descriptor.

use super::Input;
use crate::Error;
use std::collections::HashSet;
use std::ops::Range;

/// The most entries of an archive.
const MAX_ENTRIES: u64 = 10_000;
/// The longest central directory.
const MAX_DIRECTORY: u64 = 8 << 20;
/// Lengths of the end record, of the zip64 end record and of its locator.
const END: u64 = 22;
const END_64: u64 = 56;
const LOCATOR: u64 = 20;
/// The value of a field that is stated by zip64.
const IN_ZIP64_16: u64 = 0xffff;
const IN_ZIP64_32: u64 = 0xffff_ffff;
/// The flags of torch: sizes follow the data, names are UTF-8.
const SIZES_FOLLOW: u16 = 1 << 3;
const UTF_8: u16 = 1 << 11;

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its path in the archive.
    pub(super) name: String,
    /// Its bytes in the file.
    pub(super) data: Range<u64>,
}

/// An entry of the central directory.
struct Listed {
    name: String,
    flags: u16,
    bytes: u64,
    local: u64,
}

/// Reads both directories and returns the entries in the order of their bytes, which do not overlap.
///
/// # Errors
/// [`Error::Header`] with the entry that is refused, [`Error::Truncated`], or I/O errors.
pub(super) fn entries(input: &Input<'_>) -> Result<Vec<Entry>, Error> {
    let (directory, count) = directory(input)?;
    let bytes = input.read(directory.start, directory.end - directory.start)?;
    let mut fields = Fields(&bytes);
    let mut listed = Vec::new();
    for number in 0..count {
        let entry = central(&mut fields)
            .unwrap_or_else(|| Err("it is cut off".into()))
            .map_err(|why| input.damaged(format!("entry {number} of its directory cannot be read: {why}")))?;
        listed.push(entry);
    }
    if !fields.0.is_empty() {
        return Err(input.damaged(format!("{} bytes follow the entries of its directory", fields.0.len())));
    }
    let mut names = HashSet::new();
    if let Some(entry) = listed.iter().find(|entry| !names.insert(entry.name.as_str())) {
        return Err(input.damaged(format!("its directory lists the entry {} twice", entry.name)));
    }
    listed.sort_by_key(|entry| entry.local);
    let mut end = 0;
    let mut entries = Vec::with_capacity(listed.len());
    for entry in listed {
        if entry.local < end {
            return Err(input.damaged(format!("its entry {} overlaps the one before it", entry.name)));
        }
        let (data, entry_end) = local(input, &entry)?;
        if entry_end > directory.start {
            return Err(input.damaged(format!("its entry {} overlaps the directory", entry.name)));
        }
        end = entry_end;
        entries.push(Entry { name: entry.name, data });
    }
    Ok(entries)
}

/// Returns the bytes of the central directory and the number of its entries.
fn directory(input: &Input<'_>) -> Result<(Range<u64>, u64), Error> {
    let incomplete = || {
        input.damaged("it does not end with the directory of an archive: it is incomplete, or bytes were appended to it")
    };
    let end_at = input.bytes.checked_sub(END).ok_or_else(incomplete)?;
    let record = input.read(end_at, END)?;
    let mut fields = Fields(&record);
    let [signature, disks, counts, bytes, start, comment] =
        [4, 4, 4, 4, 4, 2].map(|width| fields.number(width).unwrap_or_default());
    if signature != 0x0605_4b50 || comment != 0 {
        return Err(incomplete());
    }
    let (count_here, count) = (counts & 0xffff, counts >> 16);
    let stated = (count, bytes, start);
    let (found, directory_end) = match end_64(input, end_at)? {
        Some(found) => found,
        None => (stated, end_at),
    };
    let agrees = |stated: u64, found: u64, elsewhere: u64| stated == found || stated == elsewhere;
    let (found_count, found_bytes, found_start) = found;
    let same = agrees(count, found_count, IN_ZIP64_16)
        && agrees(bytes, found_bytes, IN_ZIP64_32)
        && agrees(start, found_start, IN_ZIP64_32);
    if disks != 0 || count_here != count || !same {
        return Err(
            input.damaged("the records at its end contradict each other, or it is one of several disks")
        );
    }
    if found_count > MAX_ENTRIES {
        return Err(input.damaged(format!("it has {found_count} entries; the maximum is {MAX_ENTRIES}")));
    }
    if found_bytes > MAX_DIRECTORY {
        return Err(
            input.damaged(format!("its directory has {found_bytes} bytes; the maximum is {MAX_DIRECTORY}"))
        );
    }
    if found_start.checked_add(found_bytes) != Some(directory_end) {
        return Err(input.damaged("its directory does not end where its end records begin"));
    }
    Ok((found_start..directory_end, found_count))
}

/// Entries, bytes and start of the central directory.
type Stated = (u64, u64, u64);

/// Reads the end record of zip64 if its locator stands before the end record. Returns its content and its position.
fn end_64(input: &Input<'_>, end_at: u64) -> Result<Option<(Stated, u64)>, Error> {
    let Some(locator_at) = end_at.checked_sub(LOCATOR) else { return Ok(None) };
    let record = input.read(locator_at, LOCATOR)?;
    let mut fields = Fields(&record);
    let [signature, disk, at, disks] = [4, 4, 8, 4].map(|width| fields.number(width).unwrap_or_default());
    if signature != 0x0706_4b50 {
        return Ok(None);
    }
    let wrong = || input.damaged("its end record of zip64 is damaged");
    if disk != 0 || disks != 1 || at.checked_add(END_64) != Some(locator_at) {
        return Err(wrong());
    }
    let record = input.read(at, END_64)?;
    let mut fields = Fields(&record);
    let [signature, length, _versions, disks, count_here, count, bytes, start] =
        [4, 8, 4, 8, 8, 8, 8, 8].map(|width| fields.number(width).unwrap_or_default());
    if signature != 0x0606_4b50 || length != END_64 - 12 || disks != 0 || count_here != count {
        return Err(wrong());
    }
    Ok(Some(((count, bytes, start), at)))
}

/// Reads an entry of the central directory; none if the directory ends in it.
fn central(fields: &mut Fields<'_>) -> Option<Result<Listed, String>> {
    let signature = fields.number(4)?;
    if signature != 0x0201_4b50 {
        return Some(Err("it has another signature".into()));
    }
    let [_made_by, _needed, flags, method, _time, _date] = fields.numbers(2)?;
    let [_crc, mut packed, mut bytes] = fields.numbers(4)?;
    let [name, extra, comment, mut disk] = fields.numbers(2)?;
    let [_internal] = fields.numbers(2)?;
    let [_external, mut local] = fields.numbers(4)?;
    let (name, extra) = (fields.take(name)?, fields.take(extra)?);
    fields.take(comment)?;
    let Ok(name) = std::str::from_utf8(name) else { return Some(Err("its name is not UTF-8".into())) };
    let wrong = |why: &str| Some(Err(format!("{name} {why}")));
    let flags = u16::try_from(flags).ok()?;
    if flags & !(SIZES_FOLLOW | UTF_8) != 0 {
        return wrong("is encrypted, or has flags that torch does not write");
    }
    if method != 0 {
        return wrong("is compressed; torch stores entries as they are");
    }
    // The fields of zip64 in this order, each only if the other one is full.
    let mut more = zip64(extra);
    for (value, full) in [(&mut bytes, IN_ZIP64_32), (&mut packed, IN_ZIP64_32), (&mut local, IN_ZIP64_32)] {
        if *value == full {
            let Some(wide) = more.number(8) else { return wrong("has no size or place in zip64") };
            *value = wide;
        }
    }
    if disk == IN_ZIP64_16 {
        let Some(wide) = more.number(4) else { return wrong("has no disk in zip64") };
        disk = wide;
    }
    if disk != 0 {
        return wrong("is on another disk");
    }
    if packed != bytes {
        return wrong("has two sizes, although it is not compressed");
    }
    Some(Ok(Listed { name: name.to_owned(), flags, bytes, local }))
}

/// Reads the local header of an entry and what follows its data. Returns the data and the end of all of it.
fn local(input: &Input<'_>, entry: &Listed) -> Result<(Range<u64>, u64), Error> {
    let Listed { name, flags, bytes, local } = entry;
    let wrong = |why: &str| input.damaged(format!("its entry {name} {why}"));
    let head = input.read(*local, 30)?;
    let mut fields = Fields(&head);
    let mut next = |width| fields.number(width).unwrap_or_default();
    let (signature, _needed) = (next(4), next(2));
    let [local_flags, method, _time, _date] = [2; 4].map(&mut next);
    let [_crc, packed, stated] = [4; 3].map(&mut next);
    let [name_length, extra_length] = [2; 2].map(next);
    if signature != 0x0403_4b50 || local_flags != u64::from(*flags) || method != 0 {
        return Err(wrong("has a header that contradicts the directory"));
    }
    let rest = input.read(*local + 30, name_length + extra_length)?;
    let (local_name, extra) = rest.split_at(usize::try_from(name_length).unwrap_or_default());
    if local_name != name.as_bytes() {
        return Err(wrong("has another name in its header than in the directory"));
    }
    let mut more = zip64(extra);
    let wide = (more.0.len() >= 16).then(|| more.numbers(8)).flatten();
    let sizes = [stated, packed];
    let follow = flags & SIZES_FOLLOW != 0;
    let agree = match wide {
        Some(sizes_64) => {
            sizes_64 == [*bytes; 2]
                && sizes.iter().all(|size| [*bytes, IN_ZIP64_32].contains(size) || follow && *size == 0)
        }
        None => sizes.iter().all(|size| size == bytes || follow && *size == 0),
    };
    if !agree {
        return Err(wrong("has another size in its header than in the directory"));
    }
    let start = *local + 30 + name_length + extra_length;
    let end = start.checked_add(*bytes).filter(|end| *end <= input.bytes);
    let end = end.ok_or_else(|| wrong("is longer than the file"))?;
    let descriptor = if follow && *bytes > 0 { descriptor(input, entry, end)? } else { 0 };
    Ok((start..end, end + descriptor))
}

/// Checks the sizes that follow the data of an entry, in 32 or in 64 bits. Returns the length of the record.
fn descriptor(input: &Input<'_>, entry: &Listed, at: u64) -> Result<u64, Error> {
    let record = input.read(at, (input.bytes - at).min(24))?;
    for width in [4, 8] {
        let mut fields = Fields(&record);
        let head = fields.numbers(4);
        let sizes = fields.numbers(width);
        if head.is_some_and(|[signature, _crc]| signature == 0x0807_4b50) && sizes == Some([entry.bytes; 2]) {
            return Ok(8 + 2 * width as u64);
        }
    }
    Err(input
        .damaged(format!("its entry {} has another size behind its data than in the directory", entry.name)))
}

/// Returns the zip64 field of an entry; empty if it has none.
fn zip64(extra: &[u8]) -> Fields<'_> {
    let mut fields = Fields(extra);
    while let Some([tag, length]) = fields.numbers(2) {
        match fields.take(length) {
            Some(content) if tag == 1 => return Fields(content),
            Some(_) => {}
            None => break,
        }
    }
    Fields(&[])
}

/// Little-endian numbers, one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// Returns a number of `width` bytes, at most 8.
    fn number(&mut self, width: usize) -> Option<u64> {
        let bytes = self.take(width as u64)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn numbers<const N: usize>(&mut self, width: usize) -> Option<[u64; N]> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = self.number(width)?;
        }
        Some(numbers)
    }
}
