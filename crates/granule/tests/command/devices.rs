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
    for (flags, why) in [
        (&["--device", "cuda:0,cuda:0"][..], "cuda:0 is named twice"),
        (&["--device", "host,cuda:0"], "name the GPUs alone"),
        (&["--gpu-layers", "2"], "--gpu-layers without a GPU"),
        (&["--layer-split", "2"], "--layer-split has 1 shares"),
        (&["--cublas"], "cuBLAS"),
        (&["--device", "cuda:0", "--layer-split", "1,2"], "--layer-split has 2 shares"),
    ] {
        let output = granule(&[&["run", TALES, "-p", "x"], flags].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        assert!(stderr(&output).contains(why), "{flags:?}: {}", stderr(&output));
    }
    for wrong in ["some", "-1", "1.5", ""] {
        let flag = format!("--gpu-layers={wrong}");
        let output = granule(&["run", TALES, "-p", "x", "--device", "cuda:0", &flag]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(stderr(&output).contains("a number of layers, all or auto"), "{wrong}: {}", stderr(&output));
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

    /// What a command that ends well writes to stdout; on stderr it may only say where layers are.
    #[track_caller]
    fn placed(args: &[&str]) -> String {
        let output = granule(args).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.success() && said.lines().all(|line| line.starts_with("layers ")), "{said}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn placed_json(args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&placed(args)).unwrap()
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn a_tale_from_a_gpu_is_the_hosts() {
        let tale = |device: &[&str]| {
            let run = ["run", TALES, "-p", "Once upon a time", "--temp", "0", "-n", "6", "--precise"];
            placed(&[&run[..], device].concat())
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
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains("are missing. What would fit: "), "{said}");
        let bench =
            ["bench", TALES, "--prompt", "4", "--gen", "2", "--repeat", "1", "--device", "cuda:0", "--json"];
        assert!(placed_json(&bench)[0]["device"].as_str().unwrap().starts_with("cuda:0 ("));
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn layers_are_where_the_flags_say() {
        let run = ["run", TALES, "-p", "Once upon a time", "--temp", "0", "-n", "3", "--precise"];
        let tale = stdout(&run);
        for (flags, places) in [
            (&["--device", "cuda:0", "--gpu-layers", "2"][..], "layers 0 to 3 on host, 4 to 5 on cuda:0"),
            (&["--device", "cuda:0", "--gpu-layers", "99"], "layers 0 to 5 on cuda:0"),
            (&["--device", "cuda:0", "--gpu-layers", "0"], "layers 0 to 5 on host"),
            (
                &["--device", "cuda:0,cuda:1", "--gpu-layers", "4", "--layer-split", "1,3", "--no-graphs"],
                "layers 0 to 1 on host, 2 on cuda:0, 3 to 5 on cuda:1",
            ),
            (&["--device", "cuda:1,cuda:0"], "layers 0 to 2 on cuda:1, 3 to 5 on cuda:0"),
        ] {
            let output = granule(&[&run[..], flags, &["--verbose"]].concat()).output().unwrap();
            let said = stderr(&output);
            assert!(output.status.success() && said.contains(places), "{flags:?}: {said}");
            assert_eq!(String::from_utf8(output.stdout).unwrap(), tale, "{flags:?}");
        }
        // As many as fit, from none to all; and a prompt by cuBLAS, which the simulator stands in for.
        for (flags, places) in [
            (&["--gpu-layers", "auto"][..], "layers 0 to 5 on cuda:0"),
            (&["--gpu-layers", "auto", "--memory-limit", "12MiB"], " on host, "),
            (&["--cublas"], "layers 0 to 5 on cuda:0"),
        ] {
            let output = granule(&[&run[..], &["--device", "cuda:0"], flags].concat()).output().unwrap();
            let said = stderr(&output);
            if cfg!(not(feature = "cublas")) && flags == ["--cublas"] {
                continue;
            }
            assert!(output.status.success() && said.contains(places), "{flags:?}: {said}");
            assert_eq!(String::from_utf8(output.stdout).unwrap(), tale, "{flags:?}");
        }
        let split = ["--device", "cuda:0", "--gpu-layers", "2"];
        let json = placed_json(&[&run[..], &split, &["--json"]].concat());
        let devices = json["memory"]["devices"].as_array().unwrap();
        assert_eq!((devices[0]["device"].as_str(), devices[0]["layers"].as_u64()), (Some("host"), Some(4)));
        assert_eq!((devices[1]["device"].as_str(), devices[1]["layers"].as_u64()), (Some("cuda:0"), Some(2)));
        let bench = ["bench", TALES, "--prompt", "4", "--gen", "2", "--repeat", "1", "--json"];
        let measured = placed_json(&[&bench[..], &split].concat());
        assert!(measured[0]["device"].as_str().unwrap().starts_with("host + cuda:0 ("));
        let none = ["--device", "cuda:0,cuda:1", "--layer-split", "0,0"];
        let output = granule(&[&run[..], &none].concat()).output().unwrap();
        assert!(!output.status.success() && stderr(&output).contains("gives no device anything"));
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn layers_are_split_over_gpus() {
        let run = ["run", TALES, "-p", "Once upon a time", "--temp", "0", "-n", "3", "--precise"];
        let tale = stdout(&run);
        let two = ["--device", "cuda:0,cuda:1", "--tensor-parallel", "2"];
        for (flags, places) in [
            (&[][..], "layers 0 to 5 split over cuda:0 + cuda:1 (1:1)"),
            (&["--gpu-layers", "2"], "layers 0 to 3 on host, 4 to 5 split over cuda:0 + cuda:1 (1:1)"),
            (
                &["--tensor-split", "free", "--gpu-layers", "auto"],
                "layers 0 to 5 split over cuda:0 + cuda:1 (1:1)",
            ),
            (
                &["--tensor-split", "1,3", "--gpu-layers", "1"],
                "layers 0 to 4 on host, 5 split over cuda:0 + cuda:1 (heads 1:1, feed-forward 1:3)",
            ),
        ] {
            let output = granule(&[&run[..], &two, flags, &["--verbose"]].concat()).output().unwrap();
            let said = stderr(&output);
            assert!(output.status.success() && said.contains(places), "{flags:?}: {said}");
            assert!(said.contains("rank 1 of 2 (heads 2 to 3, key-value heads 1, "), "{flags:?}: {said}");
            assert_eq!(String::from_utf8(output.stdout).unwrap(), tale, "{flags:?}");
        }
        let mixed = ["--device", "host,cuda:1", "--tensor-parallel", "2", "--gpu-layers", "5"];
        let output = granule(&[&run[..], &mixed].concat()).output().unwrap();
        let said = stderr(&output);
        assert_eq!(said.trim_end(), "layers 0 on host, 1 to 5 split over host + cuda:1 (1:1)");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), tale);
        let short = [&run[..], &two, &["--memory-limit", "6MiB"]].concat();
        let output = granule(&short).output().unwrap();
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains("are missing. What would fit: "), "{said}");
        let output = granule(&[&run[..], &two, &["--tensor-split", "1,1,1"]].concat()).output().unwrap();
        assert!(!output.status.success() && stderr(&output).contains("--tensor-split has 3 shares"));
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
