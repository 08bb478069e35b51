"""Mosaic: interpolation against the gather of its formula, and one forward pass of the published network, on one CPU thread.

    python benchmarks/mosaic.py [--repeats 5] [--no-forward]

Interpolation: from a grid of 29,040 points to a mesh of 49,152 pixels, 24 neighbours, width 192 with 3 heads, float32. The gather takes
a key and a value of every neighbour of every target, as the formula is written; the layer folds the query into the key projection and sums
values as it reads them. Both run in turn; what is printed are medians of CPU seconds, the ratio, and the largest difference.
The forward pass: preset ``era5`` (214,184,448 parameters) with new weights, one member, one step, float32, in a process of its own: CPU
seconds and the peak resident set, weights included. With a CUDA GPU also 24 members over 10 days in half precision.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from wxlab import create_model
from wxlab.healpix_mesh import centres
from wxlab.models.mosaic import GRID, STATIC, Mosaic
from wxlab.models.mosaic.interpolation import Interpolation
from wxlab.models.mosaic.network import token_places


def gathered(layer: Interpolation, x: Tensor) -> Tensor:
    """The layer's formula, written down."""
    heads = layer.heads
    keys, values = layer.to_kv(layer.kv_norm(x)).unflatten(-1, (2, heads, -1)).unbind(2)  # [B, sources, heads, d]
    query = layer.to_q(layer.rel_pos).unflatten(-1, (heads, -1))  # [targets, k, heads, d]
    near_keys, near_values = keys[:, layer.neighbors], values[:, layer.neighbors]  # [B, targets, k, heads, d]
    weights = (torch.einsum("ikhd,bikhd->bikh", query, near_keys) / query.shape[-1] ** 0.5).softmax(2)
    return layer.to_o(torch.einsum("bikh,bikhd->bihd", weights, near_values).flatten(2))


def interpolation(repeats: int) -> None:
    torch.manual_seed(0)
    layer = Interpolation(token_places(GRID), centres(64), 24, 192, 3, False)
    x = torch.randn(1, 29040, 192)
    seconds: dict[str, list[float]] = {"folded": [], "gathered": []}
    with torch.no_grad():
        difference = (layer(x) - gathered(layer, x)).abs().max().item()
        for _ in range(repeats):
            for name in seconds:
                start = time.process_time()
                layer(x) if name == "folded" else gathered(layer, x)
                seconds[name].append(time.process_time() - start)
    folded, naive = (statistics.median(found) for found in seconds.values())
    print(f"interpolation: {folded:.2f} s against {naive:.2f} s gathered: {naive / folded:.2f}x (goal 3x), difference {difference:.1e}")


def published(device: str = "cpu") -> tuple[Mosaic, list[Tensor]]:
    """The network with new weights and an input of random numbers."""
    torch.manual_seed(0)
    model = create_model("mosaic", "era5").eval().to(device)
    assert isinstance(model, Mosaic)
    history = torch.randn(1, model.spec.history, len(model.spec.channels), *model.spec.grid.shape, device=device)
    static = torch.randn(len(STATIC), *model.spec.grid.shape, device=device)
    return model, [history, torch.zeros(1, 2, device=device), torch.randn(1, 1, model.config["noise_dim"], device=device), static]


def forward_here() -> None:
    model, given = published()
    start = time.process_time()
    with torch.no_grad():
        out = model(*given)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    assert torch.isfinite(out).all()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"published network, {parameters:,} parameters, one step: {seconds:.0f} CPU s, peak {peak:.2f} GB (goal 6 GB)")


def forecast_cuda() -> None:
    """24 members, 10 steps of 24 hours."""
    model, (history, clock, _, static) = published("cuda")
    noise = torch.randn(10, 24, model.config["noise_dim"], device="cuda")
    for _ in range(2):  # the first warms up
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        with torch.no_grad(), torch.autocast("cuda", torch.float16):
            window = history.expand(24, -1, -1, -1, -1)
            for eps in noise:
                state = model(window, clock.expand(24, -1), eps, static)
                window = torch.cat([window[:, 1:], state.unsqueeze(1)], dim=1)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"{torch.cuda.get_device_name()}: 24 members, 10 days: {seconds:.1f} s (goal 8 s), peak {peak:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-forward", action="store_true", help="leave out the published network: it takes minutes")
    parser.add_argument("--forward-here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.forward_here:
        forward_here()
        return
    interpolation(arguments.repeats)
    if not arguments.no_forward:
        subprocess.run([sys.executable, __file__, "--forward-here"], check=True)
    if torch.cuda.is_available():
        forecast_cuda()
    else:
        print("no CUDA GPU here: 24 members over 10 days are unmeasured")


if __name__ == "__main__":
    main()
