"""ConvLSTM (Shi et al. 2015, arXiv:1506.04214) in the form that OpenSTL trains: patches, no peepholes, no biases.

Facts: frames go in one by one; after the last observed frame the network reads its own output. Without the usual forget bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor, nn

from wxlab.errors import WxlabError
from wxlab.models import Entry
from wxlab.models.base import Batch, Model, Spec, masked_mse
from wxlab.models.baselines import FIELDS
from wxlab.models.baselines.radar import RADAR_PRESETS
from wxlab.models.baselines.recipe import MeanSquaredError

if TYPE_CHECKING:
    from wxlab.rollout import Streams


class ConvLSTMCell(nn.Module):
    """``i, f, g, o = conv_x(x) + conv_h(h)``;  ``c' = s(f) c + s(i) tanh(g)``;  ``h' = s(o) tanh(c')``.

    ``conv_o`` and ``conv_last`` are stored in every published file and never used, so they ask for no gradient.
    """

    def __init__(self, inputs: int, hidden: int, kernel: int) -> None:
        super().__init__()

        def conv(channels_in: int, channels_out: int, size: int) -> nn.Conv2d:
            return nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)

        self.conv_x = nn.Sequential(conv(inputs, 4 * hidden, kernel))
        self.conv_h = nn.Sequential(conv(hidden, 4 * hidden, kernel))
        self.conv_o = nn.Sequential(conv(2 * hidden, hidden, kernel))
        self.conv_last = conv(2 * hidden, hidden, 1)
        self.conv_o.requires_grad_(False)
        self.conv_last.requires_grad_(False)
        self.hidden = hidden

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """x [B,P,h,w], state (h, c) or None (zeros) -> new (h, c), each [B,hidden,h,w]."""
        if state is None:
            zero = x.new_zeros(len(x), self.hidden, *x.shape[-2:])
            state = zero, zero
        h, c = state
        i, f, g, o = (self.conv_x(x) + self.conv_h(h)).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class ConvLSTM(Model):
    """Stacked ConvLSTM cells on patches.

    hidden: width of each cell.  kernel: odd filter size.  patch: side of the square patches that become channels.
    """

    def __init__(self, spec: Spec, *, hidden: Sequence[int] = (128, 128, 128, 128), kernel: int = 5, patch: int = 2) -> None:
        super().__init__(spec, hidden=list(hidden), kernel=kernel, patch=patch)
        self.patch = patch
        width = len(spec.channels) * patch**2
        self.cell_list = nn.ModuleList(
            ConvLSTMCell(inputs, outputs, kernel) for inputs, outputs in zip([width, *hidden[:-1]], hidden, strict=True)
        )
        self.conv_last = nn.Conv2d(hidden[-1], width, 1, bias=False)

    def run(self, frames: Tensor, count: int, choose: Tensor | None = None) -> Tensor:
        """Predict the frame after each of ``count`` inputs: [B,count,C,H,W].

        frames: the known frames [B,T,C,H,W]; input t is frame t where there is one, later the previous prediction.
        choose: bool [B,T], False where a known frame is to be replaced by the previous prediction (scheduled sampling).
        """
        p = self.patch
        known = rearrange(frames, "b t c (h p) (w q) -> b t (p q c) h w", p=p, q=p)
        states: list[tuple[Tensor, Tensor] | None] = [None] * len(self.cell_list)
        outputs: list[Tensor] = []
        for t in range(count):
            if t >= known.shape[1]:
                x = outputs[-1]
            elif choose is None or t == 0:
                x = known[:, t]
            else:
                x = torch.where(choose[:, t, None, None, None], known[:, t], outputs[-1])
            for layer, cell in enumerate(self.cell_list):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]  # type: ignore[index]
            outputs.append(self.conv_last(x))
        return rearrange(torch.stack(outputs, 1), "b t (p q c) h w -> b t c (h p) (w q)", p=p, q=p)

    def forward(self, history: Tensor) -> Tensor:
        """history [B,Ti,C,H,W] -> [B,To,C,H,W]."""
        count = history.shape[1] + self.spec.horizon - 1
        return self.run(history, count)[:, -self.spec.horizon :]

    def predict(self, batch: Batch, members: int = 1, generator: Streams | None = None) -> Tensor:
        return self.repeat_members(self(batch.history), members)


class ScheduledSampling(MeanSquaredError):
    """Mean squared error of every next frame, the observed ones included, with scheduled sampling (Bengio et al. 2015, arXiv:1506.03099).

    In the target period the network is shown the true frame with probability ``max(0, 1 - step / sampling_steps)``, else its own
    output. sampling_steps: 50,000 as published (2e-5 less per step); take about half of the steps in shorter training.
    """

    steps_done: Tensor

    def __init__(self, model: Model, *, sampling_steps: int = 50_000, **settings: float) -> None:
        super().__init__(model, **settings)
        if sampling_steps < 1:
            raise WxlabError(f"sampling_steps={sampling_steps} must be at least 1")
        self.sampling_steps = sampling_steps
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    def loss(self, model: Model, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.target is None:
            raise WxlabError("a batch without target cannot train a model; use windows of a store, which have targets")
        if not isinstance(model, ConvLSTM):
            raise WxlabError(f"scheduled sampling trains a ConvLSTM, not a {type(model).__name__}")
        frames = torch.cat([batch.history, batch.target], 1)
        truth_probability = max(0.0, 1 - int(self.steps_done) / self.sampling_steps)
        draws = torch.rand(frames.shape[:2], generator=generator, device=generator.device).to(frames.device)
        choose = draws < truth_probability
        choose[:, : batch.history.shape[1]] = True
        prediction = model.run(frames[:, :-1], frames.shape[1] - 1, choose)
        mse = masked_mse(prediction, frames[:, 1:], None if batch.mask is None else batch.mask[:, 1:])
        return mse, {"mse": mse.detach(), "truth_probability": torch.tensor(truth_probability)}

    def after_step(self, model: Model, step: int) -> None:
        self.steps_done += 1


def build(spec: Spec, *, hidden: Sequence[int] = (128, 128, 128, 128), kernel: int = 5, patch: int = 2) -> ConvLSTM:
    """A ConvLSTM whose grid must divide into patches."""
    if not hidden or min(hidden) < 1:
        raise WxlabError(f"hidden={list(hidden)} must be widths of at least one cell, each positive")
    if kernel < 1 or kernel % 2 == 0 or patch < 1:
        raise WxlabError(f"kernel={kernel} must be odd and patch={patch} positive")
    spec = dataclasses.replace(spec, multiples=(patch, patch), forcing=(), static=())
    return ConvLSTM(spec, hidden=hidden, kernel=kernel, patch=patch)


def _official(source: Any, config: Mapping[str, Any]) -> Model:
    from wxlab.models.baselines.official import load_convlstm

    return load_convlstm(source, config)


ENTRY = Entry(
    name="convlstm",
    title="ConvLSTM, four cells of width 128",
    presets={
        "tiny": {**FIELDS["tiny"], "hidden": (8, 8), "kernel": 3},
        "demo": {**FIELDS["demo"], "hidden": (32, 32), "kernel": 5},
        "weatherbench_5p625": {**FIELDS["weatherbench_5p625"], "channels": ("2m_temperature",)},
        **RADAR_PRESETS,
        "radar_demo": {**RADAR_PRESETS["radar_demo"], "hidden": (32, 32), "kernel": 5},
    },
    build=build,
    recipe=ScheduledSampling,
    official=_official,
    citation="Shi et al. 2015, arXiv:1506.04214; OpenSTL, Tan et al. 2023, arXiv:2306.11249",
    options=frozenset({"hidden", "kernel", "patch"}),
)
