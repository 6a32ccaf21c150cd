"""Which saved candidate a path means: the folder of one, or a run's that is chosen by verdict or by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tunestack.config import BaseConfig, TaskConfig
from tunestack.errors import Problem, UserError, did_you_mean
from tunestack.files import write_text
from tunestack.results import Candidate, Results, SeedResult
from tunestack.settings import read_json

DESCRIPTION = "tunestack.json"
RESULTS = "results.json"
SUITE = "suite.json"


class Description(BaseModel):
    """`tunestack.json`, beside the weights: what a tool needs to know to predict with them.

    base: None for a baseline that needs none. max_length: longest input in tokens. text, text_pair,
    columns: as they were in the data that it was trained on (`DataConfig`).
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    kind: Literal["method", "baseline"]
    method: str
    base: BaseConfig | None
    task: TaskConfig = TaskConfig()
    label_names: list[str]
    text: str = "text"
    text_pair: str | None = None
    columns: dict[str, str] = {}
    max_length: int = 512

    def save(self, folder: Path) -> None:
        """Write it into the folder, atomically."""
        write_text(folder / DESCRIPTION, self.model_dump_json(indent=2))


@dataclass(frozen=True)
class Choice:
    """One saved candidate.

    description: None for a PEFT adapter that tunestack did not write. results, candidate, seed: what its run
    says of it, where that is known.
    """

    folder: Path
    description: Description | None
    results: Results | None = None
    candidate: Candidate | None = None
    seed: SeedResult | None = None


def choose(path: str | Path, candidate: str | None = None, seed: int | None = None) -> Choice:
    """What a folder holds; of a run's candidates the named one, else the one that the verdict ships.

    Of its seeds the given one, else the best on validation. Raises UserError where there is no such thing.
    """
    folder = Path(path).expanduser()
    if (folder / RESULTS).is_file():
        return _of_run(folder, candidate, seed)
    if (folder / SUITE).is_file():
        tasks = sorted(str(one.parent) for one in folder.glob(f"*/{RESULTS}"))
        fix = f"Give one of its tasks: {', '.join(tasks)}."
        raise UserError(Problem(str(path), "the run folder of one comparison", "that of a suite", fix))
    if candidate is not None or seed is not None:
        found = "no results.json in it" if folder.is_dir() else "no such folder"
        fix = "Give the run folder, or leave the candidate's name and seed out."
        raise UserError(Problem(str(path), "a run folder, to choose from", found, fix))
    if not folder.is_dir():
        raise _nothing(path, "no such folder")
    return Choice(folder, _description(folder))


def with_results(choice: Choice) -> Choice:
    """The choice with what its run says of it, where its folder still lies in the run's."""
    places = choice.folder.resolve().parents
    if choice.results is not None or len(places) < 4 or not (places[3] / RESULTS).is_file():
        return choice
    run = places[3]
    results = read_json(Results, run / RESULTS)
    for candidate in results.candidates:
        for seed in candidate.seeds:
            if seed.adapter_path and (run / seed.adapter_path).resolve() == choice.folder.resolve():
                return replace(choice, results=results, candidate=candidate, seed=seed)
    return choice


def _of_run(run: Path, name: str | None, seed: int | None) -> Choice:
    results = read_json(Results, run / RESULTS)
    if (again := _confirmed(run, results, name, seed)) is not None:
        return _of_run(again, name, seed)
    if name is None and results.verdict is None:
        found = "none that finished"
        raise UserError(
            Problem(str(run), "a comparison with a candidate to ship", found, "Its report.html says why.")
        )
    wanted = name if name is not None or results.verdict is None else results.verdict.ship
    candidates = {candidate.name: candidate for candidate in results.candidates}
    if wanted is None or wanted not in candidates:
        fix = did_you_mean(str(wanted), candidates)
        raise UserError(Problem("candidate", f"one of the candidates of {run}", repr(wanted), fix))
    candidate = candidates[wanted]
    chosen = candidate.best_seed(results.metric) if seed is None else _seed(candidate, seed)
    if chosen is None or chosen.adapter_path is None:
        reasons = {entry.failure for entry in candidate.seeds if entry.failure and seed in (None, entry.seed)}
        found = "; ".join(sorted(reasons)) or "none saved"
        fix = "Choose another candidate or seed."
        raise UserError(Problem(candidate.name, "trained weights", found, fix))
    folder = run / chosen.adapter_path
    if not folder.is_dir():
        raise _nothing(folder, "no such folder")
    return Choice(folder, _description(folder), results, candidate, chosen)


def _confirmed(run: Path, results: Results, name: str | None, seed: int | None) -> Path | None:
    """The run in which a sweep's best were trained again, where it has what is looked for: on its seeds the
    verdict rests, unless none of them finished.
    """
    if results.search is None or results.search.confirmed is None:
        return None
    again = run / results.search.confirmed
    confirmed = read_json(Results, again / RESULTS) if (again / RESULTS).is_file() else None
    if confirmed is None or confirmed.verdict is None:
        return None
    if name is None:
        return again
    known = {one.name: one for one in confirmed.candidates}
    there = name in known and (seed is None or any(one.seed == seed for one in known[name].seeds))
    return again if there else None


def _seed(candidate: Candidate, seed: int) -> SeedResult:
    seeds = {entry.seed: entry for entry in candidate.seeds}
    if seed not in seeds:
        fix = f"Known: {', '.join(map(str, seeds))}."
        raise UserError(Problem("seed", f"one of the seeds of {candidate.name}", str(seed), fix))
    return seeds[seed]


def _description(folder: Path) -> Description | None:
    """What `tunestack.json` says; None beside a PEFT adapter that has none."""
    if (folder / DESCRIPTION).is_file():
        return read_json(Description, folder / DESCRIPTION)

    from tunestack.methods.base import ADAPTER_CONFIG

    if (folder / ADAPTER_CONFIG).is_file():
        return None
    raise _nothing(folder, "neither")


def _nothing(path: str | Path, found: str) -> UserError:
    expected = f"a run folder ({RESULTS}), a saved candidate ({DESCRIPTION}) or a PEFT adapter"
    fix = "Give the folder that `tunestack compare` wrote, or one of its adapters."
    return UserError(Problem(str(path), expected, found, fix))
