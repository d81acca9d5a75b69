//! Where ranks of several processes, also on several machines, find each other before they have anything else: rank 0 listens at an
//! address that all were told, and gives every other rank the same few bytes, once all have come.
//!
//! ```text
//! hello  | magic 8 | version 4 | rank 4 | ranks 4 |            from each rank to rank 0
//! answer | magic 8 | version 4 | refused 4 | len 4 | len … |   the bytes, or why not; numbers are little-endian
//! ```
//!
//! There is no secret in it: whoever reaches the address can take a rank's place, as with NCCL and MPI themselves. It is for networks
//! that are trusted.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::plan::MAX_RANKS;

const HELLO: &[u8; 8] = b"granule>";
const ANSWER: &[u8; 8] = b"<granule";
const VERSION: u32 = 1;
/// More is no answer of rank 0's.
const MOST: usize = 1 << 16;
/// How long somebody who has connected may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at who has come, or two tries to connect.
const POLL: Duration = Duration::from_millis(5);

/// Why ranks did not find each other.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// No address.
    #[error("it is no address of the form host:port ({0})")]
    Address(#[source] io::Error),
    /// Something listens there already.
    #[error("the port is taken: another group, or another program, listens there")]
    Taken,
    /// It cannot be listened at, for another reason.
    #[error("rank 0 cannot listen there ({0})")]
    Listen(#[source] io::Error),
    /// Some rank has not come.
    #[error("{missing} did not come within {waited:?}{}", if *strangers > 0 { "; somebody came who is no rank of Granule's" } else { "" })]
    TimedOut {
        /// Who: "rank 1", "ranks 1 and 3".
        missing: String,
        /// How long was waited.
        waited: Duration,
        /// How many connected who said nothing that a rank says.
        strangers: usize,
    },
    /// Ranks that were told different numbers of ranks.
    #[error("rank {rank} is one of {other}, where there are {ranks} ranks")]
    Ranks {
        /// Which rank.
        rank: usize,
        /// Of how many it thinks that it is.
        other: usize,
        /// How many there are.
        ranks: usize,
    },
    /// Two ranks with one number.
    #[error("two ranks are both rank {rank}")]
    Twice {
        /// Which.
        rank: usize,
    },
    /// Ranks of different versions of this crate.
    #[error(
        "a rank speaks version {other} of the protocol, where this is version {VERSION}: all ranks need the same version of Granule"
    )]
    Version {
        /// Which it speaks.
        other: u32,
    },
    /// Something else listens there.
    #[error("what listens there is no rank 0 of Granule's")]
    Stranger,
    /// Rank 0 refused.
    #[error("rank 0 says: {0}")]
    Refused(String),
    /// The connection broke.
    #[error("the connection to rank 0 broke ({0})")]
    Broken(#[source] io::Error),
}

fn failed(address: &str, why: RendezvousError) -> Error {
    Error::Rendezvous { address: address.to_owned(), why }
}

fn check(rank: usize, ranks: usize) -> Result<()> {
    match ranks {
        1..=MAX_RANKS if rank < ranks => Ok(()),
        1..=MAX_RANKS => Err(Error::NoRank { rank, ranks }),
        _ => Err(Error::Ranks { ranks, most: MAX_RANKS }),
    }
}

/// Rank 0's part: listens at `address`, host and port, until all of the other `ranks - 1` have come, and then gives each of them `bytes`, at
/// most 64 KiB. Somebody who connects and is no rank is turned away; a rank that does not fit ends it for all, with the reason.
///
/// # Errors
/// [`Error::Rendezvous`]: it says which; [`Error::Ranks`].
pub fn lead(address: &str, ranks: usize, bytes: &[u8], timeout: Duration) -> Result<()> {
    check(0, ranks)?;
    let begun = Instant::now();
    let mut places: Vec<Option<TcpStream>> = (0..ranks).map(|_| None).collect();
    let gathered = gather(address, &mut places, begun, timeout);
    let (refused, payload) = match &gathered {
        Ok(()) => (0, bytes.to_vec()),
        Err(why) => (1, why.to_string().into_bytes()),
    };
    for place in places.iter_mut().flatten() {
        // A rank that has gone meanwhile is missed where the group is used.
        let _ = answer(place, refused, &payload);
    }
    gathered.map_err(|why| failed(address, why))
}

fn gather(
    address: &str,
    places: &mut [Option<TcpStream>],
    begun: Instant,
    timeout: Duration,
) -> Result<(), RendezvousError> {
    let found: Vec<_> = address.to_socket_addrs().map_err(RendezvousError::Address)?.collect();
    let listener = TcpListener::bind(&found[..]).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => RendezvousError::Taken,
        _ => RendezvousError::Listen(error),
    })?;
    listener.set_nonblocking(true).map_err(RendezvousError::Listen)?;
    let mut strangers = 0;
    while places.iter().skip(1).any(Option::is_none) {
        let left = timeout.saturating_sub(begun.elapsed());
        if left.is_zero() {
            let missing: Vec<usize> = (1..places.len()).filter(|&rank| places[rank].is_none()).collect();
            return Err(RendezvousError::TimedOut { missing: names(&missing), waited: timeout, strangers });
        }
        match listener.accept() {
            Ok((mut from, _)) => match hello(&mut from, left.min(PATIENCE)) {
                Ok(Some(said)) => {
                    let fits = place(places, said);
                    if let Err(why) = &fits {
                        let _ = answer(&mut from, 1, why.to_string().as_bytes());
                    }
                    places[fits?] = Some(from);
                }
                Ok(None) | Err(_) => strangers += 1,
            },
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(POLL.min(left)),
            // One that is gone before it was looked at.
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
            Err(error) => return Err(RendezvousError::Listen(error)),
        }
    }
    Ok(())
}

/// Version, rank and number of ranks, as one says that comes; `None` of something else.
fn hello(from: &mut TcpStream, patience: Duration) -> io::Result<Option<[u32; 3]>> {
    from.set_nonblocking(false)?;
    let mut said = [0; 20];
    read(from, &mut said, Instant::now() + patience)?;
    let (magic, rest) = said.split_at(HELLO.len());
    Ok((magic == HELLO).then(|| words(rest)))
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// Where one that has come belongs.
fn place(places: &[Option<TcpStream>], [version, rank, ranks]: [u32; 3]) -> Result<usize, RendezvousError> {
    if version != VERSION {
        return Err(RendezvousError::Version { other: version });
    }
    let (rank, other) = (rank as usize, ranks as usize);
    if other != places.len() {
        return Err(RendezvousError::Ranks { rank, other, ranks: places.len() });
    }
    match places.get(rank) {
        Some(None) if rank > 0 => Ok(rank),
        _ => Err(RendezvousError::Twice { rank }),
    }
}

/// The part of every other rank: connects to rank 0, as soon as it listens, and waits for its bytes.
///
/// # Errors
/// [`Error::Rendezvous`]: it says which; [`Error::NoRank`], [`Error::Ranks`].
pub fn follow(address: &str, rank: usize, ranks: usize, timeout: Duration) -> Result<Vec<u8>> {
    check(rank, ranks)?;
    if rank == 0 {
        return Err(failed(address, RendezvousError::Twice { rank }));
    }
    join(address, rank, ranks, timeout).map_err(|why| failed(address, why))
}

fn join(address: &str, rank: usize, ranks: usize, timeout: Duration) -> Result<Vec<u8>, RendezvousError> {
    let end = Instant::now() + timeout;
    let late = |missing: &str| {
        let missing = missing.to_owned();
        RendezvousError::TimedOut { missing, waited: timeout, strangers: 0 }
    };
    let mut to = loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late("rank 0"));
        }
        let found = address.to_socket_addrs().map_err(RendezvousError::Address)?;
        let connected = found.into_iter().find_map(|to| TcpStream::connect_timeout(&to, left).ok());
        // A port that nobody listens at may be given to this very connection, which then is with itself.
        let itself = |stream: &TcpStream| stream.local_addr().ok() == stream.peer_addr().ok();
        match connected.filter(|stream| !itself(stream)) {
            Some(stream) => break stream,
            None => thread::sleep(POLL.min(left)),
        }
    };
    let numbers = [VERSION, rank as u32, ranks as u32];
    let mut said = HELLO.to_vec();
    said.extend(numbers.iter().flat_map(|word| word.to_le_bytes()));
    to.write_all(&said).map_err(RendezvousError::Broken)?;
    let broken = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => late("the others"),
        _ => RendezvousError::Broken(error),
    };
    let mut head = [0; 20];
    read(&mut to, &mut head, end).map_err(broken)?;
    let (magic, rest) = head.split_at(ANSWER.len());
    let [version, refused, len] = words(rest);
    if magic != ANSWER || len as usize > MOST {
        return Err(RendezvousError::Stranger);
    }
    let mut bytes = vec![0; len as usize];
    read(&mut to, &mut bytes, end).map_err(broken)?;
    match (refused, version) {
        (0, VERSION) => Ok(bytes),
        (0, other) => Err(RendezvousError::Version { other }),
        _ => Err(RendezvousError::Refused(String::from_utf8_lossy(&bytes).into_owned())),
    }
}

/// All of `to`, until `end`.
fn read(from: &mut TcpStream, to: &mut [u8], end: Instant) -> io::Result<()> {
    let mut at = 0;
    while at < to.len() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        from.set_read_timeout(Some(left))?;
        match from.read(&mut to[at..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(more) => at += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn answer(to: &mut TcpStream, refused: u32, bytes: &[u8]) -> io::Result<()> {
    let bytes = &bytes[..bytes.len().min(MOST)];
    let mut said = ANSWER.to_vec();
    said.extend([VERSION, refused, bytes.len() as u32].iter().flat_map(|word| word.to_le_bytes()));
    said.extend(bytes);
    to.set_write_timeout(Some(PATIENCE))?;
    to.write_all(&said)
}

/// "rank 1", "ranks 1 and 3".
fn names(ranks: &[usize]) -> String {
    match ranks {
        [one] => format!("rank {one}"),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(usize::to_string).collect();
            format!("ranks {} and {last}", most.join(", "))
        }
        [] => "nobody".to_owned(),
    }
}
