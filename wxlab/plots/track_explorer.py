"""Look around in forecasts of cyclones: storm, start, model, member; and fields with their tracks over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from wxlab.cyclones.layout import check
from wxlab.errors import WxlabError
from wxlab.plots.coastline import coastline
from wxlab.plots.fields import time_text
from wxlab.plots.geometry import field_cells
from wxlab.plots.losses import in_notebook
from wxlab.plots.style import colour_scale, look
from wxlab.plots.tracks import plot_spaghetti

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 620  # width of the picture over time


def explore_tracks(forecasts: Mapping[str, xr.Dataset], truth: xr.Dataset) -> Any:
    """Choose model, storm, start and member, and see the tracks beside the observed one: in a notebook a widget, elsewhere its first view.

    forecasts: tracks of ``wxlab.cyclones.track`` or of its references by the model's name; they are matched where they are not yet.
    truth: best tracks or true centres.
    Returns a widget in Jupyter (headless runs keep its first view as a picture), else the Figure.
    Raises WxlabError when no forecast has an observed storm.
    """
    view = TracksView(forecasts, truth)
    choice = view.first(view.variables[0])
    if not in_notebook():
        return view.draw(**choice)
    from wxlab.plots.widget import Explorer

    return Explorer(view, choice)


class TracksView:
    """What can be chosen of forecast tracks (storm, time, number), and its picture. Its variables are the models."""

    word = "Model"

    def __init__(self, forecasts: Mapping[str, xr.Dataset], truth: xr.Dataset) -> None:
        from wxlab.cyclones import match

        self.truth, self.forecasts = check(truth, "truth"), {}
        for name, tracks in forecasts.items():
            tracks = check(tracks, needs=("track_id", "init_time", "lead"))
            tracks = tracks if "storm" in tracks else match(tracks, truth)
            mine = tracks.isel(record=np.flatnonzero(tracks["storm"].values.astype(str) != ""))
            if mine.sizes["record"]:
                self.forecasts[name] = mine
        if not self.forecasts:
            raise WxlabError(
                f"none of the forecasts ({', '.join(forecasts) or 'none given'}) has an observed storm; there is nothing to choose"
            )
        self.variables = list(self.forecasts)

    def entries(self, variable: str) -> dict[str, list[Any]]:
        """What there is to choose from."""
        tracks = self.forecasts[variable]
        found: dict[str, list[Any]] = {"storm": np.unique(tracks["storm"].values.astype(str)).tolist()}
        found["time"] = list(np.unique(tracks["init_time"].values))
        found["number"] = ["all", *np.unique(tracks["number"].values).tolist()] if "number" in tracks else ["all"]
        return found

    def first(self, variable: str) -> dict[str, Any]:
        """The first choice: the first storm, and the first start that has it."""
        entries, tracks = self.entries(variable), self.forecasts[variable]
        starts = tracks["init_time"].values[tracks["storm"].values.astype(str) == entries["storm"][0]]
        return {"variable": variable, "storm": entries["storm"][0], "time": starts.min(), "number": "all"}

    def draw(self, variable: str, *, storm: str, time: Any, number: int | str = "all") -> Figure:
        """The tracks of one storm from one start.  Raises WxlabError where there are none."""
        from wxlab.cyclones import mean_track

        tracks = self.forecasts[variable]
        keep = (tracks["storm"].values.astype(str) == storm) & (tracks["init_time"].values == time)
        ensemble = "number" in tracks and number == "all"
        if "number" in tracks and number != "all":
            keep &= tracks["number"].values == number
        chosen = tracks.isel(record=np.flatnonzero(keep))
        if not chosen.sizes["record"]:
            raise WxlabError(f"{variable} has no track of storm {storm} from {time_text(time)}; choose another start or member")
        mean = mean_track(chosen, share=0.0) if ensemble else None
        own = self.truth.isel(record=np.flatnonzero(self.truth["track_id"].values.astype(str) == storm))
        reach = (own["time"].values >= time) & (own["time"].values <= chosen["time"].values.max())
        truth = own.isel(record=np.flatnonzero(reach)) if reach.any() else None
        kept = mean if mean is not None and mean.sizes["record"] else None
        return plot_spaghetti(chosen, mean=kept, truth=truth, title=f"{variable} · storm {storm} · from {time_text(time)}")


def holo_tracks(fields: xr.DataArray, tracks: xr.Dataset, *, frames: int = 48) -> Any:
    """A field over time with the tracks up to each time drawn on it, one slider that also works in a saved page.

    fields: one variable [time, latitude, longitude], such as the mean sea-level pressure.  tracks: of ``wxlab.cyclones.track``.
    frames: at most so many times; of more every second, third, ... is shown.
    Returns a HoloViews HoloMap; call ``hv.extension("bokeh", inline=True)`` first.
    Raises WxlabError for fields without time, latitude and longitude.
    """
    import holoviews as hv

    if not isinstance(fields, xr.DataArray) or set(fields.dims) != {"time", "latitude", "longitude"}:
        dims = list(fields.dims) if isinstance(fields, xr.DataArray) else type(fields).__name__
        raise WxlabError(f"the fields are {dims}; give one variable [time, latitude, longitude]")
    tracks, shown = check(tracks), look(str(fields.name), fields.attrs.get("units"))
    fields = fields.isel(time=slice(None, None, -(-fields.sizes["time"] // frames))).load() * shown.scale
    colours, norm, _ = colour_scale(shown, [fields])
    first = field_cells(fields.isel(time=0))
    middle, ends = first.middle[0], (float(first.x[0]), float(first.x[-1]))
    coast = hv.Path(list(coastline(middle - 180.0)), ["longitude", "latitude"]).opts(color="#333333", line_width=0.6)
    pictures = {}
    for k, time in enumerate(fields["time"].values):
        cells = field_cells(fields.isel(time=k))
        image = hv.QuadMesh((cells.x, cells.y, cells.values), ["longitude", "latitude"], [str(fields.name)])
        image = image.opts(cmap=colours, clim=(float(norm.vmin or 0), float(norm.vmax or 1)), colorbar=True, clabel=shown.label)
        past = tracks.isel(record=np.flatnonzero(tracks["time"].values <= time)).sortby("time")
        lon = (past["lon"].values - middle + 180) % 360 - 180 + middle
        places, here = np.stack([lon, past["lat"].values], 1), past["time"].values == time
        ways = [places[past["track_id"].values == name] for name in np.unique(past["track_id"].values)]
        # in pieces where the picture has its seam
        pieces = [piece for way in ways for piece in np.split(way, np.flatnonzero(np.abs(np.diff(way[:, 0])) > 180) + 1)]
        lines = hv.Path(pieces, ["longitude", "latitude"])
        dots = hv.Points(places[here], ["longitude", "latitude"])
        pictures[time_text(time)] = (
            image * coast * lines.opts(color="#D55E00", line_width=2) * dots.opts(color="#D55E00", size=8, line_color="white")
        )
    height = int(PIXELS * (first.y[-1] - first.y[0]) / (ends[1] - ends[0]))
    size = {
        "frame_width": PIXELS,
        "frame_height": min(max(height, 200), 600),
        "xlim": ends,
        "ylim": (float(first.y[0]), float(first.y[-1])),
    }
    return hv.HoloMap(pictures, kdims=[hv.Dimension("time", label="Time")]).opts(hv.opts.QuadMesh(toolbar=None, **size))
