"""Reading over HTTP from a server on this machine that fails, stalls and cuts answers short."""

from __future__ import annotations

import pickle
import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml

from wxlab.catalog import open_dataset
from wxlab.errors import WxlabError
from wxlab.readers.remote import Policy, RemoteFile


class Server(ThreadingHTTPServer):
    """Serves a folder; ``faults`` maps a pattern of paths to (how, how often per path)."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.faults: dict[str, tuple[str, int]] = {}
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is part of the test."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> str | None:
        with self.lock:
            self.asked[path] += 1
            for pattern, (how, often) in self.faults.items():
                if re.search(pattern, path) and self.asked[path] <= often:
                    return how
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        file = self.server.root / self.path.lstrip("/")
        if not file.is_file():
            return self._send(404, b"", {})
        how = self.server.fault(self.path) if body else None
        if how in ("503", "403", "404"):
            return self._send(int(how), b"", {})
        if how == "stall":
            time.sleep(0.7)
        data, status, headers = file.read_bytes(), 200, {"Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and how != "whole":
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        if how == "cut":  # promises more than it sends
            headers["Content-Length"] = str(len(data))
            return self._send(status, data[: len(data) // 2], headers, close=True)
        if how == "short":  # does not say how much there is
            return self._send(status, data[: len(data) // 2], headers, close=True, silent=True)
        return self._send(status, data if body else b"", headers | {"Content-Length": str(len(data))})

    def _send(self, status: int, data: bytes, headers: dict[str, str], close: bool = False, silent: bool = False) -> None:
        self.send_response(status)
        if not silent:
            headers = {"Content-Length": str(len(data))} | headers
        if close:
            headers["Connection"] = "close"
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def fields() -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {"t2m": (("time", "lat", "lon"), (280 + rng.normal(size=(6, 4, 8))).astype(np.float32), {"units": "K"})},
        {
            "time": np.datetime64("2020-01-01", "ns") + np.arange(6) * np.timedelta64(6, "h"),
            "lat": np.linspace(-60, 60, 4),
            "lon": np.arange(8) * 45.0,
        },
    )


@pytest.fixture(scope="module")
def folder(fields: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are no part of the version 3 specification yet
        for version in (2, 3):
            fields.chunk(time=2).drop_encoding().to_zarr(root / f"v{version}.zarr", zarr_format=version, consolidated=True)
    fields.to_netcdf(root / "fields.nc", engine="h5netcdf", encoding={"t2m": {"chunksizes": (1, 4, 8)}})
    return root


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    served = Server(folder)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


KINDS = {"zarr v2": ("zarr", "v2.zarr"), "zarr v3": ("zarr", "v3.zarr"), "netcdf": ("netcdf", "fields.nc")}
# the paths that hold the numbers, as against the description
CHUNKS = {"zarr v2": r"t2m/\d", "zarr v3": r"t2m/c/", "netcdf": r"fields\.nc"}


def catalogue(server: Server, kind: str, folder: Path, **options: Any) -> Path:
    driver, path = KINDS[kind]
    entry = {
        "title": "served",
        "driver": driver,
        "uri": f"{server.url}/{path}",
        "variables": {"2m_temperature": {"name": "t2m"}},
        "options": {"retries": 2, "timeout": 0.3, "backoff": 0.01} | options,
        "needs_network": True,
    }
    file = folder / "catalog.yaml"
    file.write_text(yaml.safe_dump({"schema": 1, "datasets": {"served": entry}}))
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_reads_what_was_written(kind: str, server: Server, fields: xr.Dataset, tmp_path: Path) -> None:
    dataset = open_dataset("served", catalog=catalogue(server, kind, tmp_path))
    assert dataset["2m_temperature"].chunks is not None
    np.testing.assert_array_equal(dataset["2m_temperature"].values, fields["t2m"].values)


@pytest.mark.parametrize("how", ["503", "stall", "cut", "short"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_request_fails_once(kind: str, how: str, server: Server, fields: xr.Dataset, tmp_path: Path) -> None:
    pattern = CHUNKS[kind] if how == "short" and kind != "netcdf" else "."
    server.faults[pattern] = (how, 1)
    dataset = open_dataset("served", catalog=catalogue(server, kind, tmp_path))
    np.testing.assert_array_equal(dataset["2m_temperature"].values, fields["t2m"].values)


@pytest.mark.parametrize("how", ["503", "stall", "cut", "short"])
@pytest.mark.parametrize("kind", ["zarr v2", "zarr v3"])
def test_chunks_that_never_come_name_source_and_variable(kind: str, how: str, server: Server, tmp_path: Path) -> None:
    dataset = open_dataset("served", catalog=catalogue(server, kind, tmp_path))
    server.faults[CHUNKS[kind]] = (how, 10**6)
    with pytest.raises(WxlabError, match=r"source 'served'.*'2m_temperature'.*after 3 attempts") as caught:
        dataset["2m_temperature"].values  # noqa: B018
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def large(folder: Path) -> xr.Dataset:
    """Several blocks long, so that reading goes on after opening."""
    values = 250 + np.random.default_rng(1).random((120, 64, 128), np.float32) * 50
    dataset = xr.Dataset(
        {"t2m": (("time", "lat", "lon"), values)},
        {"time": np.arange("2020-01-01", "2020-04-30", dtype="datetime64[D]").astype("datetime64[ns]")}
        | {"lat": np.linspace(-89, 89, 64), "lon": np.arange(128) * 2.8125},
    )
    dataset.to_netcdf(folder / "large.nc", engine="h5netcdf")
    return dataset


def test_large_netcdf(server: Server, large: xr.Dataset, tmp_path: Path) -> None:
    dataset = open_dataset("served", catalog=catalogue(server, "netcdf", tmp_path), uri=f"{server.url}/large.nc")
    np.testing.assert_array_equal(dataset["2m_temperature"].values, large["t2m"].values)


@pytest.mark.parametrize("how", ["503", "stall", "cut", "short"])
def test_netcdf_that_never_comes_names_source_and_variable(how: str, server: Server, large: xr.Dataset, tmp_path: Path) -> None:
    dataset = open_dataset("served", catalog=catalogue(server, "netcdf", tmp_path), uri=f"{server.url}/large.nc")
    server.faults["."] = (how, 10**6)
    with pytest.raises(WxlabError, match=r"source 'served'.*'2m_temperature'.*after 3 attempts") as caught:
        dataset["2m_temperature"].values  # noqa: B018
    assert caught.value.__suppress_context__
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["503", "stall", "cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_source_that_never_answers(kind: str, how: str, server: Server, tmp_path: Path) -> None:
    server.faults["."] = (how, 10**6)
    began = time.perf_counter()
    with pytest.raises(WxlabError, match=r"source 'served'.*cannot open.*after 3 attempts") as caught:
        open_dataset("served", catalog=catalogue(server, kind, tmp_path))
    assert time.perf_counter() - began < 8
    assert caught.value.__suppress_context__
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_refusal_is_final(kind: str, server: Server, tmp_path: Path) -> None:
    """403 is not asked again: it would not change."""
    server.faults["."] = ("403", 10**6)
    with pytest.raises(WxlabError, match="HTTP 403"):
        open_dataset("served", catalog=catalogue(server, kind, tmp_path))
    assert max(server.asked.values()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_there(kind: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(WxlabError, match="there is nothing at"):
        open_dataset("served", catalog=catalogue(server, kind, tmp_path), uri=f"{server.url}/nowhere/{KINDS[kind][1]}")


def test_retries_zero_means_one_attempt(server: Server, tmp_path: Path) -> None:
    dataset = open_dataset("served", catalog=catalogue(server, "zarr v2", tmp_path, retries=0))
    server.faults[CHUNKS["zarr v2"]] = ("503", 1)
    with pytest.raises(WxlabError, match="after 1 attempt"):
        dataset["2m_temperature"].values  # noqa: B018


def test_wrong_units_show_in_the_first_block(server: Server, tmp_path: Path) -> None:
    """Remote sources are not read when they are opened; the range is checked on the first block that is."""
    source = {"2m_temperature": {"name": "t2m", "offset": -273.15}}
    dataset = open_dataset("served", catalog=catalogue(server, "zarr v3", tmp_path), variables=source)
    with pytest.raises(WxlabError, match=r"'2m_temperature'.*150 to 350 K"):
        dataset["2m_temperature"].isel(time=0).values  # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
def test_travels_to_other_processes(kind: str, server: Server, fields: xr.Dataset, tmp_path: Path) -> None:
    dataset = pickle.loads(pickle.dumps(open_dataset("served", catalog=catalogue(server, kind, tmp_path))))
    np.testing.assert_array_equal(dataset["2m_temperature"].values, fields["t2m"].values)


def test_file_by_ranges(server: Server, folder: Path) -> None:
    content = bytes(range(256)) * 9000  # more than two blocks
    (folder / "bytes.bin").write_bytes(content)
    file = RemoteFile(f"{server.url}/bytes.bin", Policy(retries=1, timeout=2, backoff=0))
    server.faults["."] = ("whole", 1)  # ignores the range at first
    assert file.seek(-10, 2) == len(content) - 10
    assert file.read() == content[-10:]
    file.seek(2**20 - 3)
    assert file.read(6) == content[2**20 - 3 : 2**20 + 3]
    file.seek(0)
    assert file.readall() == content
    assert file.seek(5, 1) == len(content) + 5
    assert file.read() == b""
    with pytest.raises(FileNotFoundError):
        RemoteFile(f"{server.url}/none", Policy(retries=0)).read()


def test_policy_waits_longer_each_time() -> None:
    policy = Policy(backoff=0.5)
    assert [policy.wait(attempt) for attempt in range(4)] == [0.5, 1, 2, 4]
    assert policy.wait(20) == 30


def test_public_google_buckets_need_no_client() -> None:
    """gs:// is read over HTTPS when nobody is to be logged in; a token of one's own goes to the client library."""
    uri, options = Policy(storage_options={"token": "anon"}).resolve("gs://bucket/a.zarr")
    assert uri == "https://storage.googleapis.com/bucket/a.zarr"
    assert options == {"client_kwargs": {"trust_env": True}}
    assert Policy(storage_options={"token": "cloud"}).resolve("gs://bucket/a.zarr") == ("gs://bucket/a.zarr", {"token": "cloud"})
    assert Policy().resolve("s3://bucket/a.zarr") == ("s3://bucket/a.zarr", {"anon": True})
