"""``wxlab track``: from a file, a forecast, a store or a source of the catalogue to a file of tracks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import vortices
import xarray as xr
from test_cyclones import as_forecast
from typer.testing import CliRunner

from wxlab.cli import app
from wxlab.cyclones import read_tracks
from wxlab.cyclones.sources import open_fields
from wxlab.errors import WxlabError
from wxlab.store import prepare

SHORT = ("-p", "duration=24", "-p", "wind_hours=24", "-p", "latitude_hours=24")


def call(*words: str) -> str:
    done = CliRunner().invoke(app, ["track", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def storm() -> xr.Dataset:
    data = vortices.fields(5.625, 10, vortices.great_circle(15, 172, 80, 150, 10), seed=1, amplitude=400)
    lat = np.arange(-87.1875, 90, 5.625)
    return data.interp(latitude=lat)


def test_track_command(storm: xr.Dataset, tmp_path: Path) -> None:
    storm.to_netcdf(tmp_path / "fields.nc", engine="h5netcdf")
    as_forecast(storm, inits=2, members=2).to_zarr(tmp_path / "forecast.zarr", zarr_format=3, consolidated=False)
    said = call(str(tmp_path / "fields.nc"), str(tmp_path / "tracks.csv"), *SHORT)
    assert said == f"wrote {tmp_path / 'tracks.csv'} (1 track, 10 records, preset coarse)\n"
    call(str(tmp_path / "forecast.zarr"), str(tmp_path / "tracks.nc"), *SHORT)
    found = read_tracks(tmp_path / "tracks.nc")
    assert len(np.unique(found.track_id)) == 4 and set(found.number.values) == {0, 1}
    part = call(str(tmp_path / "fields.nc"), str(tmp_path / "t.txt"), *SHORT, "--start", "2001-09-01T12", "--end", "2001-09-02")
    assert "6 records" in part and read_tracks(tmp_path / "t.txt").sizes["record"] == 6
    names = ["mean_sea_level_pressure", "10m_u_component_of_wind", "10m_v_component_of_wind"]
    store = prepare(storm, tmp_path / "store.zarr", variables=names, splits={"train": ["2001-09-01", "2001-09-03"]})
    assert "10 records" in call(str(store), str(tmp_path / "s.nc"), *SHORT)


def test_mistakes(storm: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(WxlabError, match="there is nothing at"):
        open_fields(str(tmp_path / "no.nc"))
    with pytest.raises(WxlabError, match="simulated_atmosphere"):
        open_fields("simulated_atmospher")
    done = CliRunner().invoke(app, ["track", str(tmp_path / "no.nc"), str(tmp_path / "tracks.json")])
    assert done.exit_code != 0 and "no suffix of a file of tracks" in str(done.exception)  # said before anything is read
    (tmp_path / "bad.nc").write_text("nothing")
    with pytest.raises(WxlabError, match="cannot be read as a store, zarr or netCDF file"):
        open_fields(str(tmp_path / "bad.nc"))
    storm.to_netcdf(tmp_path / "fields.nc", engine="h5netcdf")
    with pytest.raises(WxlabError, match="has no time from 2005 to its end"):
        open_fields(str(tmp_path / "fields.nc"), time=("2005", None))
