"""AdamW with states in 8 bits: near AdamW, resumed exactly, refused where bitsandbytes is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import runs
import tiny
from tunestack.errors import UserError
from tunestack.stack import optim
from tunestack.stack.events import Event
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload

pytest.importorskip("bitsandbytes")

LARGE = {"target_modules": "all-linear", "r": 12, "bias": "all", "learning_rate": 1e-2, "epochs": 2}
"""More than 4,096 numbers that decay, of which 8-bit states are kept; fewer that do not."""


def open_slot(work: Workload, trial: Trial) -> tuple[Stack, Slot]:
    task = work.task
    stack = Stack(work, work.base.load_model(task.auto_class, task.model_config(work.base)))
    return stack, stack.open(trial)


def stepped(folder: Path, steps: int, **fields: Any) -> Slot:
    work = tiny.workload(tiny.random_base(folder, "bert"))
    stack, slot = open_slot(work, tiny.trial(work.base, "one", **fields))
    for _ in range(steps):
        stack.step([slot], lambda event: None)
    return slot


def test_few_numbers_keep_states_in_fp32_and_train_as_ever(tmp_path: Path) -> None:
    eight = stepped(tmp_path, 6, optim="adamw_8bit", learning_rate=1e-2, weight_decay=0.1)
    plain = stepped(tmp_path, 6, learning_rate=1e-2, weight_decay=0.1)
    assert type(eight.optimizer).__name__ == "AdamW8bit"
    torch.testing.assert_close(eight.flat, plain.flat, rtol=1e-4, atol=1e-5)


def test_large_states_are_8_bits_and_steps_stay_near_those_of_adamw(tmp_path: Path) -> None:
    start = stepped(tmp_path, 0, **LARGE).flat
    eight, plain = stepped(tmp_path, 8, optim="adamw_8bit", **LARGE), stepped(tmp_path, 8, **LARGE)
    tensors = optim.state_tensors(eight.optimizer)
    assert tensors["optimizer.0.state1"].dtype == torch.uint8
    assert tensors["optimizer.0.state1"].numel() > 4096
    ours, theirs = eight.flat - start, plain.flat - start
    assert float(nn.functional.cosine_similarity(ours, theirs, dim=0)) > 0.95
    assert 0.9 < float(ours.norm() / theirs.norm()) < 1.1


@pytest.mark.parametrize("at", [2, 5])
def test_a_resumed_trial_ends_as_one_that_was_not_interrupted(tmp_path: Path, at: int) -> None:
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = [
        tiny.trial(work.base, "eight", 1, optim="adamw_8bit", lr_scheduler_type="linear", **LARGE),
        tiny.trial(work.base, "plus", 2, optim="adamw_8bit", loraplus_lr_ratio=4, **LARGE),
    ]
    expected = tiny.run(work, trials)
    seen = 0

    def interrupt(event: Event) -> None:
        nonlocal seen
        seen += event.kind == "step"
        if seen == 2 * at:
            raise KeyboardInterrupt

    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        tiny.run(work, trials, notify=interrupt, checkpoints=checkpoints)
    kept = [load_file(file) for file in sorted(checkpoints.glob("*.safetensors"))]
    assert len(kept) == 2
    assert all(int(tensors["optimizer.0.step"]) > 0 for tensors in kept)
    assert kept[0]["optimizer.0.state1"].dtype == torch.uint8
    for key, ended in tiny.run(work, trials, checkpoints=checkpoints).items():
        tiny.assert_close(ended.final, expected[key].final, 0.0)
        assert ended.steps == expected[key].steps


def test_a_stack_of_both_optimisers_equals_runs_alone(tmp_path: Path) -> None:
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trials = [
        tiny.trial(work.base, "eight", 1, optim="adamw_8bit", **LARGE),
        tiny.trial(work.base, "plain", 2),
    ]
    together = tiny.run(work, trials)
    for key, ended in tiny.alone(work, trials).items():
        # Rounding in another company may fall on the other side of one of 256 codes.
        tiny.assert_same(together[key], ended, atol=5e-3 if key == "eight" else tiny.TOLERANCE)


def test_full_fine_tuning_takes_it(tmp_path: Path) -> None:
    work = tiny.workload(tiny.random_base(tmp_path, "bert"))
    trial = tiny.trial(work.base, "full", method="full", optim="adamw_8bit", learning_rate=1e-3)
    assert tiny.run(work, [trial])["full"].failure is None


def test_without_bitsandbytes_it_is_refused_before_anything_trains(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest),
    )
    methods = ["lora", {"method": "series", "training": {"optim": "adamw_8bit"}}]
    with pytest.raises(UserError) as refused:
        runs.compare(runs.settings(tiny_data, methods=methods, output=str(tmp_path / "run")))
    (problem,) = refused.value.problems
    assert problem.where == "optim"
    assert "tunestack[quant]" in problem.fix
    assert "adamw_torch" in problem.fix


def test_a_device_without_it_is_refused() -> None:
    assert optim._why_not("adamw_8bit", torch.device("cpu")) is None
    with pytest.raises(UserError, match="a device on which bitsandbytes has adamw_8bit"):
        optim.check_optimizer("adamw_8bit", torch.device("meta"))
