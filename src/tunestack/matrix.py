"""Which method works on which architecture: found by training one step of each on tiny random models."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedModel

from tunestack.baselines.registry import BASELINES, learned
from tunestack.bases import Base, load_base
from tunestack.bases.base import LoadedModel, head_modules
from tunestack.bases.tiny import tiny_configs
from tunestack.config import BaseConfig, TrainingConfig
from tunestack.errors import UserError
from tunestack.methods.base import ADAPTER_CONFIG, Method
from tunestack.methods.registry import METHODS
from tunestack.stack.slot import Trial
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.classification import SequenceClassification

LABELS = ("no", "yes")
TEXTS = {"text": ["a", "some words", "a few words more", "and again some"], "label": [0, 1, 0, 1]}


@dataclass(frozen=True)
class Family:
    """A method and where it works.

    loads_in: what its files load in: peft, transformers, or (peft with our plug-in) tunestack. refusals: by
    architecture, why it does not work there. None in `loads_in`: it works nowhere.
    """

    name: str
    summary: str
    stacks: bool
    merges: bool
    loads_in: str | None
    paper: str
    refusals: dict[str, str]

    def works_on(self, kind: str) -> bool:
        """Whether a model of this type can be trained with it."""
        return kind not in self.refusals


@dataclass(frozen=True)
class Matrix:
    """All methods, on all architectures (transformers' model types)."""

    kinds: list[str]
    families: list[Family]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the families as they are, and every cell."""
        return {
            "architectures": self.kinds,
            "methods": [
                {
                    **{name: value for name, value in vars(family).items() if name != "refusals"},
                    "works_on": {kind: family.works_on(kind) for kind in self.kinds},
                    "refusals": family.refusals,
                }
                for family in self.families
            ],
            "baselines": sorted(BASELINES),
        }


def probe(
    notify: Callable[[str], None] = lambda kind: None,
    methods: Iterable[Method] | None = None,
    kinds: Iterable[str] | None = None,
) -> Matrix:
    """Attach every method with its default fields, train one step, look at the gradients.

    Models have random weights, one layer, and the fewest features that all defaults can work with. notify:
    told each architecture before its turn. methods, kinds: default all.
    """
    configs = tiny_configs(256, 64, layers=1, key_value_heads=4, inner=256, tokens=64)
    configs = {kind: configs[kind] for kind in kinds or configs}
    chosen = list(METHODS.values() if methods is None else methods)
    refusals: dict[str, dict[str, str]] = {method.name: {} for method in chosen}
    loads_in: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, fields in configs.items():
            notify(kind)
            path = Path(name) / f"{kind}.json"
            path.write_text(json.dumps(fields))
            bench = _Bench(load_base(BaseConfig(model=f"random:{path}", dtype="float32", device_map="cpu")))
            for method in chosen:
                try:
                    loads_in[method.name] = bench.try_out(method, Path(name) / method.name)
                except UserError as error:
                    refusals[method.name][kind] = error.problems[0].found
    families = [
        Family(
            method.name,
            method.summary,
            method.stacks,
            method.merges,
            loads_in.get(method.name),
            method.paper,
            refusals[method.name],
        )
        for method in chosen
    ]
    return Matrix(list(configs), families)


class _Bench:
    """One random model on which methods are tried out, one after the other."""

    def __init__(self, base: Base) -> None:
        task = SequenceClassification(LABELS)
        self.work = Workload(base, task, {"train": TEXTS}, "accuracy")
        self.loaded = base.load_model(task.auto_class, task.model_config(base))
        self.skeleton: PreTrainedModel = base.skeleton(task.auto_class, task.model_config(base))
        self.head = head_modules(self.skeleton, base.config.model_type)
        self.plain = copy.deepcopy(self.loaded.model)
        self.stack = Stack(self.work, self.loaded)

    def try_out(self, method: Method, folder: Path) -> str:
        """Train one step and save; what the files load in. Raises UserError for what cannot work."""
        config = method.make_config({}, self.work.base.config.model_type, self.head)
        method.check(config, self.skeleton)
        training = TrainingConfig(**{**method.training_defaults, "batch_size": 4, "class_weights": None})
        stack = self.stack
        if not method.stacks:
            own = LoadedModel(copy.deepcopy(self.plain), self.loaded.head, self.loaded.fresh)
            stack = Stack(self.work, own, autocast=True)
        slot = stack.open(Trial(method.name, method, config, training, seed=0))
        stack.step([slot], lambda event: None)
        norm = float(torch.linalg.vector_norm(slot.grad))
        if slot.failure is not None or not math.isfinite(norm) or norm == 0:
            raise RuntimeError(f"{method.name} on {self.work.base.name}: gradient norm {norm}")
        if not method.saves_whole_model:
            method.save(folder, slot.config, slot.adapter, stack.host, self.work.base.name)
        stack.close(slot)
        return "transformers" if method.saves_whole_model else _reader(folder)


def _reader(folder: Path) -> str:
    """Who knows the type of a saved adapter: PEFT by itself, or with us."""
    kind = json.loads((folder / ADAPTER_CONFIG).read_text())["peft_type"]
    module: str = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__module__
    return module.split(".")[0]


def overview(matrix: Matrix) -> str:
    """The methods, and on how many of the architectures each works, as Markdown."""
    rows = [
        [
            _code(family.name),
            family.summary,
            _yes(family.stacks),
            f"{sum(map(family.works_on, matrix.kinds))} of {len(matrix.kinds)}",
        ]
        for family in matrix.families
    ]
    lines = _table(["method", "trains", "stacked", "architectures"], rows)
    lines += ["", f"Baselines: {', '.join(map(_code, BASELINES))}.", ""]
    lines += ["Which works on which, and why not: `tunestack methods --matrix`."]
    return "\n".join(lines)


def markdown(matrix: Matrix) -> str:
    """The methods, and what works where, as Markdown."""
    stacked = [family for family in matrix.families if family.stacks]
    alone = [family for family in matrix.families if not family.stacks and family.loads_in]
    never = [family for family in matrix.families if not family.loads_in]
    lines = [
        "## Methods that train together on one base",
        "",
        *_table(
            ["method", "trains", "merges", "loads in", "paper"],
            [
                [_code(f.name), f.summary, _yes(f.merges), _reader_name(f.loads_in), _paper(f)]
                for f in stacked
            ],
        ),
        "",
        *_table(
            ["architecture", *(_code(family.name) for family in stacked)],
            [[_code(kind), *(_yes(f.works_on(kind)) for f in stacked)] for kind in matrix.kinds],
        ),
        "",
        *(
            f"- {_code(f.name)} not on {_code(kind)}: {found}"
            for f in stacked
            for kind, found in f.refusals.items()
        ),
        "",
        "## Methods that train alone",
        "",
        "Full fine-tuning, and all other methods of PEFT, through PEFT.",
        "",
        *_table(
            ["method", "trains", "merges", "loads in", "paper", "works on"],
            [
                [
                    _code(f.name),
                    f.summary,
                    _yes(f.merges),
                    _reader_name(f.loads_in),
                    _paper(f),
                    _where(f, matrix.kinds),
                ]
                for f in alone
            ],
        ),
        "",
        "## Methods of PEFT that cannot train a classifier here",
        "",
        *(f"- {_code(f.name)}: {next(iter(f.refusals.values()))}" for f in never),
        "",
        "## Baselines",
        "",
        "They train no transformer. A task whose answers are of another kind refuses them.",
        "",
        *_table(["baseline", "learns"], [[_code(name), ", ".join(learned(name))] for name in BASELINES]),
        "",
    ]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(row)} |"
        for row in [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    ]


def _code(name: str) -> str:
    return f"`{name}`"


def _yes(value: bool) -> str:
    return "yes" if value else "-"


def _reader_name(reader: str | None) -> str:
    return {"peft": "PEFT", "tunestack": "PEFT, with tunestack"}.get(reader or "", reader or "")


def _paper(family: Family) -> str:
    return f"[{family.paper}](https://arxiv.org/abs/{family.paper})" if family.paper else ""


def _where(family: Family, kinds: list[str]) -> str:
    """All, or all but a few, with the reasons put together."""
    if not family.refusals:
        return "all"
    reasons: dict[str, list[str]] = {}
    for kind, found in family.refusals.items():
        reasons.setdefault(found, []).append(_code(kind))
    told = "; ".join(f"{', '.join(names)} ({found})" for found, names in reasons.items())
    return f"all but {told}"
