"""The model card: what a reader has to know, from the results of the comparison and nothing else."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunestack.choice import Choice, Description
from tunestack.files import slug, write_text
from tunestack.report import formatting
from tunestack.report.leaderboard import escaped, markdown_table, verdict_sentence
from tunestack.report.standings import level, side_metrics, standings
from tunestack.results import Results

if TYPE_CHECKING:
    from tunestack.tasks.base import Task

CARD = "README.md"

_LIBRARIES = {"adapter": "peft", "model": "transformers", "baseline": "tunestack"}


@dataclass(frozen=True)
class Shipment:
    """What lies in the folder beside the card.

    merged: whether the model was an adapter. dtype: of the weights, where they were converted.
    needs_tunestack: whether PEFT knows the adapter's kind only once tunestack is imported.
    """

    kind: Literal["adapter", "model", "baseline"]
    description: Description
    merged: bool = False
    dtype: str | None = None
    needs_tunestack: bool = False


@dataclass(frozen=True)
class BaseName:
    """How others come by the base: its Hub id, where it has one, and fields of its config to set."""

    name: str
    hub_id: str | None
    overrides: Mapping[str, Any]


def write_card(path: Path, choice: Choice, shipment: Shipment, license: str | None) -> None:
    """Write the card, front matter and all."""
    import jinja2
    from huggingface_hub import ModelCard

    title = _title(choice, shipment)
    trained_on = (choice.description or shipment.description).base
    base = base_name(shipment.description)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tunestack.export", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": escaped, "py": functools.partial(json.dumps, ensure_ascii=False)}
    method, summary = _method(choice, shipment)
    results = _without_places(choice.results) if choice.results else None
    task = _task(shipment)
    body = environment.get_template("card.md.j2").render(
        title=title,
        base=base,
        overrides="".join(f", {name}={value!r}" for name, value in base.overrides.items()) if base else "",
        shipment=shipment,
        description=shipment.description,
        labels=shipment.description.label_names,
        task=task,
        **_usage(task, shipment, path.parent),
        method=method,
        summary=summary,
        results=results,
        candidate=choice.candidate,
        seed=choice.seed,
        data=_data_name(results) if results else None,
        hyperparameters=_set(choice.candidate.hyperparameters) if choice.candidate else {},
        scores=_scores(choice),
        level=level(standings(results)) if results else None,
        positive=_positive(results) if results and task.target == "classes" else None,
        verdict=verdict_sentence(results) if results else None,
        leaderboard=markdown_table(results) if results else None,
        license=license,
        quantize=trained_on.quantize if trained_on else None,
        fmt=formatting,
    )
    front = _front_matter(title, choice, shipment, base, license)
    card = ModelCard(f"---\n{front}\n---\n\n{body}")
    write_text(path, str(card))


def _task(shipment: Shipment) -> Task:
    """What was learned."""
    from tunestack.tasks.registry import make_task

    return make_task(shipment.description.task, shipment.description.label_names)


def _usage(task: Task, shipment: Shipment, folder: Path) -> dict[str, Any]:
    """What loads the model in the folder, and what a reader does with it."""
    from transformers import PretrainedConfig

    from tunestack.tasks.base import literal

    description = shipment.description
    columns = list(task.input_columns(description.text, description.text_pair, description.columns))
    if shipment.kind == "baseline":
        return {"example": ", ".join(literal([task.example[name]]) for name in columns)}
    config = PretrainedConfig(is_encoder_decoder=_is_encoder_decoder(shipment, folder))
    return {
        "auto_class": task.auto_class_for(config).__name__,
        "snippet": task.snippet(columns, description.max_length, config),
        "pipeline_snippet": task.pipeline_snippet(columns, description.max_length),
    }


def _is_encoder_decoder(shipment: Shipment, folder: Path) -> bool:
    """As the model's config says, or what PEFT calls the adapter's task: its base need not be here."""
    from peft import TaskType
    from transformers import PretrainedConfig

    from tunestack.adapters import read_config

    if shipment.kind == "adapter":
        return bool(read_config(folder).task_type == TaskType.SEQ_2_SEQ_LM)
    return bool(PretrainedConfig.get_config_dict(folder)[0].get("is_encoder_decoder"))


def base_name(description: Description) -> BaseName | None:
    """Where a base comes from, in words that mean something on other machines."""
    return None if description.base is None else _public(description.base.model)


def _public(model: str) -> BaseName:
    from tunestack.bases import packaged
    from tunestack.bases.sources import RANDOM

    if model.startswith(packaged.PREFIX):
        known = packaged.PACKAGED.get(model.removeprefix(packaged.PREFIX))
        return BaseName(model, known.hub_id if known else None, known.config_overrides if known else {})
    place = Path(model.removeprefix(RANDOM)).expanduser()
    if model.startswith(RANDOM) or place.is_absolute() or place.exists() or model.count("/") > 1:
        return BaseName(place.name, None, {})
    return BaseName(model, model, {})


def _without_places(results: Results) -> Results:
    """The results as others may read them: folders of this machine are called by their last names."""
    bases = {one.base: _public(one.base).name for one in results.candidates if one.base}
    candidates = [
        one.model_copy(update={"base": bases[one.base]} if one.base else {}) for one in results.candidates
    ]
    files = [results.config.get("data", {}).get(split) for split in ("train", "validation", "test")]
    warnings = list(results.data.warnings)
    for place in [*bases, *filter(None, files), results.data.source]:
        short = bases.get(place) or (place if _is_hub_data(place) else Path(place).name)
        warnings = [warning.replace(place, short) for warning in warnings]
    data = results.data.model_copy(update={"warnings": warnings})
    return results.model_copy(update={"candidates": candidates, "data": data})


def _positive(results: Results) -> str | None:
    """The label that F1 is about, where it is about one."""
    names = results.data.label_names
    return names[1] if len(names) == 2 and "f1" in _metrics(results) else None


def _set(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say something."""
    return {name: value for name, value in hyperparameters.items() if value is not None}


def _title(choice: Choice, shipment: Shipment) -> str:
    name = choice.candidate.name if choice.candidate else shipment.description.method
    return f"{name} on {_data_name(choice.results)}" if choice.results else name


def _method(choice: Choice, shipment: Shipment) -> tuple[str, str]:
    """The name of the method that trained it, and what that trains in a few words."""
    from tunestack.methods.registry import METHODS

    name = choice.candidate.method if choice.candidate else shipment.description.method
    if choice.description is not None:
        name = choice.description.method
    return name, METHODS[name].summary if name in METHODS else "no transformer is trained"


def _data_name(results: Results) -> str:
    """What the data is called: a Hub id as it is, a path without the folders of the machine."""
    source = results.data.source
    return source if _is_hub_data(source) else Path(source).name


def _is_hub_data(source: str) -> bool:
    from tunestack.data.tables import is_file_name

    return not is_file_name(source) and ":" not in source


def _front_matter(
    title: str, choice: Choice, shipment: Shipment, base: BaseName | None, license: str | None
) -> str:
    from huggingface_hub import ModelCardData

    results = choice.results
    found = _evaluations(choice, _task(shipment).pipeline_tag)
    data = ModelCardData(
        license=license,
        library_name=_LIBRARIES[shipment.kind],
        base_model=base.hub_id if base else None,
        pipeline_tag=_task(shipment).pipeline_tag,
        datasets=[results.data.source] if results and _is_hub_data(results.data.source) else None,
        metrics=list(dict.fromkeys(one.metric_type for one in found)) or None,
        tags=["tunestack", _method(choice, shipment)[0]],
        model_name=title if found else None,
        eval_results=found or None,
    )
    return data.to_yaml()


def _evaluations(choice: Choice, tag: str) -> list[Any]:
    """What these very weights reached, for the Hub's model index; the test split where there is one."""
    from huggingface_hub import EvalResult

    if choice.results is None or choice.seed is None:
        return []
    results = choice.results
    name = _data_name(results)
    kind = name if _is_hub_data(results.data.source) else slug(name) or "text"
    return [
        EvalResult(
            task_type=tag,
            task_name=tag.replace("-", " ").capitalize(),
            dataset_type=kind,
            dataset_name=name,
            dataset_split=split,
            metric_type=_hub_metric(metric),
            metric_name=formatting.metric_name(metric),
            metric_value=scores.metrics[metric],
        )
        for split, scores in choice.seed.scores.items()
        for metric in _metrics(results)
        if metric in scores.metrics
    ]


def _hub_metric(metric: str) -> str:
    """The Hub's name of a metric: `f1_macro` is an f1, `mcc` matthews_correlation."""
    name, _, average = metric.partition("_")
    plain = name if average in ("macro", "micro", "weighted") else metric
    return {"mcc": "matthews_correlation"}.get(plain, plain)


def _metrics(results: Results) -> list[str]:
    return [results.metric, *side_metrics(results)]


@dataclass(frozen=True)
class Score:
    """One metric on one split: of these weights, and over all seeds of the candidate."""

    metric: str
    split: str
    rows: int | None
    own: str
    mean: str


def _scores(choice: Choice) -> list[Score]:
    if choice.results is None or choice.candidate is None or choice.seed is None:
        return []
    summaries = choice.candidate.summaries
    rows = functools.partial(choice.results.data.rows.get)
    return [
        Score(
            metric=formatting.metric_name(metric),
            split=split,
            rows=rows(split),
            own=formatting.score(scores.metrics.get(metric)),
            mean=_mean(summaries[split].get(metric)),
        )
        for split, scores in choice.seed.scores.items()
        for metric in _metrics(choice.results)
    ]


def _mean(summary: Any) -> str:
    if summary is None:
        return formatting.MISSING
    spread = f"{formatting.score(summary.mean)} ± {formatting.score(summary.std)}"
    return f"{spread} {formatting.interval(summary.interval)}"
