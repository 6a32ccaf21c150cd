"""What fields are often called elsewhere: in sweep files of Weights & Biases, in scripts, in papers."""

from __future__ import annotations

from collections.abc import Sequence, Set

from tunestack.errors import did_you_mean

FIELDS = {
    "lr": "learning_rate",
    "learn_rate": "learning_rate",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "wd": "weight_decay",
    "warmup": "warmup_ratio",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
}
"""What fields of training are often called elsewhere, and what they are called here."""
RANKS = ("lora_r", "lora_rank", "rank")
"""What a method's `r` is often called."""
ENDINGS = ("alpha", "dropout")
"""What is often short for the field of a method that ends so: lora_alpha, adapter_dropout."""


def usual_name(name: str, own: Sequence[Set[str]]) -> str:
    """What a field is called here. own: the fields of each method.

    One of a method is renamed only where none has it under that name, and all have the one that is meant.
    """
    if any(name in fields for fields in own):
        return name
    common = set(own[0]).intersection(*own) if own else set()
    if name in RANKS:
        meant = common & {"r"}
    elif name in ENDINGS:
        meant = {field for field in common if field.endswith(f"_{name}")}
    else:
        return FIELDS.get(name, name)
    return meant.pop() if len(meant) == 1 else name


def nearest_name(name: str, own: Sequence[Set[str]], others: Set[str]) -> str:
    """How to mend a field that nothing has. own: the fields of each method; others: those of training."""
    if (usual := usual_name(name, own)) != name:
        return f"It is called {usual!r} here."
    return did_you_mean(name, [*set().union(*own), *others])
