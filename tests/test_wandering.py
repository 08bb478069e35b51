"""Made-up ensembles of tracks: offsets that are what they say, growth as promised, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from wxlab.cyclones.layout import dataset
from wxlab.cyclones.sphere import distance
from wxlab.errors import WxlabError
from wxlab.simulate import wander


def straight(name: str = "one") -> xr.Dataset:
    hours = np.arange(0, 121, 6)
    columns = {"track_id": np.full(21, name), "time": hours * 3600, "lon": (178 + 0.1 * hours) % 360, "lat": 15 + 0.05 * hours}
    return dataset({**columns, "slp": np.full(21, 9.6e4)})


def test_offsets_are_distances_and_grow() -> None:
    track, members = straight(), 300
    copies = wander(track, members=members, km_per_day=80, seed=1)
    away = distance(np.tile(track.lat, members), np.tile(track.lon, members), copies.lat.values, copies.lon.values)
    np.testing.assert_allclose(away, copies.offset, rtol=1e-9, atol=1e-6)
    offset = copies.offset.values.reshape(members, 21)
    assert np.all(offset[:, 0] == 0) and copies.number.values.tolist() == np.repeat(np.arange(members), 21).tolist()
    for day in (1, 4):  # variance of each direction: (day + day²) 80²
        assert np.sqrt((offset[:, 4 * day] ** 2).mean()) == pytest.approx(80 * np.sqrt(2 * (day + day**2)), rel=0.1)
    xr.testing.assert_identical(copies, wander(track, members=members, km_per_day=80, seed=1))
    assert float(abs(copies.lat - wander(track, members=members, km_per_day=80, seed=2).lat).max()) > 0.1


def test_mistakes_get_one_sentence() -> None:
    with pytest.raises(WxlabError, match="holds 2 storms"):
        wander(xr.concat([straight(), straight("two")], "record"), members=2)
    with pytest.raises(WxlabError, match="members=0 must be a whole number"):
        wander(straight(), members=0)
    with pytest.raises(WxlabError, match="km_per_day=-1"):
        wander(straight(), members=1, km_per_day=-1)
