"""Variants of one training run against it: figures of each, their table and picture.

What a variant is and what is claimed of it stands in its study. Differences are paired by seed and
question. A policy is called a learned constant where it hardly asks more often about what the SLM
does not know than about what it knows: whatever it learned, it is not when to ask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from collab.report import Outcome
from experiments import statistics
from experiments.statistics import Estimate
from experiments.study import Run

# What the columns need; the cascades, which are dear to tune, are left out.
EVALUATED = ("learned", "best_constant", "oracle")
# Ask rate on unknown steps less that on known ones, below which a policy is a constant: our choice,
# between 0, of every constant rule, and 0.9, of a policy that asks where its drafts are false.
TELLING = 0.2


@dataclasses.dataclass(frozen=True)
class Variant:
    """One thing that a run does otherwise.

    words: what, as tables and claims say it. overrides: config keys. cold_start: the run whose
    imitation it begins with ("" = its own). against: the run that differs from it in one thing.
    is_needed: what it takes away is thought to be worth reward. is_constant: whether it is thought
    to come to a learned constant; None: nobody knows.
    """

    name: str
    words: str
    overrides: Mapping[str, Any]
    cold_start: str
    against: str
    is_needed: bool = False
    is_constant: bool | None = None

    def run(self, config: str, seed: int, shared: Mapping[str, Any]) -> Run:
        """The training run of a seed. shared: overrides of all variants of a study."""
        return Run(self.name, config, seed, {**shared, **self.overrides}, self.cold_start)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Figures of the learned policy of one run over seeds.

    above_base: its reward less that of the base. share: of the gap from the run's own best constant
    to its oracle that is closed. known, unknown: share of drafted steps of each kind that it asked
    about. telling: unknown less known. constants: seeds on which telling is below TELLING.
    """

    words: str
    seeds: tuple[int, ...]
    reward: Estimate
    above_base: Estimate
    share: Estimate
    em: Estimate
    asks: Estimate
    known: Estimate
    unknown: Estimate
    telling: Estimate
    constants: tuple[int, ...]

    @property
    def verdict(self) -> str:
        """Whether the policy is a learned constant: yes, no, or unsure."""
        ci = self.telling.ci
        if ci is None or ci[0] < TELLING <= ci[1]:
            return "unsure"
        return "yes" if ci[1] < TELLING else "no"

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it, four digits."""

        def plain(value: Any) -> Any:
            if not isinstance(value, Estimate):
                return list(value) if isinstance(value, tuple) else value
            ends = (value.figure, *(value.ci or (None, None)))
            return [None if end is None else round(end, 4) for end in ends]

        names = [field.name for field in dataclasses.fields(self)]
        return {name: plain(getattr(self, name)) for name in names} | {"constant": self.verdict}


def columns(
    words: str,
    by_seed: Mapping[int, Sequence[Outcome]],
    base: Mapping[int, Sequence[Outcome]],
) -> Columns:
    """Figures of a run. by_seed, base: outcomes of its evaluation and of the base's, by seed."""
    seeds = tuple(by_seed)
    ours = list(by_seed.values())

    def of(metric: str, strategy: str = "learned") -> np.ndarray:
        return statistics.values_of(ours, strategy, metric)

    known = of("asked_known"), of("drafts_known")
    unknown = of("asked_unknown"), of("drafts_unknown")
    by_each = [
        statistics.rate_difference(*(values_SQ[[s]] for values_SQ in (*unknown, *known)))
        for s in range(len(seeds))
    ]
    return Columns(
        words=words,
        seeds=seeds,
        reward=statistics.mean(of("reward")),
        above_base=difference(by_seed, base),
        share=statistics.share(of("reward"), of("reward", "best_constant"), of("reward", "oracle")),
        em=statistics.mean(of("em")),
        asks=statistics.mean(of("asks")),
        known=statistics.ratio(*known),
        unknown=statistics.ratio(*unknown),
        telling=statistics.rate_difference(*unknown, *known),
        constants=tuple(
            seed
            for seed, one in zip(seeds, by_each, strict=True)
            if one.figure is not None and one.figure < TELLING
        ),
    )


def difference(
    by_seed: Mapping[int, Sequence[Outcome]], base: Mapping[int, Sequence[Outcome]]
) -> Estimate:
    """Learned reward of one run less that of another, paired by seed and question.

    Of seeds that both have: a study that was stopped may lack some. None without any.
    """
    both = sorted(by_seed.keys() & base.keys())
    if not both:
        return Estimate(None, None)
    ours, theirs = (
        statistics.values_of([found[seed] for seed in both], "learned") for found in (by_seed, base)
    )
    return statistics.difference(ours, theirs)


# --- to look at --------------------------------------------------------------------------------


def table(rows: Mapping[str, Columns]) -> str:
    """Markdown: a line a run."""
    lines = [
        "| run | what is different | reward | less the base | share of the gap | EM | asks | known "
        "/ unknown | constant |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        rates = f"{_percent(row.known)} / {_percent(row.unknown)}"
        verdict = f"{row.verdict} ({len(row.constants)} of {len(row.seeds)} seeds)"
        cells = (
            name, row.words, _said(row.reward), _said(row.above_base), _said(row.share),
            _percent(row.em), _said(row.asks, digits=2), rates, verdict,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _said(estimate: Estimate, digits: int = 3) -> str:
    if estimate.figure is None:
        return "–"
    ends = () if estimate.ci is None else estimate.ci
    interval = " ".join(f"{end:.{digits}f}" for end in ends)
    return f"{estimate.figure:.{digits}f}" + (f" [{interval}]" if interval else "")


def _percent(estimate: Estimate) -> str:
    return "–" if estimate.figure is None else f"{estimate.figure:.0%}"


def picture(rows: Mapping[str, Columns], base: str) -> Figure:
    """A row a run: reward less the base's, share of the gap, ask rates. base: how it is called."""
    figure = Figure(figsize=(13, 1.6 + 0.3 * len(rows)), layout="constrained")
    above, share, rates = figure.subplots(1, 3, sharey=True)
    for place, row in enumerate(rows.values()):
        color = {"yes": "C3", "no": "C0", "unsure": "C1"}[row.verdict]
        for axes, estimate in ((above, row.above_base), (share, row.share)):
            if estimate.figure is not None:
                low, high = estimate.ci or (estimate.figure, estimate.figure)
                reach = [[estimate.figure - low], [high - estimate.figure]]
                axes.errorbar(estimate.figure, place, xerr=reach, fmt="o", color=color)
        known, unknown = row.known.figure, row.unknown.figure
        if known is not None and unknown is not None:
            rates.plot([known, unknown], [place, place], color=color, lw=1)
            rates.plot(known, place, "o", color=color, mfc="white")
            rates.plot(unknown, place, "o", color=color)
    above.set_yticks(range(len(rows)), [row.words for row in rows.values()])
    above.invert_yaxis()
    above.set_xlabel(f"reward a question less that of {base}")
    share.set_xlabel("share of the gap, best constant to oracle")
    rates.set_xlabel("drafts asked about: known (hollow), unknown")
    for axes, at in ((above, 0.0), (share, 0.0), (share, 1.0)):
        axes.axvline(at, color="0.7", lw=1)
    for axes in (above, share, rates):
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(
        "Learned policy, mean and 95 % interval; red: a learned constant, orange: unsure"
    )
    return figure
