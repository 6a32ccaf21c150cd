"""All other methods of PEFT, trained by PEFT's own layers: a stack of one on a model of its own."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunestack.bases.layout import default_targets
from tunestack.errors import Problem, UserError
from tunestack.methods.base import PEFT_PREFIX, Adapter, Method, decays, initialise_fresh
from tunestack.methods.sites import Dropout, Host, stable_hash
from tunestack.methods.targets import linear_names

_LONG = 10**9
"""Stands for the number of steps in a config, which nobody knows before there is data."""


@dataclass(frozen=True)
class _Known:
    """What PEFT's registry does not say of a method.

    summary: what trains. paper: where PEFT's sources name none. training: defaults. fields: defaults of the
    config. starts_as_base, merges: as `Method` has them. unfit: why it cannot be trained here.
    """

    summary: str = ""
    paper: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    starts_as_base: bool = True
    merges: bool = True
    unfit: str = ""


def _rate(own: float, head: float | None = None) -> dict[str, Any]:
    """Training defaults: the learning rate of what the method adds, and of the head where they differ."""
    return (
        {"learning_rate": own} if head is None else {"learning_rate": head, "loraplus_lr_ratio": own / head}
    )


# Learning rates are those of PEFT's examples of sequence classification (C3A, FourierFT, VeRA; the head of
# C3A learns at the usual 1e-4 instead of 4e-6) and else of its method_comparison/MetaMathQA, where they
# differ from 1e-4, our default too; AdaLoRA's is that of a script after its authors' run on SST-2.
_KNOWN: dict[str, _Known] = {
    "adalora": _Known("low-rank updates whose ranks are pruned", "2303.10512", _rate(8e-4)),
    "adamss": _Known("updates in subspaces of the weights"),
    "beft": _Known("biases of single projections"),
    "boft": _Known("rotations of weights, by butterflies", "2311.06243"),
    "c3a": _Known("circular convolutions", training=_rate(3e-1, 1e-4)),
    "deft": _Known("low-rank updates that replace a subspace"),
    "delora": _Known("low-rank updates of bounded norm"),
    "fourierft": _Known("updates in Fourier space", training=_rate(6e-2, 6e-3)),
    "frod": _Known("rotations in a basis that layers share", fields={"progressbar": False}),
    "glora": _Known("scales and shifts of weights, inputs and biases", "2306.07967", _rate(5e-4)),
    "gralora": _Known("low-rank updates, block by block", training=_rate(2e-4)),
    "hira": _Known("products of weights and low-rank matrices", training=_rate(4.5e-3)),
    "hra": _Known("reflections of weights"),
    "lily": _Known("low-rank updates with shared experts", merges=False),
    "loha": _Known("Hadamard products of low-rank updates"),
    "lokr": _Known("Kronecker products", training=_rate(3e-3)),
    "miss": _Known("one shared shard a weight"),
    "oft": _Known("rotations of weights", "2306.07280"),
    "osf": _Known("the small singular directions of weights", "2504.07097", _rate(5e-5)),
    "peanut": _Known("updates that small networks make of the weights"),
    "psoft": _Known("rotations in the principal subspace"),
    "randlora": _Known("combinations of random low-rank bases", "2502.00987"),
    "road": _Known("rotations of activations, in pairs", training=_rate(1e-3)),
    "shira": _Known("a sparse share of the weights", "2406.13175", _rate(3e-4)),
    "supertuning": _Known("a sparse share of the weights, by magnitude"),
    "tinylora": _Known("a few numbers in a frozen low-rank frame", training=_rate(1e-3)),
    "unilora": _Known("one vector behind all updates", training=_rate(2e-3), starts_as_base=False),
    "vblora": _Known("low-rank updates from a shared bank of vectors", training=_rate(5e-4)),
    "vera": _Known("scales of random low-rank updates", training=_rate(2e-2, 1e-2)),
    "waveft": _Known("updates in wavelet space"),
    "cartridge": _Known(unfit="it distils a language model's own cache"),
    "cpt": _Known(unfit="it needs examples in a prompt, for language models"),
    "multitask-prompt-tuning": _Known(unfit="it wants the task of every row (task_ids)"),
    "poly": _Known(unfit="its router wants the task of every row (task_ids)"),
    "pvera": _Known(unfit="it draws its weights at random in training mode, in which no base is run here"),
    "shadow": _Known(unfit="it computes a loss of its own from the labels, inside the model"),
}


class ThroughPeft(Method):
    """A method that PEFT has, through `get_peft_model`; one subclass a config class (`families`).

    Targets are PEFT's own for the architecture, else those that LoRA has here; other fields PEFT's defaults.
    What a method adds learns at `learning_rate` x `loraplus_lr_ratio`, the head at `learning_rate`.
    """

    stacks = False
    has_fast = True
    tuner_class: ClassVar[Any]
    known: ClassVar[_Known]

    @property
    def unfit(self) -> str:
        """Why no config of this method can be trained here; empty where one can."""
        if "modules_to_save" not in self.config_class.__dataclass_fields__:
            return f"{self.config_class.__name__} has no modules_to_save: no head would be trained"
        return self.known.unfit

    @property
    def paper(self) -> str:
        """The arXiv id that PEFT's own sources of this method name most, where we know none."""
        folder = Path(inspect.getfile(self.config_class)).parent
        text = "".join(file.read_text() for file in sorted(folder.glob("*.py")))
        named = re.findall(r"(?:papers/|arxiv\.org/\w+/|arXiv:)(\d{4}\.\d{5})", text)
        return self.known.paper or (Counter(named).most_common(1)[0][0] if named else "")

    def defaults(self, model_type: str) -> dict[str, Any]:
        """Where it goes; the rest is PEFT's."""
        if "target_modules" not in self.config_class.__dataclass_fields__:
            return dict(self.known.fields)
        mapping = getattr(self.tuner_class, "target_module_mapping", None) or {}
        targets = mapping.get(model_type) or default_targets(model_type)
        return {**self.known.fields, "target_modules": list(targets) if targets else "all-linear"}

    def make_config(self, fields: Mapping[str, Any], model_type: str, head: list[str]) -> PeftConfig:
        """As every method. Raises UserError for a method that cannot be trained here, and for a number of
        steps, which follows from the data.
        """
        self._refuse_unfit()
        if "total_step" not in self.config_class.__dataclass_fields__:
            return super().make_config(fields, model_type, head)
        if "total_step" in fields:
            place, found = f"{self.name}.total_step", str(fields["total_step"])
            raise UserError(Problem(place, "nothing: epochs and data decide it", found, "Leave it out."))
        return super().make_config({**fields, "total_step": _LONG}, model_type, head)

    def check_steps(self, config: Any, steps: int) -> None:
        """AdaLoRA prunes its ranks between the first `tinit` and the last `tfinal` steps."""
        if hasattr(config, "total_step") and config.tinit >= steps - config.tfinal:
            raise UserError(
                Problem(
                    f"{self.name}.tfinal",
                    f"tinit + tfinal below the {steps} training steps",
                    f"tinit {config.tinit}, tfinal {config.tfinal}",
                    "Lower them, or train for more steps (more `epochs`, a smaller `batch_size`).",
                )
            )

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Attach to a copy of the model, and refuse what PEFT refuses, or what would be trained wrongly."""
        self._refuse_unfit()
        try:
            wrapped = _wrap(config, copy.deepcopy(model))
        except Exception as error:  # PEFT raises all kinds
            words = str(error).strip() or type(error).__name__
            if isinstance(error, NotImplementedError) and "meta" in words:
                return  # it wants weights, and these are shapes
            self._refuse("what PEFT can do on this base", words, _fix(config, model))
        saved = {id(tensor) for tensor in _saved(wrapped).values()}
        for name, parameter in wrapped.named_parameters():
            derived = parameter.numel() == 1  # AdaLoRA's count of its ranks
            if parameter.requires_grad and id(parameter) not in saved and not derived:
                self._refuse("all that is trained saved", f"{name} is not", "Change the field that says so.")
        drops = [name for name, value in vars(config).items() if "dropout" in name and value]
        if drops and not _dropouts(wrapped):
            found = f"{drops[0]} {getattr(config, drops[0])}, which acts in training mode alone"
            self._refuse("no dropout of this kind", found, "Leave it out.")

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Put PEFT's layers into the model; weights and the head are drawn from the seed."""
        for name, module in host.model.named_modules():
            if name in host.fresh:
                initialise_fresh(host, name, module, stable_hash(seed, name))
        with torch.random.fork_rng():
            torch.manual_seed(stable_hash(seed, self.name))
            wrapped = _wrap(config, host.model)
        host.model = wrapped
        for path, (parent, leaf, p) in _dropouts(wrapped).items():
            host.modules[path] = nn.Identity()
            setattr(parent, leaf, host.modules[path])
            host.place(path, slot, Dropout(p))
        adapter, taken = Adapter(), set()
        head = tuple(f"{PEFT_PREFIX}{name}." for name in host.head)
        for name, tensor in _saved(wrapped).items():
            if config.inference_mode and not isinstance(tensor, nn.Parameter):
                adapter.add(name, nn.Parameter(tensor, requires_grad=False))
            elif config.inference_mode or (tensor.requires_grad and id(tensor) not in taken):
                assert isinstance(tensor, nn.Parameter)
                taken.add(id(tensor))  # Lily's layers share parameters, each saved under all of its names
                adapter.add(name, tensor, decay=decays(name, tensor))
                adapter.fast |= set() if name.startswith(head) else {name}
            else:
                adapter.derived[name] = tensor.detach
        if not config.inference_mode:
            _follow_schedule(wrapped, adapter, config)
        return adapter

    def _refuse_unfit(self) -> None:
        if self.unfit:
            fix = "Choose another method: `tunestack methods` lists them."
            self._refuse("a method that trains a classifier from texts and labels alone", self.unfit, fix)

    def _refuse(self, expected: str, found: str, fix: str) -> NoReturn:
        raise UserError(Problem(self.name, expected, found, fix))


def families(ours: Iterable[Method]) -> list[Method]:
    """One method for every config class in PEFT's registry that none of ours uses."""
    covered = {method.config_class for method in ours}
    return [
        _family(kind.value.lower().replace("_", "-"), config_class, PEFT_TYPE_TO_TUNER_MAPPING[kind])
        for kind, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if config_class not in covered
    ]


def _family(name: str, config_class: type[PeftConfig], tuner_class: Any) -> Method:
    known = _KNOWN.get(name, _Known())
    members = {
        "name": name,
        "summary": known.summary or f"what {config_class.__name__} says",
        "config_class": config_class,
        "tuner_class": tuner_class,
        "training_defaults": dict(known.training),
        "starts_as_base": known.starts_as_base,
        "merges": known.merges,
        "known": known,
    }
    method: Method = type(config_class.__name__.removesuffix("Config"), (ThroughPeft,), members)()
    return method


def _wrap(config: PeftConfig, model: nn.Module) -> PeftModel:
    """The model with PEFT's layers in it, in evaluation mode; `model` itself is changed, `config` is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fields that PEFT sets right by itself
        wrapped = get_peft_model(model, copy.deepcopy(config))
    wrapped.eval()
    assert isinstance(wrapped, PeftModel)
    return wrapped


def _saved(wrapped: PeftModel) -> dict[str, Tensor]:
    """The very parameters and buffers that PEFT saves, by the names it saves them under."""
    here = wrapped.state_dict(keep_vars=True)
    saved: dict[str, Tensor] = get_peft_model_state_dict(wrapped, here, save_embedding_layers=False)
    return saved


def _dropouts(wrapped: PeftModel) -> dict[str, tuple[nn.Module, str, float]]:
    """The dropout of PEFT's layers, which runs in training mode alone: path -> parent, its name in it, p."""
    found = {}
    for path, layer in wrapped.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        assert isinstance(layer, nn.Module)
        base = {id(module) for module in layer.get_base_layer().modules()}
        for inner, module in layer.named_modules():
            if isinstance(module, nn.Dropout) and module.p > 0 and id(module) not in base:
                parent, _, leaf = f"{path}.{inner}".rpartition(".")
                found[f"{parent}.{leaf}"] = (wrapped.get_submodule(parent), leaf, module.p)
    return found


def _follow_schedule(wrapped: PeftModel, adapter: Adapter, saved: Any) -> None:
    """Let a tuner that prunes (AdaLoRA, AdaMSS) do so after every step, and keep AdaLoRA's bases orthogonal.

    AdaLoRA minimises the loss + orth_reg_weight x the mean of ||P^T P - I||_F over its matrices A and B
    (equation 4 of the paper, without the squares, as PEFT has it). `saved` is the config that is written: it
    gets the number of steps, too.
    """
    tuner: Any = wrapped.base_model
    config: Any = wrapped.active_peft_config
    if not hasattr(tuner, "update_and_allocate"):
        return

    def on_step(step: int, steps: int) -> None:
        if hasattr(config, "total_step"):
            config.total_step = saved.total_step = steps
        tuner.update_and_allocate(step)

    def penalty() -> Tensor:
        grams = [matrix @ matrix.t() if ".lora_A" in name else matrix.t() @ matrix for name, matrix in bases]
        off = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        weight: float = config.orth_reg_weight
        return weight * torch.stack(off).mean()

    adapter.on_step = on_step
    bases = [item for item in adapter.parameters.items() if re.search(r"\.lora_[AB]$", item[0])]
    if hasattr(config, "orth_reg_weight"):
        adapter.penalty = penalty


def _fix(config: Any, model: PreTrainedModel) -> str:
    """Where adapters can go in this model, and where to see what works on it."""
    names = sorted({name.rpartition(".")[2] for name in linear_names(model, tuple(config.modules_to_save))})
    return (
        f"Change its fields (target_modules may name {', '.join(names)}), or choose a method that works on "
        f"{model.config.model_type}: `tunestack methods` lists them."
    )
