//! `granule devices`: the host always, a GPU or the reason why there is none, and nothing that panics.

use std::ffi::OsStr;

use super::{TALES, granule, json, stderr, stdout};

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

#[test]
fn a_model_runs_on_devices_that_there_are() {
    for (name, why) in [("gpu", "no device is called that"), ("cuda:", "no device"), ("cuda:-1", "no device")]
    {
        let output = granule(&["run", TALES, "-p", "x", "--device", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(stderr(&output).contains(why), "{name}: {}", stderr(&output));
    }
    // Where a driver is not one, or has no such GPU.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libcuda.so.1"), "not a library").unwrap();
    let mut run = granule(&["run", TALES, "-p", "x", "--device", "cuda:93"]);
    let output = run.env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: ") && output.stdout.is_empty(), "{}", stderr(&output));
}

/// On a CUDA driver, simulated or real.
mod cuda {
    use super::{TALES, granule, json, stderr, stdout};

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn a_tale_from_a_gpu_is_the_hosts() {
        let tale = |device: &[&str]| {
            let run = ["run", TALES, "-p", "Once upon a time", "--temp", "0", "-n", "6", "--precise"];
            stdout(&[&run[..], device].concat())
        };
        assert_eq!(tale(&["--device", "cuda:0"]), tale(&[]));
        let run = ["run", TALES, "-p", "x", "-n", "2", "--device", "cuda:0", "--verbose"];
        let output = granule(&run).output().unwrap();
        assert!(output.status.success() && stderr(&output).contains("on cuda:0"), "{}", stderr(&output));
        let output = granule(&[&run[..6], &["--device", "cuda:93"]].concat()).output().unwrap();
        assert!(
            !output.status.success() && stderr(&output).contains("no CUDA device 93"),
            "{}",
            stderr(&output)
        );
        let small = ["--device", "cuda:0", "--memory-limit", "4MiB"];
        let output = granule(&[&run[..6], &small].concat()).output().unwrap();
        assert!(!output.status.success() && stderr(&output).contains("out of memory"), "{}", stderr(&output));
        let bench =
            ["bench", TALES, "--prompt", "4", "--gen", "2", "--repeat", "1", "--device", "cuda:0", "--json"];
        assert!(json(&bench)[0]["device"].as_str().unwrap().starts_with("cuda:0 ("));
    }

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
