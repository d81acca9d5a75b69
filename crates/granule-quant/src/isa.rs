//! Which instructions a call uses: found out once, and a value that proves it.

use std::{fmt, sync::OnceLock};

use crate::{Bf16Matrix, DType, FixedMatrix, Tile};

/// An instruction set that this CPU has.
///
/// The functions at the root of the crate use [`Isa::best`]. Its methods are those functions by a chosen path: tests
/// hold every path against [`Isa::SCALAR`] this way, and benchmarks compare them. A value exists only where the CPU has
/// the instructions, so no call can meet one that it does not know.
///
/// ```
/// use granule_quant::Isa;
/// println!("dot products by {}", Isa::best());
/// assert!(Isa::available().contains(&Isa::SCALAR));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Scalar,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx2,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx512,
}

impl Isa {
    /// Plain Rust, the reference.
    pub const SCALAR: Isa = Isa(Kind::Scalar);

    /// The fastest one of this CPU.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available().last().copied().unwrap_or(Isa::SCALAR))
    }

    /// All that this CPU has, from [`Isa::SCALAR`] to the fastest.
    pub fn available() -> Vec<Isa> {
        #[cfg_attr(not(all(target_arch = "x86_64", not(miri))), expect(unused_mut))]
        let mut found = vec![Isa::SCALAR];
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 {
                found.push(Isa(Kind::Avx2));
            }
            if avx2 && avx512 {
                found.push(Isa(Kind::Avx512));
            }
        }
        found
    }

    /// `scalar`, `avx2` or `avx512`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kind::Avx2 => "avx2",
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kind::Avx512 => "avx512",
        }
    }

    pub(crate) const fn kind(self) -> Kind {
        self.0
    }

    /// Whether the CPU has dot products of bf16, on top of what this path asks for.
    pub(crate) fn has_bf16(self) -> bool {
        match self.0 {
            Kind::Scalar => false,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kind::Avx2 => false,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kind::Avx512 => is_x86_feature_detected!("avx512bf16"),
        }
    }

    /// The products of [`Isa::gemm_bf16`], which has asked [`has_bf16`](Self::has_bf16), whose lengths are right and of which no
    /// extent is zero.
    pub(crate) fn bf16_products(self, dtype: DType, w: &[u8], x: &Bf16Matrix<'_>, out: &mut Tile<'_>) {
        match self.0 {
            Kind::Scalar => {}
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kind::Avx2 => {}
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: an `Isa` of this kind exists only where the CPU has its instructions, and the caller has asked for bf16.
            Kind::Avx512 => unsafe { crate::x86::avx512::bf16::gemm(dtype, w, x, out) },
        }
    }

    /// [`Isa::quantize_fixed`], which has checked the lengths: for the products that take them, and else by the reference.
    pub(crate) fn fixed_points(
        self,
        x: &[f32],
        high: &mut [i8],
        low: &mut [i8],
        d: &mut [f32],
        sums: &mut [[i32; 2]],
    ) {
        match self.0 {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: an `Isa` of this kind exists only where the CPU has its instructions.
            Kind::Avx512 => unsafe {
                crate::x86::avx512::activation::quantize_fixed(x, high, low, d, sums);
            },
            _ => crate::scalar::activation::quantize_fixed(x, high, low, d, sums),
        }
    }

    /// Whether this path multiplies packed weights.
    pub(crate) const fn has_packed_products(self) -> bool {
        match self.0 {
            Kind::Scalar => false,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kind::Avx2 => false,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kind::Avx512 => true,
        }
    }

    /// The products of [`crate::Packing::gemm`], whose lengths are right and of which no extent is zero. Only paths that have
    /// them make a [`crate::Packing`].
    pub(crate) fn packed_products(self, dtype: DType, w: &[u8], x: &FixedMatrix<'_>, out: &mut Tile<'_>) {
        match self.0 {
            Kind::Scalar => {}
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kind::Avx2 => {}
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: an `Isa` of this kind exists only where the CPU has its instructions.
            Kind::Avx512 => unsafe { crate::x86::avx512::packed::gemm(dtype, w, x, out) },
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Calls `module::function(arguments)` of the path that an [`Isa`] names.
macro_rules! by_isa {
    ($isa:expr, $module:ident::$function:ident($($argument:expr),*)) => {
        match $isa.kind() {
            crate::isa::Kind::Scalar => crate::scalar::$module::$function($($argument),*),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: an `Isa` of this kind exists only where the CPU has its instructions.
            crate::isa::Kind::Avx2 => unsafe { crate::x86::avx2::$module::$function($($argument),*) },
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: an `Isa` of this kind exists only where the CPU has its instructions.
            crate::isa::Kind::Avx512 => unsafe { crate::x86::avx512::$module::$function($($argument),*) },
        }
    };
}
pub(crate) use by_isa;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_last_of_what_there_is() {
        let found = Isa::available();
        assert_eq!((found.first(), found.last()), (Some(&Isa::SCALAR), Some(&Isa::best())));
        let names: Vec<_> = found.iter().map(|isa| isa.to_string()).collect();
        assert_eq!(names, ["scalar", "avx2", "avx512"][..names.len()]);
    }
}
