//! The size of each kernel's machine code, from the section table of a cubin, which is a 64-bit little-endian ELF file.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Bytes of machine code by kernel: the sections `.text.<kernel>`.
pub(super) fn code_sizes(elf: &[u8]) -> Result<BTreeMap<String, u64>> {
    ensure!(elf.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let table = number(elf, 0x28, 8)?;
    let (entry, count, names) = (number(elf, 0x3a, 2)?, number(elf, 0x3c, 2)?, number(elf, 0x3e, 2)?);
    let header = |index: u64| usize::try_from(table + index * entry).context("a section header's place");
    let names = number(elf, header(names)? + 0x18, 8)?;
    let mut sizes = BTreeMap::new();
    for index in 0..count {
        let at = header(index)?;
        let name = usize::try_from(names + number(elf, at, 4)?)?;
        let name = elf.get(name..).context("a section's name lies outside the file")?;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        if let Some(kernel) = std::str::from_utf8(name)?.strip_prefix(".text.") {
            sizes.insert(kernel.to_owned(), number(elf, at + 0x20, 8)?);
        }
    }
    Ok(sizes)
}

/// The little-endian number of `size` bytes at `at`.
fn number(elf: &[u8], at: usize, size: usize) -> Result<u64> {
    let bytes = at.checked_add(size).and_then(|end| elf.get(at..end)).context("the ELF file is cut short")?;
    Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of a header, names and three sections: the empty one, the names, one kernel of 0x180 bytes.
    fn small() -> Vec<u8> {
        let names = b"\0.shstrtab\0.text.rope\0";
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf.extend(names);
        elf.resize(96, 0);
        elf[0x28] = 96;
        (elf[0x3a], elf[0x3c], elf[0x3e]) = (64, 3, 1);
        for (name, offset, size) in [(0u32, 0u64, 0u64), (1, 64, names.len() as u64), (11, 0, 0x180)] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&offset.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&size.to_le_bytes());
            elf.extend(header);
        }
        elf
    }

    #[test]
    fn kernels_and_their_sizes_are_read() {
        assert_eq!(code_sizes(&small()).unwrap(), BTreeMap::from([("rope".to_owned(), 0x180)]));
    }

    #[test]
    fn a_file_that_is_cut_short_is_refused() {
        let elf = small();
        for len in 0..elf.len() - 24 {
            assert!(code_sizes(&elf[..len]).is_err(), "{len}");
        }
    }
}
