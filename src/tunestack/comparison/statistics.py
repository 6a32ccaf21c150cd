"""How sure a metric and a difference are: intervals, paired tests, correction for many candidates.

**What is estimated.** A candidate's expected metric: over the examples that could have been drawn, and over
the seeds that could have been run. With F_s the metric of seed s of S, the estimate is the mean of the F_s.

**Its variance** has two parts, since all seeds answer the same examples (a crossed design; Owen 2007, "The
pigeonhole bootstrap").

- *Examples* are resampled with replacement, the same ones for every seed and every candidate. That gives the
  covariance matrix C of the F_s, and the variance of their mean: the mean of all entries of C.
- *Seeds* are too few to resample: that would give (S - 1) / S of their variance, and normal tails. Theirs is
  the spread of the F_s less the part of it that is only the noise of finite data,
  ``var(F, ddof=1) - (mean of C's diagonal - mean of its other entries)``, divided by S; at least 0.

A candidate with one seed has the first part only: its interval is about that one trained model.

**Tails.** Each part asks for Student's t: the first with as many degrees of freedom as there are examples,
less one (for a difference: examples that the two answer differently, the only ones that count), the second
with S - 1. The mean of the two quantiles, weighted by the variances, is used (Cochran 1964, "Approximate
significance levels of the Behrens-Fisher test"). For a difference the seed parts of both candidates add up,
with Satterthwaite's degrees of freedom. (Satterthwaite's t for the whole sum falls short
with three seeds: 92 to 93% where seeds dominate, since a spread that is small by chance then looks certain.
Two seeds are too few for either: 88 to 93% there.)

**Choosing the best afterwards.** A winner has to beat each of the others. Among K equal candidates that has
at most the probability alpha, reached with K = 2: any one of the two must win a test that is one-sided at
alpha / 2; with more, the K - 1 tests must all be won. The truly best candidate is also, with probability
1 - alpha at least, among those not significantly worse than the observed best: each candidate that could
overtake it does so in a test at alpha / 2 / (K - 1) (multiple comparisons with the best; Hsu 1984). Some one
of many equal candidates is called worse than the observed best more often: 8% of the time among six.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from tunestack.arrays import FloatArray
from tunestack.results import Comparison, Interval, Summary
from tunestack.tasks.answers import Answers
from tunestack.tasks.metrics import Metric

RESAMPLES = 2000
ALPHA = 0.05
_BLOCK_ELEMENTS = 2**22
_SMALLEST = 1e-50  # p-value; Student's quantiles are not reliable much further out


@dataclass(frozen=True)
class Difference:
    """Expected metric of one candidate minus another's, on the same examples."""

    difference: float
    interval: Interval
    p_value: float


def summarize(
    answers: Answers,
    metrics: Sequence[str] | None = None,
    *,
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Summary]:
    """Mean, standard deviation over seeds and 1 - alpha interval of the expected metric, by metric name.

    metrics: default all known ones; ROC-AUC is left out where it is not defined. `seed` makes the resampling
    reproducible. Intervals are symmetric in the metric's log-odds (an error's: in its
    logarithm), which keeps them inside its range.
    """
    names = list(answers.metrics) if metrics is None else metrics
    summaries = {}
    for name, estimate in _estimate([answers], names, resamples, seed).items():
        mean = float(estimate.values.mean())
        std = float(estimate.values.std(ddof=1)) if answers.seeds > 1 else 0.0
        error = _error([estimate], estimate.variance_of_mean, answers.examples)
        low, high = _inside_range(answers.metrics[name], mean, error, answers, alpha)
        summaries[name] = Summary(mean=mean, std=std, interval=Interval(low=low, high=high, level=1 - alpha))
    return summaries


def paired_bootstrap(
    first: Answers,
    second: Answers,
    metric: str,
    *,
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """First minus second: expected difference of a metric, on the same resampled examples.

    For ROC-AUC the covariance is DeLong's. The p-value never falls below 2^(1 - m), with m the examples that
    are not answered alike: no test that swaps answers could go lower.
    Raises KeyError where the metric is not defined for these predictions.
    """
    both = _estimate([first, second], [metric], resamples, seed)[metric]
    return _difference(first, second, both, metric, alpha)


def mcnemar(first: Answers, second: Answers) -> float:
    """Two-sided p-value of McNemar's test: are the two equally accurate?

    One seed each: the exact binomial test on the examples that only one of them gets right.
    Several seeds: with d_i the difference of the shares of seeds that get example i right, the statistic is
    sum(d)^2 / sum(d^2): McNemar's for clustered pairs (Durkalski et al. 2003) with each example a cluster,
    since seeds agree too much to count as examples of their own. The variance between seeds is added, with
    Student's tails, as everywhere in this module. (A majority vote over seeds would test an ensemble that
    nobody ships.)
    """
    right = [answers.right for answers in (first, second)]
    if first.seeds == second.seeds == 1:
        only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        fewer, discordant = min(only_first, only_second), only_first + only_second
        return float(min(1.0, 2 * stats.binom.cdf(fewer, discordant, 0.5)))
    n, informative = first.examples, first.joined([second]).informative()
    shares = right[0].mean(axis=0) - right[1].mean(axis=0)
    parts = [_Estimate(r.mean(axis=1), np.atleast_2d(np.cov(r)) / n) for r in right]
    error = _error(parts, float((shares**2).sum()) / n**2, informative)
    return max(error.p_value(float(shares.mean())), _smallest_p_value(informative))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method, in the order given."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in corrected]


def compare_to_best(
    candidates: Mapping[str, Answers],
    metric: str,
    *,
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare every candidate with the one whose mean metric is highest (the first of several), by name.

    The best itself has no entry. p-values: McNemar's where the metric is a share of right answers, DeLong's
    for ROC-AUC, else the paired bootstrap's; Holm's correction for the number of comparisons. Intervals are
    not corrected: each is about one difference. Raises ValueError where candidates answered different
    examples, KeyError where the metric is not defined for them.
    """
    if len(candidates) < 2:
        return {}
    estimate = _estimate(list(candidates.values()), [metric], resamples, seed)[metric]
    ends = np.cumsum([p.seeds for p in candidates.values()])
    rows = {name: np.arange(end - p.seeds, end) for (name, p), end in zip(candidates.items(), ends)}
    best = max(candidates, key=lambda name: estimate.values[rows[name]].mean())
    others = [name for name in candidates if name != best]
    differences = {}
    for name in others:
        pair = estimate.of(np.concatenate([rows[best], rows[name]]))
        differences[name] = _difference(candidates[best], candidates[name], pair, metric, alpha)
    judged = candidates[best].metrics[metric]
    p_values = [
        mcnemar(candidates[best], candidates[name]) if judged.per_example else differences[name].p_value
        for name in others
    ]
    return {
        name: Comparison(
            best=best,
            difference=differences[name].difference,
            interval=differences[name].interval,
            test="McNemar" if judged.per_example else judged.test or "paired bootstrap",
            p_value=p_value,
            p_value_corrected=corrected,
            significant=corrected <= alpha,
        )
        for name, p_value, corrected in zip(others, p_values, holm(p_values))
    }


@dataclass(frozen=True)
class _Estimate:
    """A metric for each seed ``[seeds]`` and its covariance ``[seeds, seeds]`` over resampled examples."""

    values: FloatArray
    covariance: FloatArray

    def of(self, seeds: NDArray[np.integer] | slice) -> _Estimate:
        return _Estimate(self.values[seeds], self.covariance[seeds][:, seeds])

    @property
    def variance_of_mean(self) -> float:
        return max(float(self.covariance.mean()), 0.0)  # rounding can leave a 0 a little below it


@dataclass(frozen=True)
class _Error:
    """Variance of an estimate: from examples and from seeds, each with its degrees of freedom."""

    examples: float
    examples_degrees: float
    seeds: float
    seeds_degrees: float

    @property
    def standard(self) -> float:
        return float(np.sqrt(self.examples + self.seeds))

    def quantile(self, alpha: float) -> float:
        """Standard errors from the middle to either end of a 1 - alpha interval."""
        of_examples = -float(special.stdtrit(self.examples_degrees, alpha / 2))
        if self.seeds == 0:
            return of_examples
        of_seeds = -float(special.stdtrit(self.seeds_degrees, alpha / 2))
        return (self.examples * of_examples + self.seeds * of_seeds) / (self.examples + self.seeds)

    def p_value(self, difference: float) -> float:
        """Two-sided: the alpha whose interval just reaches 0."""
        if difference == 0:
            return 1.0
        if self.standard == 0:
            return _SMALLEST
        score = abs(difference) / self.standard
        if self.quantile(_SMALLEST) <= score:
            return _SMALLEST
        log_p = optimize.brentq(lambda log: self.quantile(np.exp(log)) - score, np.log(_SMALLEST), 0.0)
        return float(np.exp(log_p))


def _error(parts: Sequence[_Estimate], examples: float, informative: int) -> _Error:
    """Add to the examples' variance, from so many informative ones, the seeds' of each candidate involved."""
    raw, noise, squares = 0.0, 0.0, 0.0
    for part in parts:
        n_seeds = len(part.values)
        if n_seeds == 1:
            continue
        spread = float(part.values.var(ddof=1)) / n_seeds
        on_diagonal = float(np.trace(part.covariance)) / n_seeds
        off_diagonal = float(part.covariance.sum() - np.trace(part.covariance)) / (n_seeds * (n_seeds - 1))
        raw += spread
        noise += (on_diagonal - off_diagonal) / n_seeds
        squares += spread**2 / (n_seeds - 1)
    return _Error(
        examples,
        examples_degrees=max(informative - 1, 1),
        # Clipped after adding up, not for each candidate, so that the sum stays unbiased where it is above 0.
        seeds=max(raw - noise, 0.0),
        seeds_degrees=raw**2 / squares if squares > 0 else 1,
    )


def _difference(first: Answers, second: Answers, both: _Estimate, metric: str, alpha: float) -> Difference:
    """Difference of means from the seeds' joint estimate: those of `first`, then those of `second`."""
    weights = np.repeat([1 / first.seeds, -1 / second.seeds], [first.seeds, second.seeds])
    difference = float(both.values[: first.seeds].mean() - both.values[first.seeds :].mean())
    parts = [both.of(slice(first.seeds)), both.of(slice(first.seeds, None))]
    judged = first.metrics[metric]
    # What is no function of right and wrong answers, ranks say, looks at all examples.
    informative = first.joined([second]).informative() if judged.from_counts else first.examples
    # Rounding can leave a variance of exactly 0 a little below it.
    error = _error(parts, max(float(weights @ both.covariance @ weights), 0.0), informative)
    half_width, widest = error.quantile(alpha) * error.standard, judged.highest - judged.lowest
    low, high = max(difference - half_width, -widest), min(difference + half_width, widest)
    return Difference(
        difference,
        Interval(low=low, high=high, level=1 - alpha),
        max(error.p_value(difference), _smallest_p_value(informative)),
    )


def _smallest_p_value(informative: int) -> float:
    return float(min(1.0, 2.0 ** (1 - informative)))


def _inside_range(
    metric: Metric, mean: float, error: _Error, answers: Answers, alpha: float
) -> tuple[float, float]:
    """Interval of a metric that is symmetric in the log-odds of its place within its range."""
    lowest, whole = metric.lowest, metric.highest - metric.lowest
    if np.isinf(whole):
        distance = abs(metric.highest - mean)
        if np.isinf(distance) or distance == 0:
            reach = error.quantile(alpha) * error.standard
            return max(mean - reach, lowest), min(mean + reach, metric.highest)
        # An error: its own noise grows with it, that of its logarithm does not.
        factor = float(np.exp(error.quantile(alpha) * error.standard / distance))
        return metric.highest - distance * factor, metric.highest - distance / factor
    place = (mean - lowest) / whole
    if not 0 < place < 1:
        # Resampling a perfect answer sees no variance. If a share p of n answers were wrong, all would look
        # right with probability (1 - p)^n: Clopper-Pearson's bound. F1 and its kin rest on a class's rows.
        reach = (1 - (alpha / 2) ** (1 / answers.behind(metric))) * whole
        return max(mean - reach, lowest), min(mean + reach, metric.highest)
    spread = error.standard / whole / (place * (1 - place))
    ends = special.expit(special.logit(place) + np.array([-1, 1]) * error.quantile(alpha) * spread)
    low, high = lowest + ends * whole
    return float(low), float(high)


def _estimate(
    candidates: Sequence[Answers], metrics: Sequence[str], resamples: int, seed: int
) -> dict[str, _Estimate]:
    """Estimate metrics for the seeds of all candidates, in their order. Undefined ones are left out."""
    together = candidates[0].joined(candidates[1:])
    from_counts = [name for name in metrics if together.metrics[name].from_counts]
    estimates = _resampled(together, from_counts, resamples, seed) if from_counts else {}
    for name in set(metrics) - set(from_counts):
        found = together.estimate(name, resamples, seed)
        if found is not None:
            estimates[name] = _Estimate(*found)
    return {name: estimates[name] for name in metrics if name in estimates}


def _resampled(answers: Answers, metrics: Sequence[str], resamples: int, seed: int) -> dict[str, _Estimate]:
    """Bootstrap metrics that are functions of sums over the examples.

    How often each group of interchangeable examples is drawn is drawn at once, from the multinomial
    distribution.
    """
    rows, statistics = answers.statistics()
    flat = statistics.reshape(len(rows), -1)
    n = int(rows.sum())

    def metrics_of(weights: NDArray[np.integer]) -> list[FloatArray]:
        sums = (weights.astype(flat.dtype) @ flat).astype(np.float64)
        counts = answers.counts(sums.reshape(len(weights), *statistics.shape[1:]))
        return [function(counts) for name in metrics if (function := answers.metrics[name].from_counts)]

    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // max(flat.shape))
    blocks = [
        metrics_of(generator.multinomial(n, rows / n, size=min(block, resamples - start)))
        for start in range(0, resamples, block)
    ]
    observed = metrics_of(rows[None, :])
    return {
        name: _Estimate(observed[i][0], np.atleast_2d(np.cov(np.concatenate([b[i] for b in blocks]).T)))
        for i, name in enumerate(metrics)
    }
