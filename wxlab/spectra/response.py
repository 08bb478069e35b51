"""What an operator does to single scales: pure harmonics go in, and what comes out is read by degree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr

from wxlab.attention import evaluating, on_device_of, streams_for
from wxlab.errors import WxlabError, unknown
from wxlab.grids import Grid
from wxlab.models.base import Batch, Model
from wxlab.spectra.harmonics import Array, Complex, degree_sums, highest_degree, scalar_coefficients, synthesis
from wxlab.spectra.sphere import EARTH_RADIUS, on_sphere

Operator = Callable[[Array], Array]  # fields [N, H, W] -> [N, (any,) H', W']


def frequency_response(
    operator: Operator,
    grid: Grid,
    *,
    degrees: Sequence[int] | None = None,
    out_grid: Grid | None = None,
    samples: int = 4,
    amplitude: float = 1.0,
    seed: int = 0,
) -> xr.Dataset:
    """How an operator answers to single degrees of spherical harmonics: its gain, and what leaks into other degrees.

    For each degree l, fields Σ_m a_m Y_lm with random a_m and a mean square of amplitude² go through the operator. With b the coefficients
    of what comes out,

    - ``response`` [degree_in, degree] is Σ_m |b_l'm|² / amplitude²: which power comes out where;
    - ``gain`` [degree_in] = √response(l, l), and ``in_phase`` = Σ_m b_lm a*_lm / Σ_m |a_lm|², the part that is where it was: a shift
      leaves the gain at 1 and lowers this one (NaN where the operator changes the grid or the number of fields);
    - ``leak`` [degree_in]: the share of the power that comes out in other degrees, 0 for whatever treats all places and directions alike.

    operator: fields [N, H, W] to [N, H', W'] or [N, channels, H', W'] (channels are summed over), such as an encoder, an attention block
    or, from ``about`` and ``model_step``, a step of a model about a state.  grid: of the fields that go in, the whole globe.
    degrees: that go in; None: all from 1 to the last that the grid knows.  out_grid: of what comes out; None: the same.
    samples: fields of each degree.  amplitude: root mean square of the fields, in whatever unit the operator takes.
    Raises WxlabError for degrees that the grid does not know, and for an operator that returns other shapes or missing values.
    """
    to = grid if out_grid is None else out_grid
    for each in (grid, to):
        on_sphere(xr.DataArray(np.zeros(each.shape), {"latitude": list(each.y), "longitude": list(each.x)}, ("latitude", "longitude")))
    last, highest = highest_degree(grid), highest_degree(to)
    asked = list(range(1, last + 1)) if degrees is None else [int(degree) for degree in degrees]
    if not asked or min(asked) < 0 or max(asked) > last:
        raise WxlabError(f"degrees={degrees!r} must be some of 0 to {last}, which a grid of {len(grid.y)}x{len(grid.x)} points knows")
    if samples < 1 or not amplitude > 0:
        raise WxlabError(f"samples={samples!r} and amplitude={amplitude!r} must be positive")
    random = np.random.default_rng(seed)
    response, in_phase = np.empty((len(asked), highest + 1)), np.full(len(asked), np.nan)
    for i, degree in enumerate(asked):
        given = _harmonics(degree, samples, random) * amplitude
        answer = _answer(operator, synthesis(given, grid), to)
        found = scalar_coefficients(answer, to)  # [N, channels, L + 1, L + 1]
        response[i] = degree_sums(found).sum(1).mean(0) / amplitude**2
        if to == grid and answer.shape[1] == 1:
            in_phase[i] = degree_sums(found[:, 0, : degree + 1, : degree + 1], given)[:, degree].mean() / amplitude**2
    here = np.array([row[degree] if degree <= highest else 0.0 for row, degree in zip(response, asked, strict=True)])
    total = response.sum(1)
    leak = np.divide(total - here, total, out=np.full(len(asked), np.nan), where=total > 0)
    wavelength = np.divide(2 * np.pi * EARTH_RADIUS, asked, out=np.full(len(asked), np.inf), where=np.asarray(asked) > 0)
    return xr.Dataset(
        {
            "response": (("degree_in", "degree"), response, {"units": "1", "long_name": "power that comes out"}),
            "gain": ("degree_in", np.sqrt(here), {"units": "1", "long_name": "gain"}),
            "in_phase": ("degree_in", in_phase, {"units": "1", "long_name": "gain in phase"}),
            "leak": ("degree_in", leak, {"units": "1", "long_name": "share in other degrees"}),
        },
        {
            "degree_in": ("degree_in", asked, {"long_name": "degree that goes in"}),
            "degree": ("degree", np.arange(highest + 1), {"long_name": "degree that comes out"}),
            "wavelength": ("degree_in", wavelength, {"units": "m", "long_name": "wavelength"}),
        },
    )


def _harmonics(degree: int, samples: int, random: np.random.Generator) -> Complex:
    """Random coefficients of one degree, of mean square 1: [samples, degree + 1, degree + 1]."""
    a = random.normal(size=(samples, degree + 1)) + 1j * random.normal(size=(samples, degree + 1))
    a[:, 0] = np.sqrt(2) * a[:, 0].real  # of all 2 l + 1 orders alike
    out = np.zeros((samples, degree + 1, degree + 1), np.complex128)
    out[:, degree] = a
    return np.asarray(out / np.sqrt(degree_sums(out)[:, degree])[:, None, None])


def _answer(operator: Operator, fields: Array, grid: Grid) -> Array:
    """What the operator makes of fields: [N, channels, H', W']. Raises WxlabError for other shapes and missing values."""
    answer = np.asarray(operator(fields), dtype=np.float64)
    if answer.ndim < 3 or len(answer) != len(fields) or answer.shape[-2:] != grid.shape:
        raise WxlabError(
            f"the operator made {'x'.join(map(str, answer.shape))} of {'x'.join(map(str, fields.shape))}; it must return as many fields, "
            f"of {grid.shape[0]}x{grid.shape[1]} points, or say which with out_grid="
        )
    if not np.isfinite(answer).all():
        raise WxlabError("the operator returned missing or infinite values; try a smaller amplitude")
    return answer.reshape(len(fields), -1, *grid.shape)


def about(operator: Operator) -> Operator:
    """The linear part of an operator: (A(+f) − A(−f)) / 2, what it does to small changes f of the state that it was made for."""
    return lambda fields: (operator(fields) - operator(-fields)) / 2


def model_step(model: Model, batch: Batch, channel: str, *, to: str | None = None, layer: str | None = None, seed: int = 0) -> Operator:
    """One step of a model about a state, or a layer within it, as an operator for ``frequency_response``.

    Changes f [N, H, W] are added to ``channel`` in all states that the model reads; what comes out is half the difference of the answers
    to +f and to −f. Normalised units: 1 is a standard deviation. Models that draw numbers draw the same for all.

    model: any with ``predict``.  batch: normalised, of which the first entry is the state.  to: channel of the next state that comes out;
    None: the same.  layer: a module's name (as in ``model.named_modules()``) whose output [.., C, h, w] comes out in place of the next
    state; its grid is ``frequency_response``'s out_grid.
    Raises WxlabError for a channel or layer that the model has not, and a layer whose output is no field for each state.
    """
    channels, modules = list(model.spec.channels), dict(model.named_modules())
    for name in (channel, to or channel):
        if name not in channels:
            raise unknown("channel", name, channels)
    if layer is not None and layer not in modules:
        raise unknown("layer", layer, [name for name in modules if name])
    place, out = channels.index(channel), channels.index(to or channel)

    def step(fields: Array) -> Array:
        many, seen = on_device_of(model, _repeated(batch, len(fields))), []
        many.history[:, :, place] += torch.from_numpy(fields).to(many.history)[:, None]
        hook = None if layer is None else modules[layer].register_forward_hook(lambda _, given, answer: seen.append(answer))
        try:
            with evaluating(model), torch.no_grad():
                made = model.predict(many, 1, streams_for(model, many, seed))[:, 0, 0, out]
        finally:
            if hook is not None:
                hook.remove()
        if layer is None:
            return made.double().cpu().numpy()
        answer = seen[0] if seen else None
        if not isinstance(answer, torch.Tensor) or answer.ndim < 3 or len(answer) % len(fields):
            raise WxlabError(
                f"the layer {layer!r} returns no fields [.., C, h, w] for each state; choose one that does, such as a convolution"
            )
        return answer.reshape(len(fields), -1, *answer.shape[-2:]).double().cpu().numpy()

    return about(step)


def _repeated(batch: Batch, count: int) -> Batch:
    """The first entry of a batch, so many times."""

    def repeat(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[:1].repeat(count, *[1] * (tensor.ndim - 1))

    time, history = (each[:1].repeat(count, *[1] * (each.ndim - 1)) for each in (batch.time, batch.history))
    return Batch(history, None, time, repeat(batch.forcing), batch.static, repeat(batch.mask))
