//! `Reader`: the events of a recording, one by one. The file may be anything.

use std::io::{ErrorKind, Read};

use super::code::{Bad, Payload};
use super::{BLOCK_HEADER, Error, Event, HEADER, MAGIC, MAX_PAYLOAD, VERSION};

/// An event and when it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since the recording began. Never less than the record's before.
    pub ns: u64,
    /// What happened.
    pub event: Event,
}

/// Reads a recording. Holds one block, at most 1 MiB, whatever the file says.
///
/// An iterator of records that ends after [`Event::End`], or after the first error: a file that stops without an end gives
/// [`Error::Truncated`], after everything that is whole.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    /// Bytes read.
    offset: u64,
    /// Where the payload starts.
    start: u64,
    payload: Payload,
    /// The time of the last record.
    ns: u64,
    done: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning of a recording. Reads by the block: the source needs no buffer of its own.
    ///
    /// # Errors
    /// [`Error::NotATrace`], [`Error::Version`], [`Error::Truncated`], [`Error::Io`].
    pub fn new(source: R) -> Result<Reader<R>, Error> {
        let mut reader = Reader { source, offset: 0, start: 0, payload: Payload::none(), ns: 0, done: false };
        let header = reader.read(HEADER)?;
        let (magic, rest) = header.split_at(header.len().min(MAGIC.len()));
        if magic.is_empty() || !MAGIC.starts_with(magic) {
            return Err(Error::NotATrace);
        }
        let &[low, high, zero, zero_too] = rest else { return Err(Error::Truncated { offset: 0 }) };
        let found = u16::from_le_bytes([low, high]);
        if found != VERSION {
            return Err(Error::Version { found, known: VERSION });
        }
        if [zero, zero_too] != [0, 0] {
            return Err(Error::Corrupt { offset: 10, what: "what should be zero is not" });
        }
        Ok(reader)
    }

    /// Bytes of the file that were read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            let start = self.start;
            let corrupt = |bad: Bad| Error::Corrupt { offset: start + bad.at as u64, what: bad.what };
            if let Some((ns, event)) = self.payload.next().map_err(corrupt)? {
                if ns < self.ns {
                    return Err(Error::Corrupt { offset: start, what: "time runs backwards" });
                }
                self.ns = ns;
                if event == Event::End {
                    self.at_the_end()?;
                }
                return Ok(Some(Record { ns, event }));
            }
            self.block()?;
        }
    }

    /// Reads the next block's payload.
    fn block(&mut self) -> Result<(), Error> {
        let offset = self.offset;
        let header = self.read(BLOCK_HEADER)?;
        let Ok([l0, l1, l2, l3, c0, c1, c2, c3]) = <[u8; BLOCK_HEADER]>::try_from(header) else {
            return Err(Error::Truncated { offset });
        };
        let len = match usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])) {
            Ok(len) if len <= MAX_PAYLOAD => len,
            _ => return Err(Error::Corrupt { offset, what: "a block is too long" }),
        };
        let payload = self.read(len)?;
        if payload.len() < len {
            return Err(Error::Truncated { offset });
        }
        if crc32fast::hash(&payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(Error::Corrupt { offset, what: "a block's checksum is not that of its bytes" });
        }
        self.start = offset + BLOCK_HEADER as u64;
        self.payload = Payload::new(payload)
            .map_err(|bad| Error::Corrupt { offset: self.start + bad.at as u64, what: bad.what })?;
        Ok(())
    }

    /// The end is the end of its block and of the file.
    fn at_the_end(&mut self) -> Result<(), Error> {
        self.done = true;
        let more = !self.payload.is_at_end();
        let offset = if more { self.start } else { self.offset };
        if more || !self.read(1)?.is_empty() {
            return Err(Error::Corrupt { offset, what: "something follows the end" });
        }
        Ok(())
    }

    /// Up to `len` bytes, less only where the file ends.
    fn read(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        let mut have = 0;
        while have < len {
            match self.source.read(&mut bytes[have..]) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Io { offset: self.offset + have as u64, source });
                }
            }
        }
        bytes.truncate(have);
        self.offset += have as u64;
        Ok(bytes)
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, Error>;

    fn next(&mut self) -> Option<Result<Record, Error>> {
        if self.done {
            return None;
        }
        let record = self.record();
        self.done |= record.is_err();
        record.transpose()
    }
}
