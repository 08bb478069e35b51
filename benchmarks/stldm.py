"""Guided sampling of STLDM at its published HKO-7 size against a literal transcription of its order of computation, on one CPU thread.

    python benchmarks/stldm.py [--repeats 3] [--preset hko7] [--steps 20] [--only guided unguided memory profile]

guided    sampling of one 128x128 sample with guidance 1: from noise and the first estimate's latents to the enhanced latents. The literal
          version runs the same weights as written down: the embedding of the step and the condition at every level anew in each step, the
          condition (or zeros) joined to the features before the convolution, guidance as two calls, attention with its matrix of weights,
          norms by their formula, the default memory layout. Both run in turn in one process.
unguided  the same without guidance.
memory    what a denoising step allocates: the most that lives at once while the network runs by itself, and while a quarter and while all
          of the steps are sampled, counted by torch's profiler.
profile   where the time of guided sampling goes, by operation.
Printed are medians of CPU seconds, the largest difference of the results (rounding, asserted), ratios and mebibytes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from wxlab import create_model
from wxlab.models.stldm import STLDM
from wxlab.models.stldm.attention import Norm, PatchAttention, SpatialAttention, TemporalAttention
from wxlab.models.stldm.denoiser import Denoiser, Down, ResidualBlock, Up
from wxlab.nn.diffusion import DDIM

PARTS = ["guided", "unguided", "memory", "profile"]
ROUNDING = 1e-3  # of the largest latent: float32 through all steps
MEBIBYTE = 2**20


def normalised(norm: Norm, x: Tensor) -> Tensor:
    """Over dimension 1: channels of [n, C, h, w], times of [B, T, C, h, w]."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.g


def convolved(projection: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, projection.weight, projection.bias)


def literal_patches(attention: PatchAttention, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    p, heads, dim = attention.patch, attention.heads, attention.dim
    qkv = convolved(attention.to_qkv, normalised(attention.norm, x)).chunk(3, dim=1)

    def patches(part: Tensor) -> Tensor:  # [n, patches, heads, dim, points]
        cut = part.view(n, heads, dim, h // p, p, w // p, p)
        return cut.permute(0, 3, 5, 1, 2, 4, 6).reshape(n, -1, heads, dim, p * p)

    q, k, v = (patches(part) for part in qkv)
    q, k = q.softmax(-2) * dim**-0.5, k.softmax(-1)
    context = torch.einsum("nphdi,nphei->nphde", k, v)
    out = torch.einsum("nphde,nphdi->nphei", context, q)
    out = out.reshape(n, h // p, w // p, heads * dim, p, p).permute(0, 3, 1, 4, 2, 5).reshape(n, -1, h, w)
    return normalised(cast(Norm, attention.to_out[1]), convolved(attention.to_out[0], out)) + x


def literal_space(attention: SpatialAttention, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    qkv = convolved(attention.to_qkv, normalised(attention.norm, x)).chunk(3, dim=1)
    q, k, v = (part.view(n, attention.heads, -1, h * w) for part in qkv)
    weights = torch.einsum("nhdi,nhdj->nhij", q * q.shape[2] ** -0.5, k).softmax(-1)
    out = torch.einsum("nhij,nhdj->nhdi", weights, v).reshape(n, -1, h, w)
    return convolved(attention.to_out[0], out) + x


def literal_time(attention: TemporalAttention, x: Tensor) -> Tensor:
    frames = normalised(attention.norm, x.unflatten(0, (-1, attention.frames)))  # [B, T, C, h, w]
    points = frames.permute(0, 3, 4, 1, 2).flatten(1, 2)  # [B, h w, T, C]
    q, k, v = (to(points).unflatten(-1, (attention.heads, -1)).transpose(2, 3) for to in (attention.to_q, attention.to_k, attention.to_v))
    weights = torch.einsum("bphid,bphjd->bphij", q * q.shape[-1] ** -0.5, k).softmax(-1)
    out = torch.einsum("bphij,bphjd->bphid", weights, v).transpose(2, 3).flatten(3)
    return attention.to_out(out).permute(0, 2, 3, 1).reshape(x.shape) + x


def literal_block(block: ResidualBlock, x: Tensor, features: Tensor) -> Tensor:
    y = block.block1.norm(block.block1.proj(x))
    if block.mlp is not None:
        scale, shift = block.mlp(features)[:, :, None, None].chunk(2, dim=1)
        y = y * (scale + 1) + shift
    y = F.silu(block.block2.norm(block.block2.proj(F.silu(y))))
    return y + (x if block.res_conv is None else block.res_conv(x))


def literal_network(network: Denoiser, x: Tensor, t: int, condition: Tensor | None) -> Tensor:
    """x [B, T2, c, h, w] -> v."""
    y, c, skips = x.flatten(0, 1), None if condition is None else condition.flatten(0, 1), []
    features = network.time(torch.full((len(x),), t)).repeat_interleave(x.shape[1], 0)

    def over_time(attention: nn.Module | None, y: Tensor) -> Tensor:
        return y if attention is None else literal_time(cast(TemporalAttention, attention), y)

    for level, module in enumerate(network.downs):
        down = cast(Down, module)
        y = literal_block(down.block1, torch.cat([y, torch.zeros_like(y) if c is None else c], dim=1), features)
        first = literal_patches(cast(PatchAttention, down.spatial), y)
        second = over_time(down.temporal, literal_block(down.block2, first, features))
        y, c = down.last(second), None if c is None else network.conditions[level](c)
        skips.append((first, second))
    mid = network.mid
    y = literal_space(cast(SpatialAttention, mid.spatial), literal_block(mid.block1, y, features))
    y = literal_block(mid.block3, over_time(mid.temporal, literal_block(mid.block2, y, features)), features)
    for module in network.ups:
        up, (first, second) = cast(Up, module), skips.pop()
        y = literal_block(up.block1, torch.cat([over_time(up.temporal, up.up(y)), second], dim=1), features)
        y = literal_block(up.block2, torch.cat([literal_patches(cast(PatchAttention, up.spatial), y), first], dim=1), features)
    return y.unflatten(0, x.shape[:2])


def literal_sample(model: STLDM, condition: Tensor, x: Tensor) -> Tensor:
    """DDIM by its formulas, with the literal network."""
    alphas, weight = model.schedule.alphas, model.config["guidance"]
    times = DDIM(model.schedule, model.config["sampling_steps"]).times
    for now, then in zip(times, [*times[1:], -1], strict=True):
        v = literal_network(model.denoiser, x, now, condition)
        if weight:
            v = (1 + weight) * v - weight * literal_network(model.denoiser, x, now, None)
        z, noise = alphas[now] ** 0.5 * x - (1 - alphas[now]) ** 0.5 * v, alphas[now] ** 0.5 * v + (1 - alphas[now]) ** 0.5 * x
        x = z if then < 0 else alphas[then] ** 0.5 * z + (1 - alphas[then]) ** 0.5 * noise
    return x


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def alternate(name: str, ours: Callable[[], Tensor], literal: Callable[[], Tensor], repeats: int) -> None:
    """Medians of both, run in turn after one warm-up, and their ratio."""
    mine, theirs = ours(), literal()
    difference = ((mine - theirs).abs().max() / theirs.abs().max()).item()
    assert difference < ROUNDING, f"the results differ by {difference:.1e} of the largest value"
    pairs = [(cpu_seconds(ours), cpu_seconds(literal)) for _ in range(repeats)]
    own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{name}: {own:.2f} s, literal {other:.2f} s, {ratio:.2f}x; largest difference {difference:.1e}", flush=True)


def most_allocated(run: Callable[[], object]) -> float:
    """MiB that live at once at most while ``run`` runs, above what lived before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most / MEBIBYTE


def measure_memory(model: STLDM, condition: Tensor, start: Tensor) -> None:
    network, steps = model.denoiser, model.config["sampling_steps"]
    modulation, pyramid = network.modulation(torch.tensor([0])), network.pyramid(condition)
    both = torch.cat([start, start])
    alone = most_allocated(lambda: network.velocity(both, modulation, pyramid))
    kept = sum(part.nbytes for level in pyramid for part in level) / MEBIBYTE
    print(f"memory: {alone:.1f} MiB at most while the network runs once; what the condition adds takes {kept:.1f} MiB", flush=True)
    found = {}
    few, many = max(steps // 4, 2), steps
    for steps in (few, many):
        sampling = model.with_sampling(sampling_steps=steps)
        found[steps] = most_allocated(lambda sampling=sampling: sampling.sample(condition, torch.randn, start))  # type: ignore[misc]
        print(f"  {found[steps]:.1f} MiB at most in a sample of {steps} steps", flush=True)
    latents = 4 * start.nbytes / MEBIBYTE  # the state twice, as one batch; before and after a step
    tables = sum(rows.nbytes for rows in modulation.values()) * many / MEBIBYTE
    assert found[many] - found[few] <= tables, "memory grows with the steps"
    assert found[many] <= alone + kept + latents + tables, "a step allocates more than the network"


def measure_profile(run: Callable[[], object]) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    spent = Counter[str]()
    for row in recorded.key_averages():
        spent[row.key] += int(row.self_cpu_time_total)
    total = spent.total()
    print("profile of guided sampling, share of the time:")
    for name, microseconds in spent.most_common(14):
        print(f"  {microseconds / total:6.1%}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--preset", default="hko7", help="tiny or demo for a quick try")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = create_model("stldm", arguments.preset, sampler="ddim", sampling_steps=arguments.steps, guidance=1.0).eval()
    assert isinstance(model, STLDM)
    spec, factor = model.spec, 2 ** (model.config["N_S"] // 2)
    shape = (1, spec.horizon, model.config["hid_S"], *(side // factor for side in spec.grid.shape))
    condition, start = torch.randn(2, *shape)
    free = model.with_sampling(guidance=0.0)
    with torch.inference_mode():
        for name, variant in (("guided", model), ("unguided", free)):
            if name in arguments.only:
                ours = lambda variant=variant: variant.sample(condition, torch.randn, start)  # noqa: E731
                literal = lambda variant=variant: literal_sample(variant, condition, start)  # noqa: E731
                alternate(f"{name} sampling in {arguments.steps} steps, CPU seconds", ours, literal, arguments.repeats)
        if "memory" in arguments.only:
            measure_memory(model, condition, start)
        if "profile" in arguments.only:
            measure_profile(lambda: model.sample(condition, torch.randn, start))


if __name__ == "__main__":
    main()
