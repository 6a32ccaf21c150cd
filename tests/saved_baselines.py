"""Saved baselines, read by a process that knows nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import fresh
from tunestack.baselines.base import Fitted
from tunestack.tasks.base import Split, Task

_FRESH = """
import json, sys
from pathlib import Path
import numpy as np
from tunestack.baselines.base import read_saved
from tunestack.baselines.registry import find_baseline
from tunestack.config import BaseConfig, TaskConfig
from tunestack.tasks.registry import make_task
folder, split = Path(sys.argv[1]), json.loads(sys.argv[3])
task = make_task(TaskConfig(name=sys.argv[4], options=json.loads(sys.argv[5])), json.loads(sys.argv[6]))
saved, base = read_saved(folder), None
if saved.base:
    from tunestack.bases import load_base
    base = load_base(BaseConfig(model=saved.base, dtype="float32", device_map="cpu"))
fitted = find_baseline(saved.baseline, task).load(folder, base)
np.savez(sys.argv[2], p=fitted.answers(task, split), n=[fitted.trainable_parameters, fitted.total_parameters])
"""


def assert_same_in_a_fresh_process(
    fitted: Fitted, task: Task, split: Split, folder: Path, options: dict[str, Any], atol: float = 0.0
) -> None:
    """Save it and let a fresh process answer. options: the task's own settings. atol: of numbers up to 1,
    relative to those above.
    """
    saved, out = folder / "saved", folder / "fresh.npz"
    fitted.save(saved)
    assert {path.suffix for path in saved.iterdir()} == {".json", ".safetensors"}
    about = (task.name, json.dumps(options), json.dumps(list(task.label_names)))
    done = fresh.python(_FRESH, saved, out, json.dumps(dict(split)), *about)
    assert done.code == 0, done.err
    found = np.load(out)
    np.testing.assert_allclose(found["p"], fitted.answers(task, split), rtol=atol, atol=atol)
    assert found["n"].tolist() == [fitted.trainable_parameters, fitted.total_parameters]
