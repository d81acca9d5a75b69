//! State files: a context's sequences on a disk, and back.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use granule_device::Bytes;
use granule_kv::state::{SaveSequence, StateError, StateFile, save};
use granule_kv::{Identity, KvLayout, Sequence};

use super::{Context, Slot};
use crate::engine::patiently;
use crate::error::{Error, Result};
use crate::kv_tables::{self, Tables};
use crate::shared::Shared;
use crate::tokenizer::TokenId;

impl Context {
    /// Saves all sequences, their tokens, keys and values, to the file at `path`, in place of a state file that is there; answers how long
    /// it is. Whatever happens meanwhile, the file is the old one or the new one. It does not tell where layers and heads were.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State): a file of that name that is no state file, a full disk; [`Error::Unsupported`] where other processes have
    /// a part of the heads.
    pub fn save_state(&self, path: impl AsRef<Path>) -> Result<Bytes> {
        let heads = self.heads()?;
        let tokens: Vec<Vec<u32>> = self.slots.iter().map(Slot::numbers).collect();
        let further: Vec<Vec<&Sequence>> =
            self.slots.iter().map(|slot| slot.stages.iter().skip(1).collect()).collect();
        let slots = self.slots.iter().zip(&further).zip(&tokens);
        let sequences: Vec<SaveSequence<'_>> = slots
            .map(|((slot, further), tokens)| SaveSequence {
                sequence: slot.first(),
                further,
                heads: &heads,
                tokens,
                extra: &[],
            })
            .collect();
        Ok(save(path, &self.kv_identity()?, &sequences)?)
    }

    /// Has the context's sequences be those of a state file, in place of what it has. The first keeps its name; the others
    /// get new ones, and stand in [`Context::sequences`] in the order in which they were saved. All of the file is verified before
    /// anything changes. Logits are not saved: to have some, a token has to be evaluated.
    ///
    /// A file brings the tables of the transform that its keys and values went through: another machine's differ from this one's in
    /// their last bits. The context goes on with those of the file; the model's other contexts keep theirs.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State): a file that is cut or damaged, or of another model, another RoPE, other types or
    /// another transform than the context's, or with more tokens than it holds; [`Error::TokenOutOfRange`] for a token that the
    /// model does not have; [`Error::Unsupported`] as [`Context::save_state`]; [`Error::Bank`](crate::Error::Bank) where there is no memory for the tables. The context is then as it was.
    pub fn load_state(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.heads()?;
        let file = StateFile::open(path)?;
        let shared = self.shared_for(&file)?;
        let identity = self.identity_over(&shared)?;
        file.check(&identity, &self.whole_layout(&shared)?)?;
        let n_vocab = self.model.config().n_vocab;
        let slots = (0..file.sequences()).map(|which| {
            let tokens: Vec<TokenId> = file.tokens(which)?.iter().copied().map(TokenId::new).collect();
            if let Some(bad) = tokens.iter().find(|token| token.index() >= n_vocab) {
                return Err(Error::TokenOutOfRange { id: bad.get(), n_vocab });
            }
            let parts = self.model.places().iter().zip(&shared.caches).map(|(place, cache)| {
                let first = place.span.layers.start;
                let heads =
                    place.part().map_or(0..self.model.config().n_kv_heads, |part| part.kv_heads.clone());
                patiently(|| {
                    Ok(file.restore_heads(which, first, heads.clone(), cache, self.n_ctx(), &identity)?)
                })
            });
            Ok(Slot::new(parts.collect::<Result<_>>()?, &tokens))
        });
        let mut slots = slots.collect::<Result<Vec<_>>>()?;
        if let Some(first) = slots.first_mut() {
            first.id = self.first_sequence();
            self.slots = slots;
            self.shared = shared;
            self.forget_logits();
        }
        Ok(())
    }

    /// What the sequences of a file lie in: what the context's do, or a cache with the file's own tables.
    fn shared_for(&self, file: &StateFile) -> Result<Arc<Shared>> {
        let (mine, theirs) = (self.kv_identity()?, &file.identity().transform);
        if mine.transform == *theirs || mine.transform.is_empty() || theirs.is_empty() {
            return Ok(Arc::clone(&self.shared));
        }
        // Whatever else does not fit is said first.
        let layout = self.whole_layout(&self.shared)?;
        file.check(&Identity { transform: theirs.clone(), ..mine }, &layout)?;
        let shape = self.model.config().kv_shape();
        let sides = |transforms: &granule_ops::KvTransforms| {
            let layer = transforms.layer(0);
            layer.map(|layer| (layer.key_fold().is_some(), layer.value_fold().is_some()))
        };
        let tables = kv_tables::read(shape, theirs).ok_or(StateError::WrongTransform)?;
        let tables = match Tables::new(self.model.tables_bank(), shape, &tables) {
            // Numbers that no table has.
            Err(Error::Ops(_)) => return Err(StateError::WrongTransform.into()),
            made => made?,
        };
        if self.kv_transforms().map(sides) != Some(sides(tables.transforms())) {
            return Err(StateError::WrongTransform.into());
        }
        let (layouts, options) = (self.shared.layouts(), self.shared.caches[0].options());
        self.model.shared(&layouts, options, Some(Arc::new(tables)))
    }

    /// Of each stage the key-value heads that each of its places has. Files have rows whole, so all ranks must be here.
    fn heads(&self) -> Result<Vec<Vec<Range<usize>>>> {
        let whole = 0..self.model.config().n_kv_heads;
        let stages = self.model.places().chunk_by(|a, b| a.span.layers == b.span.layers);
        let heads = stages.map(|places| {
            let ranks = places[0].all_ranks().map_or(1, <[_]>::len);
            if ranks != places.len() {
                return Err(Error::Unsupported {
                    what: "a state file where other processes have a part of the heads".into(),
                });
            }
            Ok(places
                .iter()
                .map(|place| place.part().map_or(whole.clone(), |part| part.kv_heads.clone()))
                .collect())
        });
        heads.collect()
    }

    /// The layout that all of the model's layers would have in one cache.
    fn whole_layout(&self, shared: &Shared) -> Result<KvLayout> {
        let layout = shared.caches[0].layout();
        let (k, v, sinks) = (layout.k_type(), layout.v_type(), layout.sinks());
        Ok(KvLayout::new(self.model.config().kv_shape(), k, v, None, sinks)?)
    }
}
