"""What a user asks for, as validated settings. Field names are the field's own (PEFT's, Trainer's)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _label_text(value: object) -> object:
    """A label that YAML took for a number or a truth value, as the text that a data file holds."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


Label = Annotated[str, BeforeValidator(_label_text)]
"""A label in a file or its name: `0`, `true` and `spam` are all text."""


class Settings(BaseModel):
    """Base of all settings: unknown fields are refused, nothing is silently ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class DataConfig(Settings):
    """Where the labelled text is and how it is split."""

    train: str
    """A CSV, TSV, JSON, JSONL or Parquet file, a folder with files named by split, or a Hub dataset id."""
    validation: str | None = None
    """A file of its own for validation. Without one, `train` is split (or its own split is used)."""
    test: str | None = None
    """A file of its own for the final test."""
    tests: dict[str, str] | list[str] = {}
    """Further test sets, for tasks that take several: each by its name with its file; or names of sets or
    suites that the task knows, which lie in `tests_folder`."""
    tests_folder: str | None = None
    """Where the test sets lie that are named without files."""
    subset: str | None = None
    """The Hub dataset's configuration name."""
    header: list[str] | None = None
    """The columns of CSV and TSV files whose first line is data already."""
    skip_bad_rows: bool = False
    """Leave out lines with too many or too few fields and, of texts with one label or number, rows that lack
    either, where they are refused otherwise; the report says how many."""
    text: str = "text"
    """The column with the text."""
    text_pair: str | None = None
    """The column with the second text, for sentence pairs."""
    label: str = "label"
    """The column with the label: names or ids."""
    labels: dict[Label, Label] | list[Label] | None = None
    """Label names in id order, or a mapping from the values in the file to names."""
    columns: dict[str, str] = {}
    """Other columns that the task reads, by its own names for them: {question: q}. Of texts with labels there
    are none: `text`, `text_pair` and `label` name all."""
    positive_label: Label | None = None
    """With two classes: which one precision, recall and F1 are about. Default: the second."""
    train_size: float = Field(default=0.8, gt=0, lt=1)
    """The share of rows to train on, where we split ourselves."""
    seed: int = 42
    """The seed of that split."""
    group_duplicates: bool = True
    """Keep identical texts on one side of a split that we make ourselves."""


class TrainingConfig(Settings):
    """How a trial trains. The defaults are those of the comparison on disaster tweets."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW."""
    loraplus_lr_ratio: float = Field(default=1, ge=1)
    """LoRA+: how many times faster B and all vectors learn than the rest (Hayou et al.: about 16)."""
    epochs: float = Field(default=5, gt=0)
    """Passes over the training data."""
    batch_size: int = Field(default=8, ge=1)
    """Rows a step, of each trial."""
    optim: Literal["adamw_torch", "adamw_8bit"] = "adamw_torch"
    """AdamW; adamw_8bit keeps its two states in 8 bits (bitsandbytes), for methods that train much."""
    weight_decay: float = Field(default=0.001, ge=0)
    """Decoupled weight decay; biases and norms are left out, as transformers' Trainer does."""
    max_grad_norm: float = Field(default=0.3, ge=0)
    """Each trial's gradient is clipped to this norm; 0 switches clipping off."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """The schedule after warm-up."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """The share of steps in which the rate rises linearly from 0."""
    max_length: int = Field(default=512, ge=4)
    """Longest input in tokens; longer ones are cut, and the report says how many."""
    class_weights: Literal["balanced"] | list[float] | None = "balanced"
    """Weights of the cross-entropy a class: balanced as scikit-learn does it, given in id order, or none."""
    evaluations_per_epoch: int = Field(default=1, ge=1)
    """How often an epoch is evaluated on validation, in equal parts; the best of all evaluations is kept."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better validation metric."""
    base_dropout: bool = False
    """Whether the base's own dropout layers are active in training (those inside attention, and inside heads
    that a method trains beside the base, are not)."""

    def steps(self, rows: int) -> int:
        """How many training steps so many rows make."""
        return max(1, math.ceil(math.ceil(rows / self.batch_size) * self.epochs))


def split_fields(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A method's own fields, and those of training."""
    training = {name: value for name, value in values.items() if name in TrainingConfig.model_fields}
    return {name: value for name, value in values.items() if name not in training}, training


class MethodEntry(Settings):
    """A method with its own fields, and what it trains with differently.

    The method's own fields stand beside the others: `{method: lora, r: 8, training: {learning_rate: 5e-4}}`.
    """

    method: str
    """The registered name: `tunestack methods` lists them."""
    name: str | None = None
    """How the report calls it; default: the method and what sets it apart."""
    config: dict[str, Any] = {}
    """The method's own fields (PEFT's names: r, lora_alpha, target_modules, ...)."""
    training: dict[str, Any] = {}
    """Training fields that differ for this method."""

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, value: Any) -> Any:
        """Accept a bare name, and the method's own fields beside ours."""
        if isinstance(value, str):
            return {"method": value}
        if not isinstance(value, dict):
            return value
        ours = {name: field for name, field in value.items() if name in cls.model_fields}
        own = {name: field for name, field in value.items() if name not in cls.model_fields}
        config = ours.get("config", {})
        return {**ours, "config": {**config, **own}} if isinstance(config, dict) else ours


class MethodConfig(MethodEntry):
    """One entry of a comparison's `methods`."""

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Fields (of the method or of training) with several values each: one candidate for every combination."""


class BaseConfig(Settings):
    """A frozen pretrained model."""

    model: str
    """Hub id, local folder, packaged:NAME, or random:CONFIG.json."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the frozen base computes in; auto: bfloat16 where the hardware is fast at it, else float32."""
    device_map: str = "auto"
    """The device that holds the base: cpu, cuda, cuda:1, mps; auto: the fastest one found."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the frozen linear layers in 4 or 8 bits (QLoRA); they compute in `dtype`. Needs bitsandbytes."""
    double_quant: bool | None = None
    """Of nf4: store the scales in 8 bits too (0.4 bits a weight less). Default: yes."""
    skip_modules: list[str] | None = None
    """Of quantize: modules that stay as they are beside the head, each by its name or the end of it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    trust_remote_code: bool = False
    """Run modelling code that comes with this base. Off unless you trust it by name."""
    revision: str | None = None
    """Hub revision."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _of_quantize(self) -> BaseConfig:
        if self.double_quant is not None and self.quantize != "nf4":
            raise ValueError("double_quant is about quantize: nf4 alone: leave it out")
        if self.skip_modules is not None and self.quantize is None:
            raise ValueError("skip_modules is about quantize: leave it out")
        return self

    def plain(self) -> BaseConfig:
        """The same base, not quantised."""
        of_quantize = {"quantize", "double_quant", "skip_modules"}
        return BaseConfig(**self.model_dump(exclude=of_quantize, exclude_unset=True))


def _counted(value: Any) -> Any:
    """Accept how many seeds: 3 means 1, 2, 3."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value < 1:
        raise ValueError("how many seeds, at least 1, or a list of them")
    return list(range(1, value + 1))


def _different(value: list[int]) -> list[int]:
    if len(set(value)) < len(value) or min(value) < 0:
        raise ValueError("different numbers of 0 or more")
    return value


Seeds = Annotated[list[int], Field(min_length=1), BeforeValidator(_counted), AfterValidator(_different)]
"""Seeds: a list, or how many."""


Trackers = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Names of trackers; one alone needs no list."""


class TaskConfig(Settings):
    """What is to be solved, with the task's own settings.

    They stand beside the name: `{name: question-answering, stride: 128}`.
    """

    name: str = "classification"
    """The registered name: `tunestack tasks` lists them."""
    options: dict[str, Any] = {}
    """The task's own settings."""

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, value: Any) -> Any:
        """Accept a bare name, and the task's own settings beside ours."""
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            return value
        ours = {name: field for name, field in value.items() if name in cls.model_fields}
        own = {name: field for name, field in value.items() if name not in cls.model_fields}
        options = ours.get("options", {})
        return {**ours, "options": {**options, **own}} if isinstance(options, dict) else ours


class CompareConfig(Settings):
    """A comparison: every base with every method with every seed, on one task."""

    data: DataConfig
    """Where the labelled text is."""
    task: TaskConfig = TaskConfig()
    """What is to be solved: classification, ... `tunestack tasks` lists all. Command line: --task NAME."""
    bases: list[BaseConfig] = []
    """The models to train on. Command line: --base packaged:minilm-l6; else `bases: [packaged:minilm-l6]`."""
    methods: list[MethodConfig] = Field(min_length=1)
    """What to compare, as `tunestack methods` lists it. Command line: --method lora --method tfidf; else
    `methods: [lora, tfidf]`."""
    training: TrainingConfig = TrainingConfig()
    """How they train."""
    seeds: Seeds = [1, 2, 3]
    """Seeds of every candidate that has any randomness: a list, or how many."""
    metric: str = "auto"
    """What candidates are chosen by, on validation. auto: the task's own; of classification f1 (macro beyond
    two classes), and accuracy, mcc, ... on request."""
    slots: int | None = Field(default=None, ge=1)
    """How many trials train together at most; default: as many as memory holds and speed gains by."""
    measure_costs: bool = True
    """Measure what each candidate costs alone; without it, the verdict has no costs to choose by."""
    track: Trackers = []
    """Trackers that are told what happens: mlflow, tensorboard, wandb."""
    output: str = Field(default="runs/comparison", min_length=1)
    """The run folder."""
