"""Grids: what they are, how large their cells are, how fields move between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wxlab.errors import WxlabError


@dataclass(frozen=True)
class Grid:
    """A rectangular grid. ``kind='latlon'``: y = latitude (degrees north), x = longitude (degrees east, 0-360).
    ``kind='xy'``: y and x in metres (radar composites)."""

    y: tuple[float, ...]
    x: tuple[float, ...]
    kind: Literal["latlon", "xy"] = "latlon"

    def __post_init__(self) -> None:
        for name in ("y", "x"):
            object.__setattr__(self, name, tuple(float(value) for value in np.asarray(getattr(self, name)).ravel()))
        if self.kind == "latlon" and self.y and max(abs(value) for value in self.y) > 90 + 1e-6:
            raise WxlabError(f"latitudes reach {max(self.y, key=abs):g} degrees; they must lie in -90..90 (are latitude and longitude swapped?)")

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.y), len(self.x)

    @property
    def dims(self) -> tuple[str, str]:
        return ("latitude", "longitude") if self.kind == "latlon" else ("y", "x")

    @classmethod
    def regular(cls, rows: int, columns: int) -> Grid:
        """A global grid, south to north: an odd number of rows includes the poles, an even one has them on cell edges."""
        spacing = 180 / (rows - 1) if rows % 2 else 180 / rows
        south = -90.0 if rows % 2 else -90 + spacing / 2
        return cls(tuple(south + spacing * i for i in range(rows)), tuple(360 / columns * i for i in range(columns)))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "y": list(self.y), "x": list(self.x)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Grid:
        return cls(tuple(values["y"]), tuple(values["x"]), values.get("kind", "latlon"))
