//! What can go wrong in this crate, written for the person who must act on it.

use std::io;
use std::path::PathBuf;

use granule_device::Bytes;
use granule_quant::DType;
use thiserror::Error as ThisError;

use crate::context::SequenceId;
use crate::plan::Fits;

/// An error of the engine: a bad file, an unsupported model, a bad option, or no room.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum Error {
    // ---- GGUF ----
    /// The first four bytes are not the format's magic.
    #[error("not a GGUF file: it begins with {found}, not with \"GGUF\"")]
    NotGguf {
        /// The first bytes, printable.
        found: String,
    },
    /// The file was written for a big-endian machine.
    #[error(
        "a big-endian GGUF file (version {version}): only little-endian files are read; convert it again"
    )]
    BigEndian {
        /// The version, after swapping its bytes.
        version: u32,
    },
    /// The format's version is none of those that are read.
    #[error("GGUF version {version} is not supported, only versions 2 and 3; convert the model again")]
    UnsupportedGgufVersion {
        /// The version that the file states.
        version: u32,
    },
    /// The file ends before something that it announces.
    #[error(
        "the file is cut short or damaged: {what} needs {needed} bytes at byte {offset}, {available} are left"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it begins, in bytes from the file's start.
        offset: u64,
        /// How many bytes it needs, at least.
        needed: u128,
        /// How many bytes the file still has there.
        available: u64,
    },
    /// A name or a text of the file is not UTF-8.
    #[error("{what} is not valid UTF-8")]
    InvalidUtf8 {
        /// Which one.
        what: String,
    },
    /// A metadata key occurs twice.
    #[error("metadata key `{}` occurs twice", excerpt(.key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A metadata value has a type that the format does not define.
    #[error("metadata key `{}` has the unknown value type {id}", excerpt(.key))]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type's id in the file.
        id: u32,
    },
    /// A boolean of the metadata is neither 0 nor 1.
    #[error("metadata key `{}` holds a boolean of value {value}; it must be 0 or 1", excerpt(.key))]
    InvalidBool {
        /// The key.
        key: String,
        /// The byte found.
        value: u8,
    },
    /// A metadata array holds arrays of arrays of arrays … beyond reason.
    #[error("metadata key `{}` nests arrays more than {limit} deep", excerpt(.key))]
    NestedTooDeep {
        /// The key.
        key: String,
        /// The deepest nesting that is read.
        limit: usize,
    },
    /// A metadata key that is needed is not there.
    #[error("metadata key `{}` is missing", excerpt(.key))]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value is of another type than it must be, or out of that type's range.
    #[error("metadata key `{}` must be {expected}, but it is {found}", excerpt(.key))]
    WrongType {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// `general.alignment` is not a power of two.
    #[error("general.alignment is {alignment}; it must be a power of two")]
    InvalidAlignment {
        /// The value found.
        alignment: u32,
    },
    /// Two tensors have one name.
    #[error("tensor `{}` occurs twice", excerpt(.name))]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// A tensor has more dimensions than ggml knows.
    #[error("tensor `{}` has {dims} dimensions; at most 4 are possible", excerpt(.name))]
    TooManyDims {
        /// The tensor.
        name: String,
        /// How many it claims.
        dims: u32,
    },
    /// A tensor's type id is unknown.
    #[error("tensor `{}` has the unknown type id {id}", excerpt(.name))]
    UnknownTensorType {
        /// The tensor.
        name: String,
        /// The id in the file.
        id: u32,
    },
    /// A tensor's row is no whole number of blocks of its type.
    #[error("tensor `{}` of type {ty} has rows of {row} elements, which is no multiple of {block}", excerpt(.name))]
    TensorRow {
        /// The tensor.
        name: String,
        /// Its type's name.
        ty: &'static str,
        /// Elements in a row.
        row: u64,
        /// Elements in a block of the type.
        block: u64,
    },
    /// A tensor's dimensions multiply to more bytes than a number holds.
    #[error("tensor `{}` with dimensions {dims:?} is larger than any memory", excerpt(.name))]
    TensorTooLarge {
        /// The tensor.
        name: String,
        /// Its dimensions, the row's length first.
        dims: Vec<u64>,
    },
    /// A tensor's data does not begin at a multiple of the alignment.
    #[error("tensor `{}` begins at offset {offset}, which is no multiple of the alignment {alignment}", excerpt(.name))]
    TensorUnaligned {
        /// The tensor.
        name: String,
        /// Its offset in the data section, in bytes.
        offset: u64,
        /// The file's alignment, in bytes.
        alignment: u64,
    },
    /// Two tensors claim the same bytes.
    #[error("tensors `{}` and `{}` overlap in the file", excerpt(.first), excerpt(.second))]
    TensorOverlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// A tensor's data ends behind the file's end.
    #[error(
        "the file is cut short: tensor `{}` needs {bytes} bytes at byte {offset}, the file has {file} bytes", excerpt(.name))]
    TensorOutOfFile {
        /// The tensor.
        name: String,
        /// Where its data begins, in bytes from the file's start.
        offset: u128,
        /// How many bytes it has.
        bytes: u64,
        /// The file's length in bytes.
        file: u64,
    },
    /// The data handed to the writer is not as long as type and dimensions say.
    #[error("tensor `{}` needs {expected} bytes of data, {found} were given", excerpt(.name))]
    TensorDataLength {
        /// The tensor.
        name: String,
        /// What type and dimensions ask for, in bytes.
        expected: u64,
        /// What was given, in bytes.
        found: u64,
    },

    // ---- shards ----
    /// The file's name says it is a shard, and it is not the first.
    #[error("`{name}` is shard {number} of {count}; open the first shard, `{first}`")]
    NotFirstShard {
        /// The file's name.
        name: String,
        /// Its number, from 1.
        number: u32,
        /// How many there are.
        count: u32,
        /// The first shard's name.
        first: String,
    },
    /// A file is one shard of several by its metadata, but its name does not say where the others are.
    #[error(
        "`{name}` is one of {count} shards, but its name does not end in `-00001-of-{count:05}.gguf`, so the others cannot be found"
    )]
    ShardName {
        /// The file's name.
        name: String,
        /// `split.count` of its metadata.
        count: u64,
    },
    /// A shard's metadata contradict its name, or the first shard.
    #[error("shard `{name}` does not belong here: its `{key}` is {found}, expected {expected}")]
    ShardMismatch {
        /// The shard's file name.
        name: String,
        /// The metadata key, or what was counted.
        key: &'static str,
        /// What the shard says.
        found: String,
        /// What it should say.
        expected: String,
    },

    // ---- tokenizer ----
    /// The file's tokenizer is of a kind that is not supported.
    #[error("tokenizer model `{model}` is not supported; supported are `llama` and `gpt2`")]
    UnsupportedTokenizer {
        /// `tokenizer.ggml.model` of the file.
        model: String,
    },
    /// The file's pre-tokenizer is not supported.
    #[error("pre-tokenizer `{pre}` is not supported; supported are `llama-bpe` and `smollm`")]
    UnsupportedPreTokenizer {
        /// `tokenizer.ggml.pre` of the file, or `(none)`.
        pre: String,
    },
    /// The vocabulary has no tokens, or more than can be numbered.
    #[error("a vocabulary of {count} tokens cannot be used")]
    VocabularySize {
        /// How many tokens it has.
        count: usize,
    },
    /// Two lists of the vocabulary that must be equally long are not.
    #[error("metadata key `{}` has {found} entries, but the vocabulary has {expected} tokens", excerpt(.key))]
    VocabularyLength {
        /// The key of the list.
        key: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        expected: usize,
    },
    /// One token of the vocabulary is unusable.
    #[error("token {id} (`{text}`) of the vocabulary {problem}")]
    InvalidToken {
        /// Its id.
        id: u32,
        /// The beginning of its text.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A merge rule is not two pieces with a space between them.
    #[error("merge rule {index} (`{rule}`) is not two pieces with one space between them")]
    InvalidMerge {
        /// Its place in `tokenizer.ggml.merges`.
        index: usize,
        /// The beginning of the rule.
        rule: String,
    },
    /// A special token's id lies outside the vocabulary.
    #[error("metadata key `{}` names token {id}, but the vocabulary ends at {n_vocab}", excerpt(.key))]
    SpecialTokenOutOfRange {
        /// The key.
        key: &'static str,
        /// The id it names.
        id: u32,
        /// The number of tokens.
        n_vocab: usize,
    },
    /// A token id is not one of the vocabulary's.
    #[error("token {id} does not exist: the vocabulary has {n_vocab} tokens")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// The number of tokens.
        n_vocab: usize,
    },
    /// A text holds bytes for which the vocabulary has neither tokens nor an unknown token.
    #[error("the vocabulary has no token for {what}, and no unknown token to put in its place")]
    NoTokenFor {
        /// The character or byte.
        what: String,
    },
    /// A text has a word, between places where words always part, that is too long to be turned into tokens.
    #[error("a word of {len} bytes is too long to be turned into tokens; at most 4 GiB are possible")]
    TextTooLong {
        /// Its length in bytes.
        len: usize,
    },

    // ---- chat ----
    /// The file brings no chat template.
    #[error("the model has no chat template (`tokenizer.chat_template`); give a raw prompt instead")]
    NoChatTemplate,
    /// The chat template cannot be read, or fails on these messages.
    #[error("chat template: {reason}")]
    ChatTemplate {
        /// What the template engine says, with the line.
        reason: String,
    },
    /// The chat template itself refuses the messages (`raise_exception`).
    #[error("the model's chat template refuses these messages: {reason}")]
    ChatRefused {
        /// The template's own words.
        reason: String,
    },
    /// A message's role is no plain word.
    #[error("`{role}` is not a role: roles are words of letters, digits, `_` and `-`, as in `user`")]
    InvalidRole {
        /// The beginning of the role.
        role: String,
    },

    // ---- model and context ----
    /// The file asks for something that this engine does not do.
    #[error("not supported: {what}")]
    Unsupported {
        /// What it is, by name.
        what: String,
    },
    /// A number of the model's configuration makes no model.
    #[error("metadata key `{}`: {problem}", excerpt(.key))]
    InvalidConfig {
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A tensor that the model needs is not in the file.
    #[error("tensor `{}` is missing", excerpt(.name))]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape than the model's configuration asks for.
    #[error("tensor `{}` has the shape {found:?}; the model's configuration asks for {expected:?}", excerpt(.name))]
    TensorShape {
        /// Its name.
        name: String,
        /// Its dimensions, the row's length first.
        found: Vec<u64>,
        /// What they must be.
        expected: Vec<u64>,
    },
    /// A tensor's type is none that the engine computes with.
    #[error("tensor `{}` has the type {ty}, which the engine does not run yet", excerpt(.name))]
    UnsupportedWeight {
        /// Its name.
        name: String,
        /// The type's name.
        ty: &'static str,
    },
    /// A file could not be opened or read.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An option of a context has a value that makes no sense.
    #[error("{option} is {value}; it must be {allowed}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: usize,
        /// What it may be.
        allowed: &'static str,
    },
    /// A placement has other layers than the model.
    #[error("{placed} layers have a place, and the model has {n_layers}")]
    Placement {
        /// Layers that were placed.
        placed: usize,
        /// Layers of the model.
        n_layers: usize,
    },
    /// Layers are to be split, and there are not as many ranks as shares.
    #[error("{shares} shares for {ranks} ranks: one for each is needed")]
    SplitShares {
        /// Shares that were given.
        shares: usize,
        /// Devices, or processes.
        ranks: usize,
    },
    /// A GPU cannot hold what it was to hold.
    #[error(
        "{device} would need {needed} and has {available} free: {missing} are missing. What would fit: {fits}"
    )]
    DoesNotFit {
        /// The GPU that lacks most.
        device: String,
        /// What it would need, at most.
        needed: Bytes,
        /// What it has free.
        available: Bytes,
        /// What it has too little.
        missing: Bytes,
        /// What would fit.
        fits: Box<Fits>,
    },
    /// There is nothing to compute: no token was given.
    #[error("the prompt is empty")]
    NoTokens,
    /// Nobody has computed the logits that are asked for.
    #[error("there are no logits: no token was evaluated for them yet")]
    NoLogits,
    /// A text has no whole window.
    #[error("the text has {tokens} tokens, fewer than one window of {n_ctx}")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        n_ctx: usize,
    },
    /// More tokens than the context holds.
    #[error(
        "{added} tokens do not fit: the context holds {n_ctx}, {used} are in use; raise the context size"
    )]
    ContextFull {
        /// Tokens to be added.
        added: usize,
        /// Tokens already there.
        used: usize,
        /// The context's size.
        n_ctx: usize,
    },
    /// A sequence that the context does not have: it was removed, or is another context's.
    #[error("sequence {} is not one of this context's, or was removed", id.get())]
    NoSuchSequence {
        /// The name given.
        id: SequenceId,
    },
    /// One sequence occurs twice in a batch.
    #[error("sequence {} occurs twice in one batch: give all of its tokens at once", id.get())]
    SequenceTwice {
        /// The name given.
        id: SequenceId,
    },
    /// The first sequence of a context stays.
    #[error("the first sequence of a context cannot be removed: clear it instead")]
    FirstSequence,
    /// The computation was stopped from outside, through a [`crate::CancelToken`].
    #[error("cancelled")]
    Cancelled,
    /// The device refused a call, or a mapped file was cut short.
    #[error(transparent)]
    Device(#[from] granule_device::Error),
    /// The bank has no room, or a call to its device failed.
    #[error(transparent)]
    Bank(#[from] granule_bank::Error),
    /// There is no memory to compute with.
    #[error(transparent)]
    Pool(#[from] granule_pool::Error),
    /// The KV cache has no room, or cannot hold this model in this type.
    #[error(transparent)]
    Kv(#[from] granule_kv::Error),
    /// A state was not saved or not loaded.
    #[error(transparent)]
    State(#[from] granule_kv::state::StateError),
    /// An operation was refused.
    #[error(transparent)]
    Ops(#[from] granule_ops::Error),
    /// Sizes that nothing could have.
    #[error(transparent)]
    Plan(granule_plan::Error),
    /// Layers that cannot be split so; or ranks that do not reach one another.
    #[error(transparent)]
    Split(#[from] granule_split::Error),

    // ---- quantizing ----
    /// The name is none of a type that files are quantized to.
    #[error(
        "`{name}` is no type that files are quantized to; the types are f32, f16, bf16, q8_0, q4_0 and q4_k_m"
    )]
    UnknownTarget {
        /// The name given.
        name: String,
    },
    /// A weight of the file is quantized already: doing it again adds one error to another.
    #[error(
        "tensor `{}` is {ty} already; quantize the file that it was made from, with weights in f32, f16 or bf16",
        excerpt(.name)
    )]
    AlreadyQuantized {
        /// The tensor.
        name: String,
        /// Its type's name.
        ty: &'static str,
    },
    /// A weight is no floating-point number, or not one that is read here.
    #[error("tensor `{}` has the type {ty}, which does not become {to}", excerpt(.name))]
    NotQuantizable {
        /// The tensor.
        name: String,
        /// Its type's name.
        ty: &'static str,
        /// The type it was to become.
        to: DType,
    },
    /// Numbers of a weight have no place in the type they were to become.
    #[error("tensor `{}`, row {row}: {source}", excerpt(.name))]
    NotEncodable {
        /// The tensor.
        name: String,
        /// The row, from 0.
        row: u64,
        /// Which number, and why.
        source: granule_quant::Error,
    },
    /// The file to be written is there already.
    #[error("`{}` is there already; it is replaced only where that is asked for", path.display())]
    OutputExists {
        /// The file.
        path: PathBuf,
    },
    /// The file to be written is the one to be read.
    #[error("`{}` would be written over the file that is read", path.display())]
    OutputIsInput {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else is writing the same file.
    #[error("`{}` is being written by another program", path.display())]
    OutputBusy {
        /// The file in which the output grows.
        path: PathBuf,
    },
    /// The disk is full, or an allowance on it.
    #[error("no room for `{}`, which takes {needed} bytes: {source}", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Bytes of the whole file.
        needed: u64,
        /// The system's reason.
        source: io::Error,
    },

    // ---- sampling ----
    /// A sampling option lies outside its range.
    #[error("{option} is {value}; it must be {allowed}")]
    InvalidSampling {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: f32,
        /// What it may be.
        allowed: &'static str,
    },
    /// The logits handed to the sampler cannot be drawn from.
    #[error("the logit of token {index} is {value}: the model's numbers are broken")]
    InvalidLogit {
        /// Which token's.
        index: usize,
        /// NaN or positive infinity.
        value: f32,
    },
    /// The logits leave no token to draw.
    #[error("there is no token to draw: {count} logits, none above negative infinity")]
    NoCandidates {
        /// How many logits were given.
        count: usize,
    },
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<granule_plan::Error> for Error {
    fn from(error: granule_plan::Error) -> Error {
        match error {
            granule_plan::Error::Ops(error) => error.into(),
            granule_plan::Error::Kv(error) => error.into(),
            other => Error::Plan(other),
        }
    }
}

/// The beginning of `text`, short enough for one line of an error, without control characters.
pub(crate) fn excerpt(text: &str) -> String {
    const LIMIT: usize = 48;
    let mut out: String = text.chars().take(LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().nth(LIMIT).is_some() {
        out.push('…');
    }
    out
}
