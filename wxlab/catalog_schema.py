"""Schema 1 of catalogue files: what an entry may say, and every problem of a file in one message."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wxlab.errors import WxlabError

SPLITS = ("train", "validation", "test")
_REMOTE = frozenset({"retries", "timeout", "backoff", "storage_options"})
_COMMON = frozenset({"engine", "chunks", "check_range", "cut_time"})
# what `options` may hold, driver by driver; None: the simulator says
OPTIONS: dict[str, frozenset[str] | None] = {
    "zarr": _COMMON | _REMOTE | {"consolidated", "group"},
    "netcdf": _COMMON | _REMOTE | {"backend_kwargs"},
    "grib": _COMMON | {"backend_kwargs"},
    "npy_tree": frozenset({"chunks", "check_range", "cut_time"}),
    "radar": _COMMON | _REMOTE | {"backend_kwargs", "consolidated", "group", "missing"},
    "sevir": frozenset({"missing", "frames", "check_range", "cut_time"}),
    "hko7": frozenset({"missing", "samplers", "masks", "scale", "check_range", "cut_time"}),
    "meteonet": frozenset({"missing", "check_range", "cut_time"}),
    "simulated": None,
}
ENGINES = {"zarr": ("zarr",), "netcdf": ("netcdf4", "h5netcdf", "scipy"), "grib": ("cfgrib",), "radar": ("netcdf4", "h5netcdf", "scipy")}
GENERATORS = ("atmosphere", "radar", "moving_digits")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variable(_Strict):
    """A variable of the vocabulary: WeatherBench 2 name -> CF standard name, units, and the range outside which values are wrong."""

    standard_name: str = ""
    units: str
    valid_range: tuple[float, float] | None = None

    @property
    def unit(self) -> str:
        """The unit to be written behind a number."""
        return "" if self.units == "1" else f" {self.units}"


class VariableSource(_Strict):
    """Where an entry finds a variable: its name there, what to select, and how to convert (value * scale + offset)."""

    name: str
    select: dict[str, Any] = Field(default_factory=dict)
    scale: float = 1.0
    offset: float = 0.0


class GridInfo(_Strict):
    """What is known of an entry's grid before it is opened."""

    type: Literal["latlon", "gaussian", "cartesian"]
    resolution_deg: float | None = Field(default=None, gt=0)
    resolution_km: float | None = Field(default=None, gt=0)
    poles: bool | None = None
    latitude_order: Literal["ascending", "descending"] | None = None


class TimeInfo(_Strict):
    """First and last time (inclusive) and step of an entry; they cut the data only with the option ``cut_time``."""

    start: Any = None
    end: Any = None
    step: str | None = None


class Entry(_Strict):
    """One source of data."""

    title: str
    driver: Literal["zarr", "netcdf", "grib", "npy_tree", "radar", "sevir", "hko7", "meteonet", "simulated"]
    uri: str | list[str] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    grid: GridInfo | None = None
    time: TimeInfo | None = None
    variables: dict[str, VariableSource] = Field(default_factory=dict)
    splits: dict[Literal["train", "validation", "test"], Any] | None = None
    licence: str = ""
    citation: str = ""
    size: str | None = None
    needs_network: bool = False


class Catalog(_Strict):
    """All entries and the vocabulary, after the overlays."""

    variables: dict[str, Variable]
    datasets: dict[str, Entry]


_Yaml: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Yaml):
    """SafeLoader that refuses a key given twice (YAML would silently keep the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def base_variable(name: str, known: Iterable[str]) -> tuple[str, int | None]:
    """``geopotential_500`` -> (``geopotential``, 500) when ``geopotential`` is known and the whole is not; else (name, None)."""
    match = re.fullmatch(r"(.+)_(\d+)", name)
    if name not in known and match and match[1] in known:
        return match[1], int(match[2])
    return name, None


def nearest(given: object, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where something allowed is near, else the list of what is allowed when that is short."""
    names = sorted(allowed)
    close = get_close_matches(str(given), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" (allowed: {', '.join(names)})" if len(names) <= 16 else ""


def read_file(path: str | os.PathLike[str], known: Mapping[str, Variable] | None = None) -> Catalog:
    """One catalogue file.

    path: YAML file.  known: variables defined by earlier files.
    Raises WxlabError listing every problem of the file.
    """
    file = Path(path)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise WxlabError(f"cannot read catalogue {file}: {reason}; check the path given as catalogue or in WXLAB_CATALOG") from None
    except UnicodeDecodeError:
        raise WxlabError(f"cannot read catalogue {file}: it is not UTF-8 text; give a YAML file of schema 1") from None
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not readable"
        where = f" at line {mark.line + 1}" if mark else ""
        raise WxlabError(f"catalogue {file} is not valid YAML{where}: {what}; mend that line") from None
    except ValueError as error:  # a date such as 2001-13-01
        raise WxlabError(f"catalogue {file} holds a value that cannot be: {error}; look at its dates") from None
    problems: list[str] = []
    catalog = _parse(content, dict(known or {}), file, problems)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise WxlabError(f"catalogue {file} has {count}:\n{listing}")
    return catalog


def _parse(content: Any, known: dict[str, Variable], file: Path, problems: list[str]) -> Catalog:
    if not isinstance(content, dict):
        problems.append(f"the file holds {_kind(content)}; it must be a mapping with schema, variables and datasets")
        return Catalog(variables={}, datasets={})
    for key in content:
        if key not in ("schema", "variables", "datasets"):
            problems.append(f"{key}: unknown section{nearest(key, ('schema', 'variables', 'datasets'))}")
    if content.get("schema") != 1:
        problems.append(f"schema: is {content.get('schema')!r}; this version reads schema 1, write 'schema: 1'")
    variables, datasets = {}, {}
    for name, value in _section(content, "variables", problems):
        found = validate(Variable, value, f"variables.{name}", problems)
        if found is not None:
            variables[name] = found
            low, high = found.valid_range or (0, 1)
            if not low < high:
                problems.append(f"variables.{name}.valid_range: {low:g} is not below {high:g}; write [lowest, highest]")
    vocabulary = known | variables
    for name, value in _section(content, "datasets", problems):
        entry = validate(Entry, value, f"datasets.{name}", problems)
        if entry is not None:
            problems.extend(entry_problems(entry, f"datasets.{name}", vocabulary))
            datasets[name] = entry.model_copy(update={"uri": _beside(entry.uri, file)})
    return Catalog(variables=variables, datasets=datasets)


def _section(content: dict[Any, Any], name: str, problems: list[str]) -> list[tuple[str, Any]]:
    section = content.get(name)
    if section is None:
        return []
    if not isinstance(section, dict):
        problems.append(f"{name}: is {_kind(section)}; it must be a mapping from names to entries")
        return []
    return [(str(key), value) for key, value in section.items()]


def validate(model: type[Any], value: Any, where: str, problems: list[str]) -> Any:
    """``value`` as ``model``, or None with what is wrong added to ``problems``."""
    if not isinstance(value, dict):
        problems.append(f"{where}: is {_kind(value)}; it must be a mapping of {', '.join(model.model_fields)}")
        return None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems.extend(_sentence(model, item, where) for item in error.errors())
        return None


def _sentence(model: type[BaseModel], item: Any, where: str) -> str:
    location = [str(part) for part in item["loc"]]
    if item["type"] == "literal_error" and location[-1] == "[key]":
        return f"{where}.{'.'.join(location[:-1])}: unknown name{nearest(item['input'], SPLITS)}"
    path = ".".join([where, *location])
    given = item["input"]
    if item["type"] == "missing":
        return f"{path}: is missing; every entry needs it"
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown field{nearest(location[-1], _fields(model, location[:-1]))}"
    if item["type"] == "literal_error":
        allowed = re.findall(r"'([^']+)'", item["ctx"]["expected"])
        return f"{path}: {given!r} is not known{nearest(given, allowed)}"
    return f"{path}: {_kind(given)} does not fit; {item['msg'][0].lower()}{item['msg'][1:]}"


def _fields(model: type[BaseModel], location: list[str]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {"variables": VariableSource, "grid": GridInfo, "time": TimeInfo}
    return list(parts.get(location[0], model).model_fields if location else model.model_fields)


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    return f"{type(value).__name__} {str(value)[:40]!r}".replace("\n", " ")


def _beside(uri: str | list[str] | None, file: Path) -> str | list[str] | None:
    if isinstance(uri, list):
        return [str(_beside(part, file)) for part in uri]
    return uri.replace("${CATALOG_DIR}", str(file.resolve().parent)) if uri else uri


def entry_problems(entry: Entry, where: str, vocabulary: Mapping[str, Variable]) -> list[str]:
    """What a schema cannot see: names outside the vocabulary, options of another driver, dates and splits that make no sense."""
    problems = []
    for name in entry.variables:
        base, _ = base_variable(name, vocabulary)
        if base not in vocabulary:
            problems.append(f"{where}.variables.{name}: unknown variable{nearest(base, vocabulary)}")
    if entry.driver != "simulated":
        if not entry.uri:
            problems.append(f"{where}.uri: is missing; driver {entry.driver} needs the address of the data")
        if not entry.variables:
            problems.append(f"{where}.variables: is missing; name at least one variable")
    problems.extend(_option_problems(entry, where))
    dates = {} if entry.time is None else {"start": entry.time.start, "end": entry.time.end}
    problems.extend(_range_problems(f"{where}.time", dates.get("start"), dates.get("end")))
    problems.extend(_split_problems(entry.splits or {}, f"{where}.splits"))
    return problems


def _option_problems(entry: Entry, where: str) -> list[str]:
    allowed = OPTIONS[entry.driver]
    if allowed is None:
        generator = entry.options.get("generator")
        hint = nearest(generator, GENERATORS)
        return [] if generator in GENERATORS else [f"{where}.options.generator: {generator!r} is not a simulator{hint}"]
    unknown = [key for key in entry.options if key not in allowed]
    problems = [f"{where}.options.{key}: unknown option of driver {entry.driver}{nearest(key, allowed)}" for key in unknown]
    engine, engines = entry.options.get("engine"), ENGINES.get(entry.driver, ())
    if engine is not None and engine not in engines and "engine" in allowed:
        problems.append(f"{where}.options.engine: {engine!r} is not an engine of driver {entry.driver}{nearest(engine, engines)}")
    for key, least in (("retries", 0), ("timeout", 0.001), ("backoff", 0)):
        value = entry.options.get(key)
        if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool) or value < least):
            problems.append(f"{where}.options.{key}: {value!r} must be a number of at least {least:g}")
    return problems


def as_time(value: Any, end: bool = False) -> pd.Timestamp:
    """A date or time as a timestamp; a date alone means its midnight, or its last moment when ``end``."""
    if isinstance(value, int):  # a bare year, as YAML reads it
        value = f"{value}-12-31" if end else f"{value}-01-01"
    stamp = pd.Timestamp(value)
    date_only = isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    if end and (date_only or (isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d?-\d\d?", value.strip()))):
        stamp += pd.Timedelta(days=1) - pd.Timedelta(1, "ns")
    if stamp is pd.NaT:
        raise ValueError("not a time")
    return stamp.tz_localize(None) if stamp.tz else stamp


def _range_problems(where: str, start: Any, end: Any) -> list[str]:
    stamps = []
    for name, value in (("start", start), ("end", end)):
        if value is None:
            continue
        try:
            stamps.append(as_time(value, end=name == "end"))
        except (ValueError, TypeError):
            return [f"{where}: {str(value)!r} is not a date; write for example 2001-01-31 or 2001-01-31T06"]
    if len(stamps) == 2 and stamps[0] > stamps[1]:
        return [f"{where}: starts at {start} and ends before, at {end}"]
    return []


def _split_problems(splits: Mapping[Any, Any], where: str) -> list[str]:
    problems: list[str] = []
    ranges: dict[str, tuple[pd.Timestamp, pd.Timestamp]] = {}
    owners: dict[int, str] = {}
    for name, value in splits.items():
        if isinstance(value, (list, tuple)) and len(value) == 2:
            found = _range_problems(f"{where}.{name}", *value)
            problems.extend(found)
            if not found and None not in value:
                ranges[name] = as_time(value[0]), as_time(value[1], end=True)
        elif isinstance(value, dict) and set(value) == {"segments"} and isinstance(value["segments"], list):
            for segment in value["segments"]:
                if owners.setdefault(segment, name) != name:
                    problems.append(f"{where}: segment {segment} is in {owners[segment]} and in {name}; give it to one of them")
        else:
            problems.append(f"{where}.{name}: must be [first date, last date] or {{segments: [numbers]}}, not {_kind(value)}")
    names = list(ranges)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if ranges[one][0] <= ranges[other][1] and ranges[other][0] <= ranges[one][1]:
                problems.append(f"{where}: {one} and {other} overlap; let one end before the other begins")
    return problems
