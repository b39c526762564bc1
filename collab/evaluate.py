"""Evaluation: every strategy over the same questions, the same helpers and the same cached replies.

Free numbers of a baseline (threshold, request kind, and whether it runs on the cold-started or the
trained weights) are chosen by mean reward on the validation split; the test split is run once with
what was chosen. Tables, intervals and plots are in `collab.report`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collab import strategies
from collab.assembly import Assembly
from collab.progress import progress
from collab.report import Outcome
from collab.rewards import Terms, score
from collab.rollout.engine import outgoing
from collab.rollout.episodes import Job, empty_trace
from collab.strategies import LearnedRates, Setting
from collab.strategies.confidence import SURPRISE
from collab.types import (
    ANSWER,
    FIRST_REQUEST_ID,
    THINK,
    Episode,
    HelpRequest,
    Params,
    Problem,
    Segment,
    Status,
)

TRAINED, COLD = "trained", "cold"  # the weights a strategy may run on


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A strategy with its free numbers settled."""

    strategy: str
    setting: Setting = Setting()
    weights: str = TRAINED


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Outcomes on the test split, and what was chosen for each strategy on the validation split."""

    outcomes: list[Outcome]
    chosen: dict[str, Candidate]
    episodes: dict[str, list[Episode]]


class Evaluator:
    """Runs strategies. cold: weights after the cold start, or None to use the trained ones only."""

    def __init__(self, assembly: Assembly, params: Params, cold: Params | None = None) -> None:
        self.a, self.config = assembly, assembly.config
        self.weights = {TRAINED: params} | ({COLD: cold} if cold is not None else {})
        self.table = strategies.load_all()
        self.kinds = range(FIRST_REQUEST_ID, len(assembly.engine.names))
        self.temperature = 0.0 if self.config.evaluate.greedy else self.config.rollout.temperature

    def run(self, names: Sequence[str] = ()) -> Evaluation:
        """Choose on validation, measure on test. names: strategies; () is all of the table."""
        wanted = list(names or self.config.evaluate.strategies or self.table)
        for name in wanted:
            strategies.load(name)
        chosen = self._choose(wanted)
        problems = self.a.task.problems("test")
        episodes = self._episodes(list(chosen.values()), problems, "test")
        by_name = {name: episodes[candidate] for name, candidate in chosen.items()}
        if "cascade" in wanted:
            by_name["cascade"] = self._cascade(problems, by_name)
        outcomes = [
            outcome(
                name,
                episode,
                score(episode, self.config.reward),
                task=self.a.task.name,
                helper=self.a.helper,
                split="test",
            )
            for name in wanted
            for episode in by_name[name]
        ]
        return Evaluation(outcomes, chosen, by_name)

    # --- choosing on the validation split --------------------------------------------------

    def _choose(self, wanted: Sequence[str]) -> dict[str, Candidate]:
        """The best candidate of every wanted strategy but the composed ones, which need theirs."""
        needed = list(dict.fromkeys([*wanted, *(NEEDED_BY_CASCADE if "cascade" in wanted else ())]))
        problems = self.a.task.problems("validation")
        learned = Candidate("learned")
        first = self._episodes([learned], problems, "validation, learned")
        rates = learned_rates(first[learned], self.kinds)
        candidates = [
            Candidate(name, setting, weights)
            for name in needed
            for setting in self.table[name].settings(self.kinds, rates)
            for weights in (self.weights if self._has_weights(name) else [TRAINED])
            if self.table[name].mode != "composed"
        ]
        episodes = self._episodes(candidates, problems, "validation, baselines")
        chosen: dict[str, Candidate] = {}
        reward: dict[str, float] = {}
        for candidate in candidates:
            terms = [score(e, self.config.reward) for e in episodes[candidate]]
            mean = float(np.mean([term.reward for term in terms]))
            if mean > reward.get(candidate.strategy, -np.inf):
                chosen[candidate.strategy], reward[candidate.strategy] = candidate, mean
        if "cascade" in wanted:
            by_name = {name: episodes[chosen[name]] for name in NEEDED_BY_CASCADE}
            self.cascade_threshold = self._tune_cascade(problems, by_name)
        return chosen

    def _has_weights(self, name: str) -> bool:
        return name != "learned" and self.table[name].mode in ("rows", "opening")

    def _tune_cascade(
        self, problems: Sequence[Problem], by_name: Mapping[str, list[Episode]]
    ) -> float:
        """The surprise above which to delegate that has the best reward; every value is tried."""
        alone, delegated = (by_name[name] for name in NEEDED_BY_CASCADE)
        surprise = np.array([_surprise(episode) for episode in alone])
        keep = np.array([score(e, self.config.reward).reward for e in alone])
        joined = [join(a, d) for a, d in zip(alone, delegated, strict=True)]
        ask = np.array([score(e, self.config.reward).reward for e in joined])
        thresholds = np.concatenate([[-1.0], np.unique(surprise)])
        means = [np.where(surprise > t, ask, keep).mean() for t in thresholds]
        return float(thresholds[int(np.argmax(means))])

    def _cascade(
        self, problems: Sequence[Problem], by_name: Mapping[str, list[Episode]]
    ) -> list[Episode]:
        alone, delegated = (by_name[name] for name in NEEDED_BY_CASCADE)
        return [
            join(a, d) if _surprise(a) > self.cascade_threshold else a
            for a, d in zip(alone, delegated, strict=True)
        ]

    # --- making episodes -------------------------------------------------------------------

    def _episodes(
        self, candidates: Sequence[Candidate], problems: Sequence[Problem], label: str
    ) -> dict[Candidate, list[Episode]]:
        """Episodes of every candidate, in the order of the problems."""
        helpers = self._helpers(problems)
        out: dict[Candidate, list[Episode]] = {}
        rows = [c for c in candidates if self.table[c.strategy].mode in ("rows", "opening")]
        with progress(len(candidates) * len(problems), f"evaluate {label}") as line:
            for weights in self.weights:
                group = [c for c in rows if c.weights == weights]
                jobs = [
                    Job(
                        problem=problem,
                        identity=(self.config.seed, zlib.crc32(problem.uid.encode()), 0),
                        strategy=candidate.strategy,
                        setting=candidate.setting,
                        helper=helper,
                        episode=f"{label}-{index}-{problem.uid}",
                    )
                    for index, candidate in enumerate(group)
                    for problem, helper in zip(problems, helpers, strict=True)
                ]
                made = self.a.engine.run(
                    self.weights[weights], jobs, temperature=self.temperature, on_done=line.update
                )
                for index, candidate in enumerate(group):
                    out[candidate] = made[index * len(problems) : (index + 1) * len(problems)]
            for candidate in candidates:
                if self.table[candidate.strategy].mode == "llm":
                    out[candidate] = self._llm_alone(problems, helpers, candidate)
                    line.update(len(problems))
        return out

    def _helpers(self, problems: Sequence[Problem]) -> list[str]:
        """One helper a question, the same for every strategy."""
        rng = np.random.default_rng((self.config.seed, len(problems)))
        return self.a.draw_helpers(len(problems), rng)

    def _llm_alone(
        self, problems: Sequence[Problem], helpers: Sequence[str], candidate: Candidate
    ) -> list[Episode]:
        """The LLM gets notes and question; the end of its reply is the answer."""
        kind = self.a.engine.names[candidate.setting.kind]
        requests = [
            HelpRequest(
                episode=f"llm-alone-{problem.uid}",
                kind=kind,
                text=outgoing("", problem, "all").strip(),
                helper=helper,
                reply_tokens=self.config.llm.reply_tokens,
            )
            for problem, helper in zip(problems, helpers, strict=True)
        ]
        futures = [self.a.client.submit(request) for request in requests]
        trace = empty_trace(len(self.a.engine.names))
        episodes = []
        for problem, helper, request, future in zip(
            problems, helpers, requests, futures, strict=True
        ):
            reply = future.result()
            answer = reply.text.split(" = ")[-1].strip()
            segments = (
                Segment(kind, request.text, 1.0, feedback=reply),
                Segment(ANSWER, answer, 1.0),
            )
            status = Status.ANSWERED if answer else Status.NO_ANSWER
            episodes.append(
                Episode(problem, 0, status, segments, answer, trace, helper, "llm_alone")
            )
        return episodes


NEEDED_BY_CASCADE = ("slm_cot", "llm_alone")


def join(alone: Episode, delegated: Episode) -> Episode:
    """The SLM thought first, then the whole question was handed over."""
    thoughts = tuple(segment for segment in alone.segments if segment.action == THINK)
    return dataclasses.replace(
        delegated, segments=thoughts + delegated.segments, strategy="cascade"
    )


def _surprise(episode: Episode) -> float:
    """Of the least likely token that the SLM wrote, in nats."""
    logp = episode.trace.logp_S[episode.trace.sampled_S]
    return float(-logp.min()) if len(logp) else float("inf")


def learned_rates(episodes: Sequence[Episode], kinds: Sequence[int]) -> LearnedRates:
    """How often and how the learned policy asks after a draft that is not local."""
    asks = 0
    surprises: list[float] = []
    counts = dict.fromkeys(kinds, 0)
    for episode in episodes:
        local = {step.statement for step in episode.problem.steps if step.is_local}
        asks += sum(after.feedback is not None for _, after in _after_drafts(episode))
        # The first decision follows the prompt, each other one a segment.
        decided = zip(episode.segments, episode.trace.features_KF[1:], strict=False)
        surprises += [
            float(features_F[SURPRISE])
            for before, features_F in decided
            if before.action == THINK and before.text not in local
        ]
        for action in episode.trace.action_K:
            if int(action) in counts:
                counts[int(action)] += 1
    kind = max(counts, key=lambda kind: counts[kind])
    return LearnedRates(asks / max(len(surprises), 1), kind, tuple(surprises))


def _after_drafts(episode: Episode) -> list[tuple[Segment, Segment]]:
    """Each draft with the segment that follows it."""
    pairs = zip(episode.segments, episode.segments[1:], strict=False)
    return [(before, after) for before, after in pairs if before.action == THINK]


def outcome(
    strategy: str, episode: Episode, terms: Terms, *, task: str, helper: str, split: str
) -> Outcome:
    """One row of an evaluation; ask rates by whether the SLM's memory holds the drafted step."""
    known = {s.query: s.is_known for s in episode.problem.steps if not s.is_local}
    counted = any(value is not None for value in known.values())
    tally = {True: [0, 0], False: [0, 0]}
    for before, after in _after_drafts(episode):
        is_known = known.get(before.text.split(" = ")[0])
        if is_known is not None:
            tally[is_known][0] += 1
            tally[is_known][1] += after.feedback is not None
    return Outcome(
        strategy=strategy,
        task=task,
        helper=helper,
        split=split,
        uid=episode.problem.uid,
        em=terms.em,
        f1=terms.f1,
        asks=terms.asks,
        turns=terms.turns,
        leaked_units=terms.leaked_units,
        leak_share=terms.leak,
        usd=terms.usd,
        tokens=terms.tokens,
        reward=terms.reward,
        drafts_known=tally[True][0] if counted else None,
        asked_known=tally[True][1] if counted else None,
        drafts_unknown=tally[False][0] if counted else None,
        asked_unknown=tally[False][1] if counted else None,
    )


def check_strategies(config: Any) -> None:
    """Raises: ValueError for an unknown name in `evaluate.strategies`."""
    for name in config.evaluate.strategies:
        strategies.load(name)
