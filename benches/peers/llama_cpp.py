#!/usr/bin/env python3
"""llama.cpp, built from the source package of llama-cpp-python, and models for it and Granule to run: what cpu.py measures with."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
TARGETS = ["llama-bench", "llama-completion", "llama-quantize"]
MADE = "llama-3.2-1b"


class Failed(Exception):
    """A program of the comparison did not do what it was asked; says which and why."""


def command(arguments, **options):
    """What a program wrote to stdout."""
    arguments = [str(a) for a in arguments]
    try:
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    except OSError as error:
        raise Failed(f"{arguments[0]}: {error.strerror}") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise Failed(f"{pathlib.Path(arguments[0]).name}: {said[-1].strip() if said else f'status {done.returncode}'}")
    return done.stdout


def as_json(text, who):
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failed(f"{who} wrote no JSON: {text[:80]!r}") from error


def announce(text):
    print(text, file=sys.stderr, flush=True)


def tools(cache, *packages):
    """The Python of a virtual environment in the cache that has these packages."""
    venv = cache / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        announce(f"a virtual environment in {venv}")
        command([sys.executable, "-m", "venv", venv])
    command([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages])
    return python


def programs(cache, amx=True):
    """Where llama.cpp's programs lie once they are built."""
    return cache / ("llama.cpp" if amx else "llama.cpp-without-amx") / "bin"


def build(cache, amx=True):
    """Downloads and builds llama.cpp, natively and in release mode; answers where its programs lie."""
    python = tools(cache, "cmake", "ninja")
    source = cache / "source" / "vendor" / "llama.cpp"
    if not (source / "CMakeLists.txt").exists():
        announce(f"downloading the source package of {PACKAGE} {VERSION}")
        pip = [python, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command([*pip, "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", "-d", cache])
        unpack(cache)
    env = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    made = programs(cache, amx).parent
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_SERVER=OFF"]
    if not amx:
        without = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
        options += [f"-DCMAKE_C_FLAGS={without}", f"-DCMAKE_CXX_FLAGS={without}"]
    announce(f"building {', '.join(TARGETS)} in {made}")
    command([python.parent / "cmake", "-G", "Ninja", "-S", source, "-B", made, *options], env=env)
    if subprocess.run([python.parent / "ninja", "-C", made, *TARGETS], env=env, stdout=sys.stderr).returncode != 0:
        raise Failed("llama.cpp was not built, see above")
    return programs(cache, amx)


def unpack(cache):
    [package] = cache.glob(f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz")
    part = cache / "source.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(package) as tar:
        members = [m for m in tar.getmembers() if "/vendor/llama.cpp/" in m.name]
        for member in members:
            member.name = member.name.split("/", 1)[1]
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(part, members, **safe)
    part.rename(cache / "source")


def make(cache, llama, types):
    """Files of Llama-3.2-1B's shapes, in these types, where they are not there yet; answers their folder."""
    folder = cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    f16 = folder / f"{MADE}.f16.gguf"
    if not f16.exists():
        announce(f"making {f16}")
        python = tools(cache, "numpy", "gguf")
        part = f16.with_suffix(".part")
        command([python, __file__, part])
        part.rename(f16)
    for kind in types:
        path = folder / f"{MADE}.{kind}.gguf"
        if not path.exists():
            announce(f"making {path}")
            part = path.with_suffix(".part")
            command([llama / "llama-quantize", f16, part, kind.upper()])
            part.rename(path)
    return folder


def write_f16(path):
    """Needs gguf and numpy. Random weights, scaled so that activations neither grow nor fade."""
    import gguf
    import numpy as np

    n_embd, layers, heads, kv_heads, head_dim, n_ff, n_vocab = 2048, 16, 32, 8, 64, 8192, 128256
    random = np.random.default_rng(1)
    out = gguf.GGUFWriter(path, "llama", use_temp_file=True)
    out.add_name(f"random weights, the shapes of {MADE}")
    out.add_context_length(131072)
    out.add_embedding_length(n_embd)
    out.add_block_count(layers)
    out.add_feed_forward_length(n_ff)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(head_dim)
    out.add_rope_freq_base(500000.0)
    out.add_vocab_size(n_vocab)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"<{i}>" for i in range(len(tokens), n_vocab)]
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores([0.0] * n_vocab)
    out.add_token_types([2, 3, 3, *[6] * 256, *[1] * (n_vocab - 259)])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)

    def matrix(name, rows, cols):
        values = random.standard_normal((rows, cols), dtype=np.float32) * np.float32(cols**-0.5)
        out.add_tensor(f"{name}.weight", values.astype(np.float16))

    def ones(name):
        out.add_tensor(f"{name}.weight", np.ones(n_embd, dtype=np.float32))

    matrix("token_embd", n_vocab, n_embd)
    for layer in range(layers):
        at = f"blk.{layer}."
        ones(at + "attn_norm")
        matrix(at + "attn_q", heads * head_dim, n_embd)
        matrix(at + "attn_k", kv_heads * head_dim, n_embd)
        matrix(at + "attn_v", kv_heads * head_dim, n_embd)
        matrix(at + "attn_output", n_embd, heads * head_dim)
        ones(at + "ffn_norm")
        matrix(at + "ffn_gate", n_ff, n_embd)
        matrix(at + "ffn_up", n_ff, n_embd)
        matrix(at + "ffn_down", n_embd, n_ff)
    ones("output_norm")
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    # What `make` runs with the Python that has the packages.
    write_f16(sys.argv[1])
