"""Noise schedules and samplers: identities, known distributions, and what a seed decides."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.nn.diffusion import DDIM, Ancestral, Schedule, betas_of, last, normals_from
from wxlab.rollout import Streams

KINDS = ("sigmoid", "linear", "cosine")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [2, 50, 1000])
def test_schedules_go_from_signal_to_noise(kind: Any, steps: int) -> None:
    schedule = Schedule(kind, steps)
    assert len(schedule.betas) == steps and (schedule.betas > 0).all() and (schedule.betas <= 0.999).all()
    assert (np.diff(schedule.alphas) < 0).all()
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(steps))
    assert not schedule.state_dict()
    if steps == 1000:
        assert schedule.alphas[0] > 0.999 and schedule.alphas[-1] < 1e-4


def test_sigmoid_table_has_the_published_values() -> None:
    schedule = Schedule("sigmoid", 50)
    for step, value in {0: 0.993675, 1: 0.986634, 47: 0.01336632, 48: 0.00632523, 49: 6.325229e-06}.items():
        assert schedule.alphas[step] == pytest.approx(value, rel=1e-6)
    assert schedule.betas[0] == pytest.approx(0.00632522, rel=1e-6) and schedule.betas[-1] == 0.999


def test_linear_and_cosine_by_hand() -> None:
    np.testing.assert_allclose(betas_of("linear", 5), [0.02, 0.999, 0.999, 0.999, 0.999])
    np.testing.assert_allclose(betas_of("linear", 1000)[[0, -1]], [1e-4, 0.02])
    squares = [math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (0, 0.5, 1)]
    np.testing.assert_allclose(betas_of("cosine", 2), [1 - squares[1] / squares[0], 0.999])


def test_signal_noise_and_velocity_belong_together() -> None:
    """``z = signal z_t - noise v`` and ``eps = noise z_t + signal v``."""
    schedule = Schedule("cosine", 10).double()
    z, eps = (torch.randn(10, 3, 4, dtype=torch.float64) for _ in range(2))
    t = torch.arange(10)
    noisy, v = schedule.noisy(z, t, eps), schedule.velocity(z, t, eps)
    signal, noise = schedule.signal.view(-1, 1, 1), schedule.noise.view(-1, 1, 1)
    torch.testing.assert_close(signal * noisy - noise * v, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(noise * noisy + signal * v, eps, rtol=1e-6, atol=1e-6)


def test_steps_of_ddim() -> None:
    schedule = Schedule("sigmoid", 50)
    assert DDIM(schedule, 20).times == [49, 46, 44, 41, 39, 36, 34, 31, 29, 26, 24, 21, 19, 16, 14, 11, 9, 6, 4, 1]
    assert DDIM(schedule, 50).times == list(range(49, -1, -1)) == Ancestral(schedule).times
    assert DDIM(schedule, 1).times == [49]
    # where float32 would cut to other numbers: the table is that of float64
    for steps in (22, 44):
        assert DDIM(schedule, steps).times == [int(t) for t in np.linspace(-1, 49, steps + 1)][:0:-1]


def gaussian(schedule: Schedule, times: list[int], mean: float, deviation: float) -> Any:
    """The exact velocity when every number of the data is N(mean, deviation^2)."""

    def velocity(x: Tensor, step: int) -> Tensor:
        alpha = schedule.alphas[times[step]]
        signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
        gain = signal * deviation**2 / (alpha * deviation**2 + 1 - alpha)
        z = mean + gain * (x - signal * mean)
        return (signal * x - z) / noise

    return velocity


@pytest.mark.parametrize("name", ["ancestral", "ddim", "ddim, eta 0.5", "ddim, eta 1"])
def test_samplers_draw_from_the_data(name: str) -> None:
    """With the exact velocity of N(3, 0.5^2) the samples are of that distribution; errors of 100 steps and 20,000 samples."""
    schedule = Schedule("sigmoid", 100)
    sampler = Ancestral(schedule) if name == "ancestral" else DDIM(schedule, 100, float(name.split()[-1]) if "eta" in name else 0.0)
    start = torch.randn(20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normals = normals_from(torch.Generator().manual_seed(1), start)
    samples = last(sampler.trajectory(gaussian(schedule, sampler.times, 3.0, 0.5), start, normals))
    assert float(samples.mean()) == pytest.approx(3, abs=0.02)
    assert float(samples.std()) == pytest.approx(0.5, rel=0.06)


def test_known_data_is_found_in_any_number_of_steps() -> None:
    schedule, start = Schedule("sigmoid", 50), torch.randn(4, 8, dtype=torch.float64)
    target = torch.rand(4, 8, dtype=torch.float64)
    for steps in (1, 7, 50):
        sampler = DDIM(schedule, steps)

        def velocity(x: Tensor, step: int, times: list[int] = sampler.times) -> Tensor:
            alpha = schedule.alphas[times[step]]
            return (math.sqrt(alpha) * x - target) / math.sqrt(1 - alpha)

        path = list(sampler.trajectory(velocity, start, normals_from(None, start)))
        assert len(path) == steps
        torch.testing.assert_close(path[-1], target, rtol=1e-9, atol=1e-9)


def test_trajectories_leave_their_start_alone() -> None:
    schedule, start = Schedule("sigmoid", 5), torch.randn(2, 3)
    for sampler in (Ancestral(schedule), DDIM(schedule, 3, 0.7)):
        before = start.clone()
        first, *_ = list(sampler.trajectory(lambda x, i: x, start, normals_from(None, start)))
        assert torch.equal(start, before) and not torch.equal(first, before)


def test_noise_is_asked_for_only_where_it_is_used() -> None:
    schedule, start = Schedule("sigmoid", 6), torch.randn(2, 3)
    asked: list[Any] = []

    def normals(shape: Any) -> Tensor:
        asked.append(tuple(shape))
        return torch.randn(2, *shape)

    for sampler, count in ((DDIM(schedule, 4), 0), (DDIM(schedule, 4, 0.5), 3), (Ancestral(schedule), 5)):
        asked.clear()
        last(sampler.trajectory(lambda x, i: x, start, normals))
        assert asked == [(3,)] * count


def test_sources_of_noise() -> None:
    like = torch.zeros(4, 2, dtype=torch.float64)
    one, two = (normals_from(torch.Generator().manual_seed(3), like)((5,)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (4, 5) and one.dtype == torch.float64
    times = np.array(["2001-01-01", "2001-01-02"], dtype="datetime64[s]")
    streams = normals_from(Streams(0, times, 2, 0), like)((5,))
    assert streams.shape == (4, 5)
    torch.testing.assert_close(streams[2:], normals_from(Streams(0, times[1:], 2, 0), like[2:])((5,)))
    torch.manual_seed(1)
    free = normals_from(None, like)((5,))
    torch.manual_seed(1)
    assert torch.equal(free, torch.randn(4, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule("sigmoidal"), "unknown noise schedule 'sigmoidal'; did you mean 'sigmoid'"),  # type: ignore[arg-type]
        (lambda: Schedule("cosine", 1), "a noise schedule of 1 steps makes no sense; give a whole number of at least 2"),
        (lambda: DDIM(Schedule(), 51), "sampling_steps=51 must be a whole number from 1 to 50"),
        (lambda: DDIM(Schedule(), 0), "sampling_steps=0 must be"),
        (lambda: DDIM(Schedule(), 5, -0.1), "eta=-0.1 must lie between 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        make()
