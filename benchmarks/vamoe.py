"""VA-MoE at preset ``small`` against a literal transcription of its order of computation, on one CPU thread; and its largest memory.

    python benchmarks/vamoe.py [--repeats 9] [--batch 1] [--no-memory]

The literal version runs the same weights as written down: full attention matrices, a loop over experts with a gate, an argsort, a gather
and three products for each, the index encoded at every call, plain AdamW. Both run in turn in one process; what is printed are medians of
CPU seconds, the difference of the outputs, the ratio, and where the time goes: products of matrices and attention are the same work in both
versions, so that the time they take bounds the ratio. Also printed is what it takes with the experts in stacked products instead of one
after the other. The memory is that of a process of its own: one forecast at 128x256 with width 768 (375,675,788 parameters), its peak
resident set.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from wxlab import create_model
from wxlab.models.base import Batch
from wxlab.models.vamoe import LearnedVariances, VAMoE, experts
from wxlab.models.vamoe.experts import VariableExperts

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution", "aten::convolution_backward")
CHOICE = "choice of channels"


def literal_attention(attention: Any, x: Tensor) -> Tensor:
    """x [B, n, E]."""
    batch, n, width = x.shape
    heads = attention.heads
    qkv = attention.qkv(x).reshape(batch, n, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    weights = ((q * (width // heads) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
    return attention.proj((weights @ v).transpose(1, 2).reshape(batch, n, width))


def literal_windows(attention: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
    batch, _, width = x.shape
    (h, w), side = shape, attention.window
    x = F.pad(x.view(batch, h, w, width), (0, 0, 0, -w % side, 0, -h % side))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    x = x.view(batch, rows, side, columns, side, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, width)
    x = literal_attention(attention, x)
    x = x.view(batch, rows, columns, side, side, width).permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * side, columns * side, width)
    return x[:, :h, :w].reshape(batch, h * w, width)


def literal_swiglu(expert: Any, u: Tensor) -> Tensor:
    return expert.down_proj(F.silu(expert.gate_proj(u)) * expert.up_proj(u))


def literal_experts(moe: Any, x: Tensor, z: Tensor) -> Tensor:
    emphasis = moe.PosEmbedder(z).softmax(dim=-1)
    y = literal_swiglu(moe.shared_experts, x)
    for i, expert in enumerate(moe.experts):
        g = moe.GateEmbedder(x * emphasis[i])
        order = torch.argsort(g, dim=-1, descending=True)[..., : moe.chosen]
        weights = torch.gather(g, -1, order).softmax(dim=-1)
        y = y + literal_swiglu(expert, torch.gather(x, -1, order) * weights * moe.gain)
    return moe.mlp(moe.norm(y))


def stacked_experts(moe: Any, x: Tensor, emphasis: Tensor) -> Tensor:
    """All experts at once: one product for the gates of all, one for each of the three layers of all experts."""
    tokens, count = x.flatten(0, 1), len(moe.experts)
    weight = (moe.GateEmbedder.weight * emphasis.unsqueeze(1)).flatten(0, 1)  # [n E, E]
    g = F.linear(tokens, weight).unflatten(-1, (count, -1)) + moe.GateEmbedder.bias  # [T, n, E]
    channels = experts.highest(g.detach(), moe.chosen)
    seen = tokens.unsqueeze(1).expand(-1, count, -1).gather(-1, channels) * g.gather(-1, channels).softmax(-1) * moe.gain
    gate, up, down = (torch.stack([getattr(e, name).weight.T for e in moe.experts]) for name in ("gate_proj", "up_proj", "down_proj"))
    seen = seen.transpose(0, 1)  # [n, T, k]
    y = moe.shared_experts(tokens) + ((F.silu(seen @ gate) * (seen @ up)) @ down).sum(0)
    return moe.mlp(moe.norm(y)).view_as(x)


def stacked(run: Callable[[], object]) -> Callable[[], object]:
    """A run with all experts in stacked products."""

    def instead() -> object:
        one_by_one = VariableExperts.forward
        VariableExperts.forward = stacked_experts  # type: ignore[method-assign, assignment]
        try:
            return run()
        finally:
            VariableExperts.forward = one_by_one  # type: ignore[method-assign]

    return instead


def literal(model: VAMoE, x: Tensor) -> tuple[Tensor, Tensor]:
    first = t = model.patch_embed.proj(x).flatten(2).transpose(1, 2) + model.pos_embed
    z = model.posembedder(model.index)
    for block in model.blocks:
        normed = block.norm1(t)
        t = t + (literal_windows(block.attn, normed, model.shape) if block.attn.window else literal_attention(block.attn, normed))
        t = t + literal_experts(block.moe, block.norm2(t), z)
    return model.fields(t), model.fields(first)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def alternate(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median CPU seconds of both, run in turn after two warm-ups."""
    for _ in range(2):
        ours(), theirs()
    pairs = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(repeats)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def report(name: str, ours: float, theirs: float) -> None:
    print(f"{name}: {ours:.3f} CPU s, literal {theirs:.3f} CPU s, {theirs / ours:.2f}x")


def shares(run: Callable[[], object], repeats: int = 5) -> dict[str, float]:
    """Shares of the time of a run by kind of work."""
    highest = experts.highest

    def recorded(g: Tensor, count: int) -> Tensor:
        with record_function(CHOICE):
            return highest(g, count)

    experts.highest = recorded
    try:
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            for _ in range(repeats):
                run()
    finally:
        experts.highest = highest
    spent = {"products of matrices": 0.0, "attention": 0.0, CHOICE: 0.0, "the rest, pass by pass over tokens": 0.0}
    rest = "the rest, pass by pass over tokens"
    for event in watched.key_averages():
        kind = "products of matrices" if event.key in PRODUCTS else "attention" if "scaled_dot_product" in event.key else rest
        spent[CHOICE if event.key == CHOICE else kind] += event.self_cpu_time_total
    total = sum(spent.values())
    return {name: value / total for name, value in spent.items()}


def explain(ours: float, theirs: float, parts: dict[str, float]) -> None:
    common = parts["products of matrices"] + parts["attention"]
    print("  of which " + ", ".join(f"{name} {share:.0%}" for name, share in parts.items()))
    print(f"  the work that both versions do takes {common * ours:.3f} s, so that {theirs / (common * ours):.1f}x could be reached at most")


def measure_forward(model: VAMoE, x: Tensor, repeats: int) -> None:
    model.eval()
    with torch.inference_mode():
        error = (model(x)[0] - literal(model, x)[0]).abs().max().item()
        times = alternate(lambda: model(x), lambda: literal(model, x), repeats)
        parts = shares(lambda: model(x))
        at_once = alternate(lambda: model(x), stacked(lambda: model(x)), repeats)
        apart = (model(x)[0] - cast(Any, stacked(lambda: model(x))())[0]).abs().max().item()
    print(f"forward: largest difference of outputs {error:.1e}")
    report("forward", *times)
    explain(*times, parts)
    print(f"  experts in stacked products: {at_once[1]:.3f} s against {at_once[0]:.3f} s one by one, outputs within {apart:.1e}")


def measure_training(model: VAMoE, x: Tensor, y: Tensor, repeats: int) -> None:
    twin = copy.deepcopy(model.train())
    recipe = LearnedVariances(model)
    batch = Batch(x.unsqueeze(1), y.unsqueeze(1), torch.zeros(len(x), 2, dtype=torch.long))
    optimiser = recipe.optimiser(model)
    plain = torch.optim.AdamW(twin.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    losses: tuple[list[float], list[float]] = ([], [])

    def step(optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor], kept: list[float]) -> None:
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        kept.append(value.item())

    def theirs() -> Tensor:
        out, recons = literal(twin, x)
        return 0.9 * twin.loss_gen(out, y) + 0.1 * twin.loss_recons(recons, x)

    def ours() -> None:
        step(optimiser, lambda: recipe.loss(model, batch, None)[0], losses[0])

    times = alternate(ours, lambda: step(plain, theirs, losses[1]), repeats)
    furthest = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
    print(f"training: losses of {len(losses[0])} steps, furthest apart {furthest:.1e} (relative)")
    report("training step", *times)
    explain(*times, shares(ours))
    at_once = alternate(ours, stacked(ours), repeats)
    print(f"  experts in stacked products: {at_once[1]:.3f} s against {at_once[0]:.3f} s one by one")


def forecast_once() -> None:
    """One forecast at full size; prints the peak resident set of this process."""
    model = create_model("vamoe", "official").eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.process_time()
    with torch.inference_mode():
        model(torch.randn(1, len(model.spec.channels), *model.spec.grid.shape))
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"forecast at 128x256, width 768: {seconds:.0f} CPU s, peak memory {peak:.2f} GiB (before the forecast {before:.2f} GiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="leave out the forecast at full size, which takes minutes")
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.only_memory:
        forecast_once()
        return
    model = create_model("vamoe", "small")
    assert isinstance(model, VAMoE)
    x, y = torch.randn(2, arguments.batch, len(model.spec.channels), *model.spec.grid.shape)
    measure_forward(model, x, arguments.repeats)
    measure_training(model, x, y, arguments.repeats)
    if not arguments.no_memory:
        subprocess.run([sys.executable, __file__, "--only-memory"], check=True)


if __name__ == "__main__":
    main()
