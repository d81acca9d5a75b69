//! State files: a context's sequences on a disk, and back.

use std::path::Path;

use granule_device::Bytes;
use granule_kv::state::{SaveSequence, StateFile, save};

use super::{Context, Slot};
use crate::error::Result;
use crate::tokenizer::TokenId;

impl Context {
    /// Saves all sequences, their tokens, keys and values, to the file at `path`, in place of a state file that is there; answers how long
    /// it is. Whatever happens meanwhile, the file is the old one or the new one.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State): a file of that name that is no state file, a full disk.
    pub fn save_state(&self, path: impl AsRef<Path>) -> Result<Bytes> {
        let tokens: Vec<Vec<u32>> = self.slots.iter().map(Slot::numbers).collect();
        let sequences: Vec<SaveSequence<'_>> = self
            .slots
            .iter()
            .zip(&tokens)
            .map(|(slot, tokens)| SaveSequence { sequence: &slot.sequence, tokens, extra: &[] })
            .collect();
        Ok(save(path, &self.kv_identity()?, &sequences)?)
    }

    /// Has the context's sequences be those of a state file, in place of what it has. The first keeps its name; the others
    /// get new ones, and stand in [`Context::sequences`] in the order in which they were saved. All of the file is verified before
    /// anything changes. Logits are not saved: to have some, a token has to be evaluated.
    ///
    /// # Errors
    /// [`Error::State`](crate::Error::State): a file that is cut or damaged, or of another model, another RoPE, other types or
    /// another transform than the context's, or with more tokens than it holds. The context is then as it was.
    pub fn load_state(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let file = StateFile::open(path)?;
        let identity = self.kv_identity()?;
        let slots = (0..file.sequences()).map(|which| {
            let sequence = file.restore(which, &self.shared.cache, self.n_ctx(), &identity)?;
            let tokens: Vec<TokenId> = file.tokens(which)?.iter().copied().map(TokenId::new).collect();
            Ok(Slot::new(sequence, &tokens))
        });
        let mut slots = slots.collect::<Result<Vec<_>>>()?;
        if let Some(first) = slots.first_mut() {
            first.id = self.first_sequence();
            self.slots = slots;
        }
        Ok(())
    }
}
