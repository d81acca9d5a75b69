//! The engine as every group uses it: load, contexts, greedy text.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use granule_kv::KvType;
use granule_llama::{
    Context, ContextOptions, EncodeOptions, GenerateOptions, KvTransformMode, LoadOptions, Model,
    SamplingOptions, TokenId,
};

/// A pair of types, as the oracles write it: "q8_0/q4_0"; and whether it is plain blocks, or goes through what this engine puts in
/// front of them by default.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    k: KvType,
    v: KvType,
    transform: KvTransformMode,
}

impl Pair {
    pub(crate) const F32: Pair = Pair::plain(KvType::F32, KvType::F32);
    pub(crate) const F16: Pair = Pair::plain(KvType::F16, KvType::F16);
    pub(crate) const Q8_0: Pair = Pair::plain(KvType::Q8_0, KvType::Q8_0);
    pub(crate) const Q4_0: Pair = Pair::plain(KvType::Q4_0, KvType::Q4_0);

    const fn plain(k: KvType, v: KvType) -> Pair {
        Pair { k, v, transform: KvTransformMode::None }
    }

    pub(crate) const fn transformed(self) -> Pair {
        Pair { transform: KvTransformMode::Auto, ..self }
    }

    /// What was rotated there is transformed here. `None` where that leaves a pair as it is.
    pub(crate) fn parse(name: &str) -> Result<Option<Pair>> {
        let (types, transform) = match name.strip_suffix(" rotated") {
            Some(types) => (types, KvTransformMode::Auto),
            None => (name, KvTransformMode::None),
        };
        let (k, v) = types.split_once('/').with_context(|| format!("`{name}` is no pair of types"))?;
        let pair = Pair { k: k.parse()?, v: v.parse()?, transform };
        let is_left = transform == KvTransformMode::Auto && ![pair.k, pair.v].contains(&KvType::Q4_0);
        Ok((!is_left).then_some(pair))
    }
}

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let transformed = if self.transform == KvTransformMode::Auto { " transformed" } else { "" };
        write!(f, "{}/{}{transformed}", self.k, self.v)
    }
}

pub(crate) fn load(path: &Path) -> Result<Arc<Model>> {
    Model::load(path, LoadOptions::default()).with_context(|| path.display().to_string())
}

pub(crate) fn context(model: &Arc<Model>, pair: Pair, n_ctx: usize) -> Result<Context> {
    let Pair { k: type_k, v: type_v, transform: kv_transform } = pair;
    let options =
        ContextOptions { n_ctx: Some(n_ctx), type_k, type_v, kv_transform, ..ContextOptions::default() };
    Ok(Context::new(Arc::clone(model), options)?)
}

pub(crate) fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId::new).collect()
}

pub(crate) fn numbers(ids: &[TokenId]) -> Vec<u32> {
    ids.iter().map(|id| id.get()).collect()
}

/// A raw prompt's tokens: special tokens recognized, a start token where the file asks for one.
pub(crate) fn encode(model: &Model, text: &str) -> Result<Vec<TokenId>> {
    let options = EncodeOptions { parse_special: true, ..EncodeOptions::default() };
    Ok(model.tokenizer().encode(text, options)?)
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(i, _)| i as u32)
}

/// The greedy text behind `prompt`, of at most `n` tokens.
pub(crate) fn greedy_text(context: &mut Context, prompt: &[TokenId], n: usize) -> Result<String> {
    context.clear()?;
    let options = GenerateOptions {
        sampling: SamplingOptions::greedy(),
        n_predict: Some(n),
        ..GenerateOptions::default()
    };
    let mut text = String::new();
    for piece in context.generate(prompt, options)? {
        text.push_str(&piece?.text);
    }
    Ok(text)
}
