//! What can go wrong with a row of numbers, written for the person who has to act on it.

use crate::DType;

/// Errors of this crate. A call that returns one has written nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The type stores whole blocks only, and the row does not end at the end of one.
    #[error("a row of {len} elements cannot be {dtype}: its length must be a multiple of {block}")]
    RowLength {
        /// The type asked for.
        dtype: DType,
        /// Elements in the row.
        len: usize,
        /// Elements in one block of the type.
        block: usize,
    },
    /// The row or matrix has more bytes than an address can count.
    #[error("{len} elements of {dtype} are more bytes than this machine can address")]
    TooLarge {
        /// The type asked for.
        dtype: DType,
        /// Elements asked for.
        len: usize,
    },
    /// NaN and infinity have no place in a row that is being encoded; the source of the numbers is at fault.
    #[error("element {index} is NaN or infinite, so the row cannot be encoded")]
    NotFinite {
        /// Index of the first such element in the row.
        index: usize,
    },
    /// A finite number (or the scale that it forces on its block) is beyond what the type can hold.
    #[error("element {index} is too large for {dtype}")]
    Overflow {
        /// Index of the element in the row; in a block, of the element with the largest magnitude.
        index: usize,
        /// The type asked for.
        dtype: DType,
    },
    /// The type is read only: its quants are chosen by whoever makes the file.
    #[error("rows of {dtype} can be decoded and not made; use q4_k, or another type that is made")]
    NotEncoded {
        /// The type asked for.
        dtype: DType,
    },
    /// The type has no planar form: it is for weights only.
    #[error(
        "{dtype} is a type for weights and cannot be laid out in planes; use f32, f16, bf16, q8_0 or q4_0"
    )]
    NotPlanar {
        /// The type asked for.
        dtype: DType,
    },
    /// The type is not one that this product takes.
    #[error("{dtype} weights have no place in this product: {hint}")]
    WrongProduct {
        /// The type given.
        dtype: DType,
        /// The function to call instead.
        hint: &'static str,
    },
    /// A slice has a length that disagrees with the shape it is said to have.
    #[error("{what} has length {got}, the shape asks for {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// The length that the shape asks for, in the slice's own elements.
        expected: usize,
        /// The length found.
        got: usize,
    },
    /// No type has this name.
    #[error(
        "`{name}` is not a type; the types are f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, \
         iq4_nl, iq4_xs, iq2_xxs"
    )]
    UnknownType {
        /// The name as given.
        name: String,
    },
}

/// `Ok` where `got` is `expected`, otherwise [`Error::Length`].
pub(crate) fn check_len(what: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::Length { what, expected, got }) }
}
