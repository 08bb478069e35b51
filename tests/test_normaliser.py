"""The Normaliser: units to what networks read, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from noise import SPLITS, make

from wxlab.errors import WxlabError
from wxlab.store import Normaliser, Store, Transform, open_store, prepare


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    kinds = {"total_precipitation_24hr": {"kind": "log", "epsilon": 1e-3}, "geopotential": "minmax"}
    return open_store(prepare(make(), tmp_path_factory.mktemp("s") / "s.zarr", levels=[500, 850], splits=SPLITS, normalisation=kinds))


def test_normaliser_by_hand() -> None:
    normaliser = Normaliser({"t": Transform("zscore", 280.0, 10.0), "p": Transform("minmax", 1.0, 4.0), "n": Transform("none")})
    x = torch.tensor([290.0, 3.0, 7.0], dtype=torch.float64).view(3, 1, 1)
    assert normaliser.normalise(x, ["t", "p", "n"]).flatten().tolist() == [1.0, 0.5, 7.0]
    assert x.flatten().tolist() == [290.0, 3.0, 7.0]  # not changed


def test_rain_to_dbz_and_to_logarithms() -> None:
    dbz = Normaliser({"r": Transform("dbz", -10.0, 70.0)})
    rain = np.array([0.0, 1.0, 10.0, 1e6], dtype=np.float64).reshape(4, 1, 1, 1)
    expected = (10 * np.log10(200 * np.array([1.0, 10.0]) ** 1.6) + 10) / 70
    out = dbz.normalise(rain, ["r"]).ravel()
    np.testing.assert_allclose(out, [0, *expected, 1], rtol=1e-12)
    np.testing.assert_allclose(dbz.denormalise(out.reshape(4, 1, 1, 1), ["r"]).ravel()[:3], [0, 1, 10], rtol=1e-10)
    most = dbz.denormalise(np.array([1.0, 3.0]).reshape(2, 1, 1, 1), ["r"]).ravel()  # what a network overshoots is cut
    np.testing.assert_allclose(most, (1e6 / 200) ** (1 / 1.6), rtol=1e-12)
    logarithm = Normaliser({"p": Transform("log", 2.0, 0.5, epsilon=1e-3)})
    assert logarithm.normalise(np.full((1, 1, 1), 0.002), ["p"]).item() == pytest.approx((np.log(3) - 2) / 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back(store: Store, dtype: torch.dtype) -> None:
    x = torch.from_numpy(store.read(0, 20)).to(dtype)
    y = store.normaliser.normalise(x, store.channels)
    assert y.dtype == dtype
    back = store.normaliser.denormalise(y, store.channels)
    for i in range(len(store.channels)):
        error = (back[:, i] - x[:, i]).abs().max() / x[:, i].std()
        assert error < (2e-5 if dtype == torch.float32 else 1e-12)
    as_numpy = store.normaliser.normalise(x.numpy(), store.channels)
    np.testing.assert_array_equal(as_numpy, y.numpy())


def test_training_states_are_normal(store: Store) -> None:
    y = store.normaliser.normalise(store.read(0, 365), store.channels)
    for i in (0, 3):  # zscore and log
        assert abs(y[:, i].mean()) < 1e-4 and y[:, i].std() == pytest.approx(1, abs=1e-3)
    assert y[:, 1].min() == 0 and y[:, 1].max() == 1  # minmax


def test_normaliser_travels_as_json(store: Store) -> None:
    again = Normaliser.from_dict(json.loads(json.dumps(store.normaliser.to_dict())))
    assert again.transforms == store.normaliser.transforms
    subset = again.normalise(store.read(0, 2)[:, 2:0:-1].copy(), [store.channels[2], store.channels[1]])
    np.testing.assert_array_equal(subset, again.normalise(store.read(0, 2), store.channels)[:, 2:0:-1])


def test_policies_for_missing_values() -> None:
    transforms = {name: Transform("zscore", 10.0, 2.0) for name in ("a", "b", "c")}
    normaliser = Normaliser(transforms, {"b": "fill", "c": "mask"}, {"b": 14.0})
    x = torch.full((1, 3, 1, 2), 12.0)
    x[0, 1:, 0, 0] = torch.nan
    assert normaliser.normalise(x, ["a", "b", "c"])[0, :, 0].tolist() == [[1, 1], [2, 1], [0, 1]]
    mask = normaliser.mask(x, ["a", "b", "c"])
    assert mask is not None and mask[0, :, 0].tolist() == [[True, True], [True, True], [False, True]]
    assert normaliser.mask(x, ["a", "b", "b"]) is None
    with pytest.raises(WxlabError, match="a has missing values"):
        normaliser.normalise(x, ["b", "a", "c"])
