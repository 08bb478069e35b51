"""One training loop for every recipe: exact resume, validation, averaged weights, several processes.

    for each optimiser step:  seed from (seed, stage, step, process) -> micro-batches -> clip -> step -> schedule
    now and then:             validate (never on the test split) -> best checkpoint -> resume state

Several processes are started by ``torchrun --nproc-per-node N``. They share each batch, so that the result is the one of a single
process to rounding, except where a recipe draws random numbers (each process draws its own) or a network normalises over the batch
(BatchNorm sees its share only; running statistics are those of the main process). Under a mask each process, and each micro-batch,
averages over its own observed points.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wxlab.checkpoints import save_checkpoint
from wxlab.errors import WxlabError
from wxlab.health import check
from wxlab.models.base import Batch, Model, Recipe
from wxlab.rollout import Streams
from wxlab.store import Store, open_store
from wxlab.training.run_folder import RunFolder
from wxlab.training.settings import FREE, Settings, parse
from wxlab.training.setup import accelerator_for, model_for, randomness_kept, stages_of
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

    model_or_name: a name of the registry (built for the store's channels and grid with ``preset`` and ``model``), or a model, which is
    trained in place (it ends with the last weights, not the best).  store: a Store or its path.  run_dir: gets ``best`` and ``last``
    checkpoints, ``metrics.jsonl``, ``settings.json``, ``health.json`` and the resume state.  resume: go on with an interrupted run, to
    the same bits (CPU, same number of processes); a finished one is returned as it is; False refuses a folder that holds a run.
    callbacks: called with each line of metrics.  settings: see ``wxlab.training.settings.Settings``.

    Best means the lowest squared error on the ``validation`` split, of the last stage; without such a split it is the last. The test
    split plays no part.
    When training ends, ``wxlab.health.check`` looks at it without forecasts, and a line is printed for each signature of failure.
    Raises WxlabError for unknown or impossible settings, a model that does not fit the store, a changed run, and a loss that is not
    finite.
    """
    options, data = parse(settings), open_store(store)
    with randomness_kept(), warnings.catch_warnings():
        torch.manual_seed(options.seed)
        model = model_for(model_or_name, data, options)
        stages = stages_of(model, options)
        accelerator = accelerator_for(options, stages)
        folder = RunFolder(run_dir, accelerator.is_main_process)
        facts = {**options.model_dump(exclude=set(FREE)), "name": model.name, "config": model.config, "spec": model.spec.to_dict()}
        with folder.alone():
            folder.settle(resume, {**facts, "store": data.attrs["checksum"], "store_path": str(data.path.resolve())})
            accelerator.wait_for_everyone()
            model.normaliser = data.normaliser
            if stages:
                try:
                    Run(model, stages, data, folder, options, accelerator, callbacks).go()
                except NotFinite:
                    _examine(folder, data, options.device)
                    raise
            elif accelerator.is_main_process:
                if hasattr(model, "fit"):
                    cast(Any, model).fit(data)
                save_checkpoint(model, folder.best)
            if folder.best.is_file():
                _examine(folder, data, options.device)
            accelerator.wait_for_everyone()
    if not folder.best.is_file():
        raise WxlabError(f"the run in {folder.path} is finished, but its best.safetensors is gone; train again in another run_dir")
    return folder.best


class NotFinite(WxlabError):
    """A loss, gradient or weight is no number any more."""


def _examine(folder: RunFolder, store: Store, device: str) -> None:
    """Check a run that has ended, once, without forecasts; print what is wrong with it."""
    if not folder.main or folder.examined:
        return
    findings = check(folder.path, store=store, forecasts=False, device=device)
    folder.keep_health(findings.to_dict())
    for finding in findings.found:
        print(f"health: {finding}")


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
        self, model: Model, stages: list[Recipe], store: Store, folder: RunFolder, options: Settings, accelerator: Accelerator,
        callbacks: Sequence[Callback],
    ) -> None:  # fmt: skip
        self.model, self.stages, self.store = model, stages, store
        self.folder, self.options, self.callbacks = folder, options, callbacks
        self.accelerator, self.device = accelerator, accelerator.device
        self.seconds, self.late = 0.0, False
        self.module: Any = None
        share = {"batch_size": options.batch_size, "rank": accelerator.process_index, "world": accelerator.num_processes}
        self.windows = self._windows("train", shuffle=True, seed=options.seed, drop_last=True, stride=options.stride, **share)
        if not len(self.windows):
            count = self.windows.samples
            raise WxlabError(f"batch_size={options.batch_size} is more than the {count} training windows; take a smaller batch")
        self.validation = self._validation_windows()
        per_epoch = max(1, len(self.windows) // options.accumulate)
        self.total = options.steps or per_epoch * cast(int, options.epochs)
        self.validate_every = options.validate_every or max(1, min(per_epoch, self.total // 4))
        self.checkpoint_every = options.checkpoint_every or self.validate_every

    def _windows(self, split: str, **how: Any) -> Windows:
        spec, pin = self.model.spec, self.device.type == "cuda"
        frames: dict[str, Any] = {"history": spec.history, "horizon": spec.horizon}
        return Windows(self.store, split, **frames, step=spec.step / 3600, history_step=spec.history_step / 3600, pin=pin, **how)

    def _validation_windows(self) -> Windows | None:
        if "validation" not in self.store.splits:
            return None
        windows = self._windows("validation")
        most = self.options.validation_windows
        if most and windows.samples > most:
            windows = self._windows("validation", stride=math.ceil(windows.samples / most) * self.store.step / 3600)
        return windows

    # ---- the loop

    def go(self) -> None:
        """Train all stages, or what is left of them."""
        # what a network chooses for speed (channels last) is not news to who trains it
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        state = self.folder.read_state()
        for stage in range(state["stage"] if state else 0, len(self.stages)):
            self._begin(stage)
            if state is not None:
                self._restore(state)
                state = None
            self._train_stage()
            if self.late:
                break

    def _begin(self, stage: int) -> None:
        """Set up a stage. The data-parallel wrapper of the one before must be gone, or its hooks would still fire."""
        self.stage, self.step, self.stale, self.best, self.stopped = stage, 0, 0, math.inf, ""
        self.recipe = recipe = self.stages[stage]
        if self.module is not None:
            self.module = None
            self.accelerator.free_memory()
        # before the data-parallel wrapper, which would hide the names
        self.model.to(self.device)
        recipe.to(self.device)
        optimiser = recipe.optimiser(self.model)
        for group in optimiser.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.module, self.optimiser = self.accelerator.prepare(_Step(self.model, recipe), optimiser)
        self.average = AveragedModel(self.model, multi_avg_fn=recipe.averaging(self.options.ema)) if self.options.ema else None

    def _train_stage(self) -> None:
        if self._ended():
            return
        from tqdm.auto import tqdm

        hidden = not (self.options.progress and self.accelerator.is_main_process)
        started = time.perf_counter() - self.seconds
        with (
            tqdm(total=self.total, initial=self.step, disable=hidden, desc=self.model.name, leave=False) as bar,
            self.folder.metrics(self.options.tensorboard, self.step) as write,
            contextlib.closing(self._batches()) as batches,
        ):
            try:
                while not self._ended():
                    values = self._step(batches)
                    self.seconds = time.perf_counter() - started
                    self._check_end()
                    if "validation" in values or self.step % self.options.log_every == 0 or self._ended():
                        self._log(values, write)
                        bar.set_postfix({name: values[name] for name in ("loss", "validation") if name in values}, refresh=False)
                    if self.step % self.checkpoint_every == 0 or self._ended():
                        self._save()
                    bar.update()
            except NotFinite as error:  # the line goes with the others that the state does not know, when the run goes on
                write({"stage": self.stage, "step": self.step, "stopped": str(error).partition(";")[0]})
                raise
        self.accelerator.wait_for_everyone()

    def _step(self, batches: Generator[Batch, None, None]) -> dict[str, Any]:
        """One optimiser step, and a validation where it is due: what to log."""
        values = self._optimiser_step(batches)
        self.step += 1
        if self.step % self.validate_every == 0 or self.step == self.total:
            values.update(self._validate())
        return values

    def _ended(self) -> bool:
        return self.step >= self.total or bool(self.stopped) or self.late

    def _check_end(self) -> None:
        if self.options.patience and self.stale >= self.options.patience:
            self.stopped = f"no improvement in {self.stale} validations"
        if self.options.max_seconds:
            late = torch.tensor(float(self.seconds > self.options.max_seconds), device=self.device)
            self.late = bool(cast(Tensor, self.accelerator.reduce(late, "sum")) > 0)

    def _log(self, values: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
        line = {"stage": self.stage, "step": self.step, **values, "seconds": round(self.seconds, 3)}
        if self.stopped or self.late:
            line["stopped"] = self.stopped or f"max_seconds={self.options.max_seconds:g} reached"
        write(line)
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                callback(line)

    def _batches(self) -> Generator[Batch, None, None]:
        """Training batches from the present position on, without end."""
        position = self.step * self.options.accumulate
        while True:
            epoch, start = divmod(position, len(self.windows))
            for batch in self.windows.epoch(epoch, start):
                position += 1
                yield batch

    def _optimiser_step(self, batches: Generator[Batch, None, None]) -> dict[str, Any]:
        self.module.train()
        self.optimiser.zero_grad()
        factor = self.recipe.schedule(self.step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        count, parts = self.options.accumulate, []
        for micro in range(count):
            batch = next(batches).to(self.device, non_blocking=True)
            generator = self._seed(micro)
            with contextlib.nullcontext() if micro == count - 1 else self.accelerator.no_sync(self.module):
                with self.accelerator.autocast():
                    loss, named = self.module(batch, generator)
                self.accelerator.backward(loss / count)
            named = {"loss": loss, **named}
            parts.append(torch.stack([value.detach().float().to(self.device) for value in named.values()]))
        means = cast(Tensor, self.accelerator.reduce(torch.stack(parts).mean(0), "mean"))
        logs = dict(zip(named, means.tolist(), strict=True))
        self._require_finite("loss", logs["loss"], self.step + 1)
        if clip := self.options.clip or self.recipe.clip:
            logs["gradient"] = float(self.accelerator.clip_grad_norm_(self.module.parameters(), clip))
            if self.accelerator.scaler is None:  # which leaves out such steps by itself
                self._require_finite("norm of the gradient", logs["gradient"], self.step + 1)
        self.optimiser.step()
        self.recipe.after_step(self.model, self.step)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return {**logs, "lr": self.optimiser.param_groups[0]["lr"]}

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise NotFinite(
                f"the {what} is {value} at step {step}; nothing was overwritten, the checkpoints and the state in "
                f"{self.folder.path} are those of earlier steps; try a smaller lr or a clip, in another run_dir"
            )

    def _seed(self, micro: int) -> torch.Generator:
        """Every random stream of a micro-batch is a function of (seed, stage, step, micro-batch, process): nothing to carry over."""
        place = (self.options.seed, self.stage, self.step, micro, self.accelerator.process_index)
        number = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]) >> 1
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.manual_seed(number)
        return torch.Generator(self.device).manual_seed(number)

    @property
    def _kept(self) -> Model:
        """The model that is validated and saved: with averaged weights, when they are on."""
        return self.model if self.average is None else cast(Model, self.average.module)

    @torch.no_grad()
    def _validate(self) -> dict[str, Any]:
        """Mean squared error over the validation split with the weights that would be saved; keeps the best."""
        if self.validation is None:
            return {}
        model = self._kept
        training = model.training
        model.eval()
        if self.accelerator.num_processes > 1:  # the main process's running statistics are the ones that would be saved
            broadcast(list(model.buffers()))
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for batch in self._validation_batches():
            starts = batch.time[:, model.spec.history - 1]
            streams = Streams(self.options.seed, starts, 1, 0) if model.spec.stochastic != "none" else None
            with self.accelerator.autocast():
                errors = self.recipe.validation(model, batch.to(self.device, non_blocking=True), streams)
            total, count = total + errors.double().sum(), count + len(errors)
        sums = torch.stack([total, torch.full_like(total, count)])
        error, number = cast(Tensor, self.accelerator.reduce(sums, "sum")).tolist()
        model.train(training)
        self._require_finite("validation error", score := error / number, self.step)
        if score < self.best:
            self.best, self.stale = score, 0
            self._save_model("best", score)
        else:
            self.stale += 1
        return {"validation": score}

    def _validation_batches(self) -> Generator[Batch, None, None]:
        """This process's share of the validation windows; together they are all, whatever the number of processes."""
        assert self.validation is not None
        accelerator = self.accelerator
        mine = np.array_split(np.arange(self.validation.samples), accelerator.num_processes)[accelerator.process_index]
        size = max(1, self.options.batch_size // accelerator.num_processes)
        for first in range(0, len(mine), size):
            yield self.validation.batch(mine[first : first + size])

    # ---- what is written

    def _save(self) -> None:
        """Keep the state; at the end of the stage also its last weights, which stand in for the best when nothing was validated."""
        for parameter in self.model.parameters():
            self._require_finite("sum of the weights", float(parameter.detach().sum()), self.step)
        if self._ended():
            self._save_model("last")
            if self.best == math.inf:
                self._save_model("best")
        self.folder.write_state(
            {
                "stage": self.stage, "step": self.step, "stale": self.stale, "best": self.best, "seconds": self.seconds,
                "stopped": self.stopped, "model": self.model.state_dict(), "recipe": self.recipe.state_dict(),
                "optimiser": self.optimiser.state_dict(), "average": self.average.state_dict() if self.average is not None else None,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            }
        )  # fmt: skip

    def _save_model(self, name: str, score: float | None = None) -> None:
        if self.accelerator.is_main_process:
            data = {"checksum": self.store.attrs["checksum"], "provenance": self.store.attrs["provenance"]}
            facts = {"step": self.step, "stage": self.stage, "validation": score, "settings": self.options.model_dump(), "data": data}
            save_checkpoint(self._kept, self.folder.path / name, **facts)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            for name in ("step", "stale", "best", "seconds", "stopped"):
                setattr(self, name, state[name])
            self.model.load_state_dict(state["model"])
            self.recipe.load_state_dict(state["recipe"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
            raise self.folder.damaged() from None
        self.late = bool(self.options.max_seconds and self.seconds > self.options.max_seconds)
