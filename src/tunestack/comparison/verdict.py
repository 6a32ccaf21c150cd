"""The verdict: which candidate to ship, in one sentence with the numbers it rests on.

A candidate wins clearly if its mean validation metric is the highest and it beats every other one
significantly, after correction. Otherwise the cheapest of those that are not significantly worse than the
best is the one to ship (`cheapest` says what that means); not one below all that the best itself may be,
whose own seeds differ so much that nothing is significant. Where that includes always answering the most
frequent class, no model is worth shipping, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunestack.results import Candidate, Comparison, Costs, Interval, Verdict
from tunestack.tasks.metrics import Metric

SAME_COST = 1.1
"""Costs within this factor count as equal: repeated measurements differ by that much."""

MUCH_DEARER = 2.0
"""A winner that costs this many times as much as the runner-up is said to."""

_NAMES_SHOWN = 4


def decide(
    candidates: Sequence[Candidate], metric: Metric, constant: str = "the most frequent class"
) -> Verdict | None:
    """Choose from candidates with their validation summaries, comparisons and costs filled in.

    A candidate without a summary of `metric` did not finish and is never chosen; None if none finished.
    The comparisons have to be those of `statistics.compare_to_best`. constant: what a candidate that does not
    look at the text answers.
    """
    finished = [c for c in candidates if metric.name in c.validation]
    finished.sort(key=lambda c: -c.validation[metric.name].mean)
    if not finished:
        return None
    # Of several equally high ones, the best is the one that the others were compared with.
    best = next((c for c in finished if c.comparison is None), finished[0])
    others = [c for c in finished if c is not best]
    contenders = [best, *(c for c in others if not (c.comparison and c.comparison.significant))]
    clear = bool(others) and contenders == [best]
    majority = next((c for c in contenders if not c.reads_text), None)
    lowest = best.validation[metric.name].interval.low
    near = [c for c in contenders if c is best or c.validation[metric.name].mean >= lowest]
    ship = majority or cheapest(near)  # in order of the metric, so that it settles equal costs
    if not others:
        sentence = _only(best, metric, planned=len(candidates))
    elif majority:
        sentence = _nothing_learned(best, majority, metric, constant)
    elif clear:
        sentence = _winner(best, others[0], metric)
    else:
        sentence = _no_winner(best, near[1:], [c for c in contenders if c not in near], ship, metric)
    named = [*contenders, *others[:1]] if clear else contenders
    sentence += _remarks(named, [c for c in candidates if metric.name not in c.validation] if others else [])
    return Verdict(sentence=sentence + ".", best=best.name, ship=ship.name, clear=clear)


def cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """Choose by what is paid in production first: inference speed, then training time, then the order given.

    What is within 10% of the lowest cost counts as equal; where other programs worked beside a measurement,
    within what they may have added. A cost that is not known for all of them decides nothing.
    """
    remaining = list(candidates)
    for cost in (_inference_seconds, _training_seconds):
        known = {c.name: value for c in remaining if (value := cost(c.costs)) is not None}
        if len(known) == len(remaining):
            limit = min(known.values()) * _same_cost([c.costs for c in remaining])
            remaining = [c for c in remaining if known[c.name] <= limit]
    return remaining[0]


def _same_cost(costs: Sequence[Costs]) -> float:
    """The factor within which costs count as equal. Where others had a share s of the processors, the same
    work may have taken 1 / (1 - s) times as long.
    """
    share = max(cost.others_share or 0.0 for cost in costs)
    return max(SAME_COST, 1 / (1 - min(share, 0.9)))


def _inference_seconds(costs: Costs) -> float | None:
    speed = costs.inference_examples_per_second
    return 1 / speed if speed else None


def _training_seconds(costs: Costs) -> float | None:
    return costs.train_seconds


def _winner(best: Candidate, runner_up: Candidate, metric: Metric) -> str:
    lead = _lead(runner_up.comparison, metric)
    return f"{best.name} wins by {lead} over {runner_up.name}{_price(best, runner_up)}"


def _price(best: Candidate, runner_up: Candidate) -> str:
    """How much more the winner costs, if it is much: inference, or else training."""
    costs: tuple[tuple[str, Callable[[Costs], float | None]], ...] = (
        ("inference cost", _inference_seconds),
        ("training time", _training_seconds),
    )
    for words, cost in costs:
        ours, theirs = cost(best.costs), cost(runner_up.costs)
        if ours and theirs and ours >= MUCH_DEARER * theirs:
            times = ours / theirs
            return (
                f", at {times:,.0f} times the {words}"
                if times >= 10
                else f", at {times:.1f} times the {words}"
            )
    return ""


def _no_winner(
    best: Candidate, near: Sequence[Candidate], vague: Sequence[Candidate], ship: Candidate, metric: Metric
) -> str:
    """near: within noise of the best. vague: below it, but too noisy themselves to be significantly so."""
    if not near:
        vary = f"{_names(vague)} {'varies' if len(vague) == 1 else 'vary'} too much"
        return f"No clear winner: {vary} to be told from the best, {best.name}: ship that"
    are = f"{_names(near)} {'is' if len(near) == 1 else 'are'}"
    largest = max((c.comparison.difference for c in near if c.comparison), default=0.0)
    measured = any(
        all(cost(c.costs) for c in (best, *near)) for cost in (_inference_seconds, _training_seconds)
    )
    choice = "ship the cheapest" if measured else "ship, with no costs to choose by, the best"
    return (
        f"No clear winner: {are} within noise of the best, {best.name} "
        f"(largest difference {largest:.3f} {metric.title}): {choice}, {ship.name}"
        + (f"; {_names(vague)} too noisy to tell" if vague else "")
    )


def _nothing_learned(best: Candidate, majority: Candidate, metric: Metric, constant: str) -> str:
    always = f"always answering {constant}"
    if best is majority:
        return f"Nothing beats {always} ({_score(best, metric)}): no model here is worth shipping"
    lead = _lead(majority.comparison, metric)
    few = "that is not significant on this validation data, so none is shown to be worth shipping"
    return f"Nothing is shown to beat {always}: {best.name} leads by {lead}, but {few}; more rows would tell"


def _only(candidate: Candidate, metric: Metric, planned: int) -> str:
    found = f"{candidate.name} reaches {_score(candidate, metric)}"
    if planned == 1:
        return f"{found}; there is nothing to compare it with"
    return f"Only one candidate of {planned} finished, so there is nothing to compare: {found}"


def _remarks(named: Sequence[Candidate], unfinished: Sequence[Candidate]) -> str:
    """What a reader must know to weigh the sentence: who did not finish, and where seeds were not varied."""
    remarks = [f"{_names(unfinished)} did not finish"] if unfinished else []
    remarks += [
        f"{len(c.seeds) - _finished_seeds(c)} of {len(c.seeds)} seeds of {c.name} failed"
        for c in named
        if _finished_seeds(c) < len(c.seeds)
    ]
    one_seed = [c for c in named if c.kind == "method" and _finished_seeds(c) == 1]
    if one_seed:
        remarks.append(f"{_names(one_seed)} ran with one seed, whose luck no interval shows")
    return f" ({'; '.join(remarks)})" if remarks else ""


def _finished_seeds(candidate: Candidate) -> int:
    return sum(seed.validation is not None for seed in candidate.seeds)


def _lead(comparison: Comparison | None, metric: Metric) -> str:
    if comparison is None:
        raise ValueError("every candidate but the best needs its comparison with the best")
    return f"{comparison.difference:.3f} {metric.title} {_interval(comparison.interval)}"


def _score(candidate: Candidate, metric: Metric) -> str:
    summary = candidate.validation[metric.name]
    return f"{summary.mean:.3f} {metric.title} {_interval(summary.interval)}"


def _interval(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def _names(candidates: Sequence[Candidate]) -> str:
    names = [c.name for c in candidates]
    if len(names) > _NAMES_SHOWN:
        names = [*names[: _NAMES_SHOWN - 1], f"{len(names) - _NAMES_SHOWN + 1} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
