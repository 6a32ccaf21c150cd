"""A slot: one trial in training, with all of its state in flat fp32 vectors."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import get_scheduler

from tunestack.arrays import IntArray
from tunestack.config import TrainingConfig
from tunestack.data.batches import epoch_batches
from tunestack.files import replacing
from tunestack.methods.base import Adapter, Method
from tunestack.methods.sites import Span, stable_hash
from tunestack.results import CurvePoint
from tunestack.stack.optim import load_state, make_optimizer, state_tensors


@dataclass(frozen=True)
class Trial:
    """One method with its hyper-parameters and a seed, to be trained on some base and task.

    key: unique in a run and fit for a file name.
    """

    key: str
    method: Method
    config: PeftConfig
    training: TrainingConfig
    seed: int


@dataclass
class Progress:
    """How far a trial is, and what it reached; all of it survives in a checkpoint."""

    step: int = 0
    curve: list[CurvePoint] = field(default_factory=list)
    best_value: float = -math.inf
    best_epoch: float = 0.0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_steps: int = 0
    without_gain: int = 0


class Slot:
    """A trial in training.

    max_length: its longest text in tokens, what its method adds before the text left out. packs: whether its
    batches do without padding; decided by the trial alone, for that is how its dropout masks are drawn.
    Its weights are views into one vector, its gradients into another: clipping, the best epoch and
    checkpoints are operations on whole vectors. `consistent` is False in the middle of a change, where an
    interruption may fall. `broken`: memory did not suffice to end a change; what is here is of no
    use.
    """

    def __init__(
        self,
        index: int,
        trial: Trial,
        config: PeftConfig,
        adapter: Adapter,
        max_length: int,
        lengths: IntArray,
        weights: Tensor | None,
        packs: bool = False,
    ) -> None:
        self.index = index
        self.trial = trial
        self.config = config
        self.adapter = adapter
        self.max_length = max_length
        self.class_weights = weights
        self.packs = packs
        self.progress = Progress()
        self.failure: str | None = None
        self.pruned = False
        self.broken = False
        self.consistent = True
        self.best_answers: NDArray[Any] | None = None
        self.lengths = lengths
        self._batches: tuple[int, list[IntArray]] = (-1, [])
        training = trial.training
        self.steps_per_epoch = math.ceil(len(lengths) / training.batch_size)
        self.total_steps = training.steps(len(lengths))
        self.flat, self.grad, groups = _flatten(adapter, training)
        self.best = self.flat.clone()
        self.optimizer = make_optimizer(training.optim, groups, self.flat.device)
        name = training.lr_scheduler_type
        self.scheduler = get_scheduler(
            "constant_with_warmup" if name == "constant" else name,
            self.optimizer,
            num_warmup_steps=math.ceil(training.warmup_ratio * self.total_steps),
            num_training_steps=self.total_steps,
        )
        self._resumed = time.perf_counter()

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.progress.step / self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether training has ended: by steps, by early stopping, by pruning, or by failure."""
        patience = self.trial.training.early_stopping_patience
        stopped = patience is not None and self.progress.without_gain >= patience
        return self.failure is not None or self.pruned or stopped or self.progress.step >= self.total_steps

    @property
    def evaluation_due(self) -> bool:
        """Whether an epoch, or the part of one that is evaluated, has just ended, or the training, and is not
        evaluated yet.
        """
        step = self.progress.step
        evaluated = self.progress.curve[-1].step if self.progress.curve else 0
        ends = self.evaluations > self._parts_before(step - 1)
        return step > evaluated and (ends or step >= self.total_steps)

    @property
    def evaluations(self) -> int:
        """How many of the parts of epochs that end with an evaluation are over."""
        return self._parts_before(self.progress.step)

    def _parts_before(self, step: int) -> int:
        return step * self.trial.training.evaluations_per_epoch // self.steps_per_epoch

    def batches(self, epoch: int) -> list[IntArray]:
        """The examples of every step of an epoch; a function of the seed and the epoch alone."""
        if self._batches[0] != epoch:
            size = self.trial.training.batch_size
            self._batches = (epoch, epoch_batches(self.lengths, size, self.trial.seed, epoch))
        return self._batches[1]

    def next_batch(self) -> IntArray:
        """The examples of the coming step."""
        epoch, position = divmod(self.progress.step, self.steps_per_epoch)
        return self.batches(epoch)[position]

    @property
    def next_length(self) -> int:
        """Tokens of the longest text of the coming step."""
        return int(self.lengths[self.next_batch()].max())

    @property
    def next_tokens(self) -> int:
        """Tokens of the coming step, padding left out."""
        return int(self.lengths[self.next_batch()].sum())

    def span(self, start: int, stop: int, training: bool) -> Span:
        """The rows [start, stop) as this slot's; in training with this step's own dropout noise."""
        noise = stable_hash(self.trial.seed, self.progress.step) if training else None
        return Span(self.index, start, stop, noise, leading=self.adapter.virtual_tokens)

    def update(self, loss: float) -> None:
        """Clip, step, advance the schedule; a loss that is not finite fails this trial alone."""
        if not math.isfinite(loss):
            self.failure = f"the loss became {loss} at step {self.progress.step}: lower the learning rate"
            return
        self.consistent = False
        limit = self.trial.training.max_grad_norm
        if limit > 0:
            norm = torch.linalg.vector_norm(self.grad)
            self.grad.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        self.scheduler.step()
        self.progress.step += 1
        self.progress.loss_sum += loss
        self.progress.loss_steps += 1
        if self.adapter.on_step is not None:
            self.adapter.on_step(self.progress.step, self.total_steps)
        self.consistent = True

    def record(
        self, metric: str, metrics: dict[str, float], loss: float | None, answers: NDArray[Any]
    ) -> CurvePoint:
        """Note an evaluation; keep the weights if they are the best so far."""
        progress = self.progress
        point = CurvePoint(
            epoch=round(self.epoch, 4),
            step=progress.step,
            train_loss=progress.loss_sum / max(1, progress.loss_steps),
            validation_loss=loss,
            metrics=metrics,
        )
        self.consistent = False
        progress.loss_sum, progress.loss_steps = 0.0, 0
        progress.curve.append(point)
        if metrics[metric] > progress.best_value:
            progress.best_value, progress.best_epoch = metrics[metric], point.epoch
            progress.without_gain = 0
            self.best.copy_(self.flat)
            self.best_answers = answers
        else:
            progress.without_gain += 1
        self.consistent = True
        return point

    def restore_best(self) -> None:
        """Put the weights of the best epoch back."""
        self.flat.copy_(self.best)

    def seconds(self) -> float:
        """Wall seconds since this trial's first step, pauses between processes left out."""
        now = time.perf_counter()
        self.progress.seconds += now - self._resumed
        self._resumed = now
        return self.progress.seconds

    def save(self, path: Path) -> None:
        """Write all of the state, atomically, as one safetensors file."""
        self.seconds()
        tensors = {"flat": self.flat, "best": self.best, **state_tensors(self.optimizer)}
        if self.best_answers is not None:
            tensors["best_answers"] = torch.from_numpy(np.ascontiguousarray(self.best_answers))
        state = {**vars(self.progress), "curve": [point.model_dump() for point in self.progress.curve]}
        with replacing(path) as temporary:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary, metadata={"progress": json.dumps(state)})

    def load(self, path: Path) -> None:
        """Take up a checkpoint of the same trial."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = json.loads(file.metadata()["progress"])
        state["curve"] = [CurvePoint(**point) for point in state["curve"]]
        self.progress = Progress(**state)
        with torch.no_grad():
            self.flat.copy_(tensors["flat"])
            self.best.copy_(tensors["best"])
        if "best_answers" in tensors:
            self.best_answers = tensors["best_answers"].numpy()
        if self.progress.step:
            self._load_optimizer(tensors)

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        load_state(self.optimizer, tensors)
        schedule: dict[str, Any] = self.scheduler.state_dict()
        self.scheduler.load_state_dict({**schedule, "last_epoch": self.progress.step})
        for group, rate in zip(self.optimizer.param_groups, _rates(self.scheduler), strict=True):
            group["lr"] = rate


def _rates(scheduler: Any) -> list[float]:
    return [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]


def _flatten(adapter: Adapter, training: TrainingConfig) -> tuple[Tensor, Tensor, list[dict[str, Any]]]:
    """Move the adapter's parameters into one vector; same for the gradients.

    Returns the vector, its gradient, and AdamW's parameter groups, which are views of both: parameters that
    share weight decay and learning rate lie together.
    """

    def kind(name: str) -> tuple[bool, bool]:
        return name in adapter.no_decay, name in adapter.fast and training.loraplus_lr_ratio != 1

    names = sorted(adapter.parameters, key=kind)
    flat = torch.cat([adapter.parameters[name].detach().reshape(-1).float() for name in names])
    grad = torch.zeros_like(flat)
    groups, done = [], 0
    for (bare, fast), together in itertools.groupby(names, key=kind):
        start = done
        for parameter in (adapter.parameters[name] for name in together):
            stop = done + parameter.numel()
            parameter.data = flat[done:stop].view(parameter.shape)
            parameter.grad = grad[done:stop].view(parameter.shape)
            done = stop
        view = nn.Parameter(flat[start:done])
        view.grad = grad[start:done]
        groups.append(
            {
                "params": [view],
                "weight_decay": 0.0 if bare else training.weight_decay,
                "lr": training.learning_rate * (training.loraplus_lr_ratio if fast else 1),
            }
        )
    return flat, grad, groups
