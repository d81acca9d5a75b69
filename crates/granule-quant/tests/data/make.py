"""Makes the files beside it with the Python package `gguf` (0.19.0), an implementation of the formats that is not ours.

values.f32          numbers that every type can hold
values.<type>       what gguf.quants.quantize makes of them
blocks.<type>       blocks of random bits (their scales are finite)
blocks.<type>.f32   what gguf.quants.dequantize makes of them

And for the types that are decoded only:

random.digests      a line for each type: its name, and the digest of what gguf.quants.dequantize makes of 10,000 random blocks
random.<type>.f32   the first two of these blocks in full

The blocks of a type are the bytes of splitmix64 (little-endian words) that starts with its ggml id; in blocks 8 to 71 the
f16 scales are zero, subnormal, infinite and NaN in turn, in all pairs where there are two. The digest is FNV-1a, 64 bits wide, over the words that the floats are; which
NaN it is counts for nothing, they are 0x7fc00000 all.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

here = Path(__file__).parent
rng = np.random.default_rng(20240817)
types = {"f16": T.F16, "bf16": T.BF16, "q8_0": T.Q8_0, "q4_0": T.Q4_0, "q4_1": T.Q4_1}


def values():
    def normal(scale, blocks):
        return (rng.standard_normal((blocks, 32)) * scale).astype(np.float32)

    yield np.zeros((1, 32), np.float32)
    yield np.full((1, 32), -0.0, np.float32)
    yield np.full((1, 32), 1.0, np.float32)
    yield np.full((1, 32), -3.0, np.float32)
    for scale in (1.0, 0.02, 100.0, 7000.0, 1e-3, 1e-5, 1e-6, 1e-7, 1e-12, 1e-30):
        yield normal(scale, 4)
    # The largest magnitude with both signs, in either order, and with a sign of its own.
    ties = normal(0.3, 6)
    ties[0, [3, 9]] = 2.0, -2.0
    ties[1, [3, 9]] = -2.0, 2.0
    ties[2, [15, 16]] = -4.0, 4.0
    ties[3, 31] = 5.0
    ties[4, 0] = -5.0
    ties[5, :] = np.where(np.arange(32) % 2 == 0, 1.5, -1.5)
    yield ties
    # Halves: with a largest magnitude of 127 the scale of Q8_0 is 1, with -8 that of Q4_0, with 0 to 15 that of Q4_1.
    halves = (rng.integers(-254, 255, (8, 32)) / 2).astype(np.float32)
    halves[:, 5] = 127.0
    yield halves
    halves = (rng.integers(-16, 17, (8, 32)) / 2).astype(np.float32)
    halves[:, 5] = -8.0
    yield halves
    halves = (rng.integers(0, 31, (8, 32)) / 2).astype(np.float32)
    halves[:, [2, 7]] = 0.0, 15.0
    yield halves
    # Ties of f16 and bf16: all the bits below the last one that is kept are 1000...
    bits = rng.integers(0x38800000, 0x47000000, (4, 32)).astype(np.uint32)
    bits[:2] = bits[:2] & 0xFFFFF000 | 0x1000
    bits[2:] = bits[2:] & 0xFFFF0000 | 0x8000
    yield bits.view(np.float32)
    # Subnormals of f16.
    yield (rng.integers(-2048, 2049, (2, 32)) * np.float32(2.0**-25)).astype(np.float32)


data = np.concatenate(list(values()))
data.tofile(here / "values.f32")
for name, kind in types.items():
    quantize(data, kind).tofile(here / f"values.{name}")
    if name in ("f16", "bf16"):
        rows = rng.integers(0, 1 << 16, (16, 32)).astype(np.uint16).view(np.uint8)
        finite = dequantize(rows, kind)
        rows = rows.reshape(16, 32, 2)
        rows[~np.isfinite(finite)] = 0
        rows = rows.reshape(16, 64)
    else:
        size = {"q8_0": 34, "q4_0": 18, "q4_1": 20}[name]
        rows = rng.integers(0, 256, (32, size)).astype(np.uint8)
        rows[:, 1] &= 0xBF  # a scale below 2
        if name == "q4_1":
            rows[:, 3] &= 0xBF
    rows.tofile(here / f"blocks.{name}")
    dequantize(rows, kind).astype(np.float32).tofile(here / f"blocks.{name}.f32")

N = 10_000


def random_blocks(seed, n, size):
    words = n * size // 8 + 1
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z.astype("<u8").view(np.uint8)[: n * size].reshape(n, size)


# Where a block's f16 scales are, if not in its first bytes.
SCALES = {"q5_1": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
SPECIAL = (0x0000, 0x8000, 0x0001, 0x83FF, 0x7C00, 0xFC00, 0x7E01, 0x7C01)


def set_special_scales(blocks, offsets):
    for i in range(64):
        for k, at in enumerate(offsets):
            blocks[8 + i, at : at + 2] = list(SPECIAL[i >> 3 * k & 7].to_bytes(2, "little"))


def digest(words):
    h = 0xCBF29CE484222325
    for word in words.tolist():
        h = (h ^ word) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


names = "q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs iq2_xxs"
with open(here / "random.digests", "w") as file:
    for name in names.split():
        kind = T[name.upper()]
        size = GGML_QUANT_SIZES[kind][1]
        with np.errstate(all="ignore"):
            blocks = random_blocks(int(kind), N, size)
            set_special_scales(blocks, SCALES.get(name, (0,)))
            x = dequantize(blocks, kind).astype(np.float32)
        x[np.isnan(x)] = np.uint32(0x7FC00000).view(np.float32)
        x[:2].tofile(here / f"random.{name}.f32")
        print(name, f"{digest(x.view(np.uint32).ravel()):016x}", file=file)
