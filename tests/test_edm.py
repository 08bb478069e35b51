"""EDM: preconditioning, training noise, samplers; with a Gaussian, whose best denoiser and whose flow are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.nn.edm import Denoiser, DPMSolver, Heun, Preconditioning, Sampler, TrainingNoise, karras_sigmas, sample

WIDTH = 0.5


def ideal(x: Tensor, sigma: Tensor) -> Tensor:
    """The best denoiser of samples of N(0, WIDTH²)."""
    return x * WIDTH**2 / (WIDTH**2 + sigma.double() ** 2)


def counted(denoise: Denoiser) -> tuple[Denoiser, list[float]]:
    levels: list[float] = []

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append(float(sigma))
        assert x.dtype == torch.float64
        return denoise(x, sigma)

    return counting, levels


def test_levels_fall_from_highest_to_lowest_then_to_zero() -> None:
    sigmas = karras_sigmas(20)
    assert sigmas.shape == (21,) and sigmas.dtype == torch.float32 and (sigmas.diff() < 0).all() and sigmas[-1] == 0
    torch.testing.assert_close(sigmas[[0, 19]], torch.tensor([80.0, 0.002]), rtol=1e-5, atol=0)
    inside = sigmas[:-1].double() ** (1 / 7)
    torch.testing.assert_close(inside.diff(), inside.diff().mean().expand(19), rtol=1e-3, atol=0)


def test_inputs_and_targets_of_the_network_have_unit_variance() -> None:
    scales = Preconditioning(WIDTH)
    generator = torch.Generator().manual_seed(0)
    clean = WIDTH * torch.randn(100_000, generator=generator)
    noise = torch.randn(100_000, generator=generator)
    for sigma in (0.01, 0.5, 10.0):
        level = torch.tensor(sigma)
        skip, out, c_in, c_noise = scales.coefficients(level)
        noisy = clean + sigma * noise
        target = (clean - skip * noisy) / out
        assert float((c_in * noisy).std()) == pytest.approx(1, abs=0.01) and float(target.std()) == pytest.approx(1, abs=0.01)
        assert float(c_noise) == pytest.approx(math.log(sigma) / 4)
        assert float(scales.weight(level) * out**2) == pytest.approx(1, rel=1e-6)


def test_a_network_that_says_nothing_denoises_a_gaussian_best() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def silent(x: Tensor, c_noise: Tensor) -> Tensor:
        seen.append((x, c_noise))
        return torch.zeros_like(x)

    denoise = Preconditioning(WIDTH).denoiser(silent, torch.float32)
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    torch.testing.assert_close(denoise(x, sigma), x * (WIDTH**2 / (WIDTH**2 + sigma.double() ** 2))[:, None, None], rtol=1e-6, atol=1e-7)
    assert seen[0][0].dtype == torch.float32 and seen[0][1].shape == (3,) and denoise(x, sigma).dtype == torch.float64
    assert denoise(x, sigma[1])[1].equal(denoise(x, sigma)[1])  # one level for all


def test_training_noise_is_lognormal_on_the_levels() -> None:
    noise = TrainingNoise()
    draws = noise.sample(20_000, torch.Generator().manual_seed(0))
    assert torch.isin(draws, karras_sigmas(1000)).all()
    assert float(draws.log().mean()) == pytest.approx(-1.2, abs=0.03) and float(draws.log().std()) == pytest.approx(1.2, abs=0.03)
    assert noise.sample(5, torch.Generator().manual_seed(1)).equal(noise.sample(5, torch.Generator().manual_seed(1)))
    quantiles = noise.quantiles(4)
    assert (quantiles.diff() > 0).all() and float(quantiles[1:3].log().mean()) == pytest.approx(-1.2, abs=0.02)
    torch.testing.assert_close(TrainingNoise(levels=0).snapped(torch.tensor([0.0, 1.0])), torch.tensor([-1.2, 0.0]).exp())


@pytest.mark.parametrize(("make", "calls"), [(Heun, 39), (DPMSolver, 20)])
def test_a_sampler_follows_the_flow_with_the_calls_that_it_says(make: type[Heun] | type[DPMSolver], calls: int) -> None:
    """The flow of a Gaussian takes x at the first level to x WIDTH / sqrt(first² + WIDTH²)."""
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    first = 80.0
    exact = noise.double() * first * WIDTH / math.sqrt(first**2 + WIDTH**2)
    errors = []
    for steps in (20, 40, 80):
        sampler: Sampler = make(steps)
        denoise, levels = counted(ideal)
        made = sample(sampler, denoise, noise.double())
        assert len(levels) == sampler.calls and (steps > 20 or sampler.calls == calls)
        errors.append(float((made - exact).abs().max() / exact.abs().max()))
    assert errors[0] < 0.05
    assert errors[0] / errors[1] > 2.8 and errors[1] / errors[2] > 2.8  # second order


@pytest.mark.parametrize("sampler", [Heun(6), DPMSolver(6)])
def test_every_step_can_be_looked_at(sampler: Sampler) -> None:
    noise = torch.randn(2, 3)
    states = list(sampler.trajectory(ideal, noise))
    assert len(states) == 6 and all(state.dtype == torch.float64 for state in states)
    made = sample(sampler, ideal, noise)
    assert made.dtype == torch.float32 and made.equal(states[-1].float())


def test_churn_keeps_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(50_000, 1, generator=generator)
    drawn: list[int] = []

    def normals(shape: object) -> Tensor:
        drawn.append(1)
        return torch.randn(50_000, 1, generator=generator)

    quiet = sample(Heun(80), ideal, noise)
    churned = sample(Heun(80, churn=10.0), ideal, noise, normals)
    assert len(drawn) == 80 and not torch.allclose(quiet, churned, atol=0.1)
    assert float(quiet.std()) == pytest.approx(WIDTH, rel=0.02) and float(churned.std()) == pytest.approx(WIDTH, rel=0.02)
    drawn.clear()
    narrow = sample(Heun(80, churn=10.0, low=1e6), ideal, noise, normals)
    assert len(drawn) == 80 and narrow.equal(quiet)  # noise is drawn in steps outside its range too, and not used


def test_faults_are_one_sentence() -> None:
    with pytest.raises(WxlabError, match="1 noise levels make no sampling; give a whole number of at least 2"):
        karras_sigmas(1)
    with pytest.raises(WxlabError, match="churn needs a source of normal numbers"):
        sample(Heun(4, churn=1.0), ideal, torch.zeros(1, 1))
