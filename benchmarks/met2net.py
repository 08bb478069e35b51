"""Met2Net at its published 5.625 degree size against a literal transcription of its order of computation, on one CPU thread.

    python benchmarks/met2net.py [--repeats 5] [--batch 1]

The literal version runs the same weights as written down: one convolution after another in the default memory layout, momentum encoders
and decoders in full, and the third loss with its graph although it is multiplied by 0. Both run in turn in one process; what is printed
are medians of CPU seconds, the losses of both (equal to rounding) and the ratio.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wxlab import create_model
from wxlab.models.base import Batch, Model
from wxlab.models.met2net import TwoStage
from wxlab.models.met2net.network import Met2Net, Translator, TranslatorLayer, VariableAttention
from wxlab.nn.convolution import DepthwiseConv
from wxlab.nn.drop_path import DropPath
from wxlab.nn.gating import GatedBlock


def depthwise(conv: DepthwiseConv, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)


def drop_path(layer: DropPath, branch: Tensor) -> Tensor:
    if not layer.training or layer.rate == 0:
        return branch
    return branch * (branch.new_empty(len(branch), 1, 1, 1).bernoulli_(1 - layer.rate) / (1 - layer.rate))


def literal_block(block: GatedBlock, y: Tensor) -> Tensor:
    gate, mlp = block.attn.spatial_gating_unit, block.mlp
    h = block.norm1(y)
    p = F.gelu(block.attn.proj_1(h))
    f = gate.conv1(depthwise(gate.conv_spatial, depthwise(gate.conv0, p)))
    q = block.attn.proj_2(f * p) + h
    y = y + drop_path(block.drop_path, block.layer_scale_1[None, :, None, None] * q)
    m = mlp.fc2(F.gelu(depthwise(mlp.dwconv.dwconv, mlp.fc1(block.norm2(y)))))
    return y + drop_path(block.drop_path, block.layer_scale_2[None, :, None, None] * m)


def literal_attention(attention: VariableAttention, x: Tensor) -> Tensor:
    b, v, d, h, w = x.shape

    def heads(projection: nn.Module) -> Tensor:  # [b, 8, v, n]
        return projection(x.flatten(0, 1)).view(b, v, 8, -1).transpose(1, 2)

    q, k, values = heads(attention.q_Conv), heads(attention.k_Conv), heads(attention.v_Conv)
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=-1)
    out = (weights @ values).transpose(1, 2).reshape(b * v, d, h, w)
    return attention.v_post_f(out).view(b, v, d, h, w)


def literal_layer(layer: TranslatorLayer, x: Tensor) -> Tensor:
    y = layer.norm_1((x + literal_attention(layer.attn_1, x)).flatten(0, 1))
    z = layer.norm_2(y + (y + literal_block(layer.block, y)))
    return z.view(x.shape)


def literal_translator(translator: Translator, z: Tensor) -> Tensor:
    x = translator.conv1(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    for layer in translator.layers:
        x = literal_layer(layer, x)
    return translator.conv2(x.flatten(0, 1)).view(z.shape)


def literal_encode(encoders: nn.ModuleList, x: Tensor) -> Tensor:
    b, t, c, h, w = x.shape
    latents = []
    for i, encoder in enumerate(encoders):
        latent = encoder.enc(x[:, :, i : i + 1].reshape(b * t, 1, h, w))
        latents.append(latent.view(b, t, *latent.shape[1:]))
    stacked = torch.stack(latents, dim=2).permute(0, 2, 1, 3, 4, 5)  # [b, v, t, s, h, w]
    return stacked.reshape(b, c, -1, *latents[0].shape[3:])


def literal_decode(decoders: nn.ModuleList, z: Tensor, frames: int) -> Tensor:
    b, v, features, h, w = z.shape
    latents = z.view(b, v, frames, features // frames, h, w).permute(0, 2, 1, 3, 4, 5)
    fields = []
    for i, decoder in enumerate(decoders):
        latent = latents[:, :, i].reshape(b * frames, -1, h, w)
        fields.append(decoder.readout(decoder.dec(latent)))
    return torch.cat(fields, dim=1).view(b, frames, v, *fields[0].shape[2:])


class LiteralNetwork:
    def __init__(self, model: Met2Net) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        model = self.model
        return literal_decode(model.decoders, literal_translator(model.translator, literal_encode(model.encoders, x)), x.shape[1])


class LiteralTraining:
    """Both stages in the order of the paper's algorithm, with hard copies of encoders and decoders as in the released code."""

    def __init__(self, model: Met2Net, alpha: float = 0.9) -> None:
        self.model, self.alpha = model, alpha
        self.encoders, self.translator, self.decoders = (
            copy.deepcopy(part).requires_grad_(False) for part in (model.encoders, model.translator, model.decoders)
        )

    @torch.no_grad()
    def refresh(self, mine: nn.Module, theirs: nn.Module, alpha: float) -> None:
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            a.data = alpha * a.data + (1 - alpha) * b.data

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        model, frames = self.model, x.shape[1]
        self.translator.train()
        first = literal_decode(model.decoders, literal_translator(self.translator, literal_encode(model.encoders, x)), frames)
        loss_1 = F.mse_loss(first, y)
        self.refresh(self.encoders, model.encoders, 0.0)
        self.refresh(self.decoders, model.decoders, 0.0)
        future = literal_translator(model.translator, literal_encode(self.encoders, x))
        loss_2 = F.mse_loss(future, literal_encode(self.encoders, y))
        self.refresh(self.translator, model.translator, self.alpha)
        loss_3 = F.mse_loss(literal_decode(self.decoders, future, frames), y)
        return loss_1 + loss_2 + 0 * loss_3


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def alternate(ours: Callable[[], object], literal: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median CPU seconds of both, run in turn after one warm-up."""
    ours(), literal()
    pairs = [(cpu_seconds(ours), cpu_seconds(literal)) for _ in range(repeats)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def report(name: str, ours: float, literal: float) -> None:
    print(f"{name}: {ours:.3f} s, literal {literal:.3f} s, {literal / ours:.2f}x")


def measure_inference(model: Met2Net, x: Tensor, repeats: int) -> None:
    model.eval()
    literal = LiteralNetwork(model)
    with torch.inference_mode():
        error = (model(x) - literal(x)).abs().max().item()
        times = alternate(lambda: model(x), lambda: literal(x), repeats)
    print(f"inference: largest difference of outputs {error:.1e}")
    report("inference, CPU seconds per call", *times)


def measure_training(model: Met2Net, x: Tensor, y: Tensor, repeats: int) -> None:
    twin = copy.deepcopy(model.train())
    recipe, literal = TwoStage(model, alpha=0.9), LiteralTraining(twin)
    batch = Batch(x, y, torch.zeros(len(x), 2 * x.shape[1], dtype=torch.long))
    optimiser, literal_optimiser = recipe.optimiser(model), recipe.optimiser(twin)
    losses: dict[str, list[float]] = {"ours": [], "literal": []}

    def step(model: Model | Met2Net, optimiser: torch.optim.Optimizer, loss: Callable[[], Tensor], key: str) -> None:
        torch.manual_seed(len(losses[key]))  # the same drop paths on both sides
        value = loss()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses[key].append(value.item())

    def ours() -> None:
        step(model, optimiser, lambda: recipe.loss(model, batch, None)[0], "ours")
        recipe.after_step(model, 0)

    times = alternate(ours, lambda: step(twin, literal_optimiser, lambda: literal.loss(x, y), "literal"), repeats)
    pairs = zip(losses["ours"], losses["literal"], strict=True)
    furthest = max(abs(a - b) / b for a, b in pairs)
    print(f"training: losses of {len(losses['ours'])} steps, furthest apart {furthest:.1e} (relative)")
    report("training step, CPU seconds", *times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create_model("met2net", "weatherbench_5p625")
    assert isinstance(model, Met2Net)
    x, y = torch.randn(2, arguments.batch, 12, 5, 32, 64)
    measure_inference(model, x, arguments.repeats)
    measure_training(model, x, y, arguments.repeats)


if __name__ == "__main__":
    main()
