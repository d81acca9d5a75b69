//! This process among those that were started together: by `mpirun`, or by `granule launch`. They all run the same command; the first
//! one speaks, and what it draws from chance the others draw too.

use std::env;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, bail, ensure};
use granule_device::Device;
#[cfg(any(feature = "mpi", feature = "nccl"))]
use granule_device::DeviceKind;
use granule_split::Communicator;

/// What `granule launch` tells the processes that it starts itself; whoever starts them by other means does so too.
pub(crate) const RANK: &str = "GRANULE_RANK";
pub(crate) const RANKS: &str = "GRANULE_RANKS";
/// Where the ranks meet: "host:port", which is rank 0's.
pub(crate) const RENDEZVOUS: &str = "GRANULE_RENDEZVOUS";
/// How many seconds ranks wait for one another.
#[cfg(any(feature = "mpi", feature = "nccl"))]
const TIMEOUT: &str = "GRANULE_RANK_TIMEOUT";

/// What Open MPI's and MPICH's `mpirun`, and what starts processes as they do, tell a process: its rank, how many there are, and how many
/// of them are on this machine.
const BY_MPI: [[&str; 3]; 2] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"],
];

/// One of several processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Here {
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    /// How many of them are on this machine, as far as is known.
    local: usize,
    /// Where they meet; none where MPI knows.
    rendezvous: Option<String>,
}

/// Which one this process is; none where it is the only one.
pub(crate) fn here() -> Result<Option<&'static Here>> {
    static HERE: OnceLock<Result<Option<Here>, String>> = OnceLock::new();
    let found = HERE.get_or_init(|| find(&|name| env::var(name).ok()).map_err(|error| error.to_string()));
    found.as_ref().map(Option::as_ref).map_err(|said| anyhow::anyhow!("{said}"))
}

fn find(told: &dyn Fn(&str) -> Option<String>) -> Result<Option<Here>> {
    let number = |name: &str| -> Result<Option<usize>> {
        let read = |text: String| text.parse().with_context(|| format!("{name}={text} is no number"));
        told(name).map(read).transpose()
    };
    if let (Some(rank), Some(ranks)) = (number(RANK)?, number(RANKS)?) {
        ensure!(rank < ranks, "{RANK}={rank} is no rank of {RANKS}={ranks}");
        let rendezvous = told(RENDEZVOUS).with_context(|| {
            format!("{RENDEZVOUS} is not set: where rank 0 of {ranks} is to be met, as in 10.0.0.1:29500")
        })?;
        return Ok(Some(Here { rank, ranks, local: ranks, rendezvous: Some(rendezvous) }));
    }
    for [rank, ranks, local] in BY_MPI {
        if let (Some(rank), Some(ranks)) = (number(rank)?, number(ranks)?) {
            let local = number(local)?.unwrap_or(ranks).max(1);
            return Ok((ranks > 1).then_some(Here { rank, ranks, local, rendezvous: None }));
        }
    }
    Ok(None)
}

/// Whether this process is the one that speaks.
pub(crate) fn speaks() -> bool {
    !matches!(here(), Ok(Some(here)) if here.rank != 0)
}

/// Where output goes: nowhere, of all but the first.
pub(crate) fn out() -> Box<dyn Write> {
    if speaks() { Box::new(std::io::stdout().lock()) } else { Box::new(std::io::sink()) }
}

/// Who says what is on stderr, where there are several: "rank 1: ".
pub(crate) fn speaker() -> String {
    match here() {
        Ok(Some(here)) => format!("rank {}: ", here.rank),
        _ => String::new(),
    }
}

/// How many threads each process should have, where several share this machine's processors and nothing has shared them out.
pub(crate) fn threads() -> Option<std::num::NonZeroUsize> {
    let here = here().ok().flatten().filter(|here| here.local > 1)?;
    let cores = available_parallelism().ok()?.get();
    std::num::NonZeroUsize::new((cores / here.local).max(1))
}

/// What reaches the others, once this process has joined them.
static JOINED: Mutex<Option<Arc<dyn Communicator>>> = Mutex::new(None);

/// Joins the others, with what this process computes on; waits for all of them.
pub(crate) fn join(here: &Here, device: &Device) -> Result<Arc<dyn Communicator>> {
    let joined = match &here.rendezvous {
        Some(rendezvous) => by_nccl(here, device, rendezvous)?,
        None => by_mpi(here, device)?,
    };
    let (found, expected) = ((joined.rank(), joined.ranks()), (here.rank, here.ranks));
    ensure!(
        found == expected,
        "started as rank {} of {}, but is {} of {}",
        expected.0,
        expected.1,
        found.0,
        found.1
    );
    *JOINED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&joined));
    Ok(joined)
}

/// Leaves the others at the program's end. After an error they are told of it, so that they do not wait.
pub(crate) fn leave(error: Option<&anyhow::Error>) {
    let joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(joined), Some(error)) = (joined, error) {
        joined.abort(&error.to_string());
    }
}

/// The first one's number, on all.
pub(crate) fn agree(number: u64) -> Result<u64> {
    let joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(joined) = joined else { return Ok(number) };
    // Whole numbers that an f32 has, of 16 bits each.
    let mut parts = [0, 16, 32, 48].map(|at| ((number >> at) & 0xffff) as f32);
    joined.broadcast(0, &mut parts)?;
    Ok(parts.iter().rev().fold(0, |number, &part| (number << 16) | part as u64))
}

#[cfg(any(feature = "mpi", feature = "nccl"))]
fn options() -> Result<granule_split::comm::GroupOptions> {
    let mut options = granule_split::comm::GroupOptions::default();
    if let Ok(text) = env::var(TIMEOUT) {
        let seconds = text.parse().ok().filter(|&seconds: &u64| seconds > 0);
        let seconds = seconds.with_context(|| format!("{TIMEOUT}={text} is no number of seconds"))?;
        options.timeout = std::time::Duration::from_secs(seconds);
    }
    Ok(options)
}

#[cfg(feature = "mpi")]
fn by_mpi(_: &Here, device: &Device) -> Result<Arc<dyn Communicator>> {
    let host = Arc::new(granule_split::comm::MpiRank::new(options()?)?);
    if device.kind() == DeviceKind::Cuda {
        return Ok(Arc::new(granule_split::comm::Staged::new(host, device)?));
    }
    Ok(host)
}

#[cfg(not(feature = "mpi"))]
fn by_mpi(here: &Here, _: &Device) -> Result<Arc<dyn Communicator>> {
    let Here { rank, ranks, .. } = here;
    bail!("this is rank {rank} of {ranks} that an mpirun started, and {}", without_mpi())
}

#[cfg(feature = "nccl")]
fn by_nccl(here: &Here, device: &Device, rendezvous: &str) -> Result<Arc<dyn Communicator>> {
    if device.kind() != DeviceKind::Cuda {
        bail!("ranks that meet at {rendezvous} compute on GPUs, one each: name them, --device cuda:0,cuda:1");
    }
    let Here { rank, ranks, .. } = *here;
    Ok(Arc::new(granule_split::comm::NcclRank::new(device, rank, ranks, rendezvous, options()?)?))
}

#[cfg(not(feature = "nccl"))]
fn by_nccl(_: &Here, _: &Device, rendezvous: &str) -> Result<Arc<dyn Communicator>> {
    bail!(
        "ranks that meet at {rendezvous} talk by NCCL, and this `granule` was built without the feature `nccl`"
    )
}

/// What to do where there is no MPI.
pub(crate) fn without_mpi() -> &'static str {
    "this `granule` was built without MPI: build it with --features mpi, which needs an MPI (mpicc) and libclang; or split layers \
     in one process, --tensor-parallel 2"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(told: &[(&str, &str)]) -> Result<Option<(usize, usize, usize, bool)>, String> {
        let found = find(&|name| Some(told.iter().find(|(told, _)| *told == name)?.1.to_owned()));
        let here = found.map_err(|error| format!("{error:#}"))?;
        Ok(here.map(|here| (here.rank, here.ranks, here.local, here.rendezvous.is_some())))
    }

    #[test]
    fn a_process_knows_which_one_it_is() {
        assert_eq!(found(&[]), Ok(None));
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        assert_eq!(found(&open_mpi), Ok(Some((1, 4, 4, false))));
        let local = [open_mpi[0], open_mpi[1], ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")];
        assert_eq!(found(&local), Ok(Some((1, 4, 2, false))));
        assert_eq!(found(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), Ok(Some((0, 2, 2, false))));
        assert_eq!(found(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]), Ok(None), "the only one");
        let own = [(RANK, "2"), (RANKS, "3"), (RENDEZVOUS, "127.0.0.1:1")];
        assert_eq!(found(&own), Ok(Some((2, 3, 3, true))));
        assert!(found(&own[..2]).unwrap_err().contains("GRANULE_RENDEZVOUS is not set"));
        assert!(found(&[(RANK, "3"), (RANKS, "3")]).unwrap_err().contains("GRANULE_RANK=3 is no rank"));
        assert!(found(&[(RANK, "x"), (RANKS, "3")]).unwrap_err().contains("GRANULE_RANK=x is no number"));
    }
}
