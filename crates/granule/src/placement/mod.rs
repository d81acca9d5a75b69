//! Which layers go where, as the command line says it: `--device`, `--gpu-layers`, `--layer-split`, `--tensor-parallel`, `--tensor-split`.

mod flags;
mod told;

use anyhow::{Context as _, Result, bail, ensure};
use granule_bank::trace::Tracer;
use granule_bank::{Bank, BankOptions, Budget};
use granule_device::{Bytes, Device, HostOptions};
use granule_llama::{ContextOptions, GpuLayers, LoadOptions, Model, ModelPlan, Placement, Team};
use granule_plan::shares;
use granule_split::Shares;

use crate::args::LoadArgs;
use crate::device_name::DeviceName;
use crate::ranks;

pub(crate) use flags::{PlaceArgs, TensorSplit};
pub(crate) use told::{describe, json, part_on, together};

use flags::Asked;

/// Where the model is to be.
pub(crate) enum Place {
    /// All of it.
    In(Bank),
    Split(Placement),
}

/// Where the model is to be, for contexts like these: a bank for each device, and the layers in them.
pub(crate) fn place(
    args: &LoadArgs,
    load: &LoadOptions<'_>,
    options: &ContextOptions,
    tracer: &Tracer,
) -> Result<Place> {
    if let Some(here) = ranks::here()? {
        return Ok(Place::Split(as_rank(here, args, tracer)?));
    }
    let asked = Asked::of(&args.place)?;
    if asked.is_plain() {
        return Ok(Place::In(bank(DeviceName::Host, &args.place, tracer)?));
    }
    let plan = ModelPlan::open(&args.model)?;
    Ok(Place::Split(placement(&asked, &plan, &args.place, load, options, tracer)?))
}

/// All layers, split over processes, of which this is one; it is on the device of its number, where several are named.
fn as_rank(here: &ranks::Here, args: &LoadArgs, tracer: &Tracer) -> Result<Placement> {
    let (place, ranks) = (&args.place, here.ranks);
    let parts = place.tensor_parallel.map_or(ranks, usize::from);
    ensure!(parts == ranks, "--tensor-parallel {parts} with {ranks} ranks, each a process: leave it out");
    ensure!(
        place.gpu_layers.is_none() && place.layer_split.is_empty(),
        "--gpu-layers and --layer-split are for one process: {ranks} ranks split every layer"
    );
    let shares = match &place.tensor_split {
        None => Shares::equal(ranks)?,
        Some(TensorSplit::Free) => {
            bail!("--tensor-split free is for one process: ranks know their own memory only, so name shares")
        }
        Some(TensorSplit::Ratio(shares)) => {
            let n = shares.len();
            ensure!(n == ranks, "--tensor-split has {n} shares, for {ranks} ranks: one for each");
            Shares::ratio(shares)?
        }
    };
    let devices = &place.device;
    let device = devices.get(here.rank % devices.len().max(1)).copied().unwrap_or(DeviceName::Host);
    let bank = bank(device, place, tracer)?;
    let n_layers = ModelPlan::open(&args.model)?.config().n_layers;
    let communicator = ranks::join(here, bank.device())?;
    Ok(Placement::new().rank(&bank, communicator, shares, n_layers))
}

/// Where it is to be where that is not the host as it is.
fn placement(
    asked: &Asked,
    plan: &ModelPlan,
    args: &PlaceArgs,
    load: &LoadOptions<'_>,
    options: &ContextOptions,
    tracer: &Tracer,
) -> Result<Placement> {
    let split = (!args.layer_split.is_empty()).then_some(&args.layer_split[..]);
    if asked.is_host() {
        let hosts = virtual_hosts(asked.devices.len(), args, tracer)?;
        let teams = teams(&hosts, asked.ranks, args)?;
        let (n_layers, runs) = (plan.config().n_layers, teams.len());
        let counts = shares(n_layers, split.unwrap_or(&vec![1; runs]), &vec![n_layers; runs]);
        let counts = counts.context("--layer-split gives no device anything")?;
        let each = teams.into_iter().zip(counts);
        return Ok(each.fold(Placement::new(), |placement, (team, n)| team.add_to(placement, n)));
    }
    let host = bank(DeviceName::Host, args, tracer)?;
    let gpus = asked.devices.iter().map(|&device| bank(device, args, tracer));
    let teams = teams(&gpus.collect::<Result<Vec<_>>>()?, asked.ranks, args)?;
    let layers = args.gpu_layers.unwrap_or(GpuLayers::All);
    Ok(plan.place_on(&host, &teams, layers, split, load, options)?)
}

fn bank(device: DeviceName, args: &PlaceArgs, tracer: &Tracer) -> Result<Bank> {
    let options = BankOptions::new().tracer(tracer);
    let options = if let Some(limit) = args.memory_limit { options.budget(limit) } else { options };
    Ok(Bank::new(device.open()?, options)?)
}

/// Several devices that are all the host: they have what one would have, together.
fn virtual_hosts(n: usize, args: &PlaceArgs, tracer: &Tracer) -> Result<Vec<Bank>> {
    let host = |number| Device::host_with(HostOptions::new().number(number));
    let devices = (0..n).map(host).collect::<Result<Vec<_>, _>>()?;
    let free = devices.first().map(Device::memory).transpose()?.map_or(Bytes::MAX, |memory| memory.free);
    let budget = Budget::new(args.memory_limit.map_or(free, |limit| limit.min(free)));
    let bank = |device| Bank::new(device, BankOptions::new().tracer(tracer).share(&budget));
    Ok(devices.into_iter().map(bank).collect::<Result<_, _>>()?)
}

/// So many that follow one another each are one.
fn teams(banks: &[Bank], ranks: usize, args: &PlaceArgs) -> Result<Vec<Team>> {
    let team = |banks: &[Bank]| -> Result<Team> {
        if let [bank] = banks {
            return Ok(Team::one(bank));
        }
        let shares = match &args.tensor_split {
            None => Shares::equal(banks.len())?,
            Some(TensorSplit::Ratio(shares)) => Shares::ratio(shares)?,
            Some(TensorSplit::Free) => {
                let free = |bank: &Bank| Ok(bank.free().min(bank.device().memory()?.free));
                Shares::by_free(&banks.iter().map(free).collect::<Result<Vec<_>>>()?)?
            }
        };
        Ok(Team::split(banks, shares))
    };
    banks.chunks(ranks).map(team).collect()
}

/// Says on stderr which layers are where, wherever anything but the host was named.
pub(crate) fn tell(args: &PlaceArgs, model: &Model) {
    if args.names_any() {
        eprintln!("{}", describe(model.stages()));
    }
}

/// Where a model would be by these flags, for contexts like these: nothing of it is loaded.
pub(crate) fn planned(plan: &ModelPlan, args: &PlaceArgs, options: &ContextOptions) -> Result<Placement> {
    let (asked, tracer) = (Asked::of(args)?, Tracer::new());
    if asked.is_plain() {
        let host = bank(DeviceName::Host, args, &tracer)?;
        return Ok(Placement::new().layers(&host, plan.config().n_layers));
    }
    placement(&asked, plan, args, &LoadOptions::default(), options, &tracer)
}
