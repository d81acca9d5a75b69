//! Drivers that cannot be used, each in a process of its own: the library is found once.

use std::process::Command;

use granule_device::{Device, cuda_devices};

/// Runs in the other processes: says what opening a device said.
#[test]
#[ignore = "the other half of the tests beside it"]
fn child() {
    println!("<<{}>>", Device::cuda(0).map_or_else(|error| error.to_string(), |_| "works".to_owned()));
    println!("<<{}>>", cuda_devices().map_or_else(|error| error.to_string(), |_| "works".to_owned()));
}

/// What a simulated driver with this configuration makes `child` say, twice.
fn said(configuration: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["sim::probing::child", "--exact", "--ignored", "--nocapture"])
        .env("GRANULE_SIM", configuration)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let said: Vec<&str> = text.split("<<").skip(1).filter_map(|part| part.split(">>").next()).collect();
    assert_eq!((said.len(), said[0]), (2, said[1]), "{text}");
    said[0].to_owned()
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_driver_that_is_too_old_says_what_is_needed() {
    let expected = "the CUDA driver is too old: it has CUDA 12.3, 12.4 is needed; update NVIDIA's driver";
    assert_eq!(said("driver=12030"), expected);
    assert_eq!(said("driver=12040"), "works");
    assert_eq!(said("driver=13020"), "works");
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_driver_without_a_device_says_so() {
    let said = said("devices=0");
    assert!(said.starts_with("no CUDA device: ") && said.contains("CUDA_VISIBLE_DEVICES"), "{said}");
}
