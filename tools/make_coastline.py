"""Make wxlab/data/coastline_110m.npz from Natural Earth's land polygons (1:110 million, public domain).

The source is the npm package world-atlas (topojson):

    npm pack world-atlas@2.0.2
    python tools/make_coastline.py world-atlas-2.0.2.tgz
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from wxlab.files import atomic_file
from wxlab.plots.coastline import COASTLINE_FILE, Line, split_at

MEMBER = "package/land-110m.json"
SOURCE = "Natural Earth 1:110m land, from the npm package world-atlas, file land-110m.json"
LICENCE = "public domain (Natural Earth)"


def read_source(path: Path) -> bytes:
    """The topojson text: the file itself, or the member of the npm tarball."""
    if not tarfile.is_tarfile(path):
        return path.read_bytes()
    with tarfile.open(path) as archive:
        member = archive.extractfile(MEMBER)
        if member is None:
            raise SystemExit(f"{path} has no {MEMBER}; give the tarball of world-atlas 2.x")
        return member.read()


def decode_arcs(topology: dict[str, Any]) -> list[Line]:
    """Arcs of a quantised topojson as longitude and latitude: running sums of integer steps, then scale and shift."""
    scale, shift = topology["transform"]["scale"], topology["transform"]["translate"]
    return [np.cumsum(np.asarray(arc, dtype=np.int64), axis=0) * scale + shift for arc in topology["arcs"]]


def without_map_edge(lines: list[Line]) -> list[Line]:
    """Drop what is no coast: the seams along the dateline where the polygons had been cut."""
    kept = []
    for line in lines:
        on_edge = np.abs(line[:, 0]) > 180 - 1e-6
        seam = on_edge[:-1] & on_edge[1:]
        bounds = np.flatnonzero(seam) + 1
        kept += [part for part in np.split(line, bounds) if len(part) > 1]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="land-110m.json, or the tarball of world-atlas 2.0.2")
    parser.add_argument("--out", type=Path, default=COASTLINE_FILE)
    arguments = parser.parse_args()
    text = read_source(arguments.source)
    lines = split_at(without_map_edge(decode_arcs(json.loads(text))), west=-180.0)
    with atomic_file(arguments.out) as temporary, temporary.open("wb") as handle:
        np.savez_compressed(
            handle,
            points=np.concatenate(lines).astype(np.float32),
            starts=np.cumsum([0, *(len(line) for line in lines[:-1])]).astype(np.int32),
            source=np.array(SOURCE),
            licence=np.array(LICENCE),
            sha256=np.array(hashlib.sha256(text).hexdigest()),
        )
    print(f"wrote {arguments.out}: {len(lines)} lines, {sum(map(len, lines))} points, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
