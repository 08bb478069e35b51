"""``wxlab doctor``: is this machine ready, and if not, what to do."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

# what is imported, the extra that brings it, what it is for
_EXTRAS = (
    ("cfgrib", "grib", "GRIB files"),
    ("gcsfs", "cloud", "Google Cloud archives"),
    ("pysteps", "nowcast", "radar extrapolation"),
    ("cv2", "nowcast", "radar extrapolation"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``level`` is ok, note or problem."""

    level: str
    subject: str
    text: str


def examine() -> list[Finding]:
    """Look at Python, the packages against their declared ranges, devices, catalogue, cache folder and disk."""
    return [_python(), *_packages(), *_devices(), *_catalogue(), *_disk()]


def _python() -> Finding:
    return Finding("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")


def _packages() -> list[Finding]:
    findings, good = [], 0
    for line in requires("wxlab") or []:
        requirement = Requirement(line)
        extra = "extra" in str(requirement.marker or "")
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            if not extra:
                text = f"not installed; run: pip install '{requirement.name}{requirement.specifier}'"
                findings.append(Finding("problem", requirement.name, text))
            continue
        if requirement.specifier.contains(found, prereleases=True):
            good += 1
        else:
            findings.append(Finding("problem", requirement.name, f"{found} is installed, and wxlab needs {requirement.specifier}"))
    for name, extra_name, purpose in _EXTRAS:
        if find_spec(name) is None:
            findings.append(Finding("note", name, f"not installed, so no {purpose}; run: pip install 'wxlab[{extra_name}]'"))
    return [Finding("ok", "packages", f"{good} packages within their ranges"), *findings]


def _devices() -> list[Finding]:
    import torch

    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [Finding("ok", "device", f"torch {torch.__version__}: {names}; {threads}")]
    return [Finding("ok", "device", f"torch {torch.__version__}: CPU, {threads}; everything runs, the paper-sized models slowly")]


def _catalogue() -> list[Finding]:
    from wxlab.catalog import load
    from wxlab.errors import WxlabError

    try:
        catalog = load()
    except WxlabError as error:
        return [Finding("problem", "catalogue", str(error))]
    offline = [name for name, entry in catalog.datasets.items() if not entry.needs_network]
    return [Finding("ok", "catalogue", f"{len(catalog.datasets)} sources, {len(offline)} of them offline: {', '.join(offline)}")]


def _disk() -> list[Finding]:
    from platformdirs import user_cache_path

    folder = Path(os.environ.get("WXLAB_CACHE") or user_cache_path("wxlab"))
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free / 1e9
    if not os.access(there, os.W_OK):
        return [Finding("problem", "cache", f"{folder} cannot be written; set WXLAB_CACHE to a folder that can")]
    level = "ok" if free > 2 else "problem"
    return [Finding(level, "cache", f"{folder}, {free:.0f} GB free" + ("" if free > 2 else "; the demo needs 2 GB"))]
