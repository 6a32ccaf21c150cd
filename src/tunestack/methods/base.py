"""The seam of the methods: what a family tells the stack. A new family is one file and one registry line."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import torch
from peft import PeftConfig, TaskType, get_peft_model
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunestack import files
from tunestack.config import TrainingConfig
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.files import replacing, write_text
from tunestack.methods.sites import Copy, Host, stable_hash
from tunestack.settings import advice

PEFT_PREFIX = "base_model.model."
PROMPT_PREFIX = "base_model."
"""Prompts wrap the model itself, where other adapters wrap it in a tuner; PEFT's names show it."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass
class Adapter:
    """One trial's weights in a host, by the names that PEFT saves them under.

    parameters: fp32, trained. no_decay: names that weight decay leaves alone (biases, norms). fast: names
    whose learning rate `loraplus_lr_ratio` multiplies.
    derived: what is saved in place of parameters that only training needs (`training_only`), computed from
    them. penalty: added to the loss that is minimised, not to the one that is reported. on_step: called with
    the step's number and how many there will be, after each, the gradients still there; what it keeps is in
    no checkpoint, so such a trial starts anew. virtual_tokens: places that it needs before every text.
    positions: how many positions of the base's table it takes from the text.
    """

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    no_decay: set[str] = field(default_factory=set)
    fast: set[str] = field(default_factory=set)
    training_only: set[str] = field(default_factory=set)
    derived: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    penalty: Callable[[], Tensor] | None = None
    on_step: Callable[[int, int], None] | None = None
    virtual_tokens: int = 0
    positions: int = 0

    def add(self, name: str, parameter: nn.Parameter, decay: bool = True) -> None:
        """Take in one parameter."""
        self.parameters[name] = parameter
        if not decay:
            self.no_decay.add(name)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """A copy of the weights, as they are saved."""
        kept = {
            name: parameter.detach().clone()
            for name, parameter in self.parameters.items()
            if name not in self.training_only
        }
        return {**kept, **{name: compute().clone() for name, compute in self.derived.items()}}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved weights, in an adapter attached for use and not for training.

        Raises UserError where names or shapes differ.
        """
        problems = Problems()
        for name in sorted(set(tensors) ^ set(self.parameters)):
            kind = "missing" if name in self.parameters else "not of this adapter"
            problems.add(
                "adapter weights",
                expected=f"{len(self.parameters)} tensors",
                found=f"{name} is {kind}",
                fix="Use the base and the config that it was trained with.",
            )
        for name in set(tensors) & set(self.parameters):
            ours, theirs = tuple(self.parameters[name].shape), tuple(tensors[name].shape)
            if ours != theirs:
                problems.add(
                    name,
                    expected=f"shape {ours}",
                    found=f"shape {theirs}",
                    fix="This adapter was trained on a base of other sizes.",
                )
        problems.raise_if_any()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])


class Method(ABC):
    """A family of fine-tuning methods, configured by a PEFT config.

    stacks: whether trials share a forward pass on one frozen base. Others run as a stack of one on a
    model of their own, in fp32 with mixed precision. saves_whole_model: what it saves is a transformers
    folder that needs no base. merges: whether its weights can be merged into the base's. starts_as_base:
    whether a fresh trial's outputs are the base's own. has_fast: whether some of its parameters learn at a
    rate of their own (`loraplus_lr_ratio`). summary: what trains, in a few words.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    stacks: ClassVar[bool] = True
    saves_whole_model: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    starts_as_base: ClassVar[bool] = True
    has_fast: ClassVar[bool] = False
    config_class: ClassVar[type[PeftConfig]]
    training_defaults: ClassVar[dict[str, Any]] = {}

    def make_config(self, fields: Mapping[str, Any], model_type: str, head: list[str]) -> PeftConfig:
        """The method's config from the user's fields. Raises UserError for fields that it does not
        have and values of the wrong type.

        model_type: the base's, for default target modules. head: modules that are trained whole.
        """
        known = [name for name in self.config_class.__dataclass_fields__ if name not in _NOT_FOR_USERS]
        problems = Problems()
        for unknown in sorted(set(fields) - set(known)):
            problems.add(
                f"{self.name}.{unknown}",
                expected=f"a field of {self.config_class.__name__}",
                found=repr(unknown),
                fix=did_you_mean(unknown, known),
            )
        hints = get_type_hints(self.config_class)
        given = {}
        for name in set(fields) & set(known):
            try:
                given[name] = TypeAdapter(hints[name]).validate_python(fields[name])
            except ValidationError as error:
                problems.add(
                    f"{self.name}.{name}",
                    expected=inspect.formatannotation(hints[name]),
                    found=repr(fields[name]),
                    fix=advice(detail := error.errors()[0]) or f"{detail['msg']}.",
                )
        problems.raise_if_any()
        values = {**self.defaults(model_type), **given, "task_type": TaskType.SEQ_CLS}
        try:
            return with_head(self.config_class(**values), head)
        except (TypeError, ValueError) as error:
            name = self.config_class.__name__
            fix = f"`python -m pydoc {self.config_class.__module__}.{name}` explains them."
            raise UserError(Problem(self.name, f"values that {name} takes", str(error), fix)) from error

    @property
    def paper(self) -> str:
        """The arXiv id of its paper: the first that the class's docstring names, or else its file's."""
        docs = f"{type(self).__doc__} {sys.modules[type(self).__module__].__doc__}"
        found = re.search(r"arXiv:(\d{4}\.\d{5})", docs)
        return found.group(1) if found else ""

    def weights_dtype(self, base: torch.dtype) -> torch.dtype:
        """What the model's weights are held in while this method trains."""
        return base if self.stacks else torch.float32

    def defaults(self, model_type: str) -> dict[str, Any]:
        """The fields that a user who gives none gets on this kind of base."""
        return {}

    def owns(self, config: PeftConfig) -> bool:
        """Whether a config that PEFT saved is this method's: several methods may share a type of config."""
        return type(config) is self.config_class

    def positions_taken(self, config: PeftConfig, model: PreTrainedModel) -> int:
        """How many of the base's places for a text this config takes for itself."""
        return 0

    @abstractmethod
    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Raise UserError for what cannot work on this model (which may be on the meta device)."""

    def check_training(self, training: TrainingConfig) -> None:
        """Raise UserError for training settings that this method would ignore."""
        if training.loraplus_lr_ratio != 1 and not self.has_fast:
            raise UserError(
                Problem(
                    f"{self.name}.training.loraplus_lr_ratio",
                    "1: no parameters of this method have a rate of their own",
                    f"{training.loraplus_lr_ratio:g}",
                    "Set it in the `training` of the methods that have it, or leave it out.",
                )
            )

    def check_steps(self, config: PeftConfig, steps: int) -> None:  # noqa: B027 - most have no schedule
        """Raise UserError for a config whose own schedule does not fit into so many training steps."""

    @abstractmethod
    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place freshly initialised parts for `slot` into the host; the same seed gives the same weights.

        With `config.inference_mode`, as `read_config` has it, only what `save` writes is wanted.
        """

    def save(self, folder: Path, config: PeftConfig, adapter: Adapter, host: Host, base: str) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, head included, as PEFT does."""
        config = copy.deepcopy(config)
        config.inference_mode = True
        config.base_model_name_or_path = base
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: _jsonable(value) for name, value in config.to_dict().items()}
        write_text(folder / ADAPTER_CONFIG, json.dumps(values, indent=2, sort_keys=True) + "\n")
        with replacing(folder / ADAPTER_WEIGHTS) as path:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter.tensors().items()}
            save_file(tensors, path, metadata={"format": "pt"})

    def read_config(self, folder: Path) -> PeftConfig:
        """The config that `save` wrote. Raises UserError for another method's."""
        config: PeftConfig = self.config_class.from_pretrained(str(folder))
        if not isinstance(config, self.config_class):
            fix = "The folder mixes two adapters: copy both files again."
            place, expected = str(folder / ADAPTER_CONFIG), f"a {self.config_class.__name__}"
            raise UserError(Problem(place, expected, f"a {type(config).__name__}", fix))
        return config

    def merge(self, folder: Path, model: PreTrainedModel) -> PreTrainedModel:
        """The base with a saved adapter in its own weights, head included: a plain transformers model.

        model: the base with its weights, changed in place. For families that say that they merge.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fields that PEFT sets right by itself
            merged = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
            loaded = merged.load_adapter(str(folder), "default")
        state = merged.state_dict(keep_vars=True)
        there = {id(tensor) for name, tensor in state.items() if name not in loaded.missing_keys}
        missing = [name for name in loaded.missing_keys if id(state[name]) not in there]  # some are shared
        unexpected = set(loaded.unexpected_keys) - aliases(read_tensors(folder))
        if wrong := [*missing, *sorted(unexpected)]:
            raise RuntimeError(f"PEFT does not take {len(wrong)} tensors of {folder}, such as {wrong[0]}")
        plain: PreTrainedModel = merged.merge_and_unload(safe_merge=True)
        return plain


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


_NOT_FOR_USERS = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "auto_mapping",
}


def attach_copies(
    config: Any, host: Host, slot: int, seed: int, adapter: Adapter, prefix: str = PEFT_PREFIX
) -> None:
    """Give the slot its own fp32 copies of the modules that `modules_to_save` names.

    Modules without pretrained weights (heads) are drawn afresh from the seed, as transformers
    initialises them; others start from their pretrained weights.
    """
    for name in whole_modules(host, getattr(config, "modules_to_save", None) or host.head):
        own = host.pristine(name)
        dtype = None if name in host.head else next(own.parameters()).dtype
        own = own.to(torch.float32).requires_grad_(True)
        initialise_fresh(host, name, own, stable_hash(seed, name))
        host.place(name, slot, Copy(own, dtype))
        for path, parameter in own.named_parameters():
            adapter.add(f"{prefix}{name}.{path}", parameter, decay=decays(path, parameter))


def with_head(config: PeftConfig, head: Iterable[str]) -> PeftConfig:
    """The config with the head among the modules that are trained and saved whole.

    Which modules belong to it is known when the weights are: a checkpoint may lack more than the classifier.
    Configs without that field have the head trained and saved all the same.
    """
    fields: Any = copy.deepcopy(config)
    if not hasattr(fields, "modules_to_save"):
        return config
    own = fields.modules_to_save or []
    wanted = [*head, *([own] if isinstance(own, str) else own)]
    fields.modules_to_save = list(dict.fromkeys(wanted))
    result: PeftConfig = fields
    return result


def whole_modules(host: Host, wanted: Iterable[str]) -> list[str]:
    """The modules that `modules_to_save` stands for, by PEFT's rule: those whose names end like an entry.

    One inside another that is taken already goes with it.
    """
    names: list[str] = []
    for name in host.modules:
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if not inside and any(name.endswith(end) for end in wanted):
            names.append(name)
    return names


def check_whole_modules(
    config: Any, model: nn.Module, head: Iterable[str], where: str, problems: Problems
) -> None:
    """Note entries of `modules_to_save` that match nothing, or modules that cannot be copied: those that take
    more than one tensor, or share their weight with others (T5's embeddings).
    """
    own = [entry for entry in config.modules_to_save or [] if entry not in head]
    modules = dict(model.named_modules())
    simple = {name.rpartition(".")[2] for name, module in modules.items() if not list(module.children())}
    for entry in own:
        found = {name: module for name, module in modules.items() if name and name.endswith(entry)}
        several = [type(module).__name__ for module in found.values() if not _takes_one_tensor(module)]
        shared = [told for name in found for told in _shared_weights(name, modules)]
        if several or shared or not found:
            reason = f"which is a {several[0]}" if several else shared[0] if shared else "which matches none"
            problems.add(
                f"{where}.modules_to_save",
                expected="names of single layers (linear, embedding, norm) with a weight of their own",
                found=f"{entry!r}, {reason}",
                fix="Leave it out: a copy would part from the others."
                if shared and not several
                else did_you_mean(entry, simple),
            )


def _shared_weights(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """Which other module holds a weight of this one, in words."""
    own = {id(parameter) for parameter in modules[name].parameters()}
    return [
        f"whose weight is that of {other} too"
        for other, module in modules.items()
        if not f"{other}.".startswith(f"{name}.")
        and any(id(parameter) in own for parameter in module.parameters(recurse=False))
    ]


def _takes_one_tensor(module: nn.Module) -> bool:
    """Whether a module maps one tensor to one: a leaf, or a plain sequence of such."""
    if isinstance(module, nn.Sequential):
        return all(_takes_one_tensor(child) for child in module)
    return not list(module.children())


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: not to biases and norms (vectors), as transformers' Trainer has it."""
    return parameter.ndim > 1 and not name.endswith("bias")


def initialise_fresh(host: Host, name: str, module: nn.Module, seed: int) -> None:
    """Draw what has no pretrained weights in `module` (called `name` in the host) from the seed.

    As this architecture initialises it; on the processor, so that every device gets the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, inner in module.named_modules():
            full = f"{name}.{path}".rstrip(".")
            if not any(full == fresh or full.startswith(f"{fresh}.") for fresh in host.fresh):
                continue
            own = [(parameter, parameter.device) for parameter in inner.parameters(recurse=False)]
            for parameter, _ in own:
                parameter.data = parameter.data.cpu()
            host.model._init_weights(inner)  # type: ignore[operator]
            for parameter, device in own:
                parameter.data = parameter.data.to(device)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved adapter. Raises UserError for a missing, damaged or pickled file."""
    return files.read_tensors(folder / ADAPTER_WEIGHTS)


def aliases(names: Iterable[str]) -> set[str]:
    """Those of a saved adapter's names that mean a module trained whole, which is there under its own name.

    PEFT's LoRA with `bias="all"` writes every bias whose name in the wrapped model says so:
    `classifier.modules_to_save.bias`, `pooler.modules_to_save.default.dense.bias`, and that of
    `original_module`, beside `classifier.bias`.
    """
    there = set(names)
    return {
        name
        for name in there
        for start, wrapper, rest in map(name.partition, (".modules_to_save.", ".original_module."))
        if wrapper and {f"{start}.{rest}", f"{start}.{rest.partition('.')[2]}"} & there
    }


@torch.no_grad()
def put_in_place(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy saved tensors into the model's parameters of those names."""
    for name, tensor in tensors.items():
        model.get_parameter(name.removeprefix(PEFT_PREFIX)).copy_(tensor)
