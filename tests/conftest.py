"""Shared by all tests: one thread (small arrays are slower on more), and where the optional reference data lies."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of reference numbers, from WXLAB_GOLDEN; tests that ask for it skip without it."""
    path = os.environ.get("WXLAB_GOLDEN")
    if not path:
        pytest.skip("WXLAB_GOLDEN is not set: no reference numbers to compare with")
    return Path(path)


@pytest.fixture
def real_catalog() -> Path:
    """Catalogue of real data, from WXLAB_CATALOG; tests that ask for it skip without it."""
    path = os.environ.get("WXLAB_CATALOG")
    if not path:
        pytest.skip("WXLAB_CATALOG is not set: no real data to read")
    return Path(path.split(":")[-1])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need pysteps skip without it."""
    if item.get_closest_marker("nowcast") and not all(map(find_spec, ("pysteps", "cv2"))):
        pytest.skip("pysteps is not installed (make nowcast): no radar extrapolation")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """With WXLAB_NO_SKIP a test that skips for want of reference numbers, real data or pysteps has failed: they are there."""
    outcome = yield
    report = outcome.get_result()
    marked = any(item.get_closest_marker(name) for name in ("golden", "real_data", "nowcast"))
    if report.skipped and marked and os.environ.get("WXLAB_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped although WXLAB_NO_SKIP is set: {call.excinfo.value if call.excinfo else ''}"
