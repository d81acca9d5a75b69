//! What the command line may say, in the field's words.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use granule_kv::KvType;
use granule_llama::{ContextOptions, KvTransformMode, QuantizeTarget};

use crate::placement::PlaceArgs;
use crate::session;

/// Runs GGUF language models. Text goes to stdout, everything else to stderr.
#[derive(Parser)]
#[command(name = "granule", version, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Continue a prompt, or chat where none is given
    Run(RunArgs),
    /// Say what a file holds and what it will take to run it
    Info(InfoArgs),
    /// Measure how well a model predicts a text
    Perplexity(PerplexityArgs),
    /// Measure prompt and decode tokens per second
    Bench(BenchArgs),
    /// Turn text into token ids
    Tokenize(TokenizeArgs),
    /// Make a smaller file of a model: F16, BF16, Q8_0, Q4_0 or Q4_K_M
    Quantize(QuantizeArgs),
    /// List the devices: their memory, and what they can do
    Devices(DevicesArgs),
    /// Run a command as several processes that share the model: on the host over MPI, on GPUs by NCCL
    Launch(LaunchArgs),
    /// Look at a recording of memory that `run --trace` made
    Trace(TraceArgs),
}

/// How the model is loaded.
#[derive(clap::Args)]
pub(crate) struct LoadArgs {
    /// The model: a GGUF file, the first one where it comes in several
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Threads that compute [default: one for each physical core that the program may use]
    #[arg(short = 't', long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Threads that compute steps of more than one token: prompts, and many sequences at once [default: as many as --threads]
    #[arg(long, value_name = "N")]
    pub(crate) threads_batch: Option<NonZeroUsize>,
    /// Read the file into memory instead of mapping it
    #[arg(long)]
    pub(crate) no_mmap: bool,
    /// Lock the weights in memory, so that they are never paged out
    #[arg(long)]
    pub(crate) mlock: bool,
    /// Use weights as they lie in the file, instead of packing them for this CPU or copying floats into huge pages: slower, and
    /// processes that run the same file share its memory
    #[arg(long)]
    pub(crate) no_repack: bool,
    /// Compute long prompts as exactly as short ones, with 16 bits for each activation: about two thirds as fast (host only)
    #[arg(long)]
    pub(crate) precise: bool,
}

/// How the context is made.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct ContextArgs {
    /// Tokens of a prompt that are computed in one go
    #[arg(short, long, value_name = "N", default_value = "512")]
    pub(crate) batch_size: NonZeroUsize,
    /// What keys are stored as: f32, f16, bf16, q8_0 or q4_0 [default: f16]
    #[arg(long, value_name = "TYPE")]
    cache_type_k: Option<KvType>,
    /// What values are stored as [default: f16]
    #[arg(long, value_name = "TYPE")]
    cache_type_v: Option<KvType>,
    /// Both of the above at once
    #[arg(long, value_name = "TYPE")]
    kv_cache_type: Option<KvType>,
    /// Turn 4-bit keys and values into what 4 bits hold better before they are stored; none stores plain ggml blocks
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    kv_transform: KvTransformArg,
    /// On GPUs: give steps of one token kernel by kernel, instead of replaying them as graphs
    #[arg(long)]
    pub(crate) no_graphs: bool,
    /// On GPUs: compute prompts with NVIDIA's cuBLAS, where it is installed
    #[arg(long)]
    pub(crate) cublas: bool,
}

/// When keys and values are transformed.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum KvTransformArg {
    /// Where the type gains from it
    Auto,
    /// Never
    None,
}

impl ContextArgs {
    pub(crate) fn type_k(&self) -> KvType {
        self.cache_type_k.or(self.kv_cache_type).unwrap_or(KvType::F16)
    }

    pub(crate) fn type_v(&self) -> KvType {
        self.cache_type_v.or(self.kv_cache_type).unwrap_or(KvType::F16)
    }

    pub(crate) fn kv_transform(&self) -> KvTransformMode {
        match self.kv_transform {
            KvTransformArg::Auto => KvTransformMode::Auto,
            KvTransformArg::None => KvTransformMode::None,
        }
    }
}

/// `granule devices`
#[derive(clap::Args)]
pub(crate) struct DevicesArgs {
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `granule run`
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// The text to continue; without one it is a chat, in a pipe with each line of stdin as a message
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Put the prompt through the model's chat template, as a user's message
    #[arg(long)]
    pub(crate) chat: bool,
    /// Print the prompt in front of what the model writes
    #[arg(long, requires = "prompt", conflicts_with = "chat")]
    pub(crate) echo: bool,
    /// The most tokens to write [default: until the model ends or the context is full]
    #[arg(short, long, value_name = "N")]
    pub(crate) n_predict: Option<usize>,
    /// Tokens that the context holds [default: as many as the model was trained for]
    #[arg(short, long, value_name = "N")]
    pub(crate) ctx_size: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// End where this text occurs, and leave it out; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Write one JSON object (in a chat: one for each answer) instead of the text
    #[arg(long)]
    pub(crate) json: bool,
    /// End with the speed and with where the memory went
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Keep the keys and values of the prompt in this file, and take from it what the next prompt begins with; written by the
    /// first run, and again where a prompt has more than it; in a chat when it has doubled, and at the end
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_cache: Option<PathBuf>,
    /// Record what happens to memory into this file, to be looked at with `granule trace`; FILE.part until it is whole
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
}

/// How each token is chosen.
#[derive(clap::Args)]
pub(crate) struct SamplingArgs {
    /// How far from the likeliest token the choice may stray; 0 always takes the likeliest
    #[arg(long, value_name = "T", default_value = "0.8", allow_negative_numbers = true)]
    pub(crate) temp: f32,
    /// Choose among this many of the likeliest tokens; 0 for all
    #[arg(long, value_name = "N", default_value = "40")]
    pub(crate) top_k: usize,
    /// Choose among the likeliest tokens that have this share of the probability together
    #[arg(long, value_name = "P", default_value = "0.95", allow_negative_numbers = true)]
    pub(crate) top_p: f32,
    /// Leave out tokens less likely than this fraction of the likeliest one
    #[arg(long, value_name = "P", default_value = "0.05", allow_negative_numbers = true)]
    pub(crate) min_p: f32,
    /// Make tokens that occurred lately less likely; 1 for no difference
    #[arg(long, value_name = "R", default_value = "1.0", allow_negative_numbers = true)]
    pub(crate) repeat_penalty: f32,
    /// What the random numbers start from; the same seed writes the same text [default: another one each time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// `granule info`
#[derive(clap::Args)]
pub(crate) struct InfoArgs {
    /// The model: a GGUF file, the first one where it comes in several
    pub(crate) model: PathBuf,
    /// Say what each device would hold with a full context, where the flags below name any
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// Tokens that this context holds [default: as many as the model was trained for]
    #[arg(short, long, value_name = "N")]
    pub(crate) ctx_size: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    /// Write one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// List the metadata and every tensor as well
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// `granule perplexity`
#[derive(clap::Args)]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// The text to predict, a UTF-8 file
    pub(crate) file: PathBuf,
    /// Tokens of a window, of which the second half is scored
    #[arg(short, long, value_name = "N", default_value = "512")]
    pub(crate) ctx_size: NonZeroUsize,
    /// The most windows to measure [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) chunks: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    /// Write one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `granule bench`
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Compare the types of keys and values: speed at each depth, bytes of a token, and perplexity where there is a text
    #[arg(long)]
    pub(crate) kv: bool,
    /// Tokens of the prompt that is timed; 0 to leave it out
    #[arg(long = "prompt", value_name = "N", default_value = "512")]
    pub(crate) n_prompt: usize,
    /// Tokens whose decoding is timed, one by one; 0 to leave it out [default: 128, with --kv 32]
    #[arg(long = "gen", value_name = "N")]
    n_gen: Option<usize>,
    /// Tokens that are in the context before each measurement [default: 0, with --kv 0,512,2048]
    #[arg(long, alias = "depths", value_name = "N,…", value_delimiter = ',')]
    depth: Vec<usize>,
    /// Sequences that are decoded at once, one token of each in a step, each with a context of its own; of several counts, each is
    /// measured [default: 1]
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with = "kv")]
    parallel: Vec<NonZeroUsize>,
    /// How often each measurement is made [default: 5, with --kv 3]
    #[arg(long, value_name = "N")]
    repeat: Option<NonZeroUsize>,
    /// With --kv: the text whose perplexity is measured with each pair of types, a UTF-8 file
    #[arg(long, value_name = "FILE", requires = "kv")]
    pub(crate) text: Option<PathBuf>,
    /// Of the text: tokens of a window, of which the second half is scored
    #[arg(short, long, value_name = "N", default_value = "512", requires = "text")]
    pub(crate) ctx_size: NonZeroUsize,
    /// Of the text: the most windows to measure [default: all]
    #[arg(long, value_name = "N", requires = "text")]
    pub(crate) chunks: Option<NonZeroUsize>,
    /// Tokens of a prompt that are computed in one go
    #[arg(short, long, value_name = "N", default_value = "512")]
    batch_size: NonZeroUsize,
    /// What keys are stored as; of several, each is measured [default: f16, with --kv every type that the model's heads allow]
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',')]
    cache_type_k: Vec<KvType>,
    /// What values are stored as; of several, each is measured [default: f16, with --kv every type that the model's heads allow]
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',')]
    cache_type_v: Vec<KvType>,
    /// Both of the above at once
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',')]
    kv_cache_type: Vec<KvType>,
    /// Turn 4-bit keys and values into what 4 bits hold better before they are stored; none stores plain ggml blocks
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    kv_transform: KvTransformArg,
    /// On GPUs: give steps of one token kernel by kernel, instead of replaying them as graphs
    #[arg(long)]
    no_graphs: bool,
    /// On GPUs: compute prompts with NVIDIA's cuBLAS, where it is installed
    #[arg(long)]
    cublas: bool,
    /// Write a JSON array instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

impl BenchArgs {
    pub(crate) fn n_gen(&self) -> usize {
        self.n_gen.unwrap_or(if self.kv { 32 } else { 128 })
    }

    /// Ascending, each once.
    pub(crate) fn depths(&self) -> Vec<usize> {
        let usual: &[usize] = if self.kv { &[0, 512, 2048] } else { &[0] };
        let mut depths = if self.depth.is_empty() { usual.to_vec() } else { self.depth.clone() };
        depths.sort_unstable();
        depths.dedup();
        depths
    }

    /// Ascending, each once.
    pub(crate) fn parallel(&self) -> Vec<usize> {
        let mut counts: Vec<usize> = self.parallel.iter().copied().map(usize::from).collect();
        counts.sort_unstable();
        counts.dedup();
        if counts.is_empty() { vec![1] } else { counts }
    }

    pub(crate) fn repeat(&self) -> usize {
        self.repeat.map_or(if self.kv { 3 } else { 5 }, usize::from)
    }

    /// The contexts to measure: each type of keys with each of values.
    pub(crate) fn contexts(&self) -> Vec<ContextArgs> {
        let usual: &[KvType] = if self.kv { KvType::ALL } else { &[KvType::F16] };
        let types = |own: &[KvType]| if own.is_empty() { usual.to_vec() } else { own.to_vec() };
        let (k, v) = (types(self.named_k()), types(self.named_v()));
        // Sequences that are decoded at once are so in one step.
        let batch_size = self.parallel.iter().copied().fold(self.batch_size, NonZeroUsize::max);
        let (kv_transform, no_graphs, cublas) = (self.kv_transform, self.no_graphs, self.cublas);
        let pairs = k.iter().flat_map(|&k| v.iter().map(move |&v| (k, v)));
        let context = |(k, v)| ContextArgs {
            batch_size,
            cache_type_k: Some(k),
            cache_type_v: Some(v),
            kv_cache_type: None,
            kv_transform,
            no_graphs,
            cublas,
        };
        pairs.map(context).collect()
    }

    /// As much context as the measurement takes at its most, as one sequence's, in the first of the types: what has to fit where the model is
    /// placed by what fits.
    pub(crate) fn largest(&self) -> Result<ContextOptions> {
        let deepest = self.depths().last().copied().unwrap_or(0);
        let most = if self.kv { 1 } else { self.parallel().last().copied().unwrap_or(1) };
        // What cannot be counted is refused where it is measured, each in its own words.
        let tokens = deepest.saturating_add(self.n_prompt.max(self.n_gen()).max(1)).saturating_mul(most);
        let context = self.contexts().into_iter().next().context("no type of keys and values is named")?;
        Ok(session::options(&context, Some(tokens)))
    }

    /// Whether somebody asked for keys, or values, of this type. Those that are measured where nobody did may be ones that a model
    /// cannot have.
    pub(crate) fn is_named(&self, kv_type: KvType) -> bool {
        self.named_k().contains(&kv_type) || self.named_v().contains(&kv_type)
    }

    fn named_k(&self) -> &[KvType] {
        if self.cache_type_k.is_empty() { &self.kv_cache_type } else { &self.cache_type_k }
    }

    fn named_v(&self) -> &[KvType] {
        if self.cache_type_v.is_empty() { &self.kv_cache_type } else { &self.cache_type_v }
    }
}

/// `granule tokenize`
#[derive(clap::Args)]
pub(crate) struct TokenizeArgs {
    /// A GGUF file; only its vocabulary is read
    pub(crate) model: PathBuf,
    /// The text; special tokens in it are recognized
    #[arg(allow_hyphen_values = true)]
    pub(crate) text: String,
    /// Write a JSON array of the ids
    #[arg(long)]
    pub(crate) json: bool,
}

/// `granule quantize`
#[derive(clap::Args)]
pub(crate) struct QuantizeArgs {
    /// The model: a GGUF file with weights in F32, F16 or BF16, the first one where it comes in several
    pub(crate) input: PathBuf,
    /// The file to write; OUTPUT.quantizing until it is whole
    pub(crate) output: PathBuf,
    /// What weights become: f32, f16, bf16, q8_0, q4_0 or q4_k_m
    #[arg(value_name = "TYPE")]
    pub(crate) target: QuantizeTarget,
    /// Replace the file that is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Threads that compute [default: one per physical core]
    #[arg(short = 't', long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Write one JSON object, with every tensor
    #[arg(long)]
    pub(crate) json: bool,
}

/// `granule launch`
#[derive(clap::Args)]
pub(crate) struct LaunchArgs {
    /// How many processes
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) ranks: u8,
    /// On the host: the program that starts them
    #[arg(long, value_name = "PROGRAM", default_value = "mpirun")]
    pub(crate) mpirun: PathBuf,
    /// On GPUs: where they meet [default: a free port of this machine's own address]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) rendezvous: Option<String>,
    /// What they run, as in: granule launch -n 2 -- run MODEL -p TEXT
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// `granule trace`
#[derive(clap::Args)]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    pub(crate) command: TraceCommand,
}

/// Of a file that is cut or damaged, each tells what can be read, and ends with the error and status 1.
#[derive(Subcommand)]
pub(crate) enum TraceCommand {
    /// Say who held how much, what was leased, and what was left
    Summary {
        /// The recording
        file: PathBuf,
        /// Write one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write an HTML page: memory over time, and where everything was at any moment
    View {
        /// The recording
        file: PathBuf,
        /// The page, - for stdout [default: FILE.html]
        #[arg(short, long, value_name = "PAGE")]
        output: Option<PathBuf>,
    },
    /// Write the events as JSON lines
    Export {
        /// The recording
        file: PathBuf,
    },
}

/// Prints help as it is, and what is wrong with a command line as one line.
pub(crate) fn explain(usage: &clap::Error) -> ExitCode {
    let asked = matches!(usage.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked || usage.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Printing help into a closed pipe is nobody's error.
        let _ = usage.print();
        return if asked { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    eprintln!("{}", in_one_line(usage));
    ExitCode::from(2)
}

/// What is wrong with a command line.
pub(crate) fn in_one_line(usage: &clap::Error) -> String {
    let text = usage.render().to_string();
    let said = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let said = said.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    said.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::Args;
    use clap::CommandFactory;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Args::command().debug_assert();
    }
}
