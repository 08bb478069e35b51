"""Block-sparse attention against dense attention: CPU seconds of one thread, side by side, and memory above the inputs.

    python benchmarks/attention.py [--tokens 12288 49152] [--repeats 5] [--device cpu]

Both sides get the same q, k and v: float32, 64 channels, 4 query heads for each key head (one key head unless told otherwise), windows of
1024 tokens, blocks of 128, 12 chosen blocks at 12,288 tokens and 24 at 49,152. Dense attention is SDPA with the query heads of a key head
folded into the rows, its fastest form here. Block-sparse attention is the whole core: scores, choice, three branches, gates.
The memory is the growth of a process's peak resident set while one call runs, its result included; each in a process of its own.
With --device cuda the rows are wall seconds around a synchronised device, and every engine that runs there is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wxlab.models.mosaic import force_engine
from wxlab.models.mosaic.attention import block_sparse_attention, dense_attention

WIDTH, GROUP, WINDOW, BLOCK = 64, 4, 1024, 128
COUNT = {3072: 4, 12288: 12, 49152: 24}  # of the published levels
GOAL = {(12288, False): "3.5x", (12288, True): "3x", (49152, False): "8x"}


def inputs(tokens: int, kinds: int, device: str, gradients: bool) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(1, heads, tokens, WIDTH) for heads in (GROUP * kinds, kinds, kinds)]
    qkv = [torch.randn(shape, generator=generator, device=device).requires_grad_(gradients) for shape in shapes]
    gates = torch.randn(1, tokens, GROUP * kinds, 3, generator=generator, device=device).softmax(-1)
    return qkv, gates


def core(kind: str, tokens: int, qkv: list[Tensor], gates: Tensor) -> Callable[[], Tensor]:
    if kind == "dense":
        return lambda: dense_attention(*qkv)
    q, k, v = qkv
    return lambda: block_sparse_attention(q, k, v, gates, window=WINDOW, block=BLOCK, count=COUNT[tokens])


def both_ways(attend: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        out = attend()
        out.backward(torch.ones_like(out))

    return run


def seconds(run: Callable[[], Any], device: str) -> float:
    """CPU seconds, or wall seconds of a GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(tokens: int, kinds: int, repeats: int, device: str, engine: Any, backward: bool) -> None:
    """One row: medians of runs in turn."""
    qkv, gates = inputs(tokens, kinds, device, backward)
    runs = {kind: core(kind, tokens, qkv, gates) for kind in ("sparse", "dense")}
    timed = {kind: both_ways(run) if backward else run for kind, run in runs.items()}
    measured: dict[str, list[float]] = {kind: [] for kind in timed}
    with force_engine(engine), torch.set_grad_enabled(backward):
        for repeat in range(repeats + 1):
            for kind, run in timed.items():
                found = seconds(run, device)
                if repeat:  # the first warms up
                    measured[kind].append(found)
    sparse, dense = (statistics.median(measured[kind]) for kind in ("sparse", "dense"))
    what = "forward + backward" if backward else "forward"
    row = f"{tokens:6d} tokens, {engine}, {what}: {sparse:.3f} s against {dense:.3f} s dense: {dense / sparse:.2f}x"
    print(row + (f" (goal {GOAL[tokens, backward]})" if (tokens, backward) in GOAL and device == "cpu" else ""), flush=True)


def high_water() -> int:
    """Peak resident set of this process, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def memory_here(tokens: int, kinds: int, backward: bool) -> int:
    """Bytes above the inputs that one block-sparse call takes at its peak."""
    small, few = inputs(3072, kinds, "cpu", backward)
    runner = both_ways if backward else lambda attend: attend
    with torch.set_grad_enabled(backward):
        runner(core("sparse", 3072, small, few))()  # libraries load what they need
        del small, few
        qkv, gates = inputs(tokens, kinds, "cpu", backward)
        before = high_water()
        runner(core("sparse", tokens, qkv, gates))()
    return high_water() - before


def memory(tokens: int, kinds: int, backward: bool) -> float:
    """Gigabytes, measured in a process of its own."""
    call = [sys.executable, __file__, "--memory", json.dumps([tokens, kinds, backward])]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e9


def memory_cuda(tokens: int, kinds: int, engine: Any, kind: str) -> float:
    qkv, gates = inputs(tokens, kinds, "cuda", False)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with force_engine(engine), torch.no_grad():
        core(kind, tokens, qkv, gates)()
    return float(torch.cuda.max_memory_allocated() - before) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[12288, 49152], choices=sorted(COUNT))
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        print(memory_here(*json.loads(arguments.memory)))
        return
    device, kinds = arguments.device, arguments.kv_heads
    engines = ["gather", "flex", "triton"] if device == "cuda" else ["gather"]
    for tokens in arguments.tokens:
        for engine in engines:
            for backward in (False, True) if tokens < 20000 or device == "cuda" else (False,):
                compare(tokens, kinds, arguments.repeats if tokens < 20000 else min(arguments.repeats, 3), device, engine, backward)
            if device == "cuda":
                sparse, dense = (memory_cuda(tokens, kinds, engine, kind) for kind in ("sparse", "dense"))
                print(f"{tokens:6d} tokens, {engine}, memory above the inputs: {sparse:.2f} GB against {dense:.2f} GB dense")
        if device == "cpu":
            for heads in sorted({kinds, 3}):  # 3: of the published finest level
                used = memory(tokens, heads, False)
                print(f"{tokens:6d} tokens, {heads} key heads, memory above the inputs: {used:.2f} GB (goal 0.5 GB)")
    if not torch.cuda.is_available():
        print("no CUDA GPU here: the engines flex and triton are unmeasured")


if __name__ == "__main__":
    main()
