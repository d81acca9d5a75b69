//! What a tool's name in the environment does: in processes of their own.

use std::process::Command;

use granule_device::NvtxRange;
use granule_sim::Sim;

/// Set for a process of its own.
const CHILD: &str = "GRANULE_TEST_TOOLS_CHILD";
/// Where a profiler names its library.
const TOOL: &str = "NVTX_INJECTION64_PATH";

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let is_loaded = || std::fs::read_to_string("/proc/self/maps").unwrap().contains("/libcuda.so");
    assert!(!is_loaded());
    drop(NvtxRange::new(c"step", 1));
    let named = std::env::var_os(TOOL).is_some();
    assert_eq!(is_loaded(), named, "the driver is loaded where a tool is named, and only there");
    // What counts is that it was initialized.
    assert_eq!(Sim::find().unwrap().calls() > 0, named);
    let calls = Sim::find().unwrap().calls();
    drop(NvtxRange::new(c"step", 2));
    assert_eq!(Sim::find().unwrap().calls(), calls);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_named_tool_finds_the_driver_initialized_and_without_one_nothing_is_loaded() {
    for tool in [None, Some("libgranule_no_such_tool.so")] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["sim::tools::child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, "1")
            .env_remove(TOOL);
        command.envs(tool.map(|tool| (TOOL, tool)));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{tool:?}: {said}");
    }
}
