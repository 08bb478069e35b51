"""One training loop for every recipe: exact resume, validation, averaged weights, several processes.

    for each optimiser step:  seed from (seed, step, process) -> micro-batches -> clip -> step -> schedule
    now and then:             validate (never on the test split) -> best checkpoint -> resume state

Several processes are started by ``torchrun --nproc-per-node N``. They share each batch, so that the result is the one of a single
process to rounding, except where a recipe draws random numbers or a network normalises over the batch (BatchNorm sees its share
only). Under a mask each process averages over its own observed points.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wxlab.checkpoints import save_checkpoint
from wxlab.errors import WxlabError
from wxlab.files import atomic_file, write_json
from wxlab.models import create_model, get_entry
from wxlab.models.base import Batch, Model, Recipe
from wxlab.rollout import Streams
from wxlab.store import Store, open_store
from wxlab.trainer_settings import FREE, Settings, parse
from wxlab.windows import Windows

Callback = Callable[[dict[str, Any]], None]


def train(
    model_or_name: Model | str,
    store: Store | str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str],
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Path:
    """Train a model on a prepared store; returns the path of the best checkpoint.

    model_or_name: a name of the registry (built for the store's channels and grid with ``preset`` and ``model``), or a model.
    store: a Store or its path.  run_dir: gets ``best`` and ``last`` checkpoints, ``metrics.jsonl``, ``settings.json`` and the resume
    state.  resume: go on with an interrupted run, to the same bits (CPU); a finished one is returned as it is; False refuses a folder
    that holds a run.  callbacks: called with each line of metrics.  settings: see ``wxlab.trainer_settings.Settings``.

    Best means the lowest squared error on the ``validation`` split; without such a split it is the last. The test split is not opened.
    Raises WxlabError for unknown or impossible settings, a model that does not fit the store, a changed run, and a loss that is not
    finite.
    """
    options, data, folder = parse(settings), open_store(store), Path(run_dir)
    model = _model_for(model_or_name, data, options)
    model.normaliser = data.normaliser
    entry = get_entry(model.name)
    fixed = options.model_dump(exclude=set(FREE))
    _settle(folder, resume, {**fixed, "config": model.config, "spec": model.spec.to_dict(), "store": data.attrs["checksum"]})
    if entry.recipe is None:
        cast(Any, model).fit(data)
        return save_checkpoint(model, folder / "best")
    built = entry.recipe(model, **options.recipe, **({"lr": options.lr} if options.lr else {}))
    stages = built if isinstance(built, list) else [built]
    return Run(model, stages, data, folder, options, callbacks).go()


def _model_for(model_or_name: Model | str, store: Store, options: Settings) -> Model:
    if isinstance(model_or_name, str):
        torch.manual_seed(options.seed)
        shape = {"channels": store.channels, "grid": store.grid, "step": store.step, "forcing": store.forcing, "static": store.static}
        return create_model(model_or_name, options.preset, **{**shape, **options.model})
    spec = model_or_name.spec
    for name, mine, theirs in (("channels", spec.channels, store.channels), ("grid", spec.grid.shape, store.grid.shape)):
        if mine != theirs:
            raise WxlabError(f"the model's {name} {list(mine)} is not the store's {list(theirs)}; create it with {name}=store.{name}")
    return model_or_name


def _settle(folder: Path, resume: bool, facts: dict[str, Any]) -> None:
    """Write what the run depends on, or compare it with what an earlier start of the run wrote."""
    path, facts = folder / "settings.json", json.loads(json.dumps(facts))
    if not path.is_file():
        write_json(path, facts)
        return
    if not resume:
        raise WxlabError(f"{folder} already holds a run; go on with resume=True or choose another run_dir")
    try:
        before = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise WxlabError(f"{path} is not readable JSON; choose another run_dir") from None
    changed = [name for name in sorted({*before, *facts}) if before.get(name) != facts.get(name)]
    if changed:
        listing = "; ".join(f"{name} ({str(before.get(name))[:60]} before, {str(facts.get(name))[:60]} now)" for name in changed)
        raise WxlabError(f"the run in {folder} was started with other settings: {listing}; give the same or choose another run_dir")


class _Step(nn.Module):
    """Model and recipe as one module, so that data-parallel training sees one forward call: the loss."""

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.recipe.loss(self.model, batch, generator)


class Run:
    """One training run: what it holds between steps is exactly what its resume state keeps."""

    def __init__(
        self, model: Model, stages: list[Recipe], store: Store, folder: Path, options: Settings, callbacks: Sequence[Callback]
    ) -> None:
        self.model, self.stages, self.store = model, stages, store
        self.folder, self.options, self.callbacks = folder, options, callbacks
        self.accelerator = _accelerator(options)
        self.stage = self.step = self.stale = self.metrics_bytes = 0
        self.best, self.seconds, self.stopped = math.inf, 0.0, ""
        spec = model.spec
        process: dict[str, Any] = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        hours = {"step": spec.step / 3600, "history_step": spec.history_step / 3600}
        self.shape: dict[str, Any] = {"history": spec.history, "horizon": spec.horizon, **hours}
        pin = self.accelerator.device.type == "cuda"
        self.windows = Windows(
            store, "train", **self.shape, stride=options.stride, batch_size=options.batch_size, shuffle=True, seed=options.seed,
            drop_last=True, pin=pin, **process,
        )  # fmt: skip
        if not len(self.windows):
            count = self.windows.samples
            raise WxlabError(f"batch_size={options.batch_size} is more than the {count} training windows; take a smaller batch")
        self.validation = self._validation_windows(process)
        per_epoch = max(1, len(self.windows) // options.accumulate)
        self.total = options.steps or per_epoch * cast(int, options.epochs)
        self.validate_every = options.validate_every or max(1, min(per_epoch, self.total // 4))
        self.checkpoint_every = options.checkpoint_every or self.validate_every

    def _validation_windows(self, process: dict[str, Any]) -> Windows | None:
        if "validation" not in self.store.splits:
            return None
        windows = Windows(self.store, "validation", **self.shape, batch_size=self.options.batch_size, **process)
        if self.options.validation_windows and windows.samples > self.options.validation_windows:
            spacing = math.ceil(windows.samples / self.options.validation_windows)
            hours = spacing * self.store.step / 3600
            windows = Windows(self.store, "validation", **self.shape, stride=hours, batch_size=self.options.batch_size, **process)
        return windows

    # ---- the loop

    def go(self) -> Path:
        """Train all stages; returns the best checkpoint."""
        state = self._read_state()
        while self.stage < len(self.stages):
            self._prepare(self.stages[self.stage])
            if state is not None:
                self._restore(state)
                state = None
            self._train_stage()
            if self.stage + 1 < len(self.stages):
                self.step, self.stage, self.best, self.stale, self.stopped = 0, self.stage + 1, math.inf, 0, ""
                continue
            break
        return self.folder / "best.safetensors"

    def _prepare(self, recipe: Recipe) -> None:
        self.recipe = recipe
        # outside the data-parallel wrapper, which would hide the names
        self.model.to(self.accelerator.device)
        recipe.to(self.accelerator.device)
        optimiser = recipe.optimiser(self.model)
        for group in optimiser.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.module, self.optimiser = self.accelerator.prepare(_Step(self.model, recipe), optimiser)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.options.ema)) if self.options.ema else None

    def _train_stage(self) -> None:
        if self.stopped or self.step >= self.total:
            return
        from tqdm.auto import tqdm

        hidden = not (self.options.progress and self.accelerator.is_main_process)
        with tqdm(total=self.total, initial=self.step, disable=hidden, desc=self.model.name, leave=False) as bar, self._writer() as write:
            batches = self._batches()
            while self.step < self.total and not self.stopped:
                started = time.perf_counter()
                values = self._optimiser_step(batches)
                self.step += 1
                if self.step % self.validate_every == 0 or self.step == self.total:
                    values.update(self._validate())
                self.seconds += time.perf_counter() - started
                self._check_end()
                if "validation" in values or self.step % self.options.log_every == 0:
                    write(values)
                    bar.set_postfix({name: values[name] for name in ("loss", "validation") if name in values}, refresh=False)
                if self.step % self.checkpoint_every == 0 or self.step == self.total or self.stopped:
                    self._save_state()
                bar.update()
        if self.accelerator.is_main_process:
            self._save_model("last")
            if self.validation is None:
                self._save_model("best")
        self.accelerator.wait_for_everyone()

    def _batches(self) -> Iterator[Batch]:
        """Training batches from the present position on, without end."""
        position = self.step * self.options.accumulate
        while True:
            epoch, start = divmod(position, len(self.windows))
            for batch in self.windows.epoch(epoch, start):
                position += 1
                yield batch

    def _optimiser_step(self, batches: Iterator[Batch]) -> dict[str, Any]:
        self.module.train()
        self.optimiser.zero_grad()
        factor = self.recipe.schedule(self.step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        logs: dict[str, float] = {}
        device, count = self.accelerator.device, self.options.accumulate
        for micro in range(count):
            batch = next(batches).to(device, non_blocking=True)
            generator = self._seed(micro)
            last = micro == count - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module), self.accelerator.autocast():
                loss, parts = self.module(batch, generator)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                self.accelerator.backward(loss / count)
            for name, value in {"loss": loss, **parts}.items():
                logs[name] = logs.get(name, 0.0) + float(value.detach()) / count
        if not math.isfinite(logs["loss"]):
            raise WxlabError(
                f"the loss is {logs['loss']} at step {self.step + 1}; nothing was overwritten, the checkpoints in {self.folder} "
                "are those of earlier steps; try a smaller lr or a clip"
            )
        if self.options.clip:
            logs["gradient"] = float(self.accelerator.clip_grad_norm_(self.module.parameters(), self.options.clip))
        self.optimiser.step()
        self.recipe.after_step(self.model, self.step)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return {**logs, "lr": self.optimiser.param_groups[0]["lr"]}

    def _seed(self, micro: int) -> torch.Generator:
        """Every random stream of a micro-batch is a function of (seed, stage, step, micro-batch, process): nothing to carry over."""
        place = (self.options.seed, self.stage, self.step, micro, self.accelerator.process_index)
        number = hash(place) & 0x7FFFFFFFFFFFFFFF  # integers only: the same in every process and Python
        torch.manual_seed(number)
        return torch.Generator(self.accelerator.device).manual_seed(number)

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        """Mean squared error over the validation split with the weights that would be saved; keeps the best."""
        if self.validation is None:
            return {}
        model = cast(Model, self.average.module if self.average is not None else self.model)
        recipe = self.recipe
        training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)
        for batch in self.validation.epoch(0):
            here = batch.to(self.accelerator.device, non_blocking=True)
            start_times = batch.time[:, model.spec.history - 1]
            streams = Streams(self.options.seed, start_times, 1, 0) if model.spec.stochastic != "none" else None
            with self.accelerator.autocast():
                errors = recipe.validation(model, here, streams)
            sums += torch.stack([errors.double().sum(), torch.tensor(float(len(errors)), dtype=torch.float64, device=sums.device)])
        sums = cast(Tensor, self.accelerator.reduce(sums, "sum"))
        model.train(training)
        score = float(sums[0] / sums[1])
        if score < self.best:
            self.best, self.stale = score, 0
            if self.accelerator.is_main_process:
                self._save_model("best", score)
        else:
            self.stale += 1
        return {"validation": score}

    def _check_end(self) -> None:
        if self.options.patience and self.stale >= self.options.patience:
            self.stopped = f"no improvement in {self.stale} validations"
        late = bool(self.options.max_seconds and self.seconds > self.options.max_seconds)
        if self.options.max_seconds and self.accelerator.num_processes > 1:
            flag = torch.tensor(float(late), device=self.accelerator.device)
            late = bool(cast(Tensor, self.accelerator.reduce(flag, "sum")) > 0)
        if late:
            self.stopped = f"max_seconds={self.options.max_seconds:g} reached"

    # ---- what is written

    def _save_model(self, name: str, score: float | None = None) -> None:
        model = cast(Model, self.average.module if self.average is not None else self.model)
        save_checkpoint(
            model, self.folder / name, step=self.step, stage=self.stage, validation=score, settings=self.options.model_dump(),
            data={"checksum": self.store.attrs["checksum"], "provenance": self.store.attrs["provenance"]},
        )  # fmt: skip

    @contextlib.contextmanager
    def _writer(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Appends lines to metrics.jsonl, and to TensorBoard when asked; a resumed run first cuts what its state does not know."""
        if not self.accelerator.is_main_process:
            yield lambda values: None
            return
        board = None
        if self.options.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step)
        with (self.folder / "metrics.jsonl").open("ab") as handle:
            handle.truncate(self.metrics_bytes)

            def write(values: dict[str, Any]) -> None:
                line = {"stage": self.stage, "step": self.step, **values, "seconds": round(self.seconds, 3)}
                if self.stopped:
                    line["stopped"] = self.stopped
                handle.write((json.dumps(line) + "\n").encode())
                handle.flush()
                self.metrics_bytes = handle.tell()
                for callback in self.callbacks:
                    callback(line)
                if board is not None:
                    for name, value in values.items():
                        board.add_scalar(name, value, self.step)

            try:
                yield write
            finally:
                if board is not None:
                    board.close()

    @property
    def _state_file(self) -> Path:
        return self.folder / "state" / "state.pt"

    def _save_state(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "stage": self.stage, "step": self.step, "stale": self.stale, "best": self.best, "seconds": self.seconds,
            "stopped": self.stopped, "metrics_bytes": self.metrics_bytes,
            "model": self.model.state_dict(), "recipe": self.recipe.state_dict(), "optimiser": self.optimiser.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
        }  # fmt: skip
        with atomic_file(self._state_file) as temporary:
            torch.save(state, temporary)

    def _read_state(self) -> dict[str, Any] | None:
        if not self._state_file.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self._state_file, map_location=self.accelerator.device, weights_only=True)
        except Exception:
            raise WxlabError(f"{self._state_file} cannot be read; delete it to begin the run anew, or choose another run_dir") from None
        self.stage = state["stage"]
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        for name in ("step", "stale", "best", "seconds", "stopped", "metrics_bytes"):
            setattr(self, name, state[name])
        self.model.load_state_dict(state["model"])
        self.recipe.load_state_dict(state["recipe"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _accelerator(options: Settings) -> Accelerator:
    """A fresh accelerator: its state is global, and an earlier run of this process may have set it otherwise."""
    if options.device not in ("auto", "cpu", "cuda"):
        raise WxlabError(f"device={options.device!r} is not known; give auto, cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise WxlabError("device='cuda' was asked for, and torch finds no GPU; give device='auto' or 'cpu'")
    if options.precision == "fp16" and (options.device == "cpu" or not torch.cuda.is_available()):
        raise WxlabError("precision='fp16' needs a GPU; give 'bf16' or 'no'")
    AcceleratorState._reset_state(reset_partial_state=False)
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=options.device == "cpu", mixed_precision=options.precision, kwargs_handlers=[unused])
