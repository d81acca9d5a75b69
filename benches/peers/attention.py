#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention at the shapes of benches/examples/cuda_attention.rs, against a device copy.

    python3 attention.py [KEYS]

Needs PyTorch with CUDA and a GPU; without them it fails. 8 KV heads of 4 query heads, 64 and 128 dims, one query token,
batches of 1 and of 16, f16. GB/s count the bytes of keys and values once, a copy's what it reads and what it writes. Layers are
read in turn, so many that the device's cache holds none of them when its turn comes again. Each backend that takes the
shape is timed; grouped queries are asked for (enable_gqa) and, where that is refused, keys and values repeated, which is said.
"""

import sys

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

N_KV_HEADS, N_HEADS = 8, 32
AT_LEAST_READ = 512 << 20
MEASUREMENTS, RUNS = 5, 50
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def seconds(work):
    """The best of several measurements of one run, by events on the device."""
    for i in range(3):
        work(i)
    best = float("inf")
    for _ in range(MEASUREMENTS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for i in range(RUNS):
            work(i)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3 / RUNS)
    return best


def main():
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 32768
    if not torch.cuda.is_available():
        sys.exit("attention.py: PyTorch finds no CUDA device")
    print(f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, {keys} keys, {N_KV_HEADS} x 4 heads, f16")
    source = torch.empty(AT_LEAST_READ, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * AT_LEAST_READ / seconds(lambda _: target.copy_(source))
    del source, target
    print(f"{'copy':<44} {'':>9} {copy / 1e9:>9.1f} {100:>9.1f}%")
    for head_dim in (64, 128):
        for batch in (1, 16):
            size = 2 * batch * N_KV_HEADS * keys * head_dim * 2
            layers = max(1, AT_LEAST_READ // size)
            shape = (layers, batch, N_KV_HEADS, keys, head_dim)
            k = torch.randn(shape, dtype=torch.float16, device="cuda")
            v = torch.randn(shape, dtype=torch.float16, device="cuda")
            q = torch.randn((batch, N_HEADS, 1, head_dim), dtype=torch.float16, device="cuda")
            for backend in BACKENDS:
                for grouped in (True, False):

                    def work(i):
                        keys_now, values_now = k[i % layers], v[i % layers]
                        if not grouped:
                            keys_now = keys_now.repeat_interleave(N_HEADS // N_KV_HEADS, dim=1)
                            values_now = values_now.repeat_interleave(N_HEADS // N_KV_HEADS, dim=1)
                        return functional.scaled_dot_product_attention(q, keys_now, values_now, enable_gqa=grouped)

                    name = f"{backend.name.lower()} dim {head_dim} batch {batch}{'' if grouped else ', repeated'}"
                    try:
                        with sdpa_kernel(backend):
                            took = seconds(work)
                    except RuntimeError as error:
                        print(f"{name:<44} refused: {str(error).splitlines()[0][:80]}")
                        continue
                    speed = size / took
                    print(f"{name:<44} {took * 1e6:>9.1f} {speed / 1e9:>9.1f} {100 * speed / copy:>9.1f}%")
                    break
            del k, v, q


if __name__ == "__main__":
    main()
