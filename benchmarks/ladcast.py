"""LaDCast at its published sizes against a literal transcription of its order of computation, on one CPU thread.

    python benchmarks/ladcast.py [--repeats 3] [--only forward sample decode]

forward   the 375M transformer at its latent size. The literal version runs the same weights as written down: queries, keys, values and
          the inside of the MLP as products of their own, attention with its matrix of weights, rotation by pairs with tables made anew at
          every call, the known tokens carried through the last block. Both run in turn in one process.
sample    a whole 20-step sample (of a small transformer of the same shape, for the large one takes minutes), and how often the network is
          called, against the same sampler written as a plain loop over the literal network.
decode    peak memory of an ensemble at the paper's size, 50 members x 60 steps: one chunk of four frames decoded, then the streaming writer
          with a decoder that repeats points in the place of the network, for as many pieces as --pieces says (all have the same size).
Printed are medians of CPU seconds, the largest difference of the results (rounding), ratios and megabytes.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab import create_model, rollout
from wxlab.models.ladcast import CHANNELS, Autoencoder, Ladcast, LatentForecaster
from wxlab.models.ladcast.forecaster import decode_frames
from wxlab.models.ladcast.transformer import DualBlock, RefinerBlock, SingleBlock, Stream, noise_features, year_features
from wxlab.nn.edm import karras_sigmas, sample
from wxlab.normaliser import Normaliser, Transform
from wxlab.pieces import LEAD, write

SMALL: dict[str, Any] = {"heads": 4, "dual": 2, "single": 4, "refiner": 1}


def layer_norm(x: Tensor, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + eps)


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + norm.eps) * norm.weight


def linears(layer: nn.Linear, x: Tensor, widths: list[int]) -> list[Tensor]:
    """One product for each part of a joined projection."""
    parts = zip(layer.weight.split(widths), layer.bias.split(widths), strict=True)
    return [F.linear(x, weight, bias) for weight, bias in parts]


def tables(model: Ladcast, first: int, frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, d], each repeated for its pair."""
    rotary = model.network.rotary
    places = [torch.arange(first, first + frames).float()]
    places += [torch.linspace(*ends, count) for ends, count in ((rotary.y, rows), (rotary.x, columns)) if ends is not None]
    grid = torch.meshgrid(*places, indexing="ij")
    parts = zip(grid, rotary.axes, strict=True)
    angles = [place.reshape(-1, 1) / rotary.theta ** (torch.arange(0, width, 2).float() / width) for place, width in parts]
    joined = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return joined.cos(), joined.sin()


def rotated(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, heads, N, d]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-b, a], dim=-1).flatten(-2)
    return x * table[0] + turned * table[1]


def heads(x: Tensor, dim: int) -> Tensor:
    return x.unflatten(-1, (-1, dim)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def literal_refiner_block(block: RefinerBlock, e: Tensor, emb: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    width, dim = e.shape[-1], block.heads.norm_q.normalized_shape[0]
    gate_a, gate_m = block.gates(F.silu(emb)).unsqueeze(1).chunk(2, dim=-1)
    n = layer_norm(e, block.norm1.eps) * block.norm1.weight + block.norm1.bias
    q, k, v = (heads(part, dim) for part in linears(block.qkv, n, [width] * 3))
    q, k = rotated(rms_norm(q, block.heads.norm_q), table), rotated(rms_norm(k, block.heads.norm_k), table)
    e = e + attention(q, k, v) * gate_a
    n = layer_norm(e, block.norm2.eps) * block.norm2.weight + block.norm2.bias
    return e + block.down(F.silu(block.up(n))) * gate_m


def literal_dual_block(block: DualBlock, x: Tensor, e: Tensor, emb: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    queries, keys, values, modulations = [], [], [], []
    for stream, tokens, place in ((block.output, x, table), (block.known, e, None)):
        dim = stream.heads.norm_q.normalized_shape[0]
        modulations.append(stream.modulation(emb).unsqueeze(1).chunk(6, dim=-1))
        n = layer_norm(tokens, 1e-6) * (1 + modulations[-1][1]) + modulations[-1][0]
        q, k, v = (heads(part, dim) for part in linears(stream.qkv, n, [width] * 3))
        q, k = rms_norm(q, stream.heads.norm_q), rms_norm(k, stream.heads.norm_k)
        if place is not None:
            q, k = rotated(q, place), rotated(k, place)
        queries.append(q), keys.append(k), values.append(v)
    joint = attention(*(torch.cat(part, dim=2) for part in (queries, keys, values)))

    def finish(stream: Stream, tokens: Tensor, seen: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        tokens = tokens + stream.out(seen) * parts[2]
        n = layer_norm(tokens, 1e-7) * (1 + parts[4]) + parts[3]
        return tokens + stream.down(F.gelu(stream.up(n), approximate="tanh")) * parts[5]

    seen_x, seen_e = joint.split([x.shape[1], e.shape[1]], dim=1)
    return finish(block.output, x, seen_x, modulations[0]), finish(block.known, e, seen_e, modulations[1])


def literal_single_block(block: SingleBlock, z: Tensor, emb: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    width, dim = z.shape[-1], block.heads.norm_q.normalized_shape[0]
    shift, scale, gate = block.modulation(emb).unsqueeze(1).chunk(3, dim=-1)
    n = layer_norm(z, 1e-6) * (1 + scale) + shift
    k, v, q, inside = linears(block.into, n, [width, width, width, block.into.out_features - 3 * width])
    q, k = (rotated(rms_norm(heads(part, dim), norm), table) for part, norm in ((q, block.heads.norm_q), (k, block.heads.norm_k)))
    return z + gate * block.out(torch.cat([attention(q, k, heads(v, dim)), F.gelu(inside, approximate="tanh")], dim=-1))


def literal_network(model: Ladcast, noisy: Tensor, known: Tensor, c_noise: Tensor, time_: Tensor) -> Tensor:
    network = model.network
    frames, rows, columns = noisy.shape[2:]
    c_noise = c_noise.expand(len(noisy))
    x, e = network.embed_output(noisy.flatten(2).transpose(1, 2)), network.embed_known(known.flatten(2).transpose(1, 2))
    table, known_table = tables(model, 1, frames, rows, columns), tables(model, 1 - known.shape[2], known.shape[2], rows, columns)

    def embed(module: Any, tokens: Tensor) -> Tensor:
        return module.noise(noise_features(c_noise)) + module.pooled(tokens.mean(1))

    emb = embed(network.refiner.embed, e)
    e = network.refiner.proj_in(e)
    for block in network.refiner.blocks:
        e = literal_refiner_block(block, e, emb, known_table)
    emb = embed(network.embed, e)
    scale, shift = network.year(year_features(time_)).chunk(2, dim=-1)
    emb = F.silu(emb * (1 + scale) + shift)
    for block in network.dual:
        x, e = literal_dual_block(block, x, e, emb, table)
    z, both = torch.cat([x, e], dim=1), tuple(torch.cat(pair) for pair in zip(table, known_table, strict=True))
    for block in network.single:
        z = literal_single_block(block, z, emb, both)
    scale, shift = network.modulation(emb).unsqueeze(1).chunk(2, dim=-1)
    out = network.proj_out(layer_norm(z[:, : x.shape[1]], 1e-7) * (1 + scale) + shift)
    return out.transpose(1, 2).unflatten(2, (frames, rows, columns))


def literal_sample(model: Ladcast, known: Tensor, time_: Tensor, noise: Tensor, calls: list[int]) -> Tensor:
    """Heun's method as it is written, with the literal network."""
    sigmas, half = karras_sigmas(20).double(), model.config["sigma_data"]

    def slope(x: Tensor, s: Tensor) -> Tensor:
        calls.append(1)
        f = literal_network(model, (x / torch.sqrt(s**2 + half**2)).float(), known, (s.log() / 4).float().view(1), time_)
        denoised = half**2 / (s**2 + half**2) * x + s * half / torch.sqrt(s**2 + half**2) * f.double()
        return (x - denoised) / s

    x = noise.double() * sigmas[0]
    for now, then in pairwise(sigmas):
        d = slope(x, now)
        ahead = x + (then - now) * d
        x = x + (then - now) * (d + slope(ahead, then)) / 2 if then > 0 else ahead
    return x.float()


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def alternate(name: str, ours: Callable[[], Tensor], literal: Callable[[], Tensor], repeats: int) -> None:
    """Medians of both, run in turn after one warm-up, and their ratio."""
    difference = (ours() - literal()).abs().max().item()
    pairs = [(cpu_seconds(ours), cpu_seconds(literal)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{name}: {mine:.2f} s, literal {theirs:.2f} s, {theirs / mine:.2f}x; largest difference {difference:.1e}", flush=True)


def inputs(model: Ladcast) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    spec, generator = model.spec, torch.Generator().manual_seed(0)
    shape = (len(spec.channels), spec.horizon, *spec.grid.shape)
    noisy = torch.randn(1, *shape, generator=generator)
    known = 0.5 * torch.randn(1, shape[0], spec.history, *spec.grid.shape, generator=generator)
    return noisy, known, torch.tensor([0.1]), torch.tensor([1538265600])


def measure_forward(repeats: int) -> None:
    model: Any = create_model("ladcast", "375M").eval()
    given = inputs(model)
    with torch.inference_mode():
        alternate("forward of 375M, CPU seconds", lambda: model(*given), lambda: literal_network(model, *given), repeats)


def measure_sample(repeats: int) -> None:
    model: Any = create_model("ladcast", "375M", **SMALL).eval()
    noise, known, _, time_ = inputs(model)
    mine: list[int] = []
    theirs: list[int] = []
    model.network.register_forward_hook(lambda *_: mine.append(1))
    with torch.inference_mode():
        denoise = model.denoiser(known, time_)
        runs = (lambda: sample(model.sampler, denoise, noise), lambda: literal_sample(model, known, time_, noise, theirs))
        alternate("sample of 20 steps, width 512, CPU seconds", *runs, repeats)
    count = repeats + 1
    print(f"calls of the network in a sample: {len(mine) // count}, literal {len(theirs) // count}")


def peak_memory() -> float:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_decode(pieces: int) -> None:
    autoencoder: Any = create_model("ladcast_autoencoder", "paper_84").eval()
    assert isinstance(autoencoder, Autoencoder)
    autoencoder.normaliser = Normaliser({name: Transform("zscore") for name in (*CHANNELS, *autoencoder.spec.static)})
    grid = autoencoder.latent_grid.shape
    print(f"peak memory: {peak_memory():.0f} MiB with the autoencoder alone", flush=True)
    started = time.process_time()
    decode_frames(autoencoder, torch.randn(4, 84, *grid))
    print(f"  {peak_memory():.0f} MiB after decoding a chunk of four frames ({time.process_time() - started:.0f} CPU s)", flush=True)

    transformer: Any = create_model("ladcast", "375M", heads=1, head_dim=16, dual=1, single=1)
    transformer.normaliser = Normaliser({name: Transform("zscore") for name in transformer.spec.channels})
    transformer.predict = lambda batch, members=1, generator=None: generator.randn((4, 84, *grid))
    autoencoder.encode = lambda x, static=None: F.avg_pool2d(x, 8)
    autoencoder.decode = lambda z: F.interpolate(z, scale_factor=8)
    request = rollout.Request(LatentForecaster(autoencoder, transformer), 60, 50, 0, 8)
    states = _states(autoencoder)
    started, largest, count = time.process_time(), 0, 0

    def some() -> Any:
        nonlocal largest, count
        for where, piece in islice(rollout._pieces(request, states, states["time"].values), pieces):
            largest, count = max(largest, piece.nbytes), count + 1
            yield where, piece

    with tempfile.TemporaryDirectory() as folder:
        leads = (np.arange(1, 61) * transformer.spec.step).astype("timedelta64[s]").astype("timedelta64[ns]")
        write(some(), Path(folder) / "forecast.zarr", {"time": states["time"].values, "number": np.arange(50), LEAD: leads})
    spent = time.process_time() - started
    print(f"  {peak_memory():.0f} MiB after {count} of 210 pieces of at most {largest / 2**20:.0f} MiB were written ({spent:.0f} CPU s)")
    whole, latents = (50 * 60 * 84 * points * 4 / 2**30 for points in (120 * 240, 15 * 30))
    print(f"  the whole forecast has {whole:.1f} GiB, its latents {latents:.2f} GiB")


def _states(autoencoder: Autoencoder) -> Any:
    import xarray as xr

    from wxlab.channels import unstack

    grid = autoencoder.spec.grid
    coords: dict[str, Any] = {"time": np.array(["2018-01-01"], "datetime64[ns]"), "channel": list(CHANNELS)}
    coords |= {"latitude": list(grid.y), "longitude": list(grid.x)}
    fields = np.random.default_rng(0).standard_normal((1, len(CHANNELS), *grid.shape), dtype=np.float32)
    states = unstack(xr.DataArray(fields, dims=tuple(coords), coords=coords))
    for name in autoencoder.spec.static:
        states[name] = (("latitude", "longitude"), fields[0, 0])
    return states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=["forward", "sample", "decode"], choices=["forward", "sample", "decode"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if "decode" in arguments.only:  # first, so that the peak is its own
        measure_decode(arguments.pieces)
    if "forward" in arguments.only:
        measure_forward(arguments.repeats)
    if "sample" in arguments.only:
        measure_sample(arguments.repeats)


if __name__ == "__main__":
    main()
