//! `granule devices`: the host always, a GPU or the reason why there is none, and nothing that panics.

use std::ffi::OsStr;

use super::{granule, json, stderr, stdout};

/// What it prints where the loader finds `content` in place of a CUDA driver.
fn with_driver(content: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libcuda.so"), content).unwrap();
    std::fs::write(folder.path().join("libcuda.so.1"), content).unwrap();
    let output = granule(&["devices"]).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_host_is_always_there() {
    let shown = stdout(&["devices"]);
    let host = shown.lines().find(|line| line.starts_with("host ")).unwrap();
    assert!(host.contains("virtual memory") && host.contains("MiB"), "{host}");
    let value = json(&["devices", "--json"]);
    let host = &value["devices"][0];
    assert_eq!(host["device"], "host");
    assert!(host["memory"]["free"].as_u64() <= host["memory"]["total"].as_u64());
    assert!(host["granularity"].as_u64().unwrap().is_power_of_two());
    // Either there are GPUs, or it says why not.
    assert_eq!(value["no_gpu"].is_string(), value["devices"].as_array().unwrap().len() == 1);
}

#[test]
fn a_broken_driver_is_named() {
    for content in [&b""[..], b"not a library", &[0; 5000]] {
        let shown = with_driver(content);
        let why = shown.lines().find(|line| line.starts_with("no GPU: ")).unwrap();
        assert!(why.contains("libcuda.so"), "{why}");
        assert!(shown.starts_with("device "), "{shown}");
    }
}

/// A library that is some other one: this machine's C library under the driver's name.
#[test]
fn a_foreign_driver_is_named() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(std::path::Path::new);
    let c = files.find(|path| path.file_name() == Some(OsStr::new("libc.so.6"))).unwrap();
    let shown = with_driver(&std::fs::read(c).unwrap());
    let why = shown.lines().find(|line| line.starts_with("no GPU: ")).unwrap();
    assert!(why.contains("libcuda.so") && why.contains("not a CUDA driver"), "{why}");
}

/// On a CUDA driver, simulated or real.
mod cuda {
    use super::{json, stdout};

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn gpus_are_listed() {
        let shown = stdout(&["devices"]);
        let gpu = shown.lines().find(|line| line.starts_with("cuda:0 ")).unwrap();
        assert!(gpu.contains("compute ") && gpu.contains("virtual memory"), "{gpu}");
        assert!(!shown.contains("no GPU"), "{shown}");
        let value = json(&["devices", "--json"]);
        let gpu = &value["devices"][1];
        assert_eq!((&value["no_gpu"], &gpu["device"]), (&serde_json::Value::Null, &"cuda:0".into()));
        assert!(gpu["uuid"].as_str().unwrap().starts_with("GPU-"));
        assert!(gpu["memory"]["total"].as_u64().unwrap() > 0);
        assert_eq!(gpu["features"]["virtual_memory"], true);
    }
}
