"""Padding and convolution on the sphere."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wxlab.errors import WxlabError
from wxlab.nn.padding import SphereConv, pad_sphere, require_global_rows, set_detached_poles


def conv(kernel: int, groups: int = 1, channels: int = 4, bias: bool = True) -> SphereConv:
    torch.manual_seed(kernel)
    return SphereConv(channels, channels, kernel, groups=groups, bias=bias).double()


def field(rows: int = 6, columns: int = 8, channels: int = 4) -> Tensor:
    return torch.randn(2, channels, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def point(x: Tensor, row: int, column: int) -> tuple[Tensor, bool]:
    """Value of a field at a row that may lie beyond a pole, and whether the way there crosses it."""
    rows, columns = x.shape[-2:]
    if row < 0:
        return x[..., -1 - row, (column + columns // 2) % columns], True
    if row >= rows:
        return x[..., 2 * rows - 1 - row, (column + columns // 2) % columns], True
    return x[..., row, column % columns], False


@pytest.mark.parametrize("margin", [1, 2])
def test_a_function_of_the_sphere_goes_on_across_the_poles(margin: int) -> None:
    """x = cos(lat) cos(lon) is smooth over the poles, where latitudes beyond 90 degrees are its analytic continuation."""
    rows, columns = 12, 16
    spacing = math.pi / rows
    latitude = -math.pi / 2 + spacing * (torch.arange(-margin, rows + margin, dtype=torch.float64) + 0.5)
    longitude = 2 * math.pi / columns * torch.arange(-margin, columns + margin, dtype=torch.float64)
    whole = latitude.cos()[:, None] * longitude.cos()
    inside = whole[margin:-margin, margin:-margin]
    torch.testing.assert_close(pad_sphere(inside, margin), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_3x3_kernel_sees_the_neighbours_across_the_pole_with_directions_reversed(groups: int) -> None:
    x, layer = field(), conv(3, groups)
    out = layer(x)
    expected = torch.zeros_like(out)
    dense = layer.weight if groups == 1 else torch.diag_embed(layer.weight[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
    for row in range(6):
        for column in range(8):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    # the same step in the other direction, where the pole lies between
                    crosses = not 0 <= row + dy < 6
                    value, _ = point(x, row + dy, column + (-dx if crosses else dx))
                    expected[:, :, row, column] += value @ dense[:, :, dy + 1, dx + 1].T
    expected += layer.bias.view(-1, 1, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 4])
def test_zonally_uniform_fields_stay_so_and_rolled_fields_give_rolled_ones(kernel: int, groups: int) -> None:
    layer, x = conv(kernel, groups), field()
    out = layer(x)
    assert out.shape == x.shape
    uniform = layer(x[..., :1].expand_as(x))
    torch.testing.assert_close(uniform, uniform[..., :1].expand_as(x), rtol=0, atol=1e-12)
    for shift in (1, 3, 4):
        torch.testing.assert_close(layer(x.roll(shift, -1)), out.roll(shift, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [3, 5])
def test_turning_the_globe_over_turns_the_result_over(kernel: int) -> None:
    layer, x = conv(kernel), field()
    turned = conv(kernel)
    turned.weight.data = layer.weight.data.flip(-2)
    torch.testing.assert_close(turned(x.flip(-2)), layer(x).flip(-2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("kernel", [3, 5])
def test_gradients_are_true(kernel: int, rows: int) -> None:
    layer = conv(kernel, channels=2)
    x = field(rows, 6, 2).requires_grad_()
    assert layer.bias is not None

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))


def test_detached_poles_give_no_weight_gradient_and_all_else() -> None:
    layer, x = conv(3), field().requires_grad_()
    grads = []
    for detached in (False, True):
        set_detached_poles(torch.nn.Sequential(layer), detached)
        x.grad = layer.weight.grad = layer.bias.grad = None  # type: ignore[union-attr]
        layer(x).square().sum().backward()
        grads.append((x.grad, layer.bias.grad, layer.weight.grad))  # type: ignore[union-attr]
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])  # type: ignore[arg-type]
    layer.weight.grad = None
    inner = F.conv2d(pad_sphere(x.detach(), 1)[..., 1:-1, :], layer.weight, layer.bias)
    inner.square().sum().backward()
    assert not torch.allclose(grads[0][2], grads[1][2])  # type: ignore[arg-type]
    torch.testing.assert_close(layer.weight.grad, grads[1][2])


def test_bf16_autocast_learns_too() -> None:
    layer = conv(3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(field().float())
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16 and layer.weight.grad is not None and torch.isfinite(layer.weight.grad).all()


def test_faults_are_one_sentence() -> None:
    for shape, margin, words in (((4, 7), 1, "4x7 points cannot be continued by 1"), ((1, 8), 2, "both sides at least 2")):
        with pytest.raises(WxlabError, match=words):
            pad_sphere(torch.zeros(shape), margin)
    with pytest.raises(WxlabError, match="needs at least 2 rows, and the field has 1"):
        conv(3)(field(1))
    require_global_rows([-82.5, 0, 82.5])
    require_global_rows([90, 0, -60])  # one row cut off
    with pytest.raises(WxlabError, match="latitudes 20 to 70 do not reach both poles"):
        require_global_rows([20, 45, 70])
