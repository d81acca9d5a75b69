//! An engine on cudarc gets a pool in five lines, and launches its own kernel on what it leases.
//!
//! `cargo run --example pooled` in this folder, with an NVIDIA driver.

use std::error::Error;
use std::sync::Arc;

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use granule_bank::{Bank, BankOptions};
use granule_device::{Device, Stream, cuda_devices};
use granule_pool::{Pool, PoolOptions};

/// y = a * x + y, `rounds` times, for n values each, with memory that comes and goes in every round; answers with y.
pub fn run(n: usize, rounds: usize) -> Result<Vec<f32>, Box<dyn Error>> {
    cuda_devices()?; // says what is missing, where cudarc would panic

    // What the engine has already: a context, a stream, a kernel.
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let module = context.load_module(Ptx::from_src(include_str!("../kernels/saxpy.ptx")))?;
    let saxpy = module.load_function("saxpy")?;

    // What it gets: five lines.
    let device = Device::from_cuda(Arc::clone(&context))?;
    let bank = Bank::new(device.clone(), BankOptions::new())?;
    let pool = Pool::new(&bank, PoolOptions::new().owner("engine"))?;
    let heap = pool.heap(&Arc::new(Stream::from_cuda(&device, Arc::clone(&stream))?))?;
    let mut y = heap.alloc_slice::<f32>(n)?;

    stream.memset_zeros(&mut y.view_mut()?)?;
    for round in 0..rounds {
        let mut x = heap.alloc_slice::<f32>(n)?;
        stream.memcpy_htod(&vec![round as f32; n], &mut x.view_mut()?)?;
        let (x_view, mut y_view) = (x.view()?, y.view_mut()?);
        let (a, count) = (2.0_f32, n as u32);
        let mut launch = stream.launch_builder(&saxpy);
        launch.arg(&a).arg(&x_view).arg(&mut y_view).arg(&count);
        // SAFETY: the kernel takes a number, two arrays of `count` values and `count`, and stays inside them.
        unsafe { launch.launch(LaunchConfig::for_num_elems(count))? };
        // x goes back now, while the kernel has yet to run: the next round's x is the same memory, behind it in the stream.
    }
    let answer = stream.clone_dtoh(&y.view()?)?;
    let stats = pool.stats();
    println!("{} leases, {} of memory, {} of them without a look beyond the heap", stats.hits + stats.misses, stats.reserved, stats.hits);
    Ok(answer)
}

fn main() -> Result<(), Box<dyn Error>> {
    let y = run(1 << 20, 10)?;
    println!("y[0] = {} (2 * (0 + 1 + … + 9) = 90)", y[0]);
    Ok(())
}
