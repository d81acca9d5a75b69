//! Models in several files: `NAME-00001-of-0000N.gguf`. Which names belong together, and whether the files do.

use super::Gguf;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The name of one shard of a model, taken apart.
///
/// ```
/// use granule_llama::gguf::ShardName;
/// let name = ShardName::parse("models/big-00001-of-00003.gguf".as_ref()).unwrap();
/// assert_eq!((name.number(), name.count()), (1, 3));
/// assert_eq!(name.path(3), std::path::Path::new("models/big-00003-of-00003.gguf"));
/// assert!(ShardName::parse("models/big.gguf".as_ref()).is_none());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardName {
    dir: PathBuf,
    stem: String,
    number: u32,
    count: u32,
}

impl ShardName {
    /// Take a path apart; `None` where it is no shard's name. Both numbers have
    /// five digits and count from 1.
    #[must_use]
    pub fn parse(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let parse = |digits: &str| -> Option<u32> {
            let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            if plain { digits.parse().ok() } else { None }
        };
        let (number, count) = (parse(number)?, parse(count)?);
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        (1..=count).contains(&number).then(|| Self { dir, stem: stem.to_owned(), number, count })
    }

    /// The shard's number, from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// How many shards there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The path of the shard with this number, from 1.
    #[must_use]
    pub fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }

    /// The paths of the model that `path` names: itself where it is no shard, all shards in order where it is the
    /// first one.
    ///
    /// # Errors
    /// [`Error::NotFirstShard`] where it is another one: the metadata are in the first.
    pub fn paths_of(path: &Path) -> Result<Vec<PathBuf>> {
        let Some(shard) = Self::parse(path) else { return Ok(vec![path.to_owned()]) };
        if shard.number != 1 {
            return Err(Error::NotFirstShard {
                name: path.display().to_string(),
                number: shard.number,
                count: shard.count,
                first: shard.path(1).display().to_string(),
            });
        }
        Ok((1..=shard.count).map(|n| shard.path(n)).collect())
    }
}

/// Check that files belong together: `paths` as [`ShardName::paths_of`] gave them, `shards` what they hold.
///
/// # Errors
/// [`Error::ShardName`] where one file says that there are more, [`Error::ShardMismatch`] where a shard's
/// `split.no`, `split.count` or `split.tensors.count` is not what it must be, [`Error::DuplicateTensor`] where two
/// shards hold a tensor of one name, [`Error::MissingKey`] where a shard says nothing about itself.
pub fn check_shards(paths: &[PathBuf], shards: &[Gguf]) -> Result<()> {
    let name = |i: usize| paths.get(i).map_or_else(String::new, |p| p.display().to_string());
    if let [only] = shards
        && paths.len() == 1
    {
        return match only.metadata().find_u64(COUNT)? {
            Some(count) if count > 1 => Err(Error::ShardName { name: name(0), count }),
            _ => Ok(()),
        };
    }
    let mismatch = |i: usize, key: &'static str, found: u64, expected: u64| {
        if found == expected {
            return Ok(());
        }
        Err(Error::ShardMismatch {
            name: name(i),
            key,
            found: found.to_string(),
            expected: expected.to_string(),
        })
    };
    let mut names = std::collections::HashSet::new();
    let mut tensors = 0;
    for (i, shard) in shards.iter().enumerate() {
        mismatch(i, COUNT, shard.metadata().get_u64(COUNT)?, paths.len() as u64)?;
        mismatch(i, NUMBER, shard.metadata().get_u64(NUMBER)?, i as u64)?;
        tensors += shard.tensors().len() as u64;
        for tensor in shard.tensors() {
            if !names.insert(tensor.name.as_str()) {
                return Err(Error::DuplicateTensor { name: tensor.name.clone() });
            }
        }
    }
    for (i, shard) in shards.iter().enumerate() {
        if let Some(said) = shard.metadata().find_u64(TENSORS)? {
            mismatch(i, TENSORS, said, tensors)?;
        }
    }
    Ok(())
}
