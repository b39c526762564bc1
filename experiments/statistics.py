"""Intervals of a study's figures over seeds and questions: means, shares of a gap, trends.

Values come as [S, Q]: S seeds, each with Q questions, the same or hardly any in common; over levels
of a strength as [L, S, Q]. A resample draws seeds, and questions for all of them alike, both with
replacement: five seeds that answer one question are not five independent questions. Where seeds
have their own questions, a draw takes one of each, which are no more alike than any others, and the
variance is that of S times Q questions. What is compared is drawn together, so differences and
ratios are paired. With few seeds intervals are too narrow, since S drawn seeds vary by (S-1)/S of
the truth.
Source: Owen 2007, the pigeonhole bootstrap.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from collab.report import Outcome

RESAMPLES = 2000
APART = 0.98  # of questions are met once where a task draws them by the seed; some repeat by chance


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None where it can't be told."""

    figure: float | None
    ci: tuple[float, float] | None


def is_above(estimate: Estimate, bound: float = 0.0) -> bool:
    """Whether the whole interval is."""
    return estimate.ci is not None and estimate.ci[0] > bound


def values_of(
    by_seed: Sequence[Sequence[Outcome]], strategy: str, metric: str = "reward"
) -> np.ndarray:
    """A metric of a strategy, f64 [S, Q], questions sorted by id; repeats of one are averaged.

    by_seed: the outcomes of one run each, of the same questions, or of as many others where a task
    draws them by the seed. A count that the task can't tell (None) is 0, so that it adds to neither
    part of a pooled rate. Raises: ValueError where the strategy is not in all of them, answered
    some of the same questions, or has no such metric in a file that is older than it.
    """
    rows = []
    for outcomes in by_seed:
        values: dict[str, list[float]] = {}
        for outcome in outcomes:
            if outcome.strategy == strategy:
                values.setdefault(outcome.uid, []).append(float(getattr(outcome, metric) or 0))
        rows.append({uid: float(np.mean(values[uid])) for uid in sorted(values)})
    counts = [len(row) for row in rows]
    distinct = len(set().union(*rows))
    is_alike, is_apart = distinct == max(counts, default=0), distinct >= APART * sum(counts)
    if not rows or not all(counts) or len(set(counts)) != 1 or not (is_alike or is_apart):
        raise ValueError(
            f"strategy {strategy!r} must have answered the same questions with every seed, or as "
            f"many others, but answered {counts}, {distinct} of them distinct; evaluate the runs "
            "alike"
        )
    found_SQ = np.array([list(row.values()) for row in rows])
    if not np.isfinite(found_SQ).all():
        raise ValueError(
            f"{metric!r} of strategy {strategy!r} is not in every run's outcomes; evaluate the "
            "older ones again: --mode=evaluate"
        )
    return found_SQ


def mean(values_SQ: np.ndarray) -> Estimate:
    """The mean."""
    return _estimate(values_SQ.mean(), _resampled(values_SQ)[0])


def difference(a_SQ: np.ndarray, b_SQ: np.ndarray) -> Estimate:
    """Mean of a - b, paired."""
    return mean(_same_shape(a_SQ, b_SQ)[0] - b_SQ)


def ratio(a_SQ: np.ndarray, b_SQ: np.ndarray) -> Estimate:
    """Mean of a over mean of b, paired; None where b may be 0 or of either sign."""
    of_a_R, of_b_R = _resampled(*_same_shape(a_SQ, b_SQ))
    whole = float(b_SQ.mean())
    if whole == 0.0:
        return Estimate(None, None)
    figure = float(a_SQ.mean()) / whole
    if (of_b_R * np.sign(whole) <= 0).any():
        return Estimate(figure, None)
    return _estimate(figure, of_a_R / of_b_R)


def rate_difference(
    a_SQ: np.ndarray, of_a_SQ: np.ndarray, b_SQ: np.ndarray, of_b_SQ: np.ndarray
) -> Estimate:
    """Sum of a over sum of of_a, less the same of b, paired; None where there is no of_a or of_b.

    For rates of counts, such as asks by drafts of one kind less asks by drafts of another.
    """
    a_R, of_a_R, b_R, of_b_R = _resampled(*_same_shape(a_SQ, of_a_SQ, b_SQ, of_b_SQ))
    if not of_a_SQ.any() or not of_b_SQ.any():
        return Estimate(None, None)
    figure = float(a_SQ.sum() / of_a_SQ.sum() - b_SQ.sum() / of_b_SQ.sum())
    if (of_a_R <= 0).any() or (of_b_R <= 0).any():
        return Estimate(figure, None)
    return _estimate(figure, a_R / of_a_R - b_R / of_b_R)


def share(learned_SQ: np.ndarray, constant_SQ: np.ndarray, oracle_SQ: np.ndarray) -> Estimate:
    """(learned - constant) / (oracle - constant): how much of what is to be gained is.

    1 is as good as the oracle, 0 as the constant, below 0 worse. The interval is None where the
    oracle is not clearly apart from the constant: then there is no gap to take a share of.
    """
    _same_shape(learned_SQ, constant_SQ, oracle_SQ)
    return ratio(learned_SQ - constant_SQ, oracle_SQ - constant_SQ)


# --- over levels of a strength -------------------------------------------------------------------


def correlation(
    x_LSQ: np.ndarray, y_LSQ: np.ndarray, per_LSQ: np.ndarray | None = None
) -> Estimate:
    """Spearman's rank correlation of x and y over the L*S runs; a run's figure is its mean.

    per_LSQ: then y is a rate, a run's mean of y over its mean of per. x may be constant in a run,
    a level. Draws are the same for all levels. None where a rate has no denominator, or x or y is
    the same in all runs. Runs of one seed are drawn together, or not at all.
    """
    arrays = [x_LSQ, y_LSQ] + ([] if per_LSQ is None else [per_LSQ])
    if len({array.shape for array in arrays}) != 1 or x_LSQ.ndim != 3:
        shapes = [array.shape for array in arrays]
        raise ValueError(f"values of shapes {shapes} must all be [levels, seeds, questions]")
    x_RN, y_RN, *per = (_run_means(array) for array in arrays)
    if per:
        if (per[0] <= 0).any():
            return Estimate(None, None)
        y_RN = y_RN / per[0]
    found_R = _pearson(_ranks(x_RN), _ranks(y_RN))
    if np.isnan(found_R[0]):
        return Estimate(None, None)
    return _estimate(found_R[0], found_R[1:][~np.isnan(found_R[1:])])


def largest_rise(values_LSQ: np.ndarray) -> Estimate:
    """The largest rise of the mean from a level to the next, with the interval of that one.

    Below 0: it falls at every step. Above 0 a fall is not monotone, if the interval says so: the
    largest of several differences of equal levels is above 0 on average.
    """
    rises = [
        difference(after_SQ, before_SQ) for before_SQ, after_SQ in itertools.pairwise(values_LSQ)
    ]
    return max(rises, key=lambda rise: rise.figure or 0.0)


def _run_means(values_LSQ: np.ndarray) -> np.ndarray:
    """Mean of each run, f64 [1 + R, L*S]: as they are, then of what each draw holds."""
    levels, seeds, questions = values_LSQ.shape
    count_RS, count_RQ = _draws(seeds, questions)
    seed_RS = np.repeat(np.tile(np.arange(seeds), len(count_RS)), count_RS.ravel())
    seed_RS = seed_RS.reshape(len(count_RS), seeds)
    mean_LSR = values_LSQ @ count_RQ.T / questions
    drawn_RLS = np.stack([mean_LSR[:, seed_RS[r], r] for r in range(len(count_RS))])
    first_LS = values_LSQ.mean(-1)
    found_RLS = np.concatenate([first_LS[None], drawn_RLS])
    return found_RLS.reshape(-1, levels * seeds).round(9)  # equal runs stay equal


def _ranks(values_RN: np.ndarray) -> np.ndarray:
    """Ranks within each row, ties in the middle of theirs."""
    above_RNN = values_RN[:, :, None] - values_RN[:, None, :]
    return ((above_RNN > 0) + 0.5 * (above_RNN == 0)).sum(-1)


def _pearson(x_RN: np.ndarray, y_RN: np.ndarray) -> np.ndarray:
    """Correlation of each row, f64 [R]; nan where one side is constant."""
    x_RN, y_RN = (value - value.mean(1, keepdims=True) for value in (x_RN, y_RN))
    scale_R = np.sqrt((x_RN**2).sum(1) * (y_RN**2).sum(1))
    found_R = np.full(len(x_RN), np.nan)
    return np.divide((x_RN * y_RN).sum(1), scale_R, out=found_R, where=scale_R > 0)


# --- draws ---------------------------------------------------------------------------------------


def _same_shape(*values: np.ndarray) -> tuple[np.ndarray, ...]:
    shapes = [value.shape for value in values]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        raise ValueError(f"values of shapes {shapes} must all be [seeds, questions], and alike")
    return values


def _resampled(*values: np.ndarray) -> list[np.ndarray]:
    """Means of each under the same draws, f64 [R]; the same draws for the same shape, always."""
    seeds, questions = _same_shape(*values)[0].shape
    count_RS, count_RQ = _draws(seeds, questions)
    return [((count_RS @ value) * count_RQ).sum(1) / (seeds * questions) for value in values]


def _draws(seeds: int, questions: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each question is drawn, i64 [R, S] and [R, Q]."""
    rng = np.random.default_rng(0)
    return (
        rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), RESAMPLES),
        rng.multinomial(questions, np.full(questions, 1.0 / questions), RESAMPLES),
    )


def _estimate(figure: float, resampled_R: np.ndarray) -> Estimate:
    low, high = np.quantile(resampled_R, [0.025, 0.975])
    return Estimate(float(figure), (float(low), float(high)))
