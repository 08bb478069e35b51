"""The follower of local minima against the authors' tracks, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from wxlab.cyclones import follow
from wxlab.errors import WxlabError


def _fields(values: np.ndarray, lat: np.ndarray, lon: np.ndarray, start: str = "2018-09-30T00") -> xr.Dataset:
    times = np.datetime64(start, "ns") + np.arange(len(values)) * np.timedelta64(6, "h")
    coords = {"time": times, "latitude": lat, "longitude": lon}
    return xr.Dataset({"mean_sea_level_pressure": (("time", "latitude", "longitude"), values)}, coords)


@pytest.mark.golden
def test_authors_tracks(golden_dir: Path) -> None:
    """Every track of the authors' code, position by position, on fields and on forecasts of several members."""
    from safetensors.numpy import load_file

    case = json.loads((golden_dir / "ladcast/case_a.json").read_text())["track"]
    field = load_file(golden_dir / "ladcast/case_a/io.safetensors")["track.msl"]
    lat, lon = np.array(case["lat"]), np.array(case["lon"])
    data = _fields(field, lat, lon, case["t0"])
    seen = 0
    for name, wanted in case["results"].items():
        if not name.startswith("boxes"):
            continue
        boxes, offset = name.removeprefix("boxes=").split(" offset=")
        found = follow(data, tuple(case["start_raw"]), boxes=json.loads(boxes), offset=float(offset), spacing=1.5)
        np.testing.assert_array_equal(np.stack([found.lat, found.lon], 1), wanted, err_msg=name)
        seen += 1
    assert seen >= 8
    members = np.stack([field, 0.5 * (field + field[..., ::-1])])
    leads = np.arange(1, len(field)) * np.timedelta64(6, "h")
    dims = ("number", "time", "prediction_timedelta", "latitude", "longitude")
    coords = {
        "number": [0, 1], "time": [np.datetime64(case["t0"], "ns")], "prediction_timedelta": leads.astype("timedelta64[ns]"),
        "latitude": lat, "longitude": lon,
    }  # fmt: skip
    forecast = xr.Dataset({"mean_sea_level_pressure": (dims, members[:, None, 1:])}, coords)
    both = follow(forecast, tuple(case["start_raw"]), spacing=1.5)
    name = next(name for name in case["results"] if name.startswith("ens_member1"))
    second = both.isel(record=both.number.values == 1)
    np.testing.assert_array_equal(np.stack([second.lat, second.lon], 1), case["results"][name])
    np.testing.assert_array_equal(second.lead, np.arange(9) * 6)


def test_nearest_of_equal_minima_and_staying() -> None:
    """A minimum on the rim of the search does not count; without any the storm stays; over the dateline it is followed."""
    lat, lon = np.arange(-15, 15.1, 1.5), np.arange(0, 360, 1.5)
    values = np.full((4, len(lat), len(lon)), 101_000.0, np.float32)
    values += (np.abs(lat)[:, None] * 3 + np.abs((lon + 180) % 360 - 180)[None]).astype(np.float32)  # no minimum but at 0, 0
    values[1, 10, -1] -= 3000  # one step over the meridian
    values[2, 10, -1] -= 3000
    values[3, 14, 0] -= 3000  # 6 degrees away: out of reach
    found = follow(_fields(values, lat, lon), (0.2, 0.4), boxes=(7,))
    np.testing.assert_array_equal(found.lon, [0, 358.5, 358.5, 0])
    assert (found.lat == 0).all() and found.slp.values[1] == values[1, 10, -1]
    # the same storm where longitudes are -180..180
    other = _fields(values, lat, lon).assign_coords(longitude=(lon + 180) % 360 - 180).sortby("longitude")
    xr.testing.assert_allclose(follow(other, found.isel(record=[0]), boxes=(7,)), found)


def test_mistakes() -> None:
    lat, lon = np.arange(0.0, 15.0, 1.5), np.arange(0.0, 30.0, 1.5)
    data = _fields(np.full((2, len(lat), len(lon)), 101_000.0), lat, lon)
    for start, message in (((50, 10), "outside the grid"), ((95, 0), "start is"), ("here", "start is")):
        with pytest.raises(WxlabError, match=message):
            follow(data, start)  # type: ignore[arg-type]
    for changes, message in (({"offset": "a"}, "offset is 'a'"), ({"spacing": 0}, "spacing is 0")):
        with pytest.raises(WxlabError, match=message):
            follow(data, (3, 3), **changes)  # type: ignore[arg-type]
    with pytest.raises(WxlabError, match="boxes is"):
        follow(data, (3, 3), boxes=())
    late = follow(data, (3, 3)).isel(record=[1])
    with pytest.raises(WxlabError, match="0 records at 2018-09-30T00:00"):
        follow(data, late)
