"""The exported folder: an adapter as PEFT reads it, a merged or whole model, or a baseline; and its card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tunestack.choice import Choice, Description, choose, with_results
from tunestack.errors import Problems, UserError, did_you_mean
from tunestack.export.card import CARD, Shipment, write_card
from tunestack.files import replacing_folder, why_not_writable

DTYPES = ("float32", "bfloat16", "float16")

_KEPT = {".json", ".safetensors", ".txt", ".model", ".jinja"}
"""Endings of what is copied: weights, configs, tokenizers. Pickles and a trainer's leavings stay behind."""


@dataclass(frozen=True)
class Options:
    """How to export.

    merge: an adapter in its base's weights, as a plain transformers model. dtype: of the weights of a merged
    or whole model; without it a merged model's are float32, a whole one's as they are. license: for the card,
    by the Hub's name (apache-2.0). trust_remote_code: run modelling code that comes with the base.
    """

    merge: bool = False
    dtype: str | None = None
    license: str | None = None
    trust_remote_code: bool = False


def export_candidate(
    path: str | Path,
    out: str | Path,
    *,
    candidate: str | None = None,
    seed: int | None = None,
    options: Options = Options(),
) -> Path:
    """Write what a run's verdict ships, or the candidate named, or a saved candidate's folder, to `out`.

    Raises UserError, before anything is loaded, for what cannot be exported, and where `out` is not free.
    """
    choice = with_results(choose(path, candidate, seed))
    folder = Path(out).expanduser().resolve()
    problems = Problems()
    _check_free(folder, problems)
    _check_options(choice, options, problems)
    problems.raise_if_any()
    with replacing_folder(folder) as temporary:
        if choice.description is not None and choice.description.kind == "baseline":
            shipment = _copy(choice, temporary, choice.description, "baseline")
        elif choice.description is not None and _is_whole(choice.description):
            shipment = _whole(choice, temporary, choice.description, options)
        else:
            shipment = (_merged if options.merge else _adapter)(choice, temporary, options)
        write_card(temporary / CARD, choice, shipment, options.license)
    return folder


def _check_free(folder: Path, problems: Problems) -> None:
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    reason = f"{len(there)} files in it, such as {there[0]}" if there else why_not_writable(folder)
    if reason is not None:
        fix = "Choose another one with --out."
        problems.add(str(folder), expected="a new or an empty folder", found=reason, fix=fix)


def _check_options(choice: Choice, options: Options, problems: Problems) -> None:
    """Refuse to merge what does not merge, and a dtype that is unknown or for what is only copied."""
    description = choice.description
    if options.dtype is not None and options.dtype not in DTYPES:
        expected = f"one of {', '.join(DTYPES)}"
        problems.add(
            "dtype", expected=expected, found=repr(options.dtype), fix=did_you_mean(options.dtype, DTYPES)
        )
    if description is not None and description.kind == "baseline":
        if options.merge or options.dtype is not None:
            flag = "merge" if options.merge else "dtype"
            found = f"{description.method}, a baseline: it trains no transformer"
            problems.add(flag, expected="a trained transformer", found=found, fix=f"Leave --{flag} out.")
    elif description is None or not _is_whole(description):
        if options.merge:
            _check_merges(choice, problems)
        elif options.dtype is not None:
            found = "an adapter, which is copied as it is"
            fix = "Add --merge, or leave --dtype out."
            problems.add("dtype", expected="a merged or whole model", found=found, fix=fix)


def _check_merges(choice: Choice, problems: Problems) -> None:
    from tunestack.adapters import method_of, read_config
    from tunestack.methods.registry import METHODS, find_method

    known = choice.description
    method = find_method(known.method) if known else method_of(choice.folder, read_config(choice.folder))
    if not method.merges:
        can = ", ".join(name for name, other in METHODS.items() if other.merges and other.stacks)
        problems.add(
            "merge",
            expected=f"a method whose weights fit into the base's ({can}, and most others of PEFT)",
            found=f"{method.name} ({method.summary}): it adds what the base's architecture has no place for",
            fix="Export it without --merge, as an adapter.",
        )


def _is_whole(description: Description) -> bool:
    from tunestack.methods.registry import find_method

    return find_method(description.method).saves_whole_model


def _copy(
    choice: Choice, target: Path, description: Description, kind: Literal["adapter", "model", "baseline"]
) -> Shipment:
    for file in sorted(choice.folder.iterdir()):
        if file.is_file() and file.suffix in _KEPT and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)
    return Shipment(kind, description)


def _adapter(choice: Choice, target: Path, options: Options) -> Shipment:
    """The adapter's own files, read once to see that they are whole, and what is missing beside them."""
    from tunestack.adapters import open_adapter, read_config
    from tunestack.methods.base import read_tensors

    description = choice.description
    config = read_config(choice.folder)
    if description is None:  # PEFT wrote it: the base knows the labels and the tokenizer
        saved = open_adapter(choice.folder, None, _here(options))
        description = saved.description
        description.save(target)
        saved.base.tokenizer.save_pretrained(str(target))
    else:
        read_tensors(choice.folder)
    needs = not type(config).__module__.startswith("peft.")
    return replace(_copy(choice, target, description, "adapter"), needs_tunestack=needs)


def _merged(choice: Choice, target: Path, options: Options) -> Shipment:
    import torch

    from tunestack.adapters import open_adapter
    from tunestack.methods.registry import METHODS

    saved = open_adapter(choice.folder, choice.description, _here(options))
    base, task = saved.base, saved.task
    loaded = base.load_plain(task.auto_class_for(base.config), task.model_config(base), torch.float32)
    saved.check_head(loaded.fresh)
    try:
        model = saved.method.merge(saved.folder, loaded.model)
    except RuntimeError as error:  # as torch and PEFT say that tensors are missing or of other sizes
        raise UserError(saved.misfit(" ".join(str(error).split()))) from error
    model.config.use_cache = getattr(base.config, "use_cache", True)  # switched off when it was loaded
    model.to(getattr(torch, options.dtype or "float32")).save_pretrained(str(target))
    base.tokenizer.save_pretrained(str(target))
    whole = next(name for name, method in METHODS.items() if method.saves_whole_model)
    assert saved.description.base is not None  # an adapter always has one
    base_settings = saved.description.base.plain()
    description = saved.description.model_copy(update={"method": whole, "base": base_settings})
    description.save(target)
    return Shipment("model", description, merged=True, dtype=options.dtype or "float32")


def _whole(choice: Choice, target: Path, description: Description, options: Options) -> Shipment:
    shipment = _copy(choice, target, description, "model")
    if options.dtype is None:
        return shipment
    import torch

    from tunestack.bases import load_base
    from tunestack.tasks.registry import make_task

    assert description.base is not None  # a method always has one
    base = load_base(description.base.model_copy(update={**_here(options), "model": str(choice.folder)}))
    task = make_task(description.task, description.label_names)
    model = base.load_model(
        task.auto_class_for(base.config), base.config, getattr(torch, options.dtype)
    ).model
    for file in target.glob("model*"):
        file.unlink()
    model.save_pretrained(str(target))
    return Shipment("model", description, dtype=options.dtype)


def _here(options: Options) -> dict[str, object]:
    """Settings of a base that is only opened to be written."""
    return {
        "device_map": "cpu",
        "trust_remote_code": options.trust_remote_code,
        "gradient_checkpointing": False,
    }
