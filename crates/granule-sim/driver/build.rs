//! How the library is linked: it stays loaded once it is, and it is the only `libcuda.so.1` of its process.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Programs probe for libcuda by opening and closing it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // Some open libcuda.so and some libcuda.so.1: by this name the loader knows that it has it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
}
