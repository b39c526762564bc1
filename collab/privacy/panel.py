"""The judges of a run: the one whose verdicts count, and the audit judge that watches it.

`Panel` asks them about episodes and compares: judge with detector, audit judge with judge. Where a
policy learns to fool the judge, more and more of its leaks are seen by the audit judge alone; the
alarms are in `collab.detectors`. How one judge is asked is in `collab.privacy.judge`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from collab.privacy.agreement import Agreement, compare
from collab.privacy.detector import Detector
from collab.privacy.judge import Judge, Verdict
from collab.progress import progress
from collab.types import Episode, Knowledge

JUDGE, AUDIT = "judge", "audit_judge"  # sections of `config.privacy`
TOTALS = ("unreadable", "failures", "usd")  # since the start; the rest is of the episodes at hand
_PREFIX = {JUDGE: "judge/", AUDIT: "judge/audit_"}


class Panel:
    """Judge and audit judge, either may be absent.

    counts: whether verdicts are part of the leak (mode "reward").
    """

    def __init__(
        self,
        judge: Judge | None = None,
        audit: Judge | None = None,
        *,
        counts: bool = False,
        judged_share: float = 1.0,
        audited_share: float = 1.0,
    ) -> None:
        """judged_share: of questions; audited_share: of the questions that are judged."""
        self.counts = counts
        self._judges = {
            name: one for name, one in ((JUDGE, judge), (AUDIT, audit)) if one is not None
        }
        self._share = {JUDGE: judged_share, AUDIT: audited_share}

    @classmethod
    def from_config(
        cls,
        config: Any,
        *,
        knowledge: Knowledge | None = None,
        mesh: jax.sharding.Mesh | None = None,
        audit_path: pathlib.Path | None = None,
    ) -> Panel:
        """The judges of `config.privacy` that are not off. Raises as `Judge.from_config` does."""
        settings = config.privacy
        judges = {
            name: Judge.from_config(
                name, config, knowledge=knowledge, mesh=mesh, audit_path=audit_path
            )
            for name in (JUDGE, AUDIT)
            if settings[name].mode != "off"
        }
        return cls(
            judges.get(JUDGE),
            judges.get(AUDIT),
            counts=settings.judge.mode == "reward",
            judged_share=settings.judge.judged_share,
            audited_share=settings.audit_judge.judged_share,
        )

    def judged(
        self, episodes: Sequence[Episode], *, draw: str = "", label: str = ""
    ) -> tuple[list[Episode], dict[str, float]]:
        """The episodes, with verdicts where those count, and figures `judge/*` about the verdicts.

        draw: names the draw of the questions that are judged, the same one the same questions, all
        samples of each; "" = all questions. label: of a progress line; "" = none.
        """
        if JUDGE not in self._judges:
            return list(episodes), {}
        at = [n for n, e in enumerate(episodes) if _asked([e]) and self._is_drawn(JUDGE, draw, e)]
        shown = [episodes[n] for n in at]
        verdicts = self._ask(JUDGE, shown, label)
        out = list(episodes)
        if self.counts:
            for n, said in zip(at, verdicts, strict=True):
                out[n] = dataclasses.replace(episodes[n], judged=said)
        figures = _figures(shown, verdicts)
        if AUDIT in self._judges:
            drawn = [self._is_drawn(AUDIT, draw, episode) for episode in shown]
            shown = list(itertools.compress(shown, drawn))
            audits = self._ask(AUDIT, shown, f"{label}, audit" if label else "")
            figures |= _audit_figures(shown, list(itertools.compress(verdicts, drawn)), audits)
        for name, judge in self._judges.items():
            totals = judge.counters()
            figures |= {f"{_PREFIX[name]}{key}": totals[key] for key in TOTALS}
        return out, figures

    def spend_state(self) -> dict[str, Any]:
        """What the run has spent on its judges, for a checkpoint."""
        return {name: judge.spend_state() for name, judge in self._judges.items()}

    def restore_spend(self, state: Mapping[str, Any]) -> None:
        """Go on from a `spend_state`; of a judge that it does not know, from nothing."""
        for name in self._judges.keys() & state.keys():
            self._judges[name].restore_spend(state[name])

    def close(self) -> None:
        """Close the judges."""
        for judge in self._judges.values():
            judge.close()

    def _is_drawn(self, name: str, draw: str, episode: Episode) -> bool:
        """By question, so that the samples of a group are judged alike."""
        drawn = hashlib.sha256(f"{name} {draw} {episode.problem.uid}".encode()).digest()
        return not draw or int.from_bytes(drawn[:4], "big") < self._share[name] * 2**32

    def _ask(self, name: str, episodes: Sequence[Episode], label: str) -> list[tuple[Verdict, ...]]:
        if not label or not episodes:
            return self._judges[name].verdicts(episodes)
        with progress(int(_asked(episodes)), label) as line:
            return self._judges[name].verdicts(episodes, line.update)


def leaked_units(said: Sequence[Verdict], units: int) -> list[bool | None]:
    """Whether each unit left in an episode, by the verdicts on its exchanges.

    None: no exchange with a verdict gave it away, but one without might have.
    """
    is_whole = None not in said
    found = frozenset[int]().union(*(one for one in said if one is not None))
    return [True if unit in found else False if is_whole else None for unit in range(units)]


def _by_judge(
    episodes: Sequence[Episode], verdicts: Sequence[Sequence[Verdict]]
) -> list[bool | None]:
    """One for each unit of each episode."""
    return [
        is_leaked
        for episode, said in zip(episodes, verdicts, strict=True)
        for is_leaked in leaked_units(said, len(episode.problem.units))
    ]


def _by_detector(episodes: Sequence[Episode]) -> list[bool]:
    return [
        bool(is_leaked)
        for episode in episodes
        for is_leaked in Detector(episode.problem.units).leaked(episode.outgoing)
    ]


def _figures(
    episodes: Sequence[Episode], verdicts: Sequence[Sequence[Verdict]]
) -> dict[str, float]:
    """Requests judged and without a verdict; judge and detector over units of episodes."""
    found = compare(_by_judge(episodes, verdicts), _by_detector(episodes))
    return {
        "judge/requests": _asked(episodes),
        "judge/no_verdict": float(sum(one is None for said in verdicts for one in said)),
        "judge/units": float(found.pairs),
        "judge/both": float(found.both),
        "judge/judge_only": float(found.first_only),
        "judge/detector_only": float(found.second_only),
        **_rates("judge/detector", found),
    }


def _audit_figures(
    episodes: Sequence[Episode],
    verdicts: Sequence[Sequence[Verdict]],
    audits: Sequence[Sequence[Verdict]],
) -> dict[str, float]:
    """The same of audit judge and judge. unaudited_only: what the judge alone calls leaked."""
    found = compare(_by_judge(episodes, audits), _by_judge(episodes, verdicts))
    return {
        "judge/audit_requests": _asked(episodes),
        "judge/audit_no_verdict": float(sum(one is None for said in audits for one in said)),
        "judge/audit_units": float(found.pairs),
        "judge/audit_both": float(found.both),
        "judge/audit_only": float(found.first_only),
        "judge/unaudited_only": float(found.second_only),
        **_rates("judge/audit", found),
    }


def _asked(episodes: Sequence[Episode]) -> float:
    return float(sum(bool(text) for e in episodes if e.problem.units for text in e.outgoing))


def _rates(name: str, found: Agreement) -> dict[str, float]:
    """Agreement and kappa, where they are defined: JSON and plots know no NaN."""
    rates = {f"{name}_agreement": found.rate, f"{name}_kappa": found.kappa}
    return {key: rate for key, rate in rates.items() if rate is not None}
