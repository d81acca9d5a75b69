//! `conformance!`: one suite of tests, run on every kind of device.

/// Runs the named functions of a module on the host device, and on CUDA device 0.
///
/// A crate's suite has a module `support` with `host`, `cuda` (what opens such a device) and `with_device(open, test)`; each test
/// is a function of what that gives it. `host::` runs everywhere; `cuda::` needs a driver, which `cargo xtask test` provides or
/// finds by that name, and the crate's feature `cuda`.
#[expect(clippy::crate_in_macro_def, reason = "the suite is the caller's")]
#[macro_export]
macro_rules! conformance {
    ($($module:ident: $($test:ident),+ $(,)?;)+) => {
        mod host {
            $(mod $module {
                $(#[test]
                fn $test() {
                    crate::support::with_device(crate::support::host, crate::$module::$test);
                })+
            })+
        }

        #[cfg(feature = "cuda")]
        mod cuda {
            $(mod $module {
                $(#[test]
                #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
                fn $test() {
                    crate::support::with_device(crate::support::cuda, crate::$module::$test);
                })+
            })+
        }
    };
}
