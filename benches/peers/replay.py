#!/usr/bin/env python3
"""Replays a recorded trace on the allocators that a GPU machine has, and prints a table of times and memory.

    granule trace export FILE > trace.jsonl
    python3 replay.py trace.jsonl [--peers cudaMalloc,cudaMallocAsync,torch,torch-expandable,rmm] [--passes 20] [--json OUT]

Needs Python 3.9, an NVIDIA driver, and of the peers that are asked for PyTorch (`torch`) and RMM (`rmm-cu12` or `rmm-cu13`, which
bring librmm). The two of the driver need nothing. What is asked for and not there is an error, told before anything runs;
without --peers that is every peer. Each runs in a process of its own.

The trace is JSON lines, an event each (see `granule trace export --help`). One thread plays the leases in order, each on its
stream, as the program did. Nothing is computed, so a stream has no work that a reuse would have
to wait for: what is measured is bookkeeping, and calls into the driver where they happen.

Times: nanoseconds of an allocation and a free, from batches of 64 operations, all passes but the first. Calling anything from
Python costs about as much as a fast allocator; the same script is therefore played on functions that do nothing, called in the
same way, and `net` is the median less that one's. Differences of less than 50 ns mean nothing here.

Memory: the most that was reserved in the first pass, over the most that was live as asked for (`waste`).

Marks of further streams, captures and trims are left out for all peers, the first two counted: PyTorch takes marks on tensors
only, RMM has none.
"""

import argparse
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import time

BATCH = 64


class Missing(Exception):
    """Something a peer needs is not on this machine."""


class Trace:
    """Steps as tuples (size or 0, slot, stream)."""

    def __init__(self, path):
        self.left_out = 0
        self.steps = []
        self.label = ""
        self.slots = 0
        sizes, slot_of, empty, streams = {}, {}, [], {}
        live = peak = 0
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                event = self._object(path, number, line)
                what, lease = event.get("event"), event.get("lease")
                if what is None:
                    raise SystemExit(f"{path}: line {number} is no event of `granule trace export`")
                if what == "start":
                    self.label = event["label"]
                elif what == "alloc":
                    size = event["requested"]
                    stream = streams.setdefault(event["stream"], len(streams))
                    slot = empty.pop() if empty else self.slots
                    self.slots = max(self.slots, slot + 1)
                    slot_of[lease], sizes[lease] = slot, size
                    # Nothing is a lease too, and costs every allocator a call.
                    self.steps.append((max(size, 1), slot, stream))
                    live += size
                    peak = max(peak, live)
                elif what == "free" and lease in slot_of:
                    slot = slot_of.pop(lease)
                    empty.append(slot)
                    self.steps.append((0, slot, 0))
                    live -= sizes.pop(lease)
                elif what in ("used", "capture_begin", "capture_end", "lost"):
                    self.left_out += 1
        # A pass ends with nothing live, so that it can be played again.
        self.steps.extend((0, slot, 0) for slot in slot_of.values())
        self.streams = max(1, len(streams))
        self.peak_live = peak
        if not self.steps:
            raise SystemExit(f"{path}: no allocation in it")

    @staticmethod
    def _object(path, number, line):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise SystemExit(f"{path}: line {number} is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise SystemExit(f"{path}: line {number} is no JSON object")
        return value


class Nothing:
    """What calling costs."""

    def __init__(self, streams):
        del streams

    @staticmethod
    def alloc(size, stream):
        return size

    @staticmethod
    def free(block, size, stream):
        return None

    def peak(self):
        return None


class Driver:
    """The driver's functions, and a context."""

    def __init__(self):
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Missing(f"the CUDA driver (libcuda.so.1): {error}") from None
        self.check("cuInit", 0)
        device = ctypes.c_int()
        self.check("cuDeviceGet", ctypes.byref(device), 0)
        self.device = device.value
        context = ctypes.c_void_p()
        self.check("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.check("cuCtxSetCurrent", context)

    def check(self, name, *arguments):
        code = getattr(self.lib, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()} ({code})")

    def name(self):
        text = ctypes.create_string_buffer(256)
        self.check("cuDeviceGetName", text, 256, self.device)
        return text.value.decode()


class CudaMalloc:
    """cuMemAlloc for each block: what no pool costs."""

    def __init__(self, streams):
        del streams
        self.driver = Driver()
        self.live = self.most = 0

    def alloc(self, size, stream):
        at = ctypes.c_uint64()
        self.driver.check("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(size))
        self.live += size
        self.most = max(self.most, self.live)
        return at

    def free(self, block, size, stream):
        self.driver.check("cuMemFree_v2", block)
        self.live -= size

    def peak(self):
        return self.most


class CudaMallocAsync:
    """The driver's stream-ordered pool, told to keep what it has."""

    RELEASE_THRESHOLD, RESERVED_HIGH = 4, 6

    def __init__(self, streams):
        self.driver = driver = Driver()
        self.pool = ctypes.c_void_p()
        driver.check("cuDeviceGetDefaultMemPool", ctypes.byref(self.pool), driver.device)
        everything = ctypes.c_uint64(2**64 - 1)
        driver.check("cuMemPoolSetAttribute", self.pool, self.RELEASE_THRESHOLD, ctypes.byref(everything))
        self.streams = []
        for _ in range(streams):
            stream = ctypes.c_void_p()
            driver.check("cuStreamCreate", ctypes.byref(stream), 1)
            self.streams.append(stream)
        # Bound once: looking a function up costs as much as calling it.
        self.take, self.give = driver.lib.cuMemAllocAsync, driver.lib.cuMemFreeAsync
        self.take.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t, ctypes.c_void_p]
        self.give.argtypes = [ctypes.c_uint64, ctypes.c_void_p]

    def alloc(self, size, stream):
        at = ctypes.c_uint64()
        if code := self.take(at, size, self.streams[stream]):
            raise RuntimeError(f"cuMemAllocAsync: {code}")
        return at.value

    def free(self, block, size, stream):
        if code := self.give(block, self.streams[stream]):
            raise RuntimeError(f"cuMemFreeAsync: {code}")

    def peak(self):
        for stream in self.streams:
            self.driver.check("cuStreamSynchronize", stream)
        high = ctypes.c_uint64()
        self.driver.check("cuMemPoolGetAttribute", self.pool, self.RESERVED_HIGH, ctypes.byref(high))
        return high.value


class Torch:
    """PyTorch's caching allocator, by its own functions for others."""

    def __init__(self, streams):
        self.torch = torch = needed("torch", "PyTorch (`pip install torch`)")
        if not torch.cuda.is_available():
            raise Missing("a GPU that this PyTorch can use: torch.cuda.is_available() is False")
        torch.cuda.init()
        self.objects = [torch.cuda.Stream() for _ in range(streams)]
        self.streams = [stream.cuda_stream for stream in self.objects]
        device = torch.cuda.current_device()
        # What caching_allocator_alloc does after it has looked at its arguments.
        take, handles = torch._C._cuda_cudaCachingAllocator_raw_alloc, self.streams
        give = torch._C._cuda_cudaCachingAllocator_raw_delete
        with torch.cuda.device(device):
            self.alloc = lambda size, stream: take(size, handles[stream])
            self.free = lambda block, size, stream: give(block)

    def peak(self):
        return self.torch.cuda.memory_stats()["reserved_bytes.all.peak"]


class Rmm:
    """RMM's pool over cudaMalloc; it grows from nothing."""

    def __init__(self, streams):
        rmm = needed("rmm", "RMM (`pip install rmm-cu12` or `rmm-cu13`)")
        from rmm.pylibrmm.stream import Stream

        self.mr = mr = rmm.mr.PoolMemoryResource(rmm.mr.CudaMemoryResource(), initial_pool_size=0)
        handles = [Stream() for _ in range(streams)]
        self.alloc = lambda size, stream: mr.allocate(size, handles[stream])
        self.free = lambda block, size, stream: mr.deallocate(block, size, handles[stream])

    def peak(self):
        return self.mr.pool_size()


PEERS = {
    "nothing": Nothing,
    "cudaMalloc": CudaMalloc,
    "cudaMallocAsync": CudaMallocAsync,
    "torch": Torch,
    "torch-expandable": Torch,
    "rmm": Rmm,
}
# Read by PyTorch when it is imported; the older name is for the versions before the newer one.
SETTINGS = {
    "torch": "expandable_segments:False",
    "torch-expandable": "expandable_segments:True",
}


def needed(module, what):
    if importlib.util.find_spec(module) is None:
        raise Missing(what)
    return importlib.import_module(module)


def play(trace, peer, passes):
    """Plays the trace; answers sorted nanoseconds of a pair and the peak of the first pass."""
    alloc, free = peer.alloc, peer.free
    live = [None] * trace.slots
    batches = [trace.steps[at : at + BATCH] for at in range(0, len(trace.steps), BATCH)]
    times, peak, clock = [], None, time.perf_counter_ns
    for number in range(passes + 1):
        for batch in batches:
            begun = clock()
            for size, slot, stream in batch:
                if size:
                    live[slot] = (alloc(size, stream), size, stream)
                else:
                    free(*live[slot])
            took = clock() - begun
            if number > 0 and len(batch) == BATCH:
                times.append(2 * took / BATCH)
        if number == 0:
            peak = peer.peak()
    return sorted(times), peak


def quantile(times, part):
    return times[min(len(times) - 1, int(part * len(times)))] if times else float("nan")


def one(arguments):
    """A peer in this process; prints what it found as JSON."""
    trace = Trace(arguments.trace)
    try:
        peer = PEERS[arguments.one](trace.streams)
        if arguments.probe:
            found = {}
        else:
            times, peak = play(trace, peer, arguments.passes)
            found = {f"p{100 * part:g}": quantile(times, part) for part in (0.5, 0.99, 0.999)}
            found["peak"] = peak
        if isinstance(peer, (CudaMalloc, CudaMallocAsync)):
            found["device"] = peer.driver.name()
    except Missing as missing:
        found = {"missing": str(missing)}
    print(json.dumps(found))


def in_own_process(arguments, name, probe):
    environment = dict(os.environ)
    if setting := SETTINGS.get(name):
        environment["PYTORCH_CUDA_ALLOC_CONF"] = environment["PYTORCH_ALLOC_CONF"] = setting
    command = [sys.executable, __file__, arguments.trace, "--one", name, "--passes", str(arguments.passes)]
    done = subprocess.run(
        command + ["--probe"] * probe, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{name}: failed with exit status {done.returncode}; what it said stands above")
    return json.loads(done.stdout.splitlines()[-1])


def mib(size):
    return "–" if size is None else f"{size / 2**20:.1f} MiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", help="JSON lines of `granule trace export`")
    parser.add_argument("--peers", help=f"some of {', '.join(list(PEERS)[1:])}; without it all of them")
    parser.add_argument("--passes", type=int, default=20, help="how often the trace is played and timed (20)")
    parser.add_argument("--json", help="write what was found to this file, too")
    parser.add_argument("--one", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments)
    names = arguments.peers.split(",") if arguments.peers else list(PEERS)[1:]
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(list(PEERS)[1:])}")
    trace = Trace(arguments.trace)
    probes = {name: in_own_process(arguments, name, probe=True) for name in names}
    if missing := {name: probe["missing"] for name, probe in probes.items() if "missing" in probe}:
        for name, what in missing.items():
            print(f"{name} needs {what}", file=sys.stderr)
        here = [name for name in names if name not in missing]
        print(f"nothing was measured; what is here: --peers {','.join(here) or '(none)'}", file=sys.stderr)
        return 1
    device = next((probe["device"] for probe in probes.values() if "device" in probe), "")
    results = {name: in_own_process(arguments, name, probe=False) for name in ["nothing", *names]}
    floor = results["nothing"]["p50"]
    print(f"# {arguments.trace}: {trace.label}\n")
    print(f"{device}; {len(trace.steps)} operations, {trace.streams} streams, at most {mib(trace.peak_live)} live;", end=" ")
    print(f"{trace.left_out} marks of further streams and captures left out.\n")
    print("| | p50 | net p50 | p99 | p99.9 | peak reserved | waste |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, found in results.items():
        peak = found["peak"]
        waste = "–" if peak is None else f"{100 * (peak / trace.peak_live - 1):.1f} %"
        times = [found["p50"], found["p50"] - floor, found["p99"], found["p99.9"]]
        print(f"| {name} | {' | '.join(f'{t:.0f}' for t in times)} | {mib(peak)} | {waste} |")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as out:
            json.dump({"trace": trace.label, "device": device, "peers": results}, out, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
