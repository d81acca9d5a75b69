//! `Class`: the sizes that small and medium blocks come in.
//!
//! ```text
//!  index   0 ..  7     256, 512, ..        2,048   one every 256 bytes
//!  index   8 .. 15   2,304, 2,560, ..      4,096   then eight in each doubling:
//!  index  16 .. 23   4,608, 5,120, ..      8,192   a block is less than 1/8 larger than what was asked
//!  ..
//!  index  72 .. 79     576 KiB, ..         1 MiB
//! ```

use super::UNIT;

/// A size class. The table is arithmetic: no search and no branch but the one for sizes that have no class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(u8);

/// Classes in a doubling, as a power of two; also of the linear part, whose step is [`UNIT`].
const STEPS_LOG2: u32 = 3;
const STEPS: u64 = 1 << STEPS_LOG2;
const UNIT_LOG2: u32 = UNIT.ilog2();
/// Up to here, in bytes, there is a class every [`UNIT`].
const LINEAR: u64 = UNIT << STEPS_LOG2;

const SIZES: [u64; Class::COUNT] = {
    let mut sizes = [0; Class::COUNT];
    let mut index = 0;
    while index < Class::COUNT {
        // The doubling of the class, where the linear part and the first doubling have the same step.
        let row = index as u32 >> STEPS_LOG2;
        let doubling = row.saturating_sub(1);
        let step = UNIT << doubling;
        let steps = index as u64 - ((doubling as u64) << STEPS_LOG2) + 1;
        sizes[index] = steps * step;
        index += 1;
    }
    sizes
};

impl Class {
    /// How many classes there are.
    pub const COUNT: usize = 80;

    /// The size of the largest class, in bytes: 1 MiB.
    pub const LARGEST: u64 = 1 << 20;

    /// The smallest class that holds `size` bytes; none where there is nothing to hold, or more than [`Class::LARGEST`].
    #[inline]
    pub const fn of(size: u64) -> Option<Class> {
        // Nothing wraps around to the largest number there is.
        let last = size.wrapping_sub(1);
        if last >= Class::LARGEST {
            return None;
        }
        // The step of the classes in the doubling that holds the last byte, as a power of two.
        let step_log2 = (last | LINEAR).ilog2() - STEPS_LOG2;
        let index = (last >> step_log2) + ((step_log2 - UNIT_LOG2) as u64 * STEPS);
        Some(Class(index as u8))
    }

    /// How many bytes a block of this class has.
    #[inline]
    pub const fn size(self) -> u64 {
        SIZES[self.0 as usize]
    }

    /// Its place in the order of sizes: below [`Class::COUNT`].
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The class at this place in the order of sizes.
    #[inline]
    pub const fn at(index: usize) -> Option<Class> {
        if index < Class::COUNT { Some(Class(index as u8)) } else { None }
    }

    /// All classes, from the smallest to the largest.
    pub fn all() -> impl DoubleEndedIterator<Item = Class> + ExactSizeIterator {
        (0..Class::COUNT as u8).map(Class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as its documentation says it, step by step.
    fn written_out() -> Vec<u64> {
        let mut sizes: Vec<u64> = (1..=8).map(|step| step * 256).collect();
        let mut doubling = 2048;
        while doubling < 1 << 20 {
            sizes.extend((1..=8).map(|step| doubling + step * doubling / 8));
            doubling *= 2;
        }
        sizes
    }

    #[test]
    fn the_table_is_what_its_documentation_says() {
        let sizes: Vec<u64> = Class::all().map(Class::size).collect();
        assert_eq!(sizes, written_out());
        assert_eq!(sizes.len(), Class::COUNT);
        assert_eq!(sizes.last(), Some(&Class::LARGEST));
        assert!(
            Class::all()
                .enumerate()
                .all(|(index, class)| class.index() == index && Class::at(index) == Some(class))
        );
        assert_eq!(Class::at(Class::COUNT), None);
    }

    #[test]
    fn a_size_gets_the_smallest_class_that_holds_it() {
        let sizes = written_out();
        // Every size would do; Miri is slow, so there every size around a class and a few between.
        let all: Box<dyn Iterator<Item = u64>> = if cfg!(miri) {
            Box::new(sizes.iter().flat_map(|&size| [size - 1, size, size + 1, size + 117]))
        } else {
            Box::new(1..=Class::LARGEST)
        };
        let mut expected = 0;
        for size in all.filter(|&size| size <= Class::LARGEST) {
            while sizes[expected] < size {
                expected += 1;
            }
            let class = Class::of(size).expect("a class");
            assert_eq!(class.size(), sizes[expected], "{size}");
            assert_eq!(class.index(), expected, "{size}");
            if size > 2048 {
                assert!((class.size() - size) * 8 <= size, "{size} wastes more than an eighth");
            }
            if cfg!(miri) {
                expected = 0;
            }
        }
    }

    #[test]
    fn nothing_and_too_much_have_no_class() {
        for size in [0, Class::LARGEST + 1, 1 << 32, u64::MAX] {
            assert_eq!(Class::of(size), None, "{size}");
        }
    }
}
