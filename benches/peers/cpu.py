#!/usr/bin/env python3
"""Granule beside llama.cpp on a CPU: the same files, the same threads, in turns, medians; a table in Markdown, and JSON.

    cargo build --release
    python3 benches/peers/cpu.py --build                    # llama.cpp, once: minutes
    python3 benches/peers/cpu.py --make                     # models of Llama-3.2-1B's shapes with random weights, and measure
    python3 benches/peers/cpu.py --models DIR --only decode,depth --types q4_0,q8_0

Sections (--only): `prompt` and `decode` of each weight type; `depth`, decoding behind many tokens with each type of cache;
`parallel`, sequences decoded at once; `first-token`, from the start of the program; `memory`, resident beside reported;
`limits`, what the machine's memory and its integer units give, before each round of everything else.

Granule and llama.cpp (with its repacking of weights on and off: the better one counts) follow one another in each round; a
side's figure of a round is the median of its repetitions, what is printed the median over the rounds. Ratios are above 1
where Granule is ahead.

Needs Python 3.9 and, for --build, `limits` and --make, a C and C++ compiler and what pip downloads: the source package of
llama-cpp-python, which holds llama.cpp's, and cmake, ninja, numpy and gguf. Linux; `memory` reads /proc.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

from llama_cpp import PACKAGE, VERSION, Failed, announce, as_json, build, command, make, programs

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECTIONS = ["prompt", "decode", "depth", "parallel", "first-token", "memory", "limits"]
TYPES = "f32 f16 bf16 q8_0 q6_k q5_k_m q5_1 q5_0 q4_k_m q4_1 q4_0 iq4_nl iq4_xs q3_k_m q2_k".split()


def find_models(folder, stem, wanted):
    """Files by weight type, in the order of TYPES."""
    names = "|".join(sorted(TYPES, key=len, reverse=True))
    pattern = re.compile(rf"(.+)[.-]({names})\.gguf", re.IGNORECASE)
    found = {}
    for path in sorted(folder.glob("*.gguf")):
        match = pattern.fullmatch(path.name)
        if match and (stem is None or match[1] == stem):
            found.setdefault(match[1], {})[match[2].lower()] = path
    if len(found) != 1:
        sys.exit(f"cpu.py: {folder} has files of {len(found)} models ({', '.join(found) or 'NAME.TYPE.gguf'}); choose by --stem")
    [files] = found.values()
    missing = [kind for kind in wanted or [] if kind not in files]
    if missing:
        sys.exit(f"cpu.py: no {', '.join(missing)} file in {folder}")
    return {kind: files[kind] for kind in TYPES if kind in files and (not wanted or kind in wanted)}


# The two sides.


class Sides:
    """Granule and llama.cpp with the same threads."""

    def __init__(self, args):
        self.args = args
        self.granule_path = args.granule
        self.bench_path = args.llama_bin / "llama-bench"
        one = args.llama_bin / "llama-completion"
        self.completion_path = one if one.exists() else args.llama_bin / "llama-cli"

    def granule(self, path, **options):
        """Median tokens per second of each measurement, by (test, depth, sequences)."""
        flags = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", value)]
        fixed = ["-t", self.args.threads, "--repeat", self.args.repeat, "--json"]
        told = as_json(command([self.granule_path, "bench", path, *flags, *fixed]), "granule")
        return {(m["test"], m["depth"], m.get("parallel", 1)): statistics.median(m["runs"]) for m in told}

    def llama(self, path, repack, prompt=0, decode=0, depths=(0,), kv=None):
        """The same of llama.cpp, by (test, depth)."""
        call = [self.bench_path, "-m", path, "-t", self.args.threads, "-r", self.args.repeat, "-o", "json"]
        call += ["-p", prompt, "-n", decode, "-d", ",".join(map(str, depths)), "--repack", repack, "-fa", "on"]
        call += ["-ctk", kv, "-ctv", kv] if kv else []
        told = as_json(command(call), "llama-bench")
        test = {True: "pp", False: "tg"}
        return {
            (f"{test[m['n_prompt'] > 0]}{m['n_prompt'] or m['n_gen']}", m["n_depth"]): statistics.median(m["samples_ts"])
            for m in told
        }

    def runs(self, path):
        """The commands that write one token and end, by side; llama.cpp's with and without repacking."""
        args = self.args
        ours = [self.granule_path, "run", path, "-t", args.threads, "-c", args.ctx_size, "-n", 1, "--temp", 0]
        theirs = [self.completion_path, "-m", path, "-t", args.threads, "-c", args.ctx_size, "-n", 1, "--temp", 0]
        theirs += ["-no-cnv", "--no-warmup", "--no-display-prompt"]
        switch = {1: "--repack", 0: "--no-repack"}
        return {"granule": ours, **{f"repack {r}": [*theirs, switch[r]] for r in args.repack}}


class Rounds:
    """Figures by name, one a round; of a side that failed, why."""

    def __init__(self):
        self.values = {}
        self.failures = {}

    def add(self, name, work):
        """Runs `work` for this name, unless it failed before: its answer is one figure, or several by name."""
        if name in self.failures:
            return
        try:
            told = work()
        except Failed as failed:
            announce(f"  {' '.join(map(str, name))}: {failed}")
            self.failures[name] = str(failed)
            return
        for key, value in told.items() if isinstance(told, dict) else [((), told)]:
            self.values.setdefault((*name, *key), []).append(value)

    def median(self, *name):
        values = self.values.get(name)
        return statistics.median(values) if values else None

    def best(self, sides, *name, least=False):
        """The side with the best median, and that median."""
        known = [(side, self.median(side, *name)) for side in sides]
        known = [(value, side) for side, value in known if value is not None]
        if not known:
            return None, None
        value, side = min(known) if least else max(known)
        return side, value

    def why(self, side):
        """What is in a cell without a figure."""
        told = [why for name, why in self.failures.items() if name[0] == side]
        return f"failed: {told[0][:60]}" if told else "–"

    def as_json(self):
        values = [{"name": list(name), "rounds": values} for name, values in self.values.items()]
        return {"values": values, "failures": [{"name": list(n), "why": why} for n, why in self.failures.items()]}


# The sections. Each is given the comparison and answers lines of Markdown.


class Comparison:
    """What is measured with what, and the results so far."""

    def __init__(self, args, models):
        self.args, self.models = args, models
        self.sides = Sides(args)
        self.peers = [f"repack {r}" for r in args.repack]
        self.limits_program = None
        self.limits = []
        self.results = {}
        self.about = {kind: self.describe(path) for kind, path in models.items()}

    def describe(self, path):
        """Bytes of its tensors that a token reads, and multiply-adds of a token without the output layer."""
        told = as_json(command([self.sides.granule_path, "info", path, "--json", "--verbose"]), "granule info")
        matrices = [t for t in told["tensors"] if len(t["dims"]) == 2]
        table = [t for t in matrices if t["name"] == "token_embd.weight"]
        output = [t for t in matrices if t["name"] == "output.weight"]
        bytes_read = sum(t["bytes"] for t in matrices if t not in table or not output)
        macs = sum(t["dims"][0] * t["dims"][1] for t in matrices if t not in table and t not in output)
        return {"bytes_read": bytes_read, "macs": macs, "bytes": told["bytes"]}

    def rounds(self, name, work):
        """Calls `work` with what it fills, as often as asked; the machine's limits are taken before each round."""
        rounds = self.results[name] = Rounds()
        for number in range(self.args.rounds):
            announce(f"{name}, round {number + 1} of {self.args.rounds}")
            self.measure_limits()
            work(rounds)
        return rounds

    def measure_limits(self):
        if "limits" not in self.args.only:
            return
        if self.limits_program is None:
            self.limits_program = compile_limits(self.args.cache)
        call = [self.limits_program, self.args.threads, self.args.limit_mib, 5]
        self.limits.append(as_json(command(call), "limits"))

    def limit(self, key):
        known = [told[key] for told in self.limits if told[key] is not None]
        return statistics.median(known) if known else None

    def base(self):
        """The file that sections about something else than weights use: Q4_0, or what is nearest."""
        for kind in ["q4_0", *TYPES]:
            if kind in self.models:
                return kind, self.models[kind]
        raise Failed("no model")


def compile_limits(cache):
    cache.mkdir(parents=True, exist_ok=True)
    program, source = cache / "limits", pathlib.Path(__file__).with_name("limits.c")
    compiler = os.environ.get("CC", "cc")
    command([compiler, "-O3", "-march=native", "-pthread", source, "-o", program])
    return program


def table(heading, rows):
    """Markdown; cells but the first of a row are numbers or short."""
    yield "| " + " | ".join(heading) + " |"
    yield "| --- |" + " ---: |" * (len(heading) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def number(value, digits=2, missing="–"):
    return missing if value is None else f"{value:,.{digits}f}"


def ratio(ours, theirs):
    return number(ours / theirs) if ours and theirs else "–"


def share(value, limit):
    return f"{100 * value / limit:.0f} %" if value and limit else "–"


def weights(c, kinds):
    """`prompt` and `decode`."""
    args = c.args
    prompts = args.prompt if "prompt" in kinds else []
    decode = args.decode if "decode" in kinds else 0

    def work(rounds):
        for kind, path in c.models.items():
            for i, n in enumerate(prompts or [0]):
                n_gen = decode if i == 0 else 0
                ours = lambda: c.sides.granule(path, prompt=n, gen=n_gen)
                rounds.add(("granule", kind), ours)
                for peer, repack in zip(c.peers, args.repack):
                    rounds.add((peer, kind), lambda: c.sides.llama(path, repack, prompt=n, decode=n_gen))

    rounds = c.rounds(" and ".join(kinds), work)
    tests = [f"pp{n}" for n in prompts] + ([f"tg{decode}"] if decode else [])
    for test in tests:
        yield from weights_table(c, rounds, test)


def weights_table(c, rounds, test):
    is_prompt = test.startswith("pp")
    read, dots = c.limit("read_gb_s"), c.limit("vpdpbusd_gmac_s")
    unit, most, of = ("GMAC/s", dots, "vpdpbusd") if is_prompt else ("GB/s", read, "memory read")
    heading = ["weights", "Granule, t/s", "llama.cpp, t/s", "its better repack", "ratio", unit, f"of the {of} limit"]
    rows = []
    for kind in c.models:
        ours = rounds.median("granule", kind, test, 0, 1)
        side, theirs = rounds.best(c.peers, kind, test, 0)
        work = c.about[kind]["macs" if is_prompt else "bytes_read"] / 1e9
        rate = ours * work if ours else None
        missing = next((why for name, why in rounds.failures.items() if name == ("granule", kind)), "–")
        rows.append([kind, number(ours, missing=missing[:60]), number(theirs), side[-1] if side else "–", ratio(ours, theirs),
                     number(rate, 1), share(rate, most)])
    yield f"## {'Prompt' if is_prompt else 'Decode'}, {test[2:]} tokens at depth 0"
    yield ""
    yield from table(heading, rows)


def depth(c):
    args = c.args
    kind, path = c.base()
    depths = [0, *args.depth]
    listed = ",".join(map(str, depths))

    def work(rounds):
        for kv in args.kv:
            rounds.add(("granule", kv), lambda: c.sides.granule(path, prompt=0, gen=args.decode, depth=listed, kv_cache_type=kv))
            for peer, repack in zip(c.peers, args.repack):
                rounds.add((peer, kv), lambda: c.sides.llama(path, repack, decode=args.decode, depths=depths, kv=kv))

    rounds = c.rounds("depth", work)
    yield f"## Decode behind a context, {kind} weights, {args.decode} tokens"
    yield ""
    rows = []
    test = f"tg{args.decode}"
    for at in args.depth:
        for kv in args.kv:
            ours, flat = rounds.median("granule", kv, test, at, 1), rounds.median("granule", kv, test, 0, 1)
            side, theirs = rounds.best(c.peers, kv, test, at)
            theirs_flat = rounds.median(side, kv, test, 0)
            rows.append([kv, f"{at:,}", number(ours), number(theirs), side[-1] if side else "–", ratio(ours, theirs),
                         number(added(ours, flat)), number(added(theirs, theirs_flat))])
    heading = ["keys and values", "depth", "Granule, t/s", "llama.cpp, t/s", "its better repack", "ratio", "Granule adds, ms",
               "llama.cpp adds, ms"]
    yield from table(heading, rows)


def added(deep, flat):
    """Milliseconds that a depth adds to a token."""
    return 1e3 / deep - 1e3 / flat if deep and flat else None


def parallel(c):
    args = c.args
    kind, path = c.base()
    counts = sorted({1, *args.parallel})
    listed = ",".join(map(str, counts))

    def work(rounds):
        rounds.add(("granule",), lambda: c.sides.granule(path, prompt=0, gen=args.decode, parallel=listed))

    rounds = c.rounds("parallel", work)
    yield f"## Sequences at once, {kind} weights, depth 0, {args.decode} tokens each"
    yield ""
    alone = rounds.median("granule", f"tg{args.decode}", 0, 1)
    rows = []
    for n in counts:
        every = rounds.median("granule", f"tg{args.decode}", 0, n)
        rows.append([str(n), number(every, missing=rounds.why("granule")), number(every and every / n), ratio(every, alone)])
    yield from table(["sequences", "Granule, t/s of all", "of each", "times one alone"], rows)


def first_token(c):
    """Seconds from the start of a program that writes one token to its end."""
    def work(rounds):
        for kind, path in c.models.items():
            for name, call in c.sides.runs(path).items():
                # All of the file is in the page cache when it is read here.
                read_file(path)
                rounds.add((name, kind), lambda: timed([*call, "-p", "Once"]))

    rounds = c.rounds("first-token", work)
    yield "## From the start of the program to the end of a run that writes one token, file in the page cache"
    yield ""
    rows = []
    for kind in c.models:
        ours = rounds.median("granule", kind)
        side, theirs = rounds.best(c.peers, kind, least=True)
        rows.append([kind, number(ours and ours * 1e3, 0), number(theirs and theirs * 1e3, 0), side[-1] if side else "–",
                     ratio(theirs, ours)])
    yield from table(["weights", "Granule, ms", "llama.cpp, ms", "its better repack", "ratio"], rows)


def read_file(path):
    with open(path, "rb", buffering=0) as file:
        while file.read(16 << 20):
            pass


def timed(call):
    start = time.perf_counter()
    command(call, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


def memory(c):
    """Resident bytes of a program that has computed a prompt and is held at its last write, by a pipe that is full."""
    prompt = "a " * (c.args.prompt[0] // 2)

    def work(rounds):
        for kind, path in c.models.items():
            for name, call in c.sides.runs(path).items():
                read_file(path)
                call = [*call, "-p", prompt, *(["--json"] if name == "granule" else [])]
                rounds.add((name, kind), lambda: resident(call, name == "granule"))

    rounds = c.rounds("memory", work)
    yield "## Resident memory, a prompt computed, MiB"
    yield ""
    rows = []
    mib = lambda value: number(value and value / (1 << 20), 0)
    for kind in c.models:
        ours = lambda key: rounds.median("granule", kind, key)
        side, theirs = rounds.best(c.peers, kind, "rest", least=True)
        reported = ours("total")
        rows.append([kind, mib(ours("rest")), mib(ours("anonymous")), mib(ours("file")), mib(ours("peak")), mib(reported),
                     mib(c.about[kind]["bytes"]), ratio(ours("rest"), reported), number(ours("idle"), 1), mib(theirs),
                     mib(rounds.median(side, kind, "peak")) if side else "–"])
    heading = ["weights", "Granule at rest", "of it private and shared", "of it files", "peak", "its report says", "the file",
               "rest over report", "CPU at rest, ms/s", "llama.cpp at rest", "peak"]
    yield from table(heading, rows)


def resident(call, reports):
    """Of one run, bytes at rest and at most, by kind; what the program itself reports; milliseconds of CPU a second at rest."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    filler = 0
    try:
        while True:
            filler += os.write(write_end, b"\n" * 4096)
    except BlockingIOError:
        os.set_blocking(write_end, True)
    try:
        call = [str(a) for a in call]
        program = subprocess.Popen(call, stdin=subprocess.DEVNULL, stdout=write_end, stderr=subprocess.DEVNULL)
    except OSError as error:
        os.close(read_end)
        raise Failed(f"{call[0]}: {error.strerror}") from error
    finally:
        os.close(write_end)
    told = {}
    try:
        told = at_rest(program)
        with os.fdopen(read_end, "rb") as pipe:
            text = pipe.read()[filler:].decode(errors="replace")
        if program.wait() != 0:
            raise Failed(f"{pathlib.Path(call[0]).name}: status {program.returncode}")
    finally:
        program.kill()
        program.wait()
    if reports:
        told["total"] = as_json(text, "granule")["memory"]["total"]
    return {(key,): value for key, value in told.items()}


def at_rest(program):
    """Waits until the program computes nothing for half a second; answers what /proc says then. Of one that ended without: when most
    was resident."""
    seen, still, before = [], 0, None
    while program.poll() is None and still < 10:
        time.sleep(0.05)
        try:
            status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{program.pid}/status").read_text().splitlines())
            spent = cpu_ticks(program.pid)
        except (OSError, IndexError):
            break
        if "VmRSS" not in status:
            break
        size = lambda key: int(status[key].split()[0]) << 10
        private = size("RssAnon") + size("RssShmem")
        seen.append({"rest": size("VmRSS"), "anonymous": private, "file": size("RssFile"), "peak": size("VmHWM")})
        still = still + 1 if spent == before and spent > 0 else 0
        before = spent
    if not seen:
        raise Failed(f"{pathlib.Path(program.args[0]).name} ended at once")
    if still < 10:
        return max(seen, key=lambda sample: sample["rest"])
    time.sleep(1)
    return {**seen[-1], "idle": (cpu_ticks(program.pid) - before) * 1e3 / os.sysconf("SC_CLK_TCK")}


def cpu_ticks(pid):
    """User and system time of all threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def limits(c):
    yield "## The machine's limits, medians"
    yield ""
    if not c.limits:
        c.measure_limits()
    read, dots = c.limit("read_gb_s"), c.limit("vpdpbusd_gmac_s")
    known = [told["read_gb_s"] for told in c.limits]
    spread = f"{min(known):.1f} to {max(known):.1f} in {len(known)} takes"
    rows = [["memory read, GB/s", number(read, 1), spread], ["vpdpbusd, GMAC/s", number(dots, 1), ""]]
    for kind, about in c.about.items():
        decode = number(read and read * 1e9 / about["bytes_read"], 1)
        prompt = number(dots and dots * 1e9 / about["macs"], 0) if about["macs"] else "–"
        rows.append([f"{kind}: decode, t/s", decode, f"prompt of 8-bit products {prompt}"])
    yield from table(["limit", "", ""], rows)


# The report.


def machine():
    name, cores = platform.machine(), len(os.sched_getaffinity(0))
    try:
        told = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        told = ""
    fields = dict(re.findall(r"^([^\t\n]+?)\s*: (.*)$", told, re.MULTILINE))
    name = fields.get("model name", name)
    flags = set(fields.get("flags", "").split())
    units = [unit for unit in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16") if unit in flags]
    family = f"family {fields['cpu family']}, model {fields['model']}; " if "cpu family" in fields and "model" in fields else ""
    return f"{name} ({family}{', '.join(units)}), {cores} of {os.cpu_count()} CPUs"


def physical_cores():
    """Cores that this process may use, siblings of one core counted once."""
    allowed, cores = os.sched_getaffinity(0), set()
    for cpu in allowed:
        place = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add((place / "thread_siblings_list").read_text())
        except OSError:
            return len(allowed)
    return len(cores)


def commit():
    try:
        name = command(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]).strip()
        dirty = command(["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"]).strip()
    except Failed:
        return "unknown"
    return f"{name}{' with changes' if dirty else ''}"


def versions(args):
    library = sorted((args.llama_bin).glob("libggml-base.so.*.*.*"))
    ggml = f", ggml {library[0].name.split('.so.')[1]}" if library else ""
    told = {"granule": command([args.granule, "--version"]).strip(), "commit": commit()}
    told["llama.cpp"] = f"of {PACKAGE} {VERSION}{ggml}" if ggml or args.llama_bin.is_relative_to(args.cache) else str(args.llama_bin)
    return told


def report(c, versions_told, lines):
    args = c.args
    day = datetime.date.today().isoformat()
    head = [
        f"# {day}, beside llama.cpp, {machine()}",
        "",
        f"{versions_told['granule']} at {versions_told['commit']}, release build; llama.cpp {versions_told['llama.cpp']}, release build for",
        f"this machine, flash attention on. {args.threads} threads each, in turns on one machine: medians of {args.rounds} rounds of",
        f"{args.repeat} repetitions. llama.cpp's better setting of repacking counts in each row. {platform.system()} {platform.release()}.",
        "",
        f"`python3 benches/peers/cpu.py {' '.join(told_flags(args))}`",
        "",
    ]
    return "\n".join(head + lines)


def told_flags(args):
    """What was asked for, without the places of this machine."""
    given = {"only": args.only, "types": args.types, "prompt": args.prompt, "depth": args.depth, "kv": args.kv, "parallel": args.parallel,
             "repack": args.repack, "decode": args.decode, "threads": args.threads, "rounds": args.rounds, "repeat": args.repeat}
    return [f"--{key} {','.join(map(str, value)) if isinstance(value, list) else value}" for key, value in given.items() if value]


def save(c, versions_told, lines):
    out = c.args.out
    out.parent.mkdir(parents=True, exist_ok=True)
    text = report(c, versions_told, lines)
    out.with_name(out.name + ".md").write_text(text + "\n", encoding="utf-8")
    results = {name: rounds.as_json() for name, rounds in c.results.items()}
    whole = {"machine": machine(), "versions": versions_told, "threads": c.args.threads, "models": c.about, "limits": c.limits, "results": results}
    out.with_name(out.name + ".json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return text


def measure(args, models):
    c = Comparison(args, models)
    told = versions(args)
    weighed = [section for section in ("prompt", "decode") if section in args.only]
    work = [lambda c: weights(c, weighed)] if weighed else []
    others = {"depth": depth, "parallel": parallel, "first-token": first_token, "memory": memory, "limits": limits}
    work += [others[section] for section in SECTIONS if section in others and section in args.only]
    lines = []
    for section in work:
        lines += section(c)
        # What was measured is kept, whatever becomes of the rest.
        text = save(c, told, lines)
    print(text)
    announce(f"in {args.out}.md and {args.out}.json")


def arguments():
    def listed(kind, allowed=None):
        def parse(text):
            values = [kind(part) for part in text.split(",") if part]
            wrong = [v for v in values if allowed and v not in allowed]
            if wrong or not values:
                raise argparse.ArgumentTypeError(f"{text!r}; there are {', '.join(map(str, allowed or ['numbers']))}")
            return values
        return parse

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", action="store_true", help="download and build llama.cpp in the cache first")
    p.add_argument("--no-amx", dest="amx", action="store_false", help="llama.cpp without AMX: its products for prompts of quantized weights crash on some machines that have it")
    p.add_argument("--make", action="store_true", help="make the models that are not in the cache yet, and measure them")
    p.add_argument("--models", type=pathlib.Path, metavar="DIR", help="measure the files NAME.TYPE.gguf of this folder")
    p.add_argument("--stem", metavar="NAME", help="of several models in the folder, this one")
    p.add_argument("--granule", type=pathlib.Path, default=ROOT / "target" / "release" / "granule", metavar="PROGRAM")
    p.add_argument("--llama-bin", type=pathlib.Path, metavar="DIR", help="llama.cpp's programs [default: those built in the cache]")
    p.add_argument("--cache", type=pathlib.Path, default=ROOT / "target" / "peers", metavar="DIR")
    p.add_argument("--out", type=pathlib.Path, metavar="PATH", help="write PATH.md and PATH.json [default: in the cache]")
    p.add_argument("--only", type=listed(str, SECTIONS), default=SECTIONS, metavar="SECTION,…")
    p.add_argument("--types", type=listed(lambda t: t.lower(), TYPES), metavar="TYPE,…", help="weight types [default: all files, with --make q4_0,q8_0,q4_k_m,q6_k,f16,bf16]")
    p.add_argument("--prompt", type=listed(int), default=[256, 512], metavar="N,…")
    p.add_argument("--decode", type=int, default=32, metavar="N")
    p.add_argument("--depth", type=listed(int), default=[2048], metavar="N,…")
    p.add_argument("--kv", type=listed(str, ["f32", "f16", "bf16", "q8_0", "q4_0"]), default=["f16", "q8_0", "q4_0"], metavar="TYPE,…")
    p.add_argument("--parallel", type=listed(int), default=[8], metavar="N,…")
    p.add_argument("--repack", type=listed(int, [0, 1]), default=[1, 0], metavar="0|1,…")
    p.add_argument("--ctx-size", type=int, default=4096, metavar="N", help="context of first-token and memory")
    p.add_argument("-t", "--threads", type=int, default=physical_cores(), metavar="N")
    p.add_argument("--rounds", type=int, default=3, metavar="N")
    p.add_argument("--repeat", type=int, default=3, metavar="N", help="repetitions of a measurement in each round")
    p.add_argument("--limit-mib", type=int, default=1024, metavar="N", help="what `limits` reads")
    return p, p.parse_args()


def main():
    parser, args = arguments()
    if not (args.build or args.make or args.models):
        parser.error("nothing to do: --build, --make or --models DIR")
    args.cache = args.cache.resolve()
    args.llama_bin = args.llama_bin or programs(args.cache, args.amx)
    args.out = args.out or args.cache / f"{datetime.date.today().isoformat()}-cpu"
    try:
        if args.build:
            args.cache.mkdir(parents=True, exist_ok=True)
            announce(f"llama.cpp is in {build(args.cache, args.amx)}")
        if args.make:
            types = args.types = args.types or ["q4_0", "q8_0", "q4_k_m", "q6_k", "f16", "bf16"]
            args.models = make(args.cache, args.llama_bin, types)
        if args.models:
            if not args.granule.exists():
                sys.exit(f"cpu.py: no {args.granule}: cargo build --release")
            if not (args.llama_bin / "llama-bench").exists():
                sys.exit(f"cpu.py: no llama-bench in {args.llama_bin}: --build, or --llama-bin DIR")
            measure(args, find_models(args.models, args.stem, args.types))
    except Failed as failed:
        sys.exit(f"cpu.py: {failed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
