"""The command line: each command is one call into the library, says what it wrote and where, and fails with one sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from wxlab.errors import WxlabError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Machine-learned weather forecasting, from data to scored forecasts.",
)
data_app = typer.Typer(no_args_is_help=True, help="What data there are, and preparing them for training.")
app.add_typer(data_app, name="data")

Catalog = Annotated[Path | None, typer.Option("--catalog", help="Another catalogue file, laid over the built-in one.")]
Pairs = Annotated[list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A parameter, may be repeated.")]


def main() -> None:
    """Entry point: a user's mistake ends in one sentence and exit code 2, never in a traceback."""
    try:
        app()
    except WxlabError as error:
        print(f"wxlab: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("wxlab: stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _pairs(values: list[str] | None) -> dict[str, str]:
    """``name=value`` pairs as a dict of texts."""
    result = {}
    for text in values or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise WxlabError(f"parameter {text!r} is not of the form NAME=VALUE; write for example -p steps=200")
        result[name.strip()] = value
    return result


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _thresholds(text: str | None) -> str | list[float] | None:
    """The name of a set of thresholds, or numbers."""
    try:
        return [float(name) for name in _names(text)] or None
    except ValueError:
        return text


@data_app.command("list")
def data_list(catalog: Catalog = None) -> None:
    """Every source by name.  Example: wxlab data list"""
    from rich.console import Console
    from rich.table import Table

    from wxlab.catalog import load

    table = Table("name", "title", "driver", "size", "network")
    for name, entry in load(catalog).datasets.items():
        table.add_row(name, entry.title, entry.driver, entry.size or "", "yes" if entry.needs_network else "no")
    Console().print(table)


@data_app.command("show")
def data_show(name: str, catalog: Catalog = None) -> None:
    """Open a source lazily and print what it holds.  Example: wxlab data show simulated_atmosphere_small"""
    from wxlab.catalog import open_dataset

    print(open_dataset(name, catalog=catalog))


@data_app.command("check")
def data_check(name: str, catalog: Catalog = None) -> None:
    """Read a source and report gaps, missing values and implausible ranges.  Example: wxlab data check simulated_atmosphere_small"""
    from wxlab.catalog import check

    for finding in check(name, catalog=catalog):
        print(f"- {finding}")


@data_app.command("prepare")
def data_prepare(
    name: str,
    out: Path,
    variables: Annotated[str, typer.Option(help="Comma-separated variable names.")],
    levels: Annotated[str | None, typer.Option(help="Comma-separated pressure levels, hPa.")] = None,
    grid: Annotated[str | None, typer.Option(help="Target grid ROWSxCOLUMNS such as 32x64; of radar also a length such as 2km.")] = None,
    crop: Annotated[str | None, typer.Option(help="ROWSxCOLUMNS points around the middle, before anything else.")] = None,
    tiles: Annotated[str | None, typer.Option(help="Cut the fields into tiles of ROWSxCOLUMNS points, each an event of its own.")] = None,
    start: Annotated[str | None, typer.Option(help="First time, for example 1990-01-01.")] = None,
    end: Annotated[str | None, typer.Option(help="Last time.")] = None,
    nan: Annotated[str, typer.Option(help="Missing values: error, fill or mask.")] = "error",
    scheduler: Annotated[str | None, typer.Option(help="threads, synchronous, or a dask scheduler's address.")] = None,
    catalog: Catalog = None,
) -> None:
    """Make a training store; several radar sources are joined by +.

    Example: wxlab data prepare simulated_atmosphere_small store.zarr --variables 2m_temperature,geopotential --levels 500
    """
    from wxlab.store import prepare

    path = prepare(
        name,
        out,
        variables=_names(variables),
        levels=[int(level) for level in _names(levels)] or None,
        grid=grid,
        crop=crop,
        tiles=tiles,
        time=(start, end) if start or end else None,
        nan=cast(Any, nan),
        scheduler=scheduler,
        catalog=catalog,
    )
    print(f"wrote {path}")


@data_app.command("tree")
def data_tree(
    name: str,
    out: Path,
    variables: Annotated[str | None, typer.Option(help="Comma-separated variable names; all that vary in time unless given.")] = None,
    levels: Annotated[str | None, typer.Option(help="Comma-separated pressure levels, hPa.")] = None,
    start: Annotated[str | None, typer.Option(help="First time, for example 1990-01-01.")] = None,
    end: Annotated[str | None, typer.Option(help="Last time.")] = None,
    train: Annotated[str | None, typer.Option(help="First and last time of the statistics, comma-separated.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a tree that is there.")] = False,
    catalog: Catalog = None,
) -> None:
    """Write a source as one .npy file per time, variable and level, with statistics, as the authors' code of VA-MoE reads it.

    Example: wxlab data tree simulated_atmosphere_small era5_npy --variables geopotential,2m_temperature --levels 500
    """
    from wxlab.npy_tree import write

    time = (start, end) if start or end else None
    chosen = [int(level) for level in _names(levels)] or None
    how: dict[str, Any] = {"variables": _names(variables) or None, "levels": chosen, "time": time, "train": _names(train) or None}
    print(f"wrote {write(name, out, **how, catalog=catalog, overwrite=overwrite)}")


@app.command()
def train(
    model: str,
    store: Path,
    run_dir: Annotated[Path, typer.Option(help="Where checkpoints and metrics go; an interrupted run goes on there.")],
    preset: Annotated[str, typer.Option(help="The model's size.")] = "demo",
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse to go on with an earlier run.")] = False,
    parameters: Pairs = None,
) -> None:
    """Train a model on a store.  Example: wxlab train met2net store.zarr --run-dir runs/a -p steps=200 -p lr=0.001"""
    from wxlab.runs import read_value
    from wxlab.trainer import train as train_model

    settings: dict[str, Any] = {name: read_value(text) for name, text in _pairs(parameters).items()}
    path = train_model(model, store, run_dir=run_dir, resume=not fresh, preset=preset, **settings)
    print(f"wrote {path}")


@app.command()
def encode(
    autoencoder: Path,
    store: Path,
    out: Path,
    scheduler: Annotated[str | None, typer.Option(help="threads, synchronous, or a dask scheduler's address.")] = None,
) -> None:
    """Encode a store to a store of latents; a killed run goes on where it was.  Example: wxlab encode runs/ae store.zarr latents.zarr"""
    from wxlab.encoding import encode as encode_store
    from wxlab.store import open_store

    path = encode_store(autoencoder, store, out, scheduler=scheduler)
    sizes = [open_store(place).frames.shape for place in (store, path)]
    ratio = (sizes[0][1] * sizes[0][2] * sizes[0][3]) / (sizes[1][1] * sizes[1][2] * sizes[1][3])
    print(f"wrote {path} ({ratio:.3g} times smaller than the fields)")


@app.command()
def forecast(
    checkpoint: Path,
    store: Path,
    out: Path,
    steps: Annotated[int, typer.Option(help="Output frames.")],
    split: Annotated[str, typer.Option(help="Which part of the store to start from.")] = "test",
    members: int = 1,
    seed: int = 0,
    autoencoder: Annotated[Path | None, typer.Option(help="Whose latents the checkpoint forecasts; the store then holds fields.")] = None,
) -> None:
    """Forecast from every time of a store's split.  Example: wxlab forecast runs/a store.zarr forecast.zarr --steps 8"""
    from wxlab.checkpoints import load_checkpoint
    from wxlab.rollout import forecast as make
    from wxlab.store import open_store

    model: Any = load_checkpoint(checkpoint)
    if autoencoder is not None:
        from wxlab.models.ladcast import LatentForecaster

        model = LatentForecaster(cast(Any, load_checkpoint(autoencoder)), model)
    make(model, open_store(store).dataset(split), steps=steps, members=members, seed=seed, out=out)
    print(f"wrote {out}")


@app.command()
def verify(
    forecasts: Path,
    store: Path,
    out: Annotated[Path | None, typer.Option(help="Write the scores as netCDF.")] = None,
    metrics: Annotated[str, typer.Option(help="Comma-separated scores.")] = "rmse,mae,bias,acc",
    thresholds: Annotated[str | None, typer.Option(help="For scores of events: sevir, hko7, meteonet, or numbers such as 0.5,2,5.")] = None,
) -> None:
    """Score a forecast file against a store.

    Example: wxlab verify forecast.zarr store.zarr --metrics csi,fss --thresholds 0.5,2,5
    """
    import xarray as xr

    from wxlab.files import atomic_file
    from wxlab.store import open_store
    from wxlab.verification import verify as score

    if not forecasts.exists():
        raise WxlabError(f"there is no forecast at {forecasts}; make one with wxlab forecast")
    truth = open_store(store)
    climatology = truth.climatology() if "acc" in _names(metrics) else None
    made = xr.open_zarr(forecasts, consolidated=False)
    scores = score(made, truth.dataset(), metrics=_names(metrics), climatology=climatology, thresholds=_thresholds(thresholds))
    print(scores.drop_vars("unit_power").to_dataframe().round(4).to_string())
    if out:
        with atomic_file(out) as temporary:
            scores.to_netcdf(temporary, engine="h5netcdf")
        print(f"wrote {out}")


@app.command()
def track(
    source: str,
    out: Path,
    preset: Annotated[str | None, typer.Option(help="tempest_ullrich2021, standard or coarse; by the grid unless given.")] = None,
    start: Annotated[str | None, typer.Option(help="First time, for example 2018-09-01.")] = None,
    end: Annotated[str | None, typer.Option(help="Last time.")] = None,
    parameters: Pairs = None,
    catalog: Catalog = None,
) -> None:
    """Find and follow tropical cyclones in a forecast, a store, a file or a source of the catalogue.

    OUT ends in .nc, .csv, or .txt for TempestExtremes' text.  Example: wxlab track forecast.zarr tracks.csv -p duration=24
    """
    from wxlab.cyclones import track as find
    from wxlab.cyclones.files import file_format, write_tracks
    from wxlab.cyclones.sources import open_fields
    from wxlab.runs import read_value

    criteria = {name: read_value(text) for name, text in _pairs(parameters).items()}
    file_format(out)  # before the work is done
    tracks = find(open_fields(source, catalog=catalog, time=(start, end)), preset, **criteria)
    write_tracks(tracks, out)
    count = len(set(tracks["track_id"].values.tolist()))
    print(f"wrote {out} ({count} {'track' if count == 1 else 'tracks'}, {tracks.sizes['record']} records, preset {tracks.attrs['preset']})")


@app.command()
def health(
    run_dir: Path,
    store: Annotated[Path | None, typer.Option(help="What it was trained on, where it was moved since.")] = None,
    forecasts: Annotated[bool, typer.Option(help="Also roll the network out over the validation split.")] = True,
    steps: Annotated[int, typer.Option(help="Of the roll-outs.")] = 20,
    members: Annotated[int, typer.Option(help="Of the roll-outs, where the model is stochastic.")] = 4,
) -> None:
    """Look for signatures of failure in a training run, and say what cures them.  Example: wxlab health runs/a"""
    from wxlab.health import check

    findings = check(run_dir, store=store, forecasts=forecasts, steps=steps, members=members)
    print(findings)
    print(f"{len(findings.found)} of {len(findings) - len(findings.not_judged)} signatures of failure found")


@app.command()
def run(
    notebook: Path,
    out: Annotated[Path, typer.Option(help="Folder or file for the executed notebook.")] = Path("runs/executed"),
    preset: Annotated[str | None, typer.Option(help="quick, demo, workshop or paper, where the notebook has it.")] = None,
    parameters: Pairs = None,
) -> None:
    """Run a notebook headless.  Example: wxlab run notebooks/02_met2net.ipynb --preset demo -p steps=400"""
    from wxlab.runs import run as run_notebook

    values: dict[str, Any] = dict(_pairs(parameters))
    done = run_notebook(notebook, out, preset=preset, **values)
    print(f"wrote {done.notebook} ({done.seconds:.0f} s)")
    _print_claims(notebook.stem, done.result.get("claims", []))


@app.command()
def sweep(
    notebook: Path,
    out: Path,
    parameters: Annotated[list[str], typer.Option("-p", "--parameter", metavar="NAME=[VALUES]", help="A parameter and its values.")],
    preset: str | None = None,
    workers: int = 2,
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask scheduler.")] = None,
) -> None:
    """Run a notebook for every combination of parameters.

    Example: wxlab sweep notebooks/02_met2net.ipynb runs/sweep -p 'steps=[50, 100]' -p 'seed=[0, 1]'
    """
    from wxlab.runs import read_value
    from wxlab.runs import sweep as run_sweep

    read = {name: read_value(text) for name, text in _pairs(parameters).items()}
    grid = {name: value if isinstance(value, list) else [value] for name, value in read.items()}
    table = run_sweep(notebook, out, grid, scheduler, preset=preset, workers=workers)
    print(table.to_string(index=False))
    print(f"wrote {out / 'sweep.csv'}")
    if (table["status"] != "ok").any():
        raise WxlabError(f"{int((table['status'] != 'ok').sum())} of {len(table)} runs failed; their errors are in the table")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the executed notebooks.")] = Path("runs/demo"),
    preset: str = "demo",
    notebooks: Annotated[Path | None, typer.Option(help="Folder of the notebook series.")] = None,
) -> None:
    """Run the whole notebook series headless on the embedded data and check every claim.  Example: wxlab demo"""
    from wxlab.runs import run as run_notebook

    folder = notebooks or _notebook_folder()
    series = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not series:
        raise WxlabError(f"{folder} holds no notebook of the form NN_name.ipynb; name the folder of the series with --notebooks")
    if not list((folder / "presets").glob(f"*.{preset}.yaml")):
        raise WxlabError(f"no notebook in {folder} has the preset {preset!r}, so nothing would be checked; use --preset demo")
    failed, total = [], 0.0
    for notebook in series:
        has_preset = (folder / "presets" / f"{notebook.stem}.{preset}.yaml").is_file()
        print(f"{notebook.name} ...", flush=True)
        done = run_notebook(notebook, out, preset=preset if has_preset else None)
        total += done.seconds
        print(f"  {done.seconds:.0f} s, wrote {done.notebook}")
        failed += _print_claims(notebook.stem, done.result.get("claims", []) if has_preset else [])
    print(f"the series took {total:.0f} s")
    if failed:
        raise WxlabError(f"{len(failed)} claims do not hold: {'; '.join(failed)}")


def _print_claims(notebook: str, claims: list[dict[str, Any]]) -> list[str]:
    """Print claims; return the texts of those that do not hold."""
    for entry in claims:
        sign = ">" if entry["better"] == "greater" else "<"
        print(f"  {'holds' if entry['holds'] else 'FAILS'}: {entry['claim']} ({entry['value']:.4g}, bar {sign} {entry['bar']:.4g})")
    return [f"{notebook}: {entry['claim']}" for entry in claims if not entry["holds"]]


def _notebook_folder() -> Path:
    folder = Path(__file__).resolve().parent.parent / "notebooks"
    if not folder.is_dir():
        raise WxlabError("the notebook series is not beside the package; clone the repository, or name its folder with --notebooks")
    return folder


@app.command()
def lab() -> None:
    """Open JupyterLab on the notebooks.  Example: wxlab lab"""
    folder = _notebook_folder()
    jupyter = Path(sys.executable).with_name("jupyter-lab")
    if not jupyter.is_file():
        raise WxlabError(f"JupyterLab is not installed beside {sys.executable}; run: pip install jupyterlab")
    os.execv(jupyter, [str(jupyter), f"--notebook-dir={folder}"])


@app.command()
def doctor() -> None:
    """Is this machine ready?  Example: wxlab doctor"""
    from wxlab.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{finding.level:8s} {finding.subject}: {finding.text}")
    problems = [f.subject for f in findings if f.level == "problem"]
    if problems:
        raise WxlabError(f"{len(problems)} problems: {', '.join(problems)}; what to do stands beside each")
