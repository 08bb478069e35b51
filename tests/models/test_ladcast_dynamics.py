"""Geostrophic wind, vorticity and divergence of fields, and the loss that reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from standins import windows

from wxlab import create_model
from wxlab.errors import WxlabError
from wxlab.grids import Grid
from wxlab.models.ladcast import Reconstruction
from wxlab.models.ladcast.dynamics import RADIUS, ROTATION, Dynamics, units
from wxlab.normaliser import Normaliser, Transform

WIND = ("u_component_of_wind_500", "v_component_of_wind_500")
NAMES = ("geopotential_500", *WIND)
GRID = Grid.regular(64, 128)
Y, X = np.meshgrid(np.deg2rad(GRID.y), np.deg2rad(GRID.x), indexing="ij")


def derived(*fields: np.ndarray) -> dict[str, np.ndarray]:
    out = Dynamics(NAMES, GRID)(torch.from_numpy(np.stack(fields)).float()[None])[0].numpy()
    return dict(zip(("u_g", "v_g", "vorticity", "divergence"), out, strict=True))


def test_solid_rotation_is_pure_vorticity() -> None:
    found = derived(np.zeros_like(Y), 30 * np.cos(Y), np.zeros_like(Y))
    expected = 2 * 30 * np.sin(Y[1:-1]) / RADIUS
    assert np.abs(found["vorticity"] - expected).max() < 0.01 * expected.max()
    assert np.abs(found["divergence"]).max() < 1e-6 * expected.max() + 1e-12


def test_the_gradient_of_a_potential_has_no_vorticity_and_its_rotation_no_divergence() -> None:
    """Of the spherical harmonic cos² φ cos 2λ, whose Laplacian is -6 / a² times itself."""
    wave = np.cos(Y) ** 2 * np.cos(2 * X)
    east, north = -2 * np.cos(Y) * np.sin(2 * X) / RADIUS, -2 * np.cos(Y) * np.sin(Y) * np.cos(2 * X) / RADIUS
    laplacian = (-6 * wave / RADIUS**2)[1:-1]
    inner = np.abs(np.rad2deg(Y[1:-1])) < 80  # central differences are poor where meridians meet
    for u, v, true, false in ((east, north, "divergence", "vorticity"), (-north, east, "vorticity", "divergence")):
        found = derived(np.zeros_like(Y), u, v)
        assert np.abs(found[true] - laplacian)[inner].max() < 0.02 * np.abs(laplacian).max()
        assert np.abs(found[false])[inner].max() < 0.02 * np.abs(laplacian).max()


def test_geostrophic_wind_balances_its_geopotential() -> None:
    """Φ = -a Ω U sin² φ belongs to u = U cos φ; in the tropics no such wind is looked at."""
    found = derived(-RADIUS * ROTATION * 20 * np.sin(Y) ** 2, np.zeros_like(Y), np.zeros_like(Y))
    expected = np.where(np.abs(np.rad2deg(Y)) > 15, 20 * np.cos(Y), 0)[1:-1]
    np.testing.assert_allclose(found["u_g"], expected, atol=0.05)
    assert np.abs(found["v_g"]).max() < 1e-4
    ridge = derived(100 * np.cos(Y) * np.cos(X), np.zeros_like(Y), np.zeros_like(Y))["v_g"]
    row = int(np.argmin(np.abs(np.array(GRID.y) - 45)))
    f = 2 * ROTATION * np.sin(Y[row, 0])
    np.testing.assert_allclose(ridge[row - 1], -100 * np.sin(X[row]) / (f * RADIUS), atol=1e-3)


def model(**transforms: Transform) -> Any:
    torch.manual_seed(0)
    made: Any = create_model("ladcast_autoencoder", channels=("2m_temperature", *NAMES))
    usual = {name: Transform("anomaly" if name in WIND else "zscore", 0.0, 10.0) for name in made.spec.channels}
    made.normaliser = Normaliser({**usual, **transforms})
    return made


def test_the_loss_hears_of_motion() -> None:
    network = model()
    batch = windows(network, 2)
    plain, logs = Reconstruction(network, rolls="none").loss(network, batch, torch.Generator())
    loss, more = Reconstruction(network, rolls="none", physics=0.3).loss(network, batch, torch.Generator())
    assert "physics" not in logs and loss.item() == pytest.approx(plain.item() + 0.3 * more["physics"].item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    x = batch.history[:, 0]
    recipe = Reconstruction(network, rolls="none", physics=1.0)
    assert recipe._motion(network, x + 0.3, x).item() < recipe._motion(network, x + 0.3 * torch.randn_like(x), x).item()
    offset, scale = units(network.normaliser, network.spec.channels)
    assert scale.flatten().tolist() == [10.0] * 4 and not offset.any()


def test_the_loss_reads_physical_fields() -> None:
    """A wind that is the same everywhere has vorticity, so its mean counts; squares are weighted by area."""
    wind = {name: Transform("zscore", 5.0, 10.0) for name in WIND}
    network = model(geopotential_500=Transform("zscore", 5e4, 300.0), **wind)
    recipe = Reconstruction(network, rolls="none", physics=1.0)
    x = torch.randn(2, 4, 16, 32, generator=torch.Generator().manual_seed(0))
    out = x + 0.1 * torch.randn(2, 4, 16, 32, generator=torch.Generator().manual_seed(1))
    dynamics = Dynamics(network.spec.channels, network.spec.grid)
    scale, offset = torch.tensor([10.0, 300, 10, 10]).view(4, 1, 1), torch.tensor([0.0, 5e4, 5, 5]).view(4, 1, 1)
    found, true = dynamics(out * scale + offset), dynamics(x * scale + offset)
    area = np.cos(np.deg2rad(network.spec.grid.y))[1:-1, None]
    sizes = [np.sqrt((field.numpy().astype(float) ** 2 * area).sum((-2, -1))) for field in (found - true, true)]
    assert recipe._motion(network, out, x).item() == pytest.approx((sizes[0] / sizes[1]).mean(), rel=1e-4)
    still = torch.zeros(1, 4, 16, 32)
    assert dynamics(still * scale + offset)[0, 2].abs().max() > 1e-7  # u tan(latitude) / a


FAULTS: dict[str, tuple[Any, str]] = {
    "rolls": (lambda: Reconstruction(model(), physics=0.1), "rolls='both' makes no sense; set rolls='longitude'"),
    "negative": (lambda: Reconstruction(model(), physics=-1.0), "physics=-1.0 must be at least 0"),
    "text": (lambda: Reconstruction(model(), physics="0.1", rolls="none"), "physics='0.1' must be at least 0"),  # type: ignore[arg-type]
    "no motion": (lambda: Dynamics(("2m_temperature", WIND[0]), GRID), "neither geopotential nor both winds of a level"),
    "region": (lambda: Dynamics(NAMES, Grid((10.0, 20.0, 30.0), (0.0, 10.0))), "physics needs a global grid"),
    "units": (lambda: units(None, NAMES), "physics needs the units of the channels"),
    "logarithm": (
        lambda: units(model(geopotential_500=Transform("log")).normaliser, NAMES),
        "physics needs geopotential_500 normalised by an offset and a scale, not by 'log'",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_sentence(name: str) -> None:
    fault, words = FAULTS[name]
    with pytest.raises(WxlabError, match=words) as error:
        fault()
    assert "\n" not in str(error.value)
