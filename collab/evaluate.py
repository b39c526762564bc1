"""Evaluation: every strategy over the same questions, the same helpers and the same cached replies.

Free numbers of a baseline (threshold, request kind, and whether it runs on the cold-started or the
trained weights) are chosen by mean reward on the validation split; the test split is run once with
what was chosen. Tables, intervals and plots are in `collab.report`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from collab import strategies
from collab.assembly import Assembly
from collab.outcomes import outcome
from collab.privacy.gate import restored
from collab.progress import progress
from collab.report import Outcome
from collab.rewards import score
from collab.rollout.episodes import Job, empty_trace, outgoing
from collab.strategies import LearnedRates, Setting, ThresholdStrategy
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
    """Outcomes on the test split, and what was chosen for each strategy on the validation split.

    judge: figures about the verdicts of the judges on it, none where no judge was asked.
    """

    outcomes: list[Outcome]
    chosen: dict[str, Candidate]
    episodes: dict[str, list[Episode]]
    judge: dict[str, float]


class Evaluator:
    """Runs strategies. cold: weights after the cold start, or None to use the trained ones only.

    ask_bias: the learned policy's threshold (`strategies.learned`).
    """

    def __init__(
        self,
        assembly: Assembly,
        params: Params,
        cold: Params | None = None,
        *,
        ask_bias: float = 0.0,
    ) -> None:
        self.a, self.config, self.ask_bias = assembly, assembly.config, ask_bias
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
        made = [name for name in chosen if self.table[name].mode != "composed"]
        episodes, judge = self._judged(
            self._episodes([chosen[name] for name in made], problems, "test"), "test"
        )
        by_name = {name: episodes[chosen[name]] for name in made}
        if "cascade" in chosen:
            by_name["cascade"] = _cascade(by_name, chosen["cascade"].setting.threshold)
        outcomes = [
            self._outcome(name, episode, "test") for name in wanted for episode in by_name[name]
        ]
        return Evaluation(outcomes, chosen, by_name, judge)

    def _judged(
        self, episodes: Mapping[Candidate, list[Episode]], label: str
    ) -> tuple[dict[Candidate, list[Episode]], dict[str, float]]:
        """Episodes with the judge's verdicts where they count, and figures about those."""
        flat = [episode for group in episodes.values() for episode in group]
        found, figures = self.a.panel.judged(flat, label=f"judge {label}")
        each = iter(found)
        return {name: [next(each) for _ in group] for name, group in episodes.items()}, figures

    def sweep(self, biases: Sequence[float], split: str) -> dict[float, list[Outcome]]:
        """Outcomes of the learned policy on a split under each ask bias, in one batch."""
        candidates = {bias: Candidate("learned", Setting(threshold=bias)) for bias in biases}
        problems, label = self.a.task.problems(split), f"{split}, ask bias"
        made = self._episodes(list(candidates.values()), problems, label)
        if self.a.panel.counts:
            made, _ = self._judged(made, label)
        return {
            bias: [self._outcome("learned", episode, split) for episode in made[candidate]]
            for bias, candidate in candidates.items()
        }

    def _outcome(self, name: str, episode: Episode, split: str) -> Outcome:
        terms = score(episode, self.config.reward)
        task, helper = self.a.task.name, self.a.helper
        return outcome(name, episode, terms, task=task, helper=helper, split=split)

    # --- choosing on the validation split --------------------------------------------------

    def _choose(self, wanted: Sequence[str]) -> dict[str, Candidate]:
        """The best candidate of every wanted strategy, and of those that a cascade joins."""
        needed = list(dict.fromkeys([*wanted, *(NEEDED_BY_CASCADE if "cascade" in wanted else ())]))
        problems = self.a.task.problems("validation")
        setting = Setting(threshold=self.ask_bias)
        learned = {weights: Candidate("learned", setting, weights) for weights in self.weights}
        first = self._episodes(list(learned.values()), problems, "validation, learned")
        rates = {
            weights: dataclasses.replace(
                learned_rates(first[learned[TRAINED]], first[candidate], self.kinds),
                ask_bias=self.ask_bias,
            )
            for weights, candidate in learned.items()
        }
        candidates = [
            Candidate(name, setting, weights)
            for name in needed
            for weights in (self.weights if self._has_weights(name) else [TRAINED])
            for setting in self.table[name].settings(self.kinds, rates[weights])
            if self.table[name].mode != "composed"
        ]
        episodes = self._episodes(candidates, problems, "validation, baselines")
        if self.a.panel.counts:
            episodes, _ = self._judged(episodes, "validation")
        chosen: dict[str, Candidate] = {}
        reward: dict[str, float] = {}
        for candidate in candidates:
            terms = [score(e, self.config.reward) for e in episodes[candidate]]
            mean = float(np.mean([term.reward for term in terms]))
            if mean > reward.get(candidate.strategy, -np.inf):
                chosen[candidate.strategy], reward[candidate.strategy] = candidate, mean
        if "cascade" in wanted:
            by_name = {name: episodes[chosen[name]] for name in NEEDED_BY_CASCADE}
            threshold = self._tune_cascade(by_name)
            chosen["cascade"] = Candidate("cascade", Setting(threshold=threshold))
        return chosen

    def _has_weights(self, name: str) -> bool:
        return name != "learned" and self.table[name].mode in ("rows", "opening")

    def _tune_cascade(self, by_name: Mapping[str, list[Episode]]) -> float:
        """The surprise above which to delegate that has the best reward; every value is tried."""
        alone, delegated = (by_name[name] for name in NEEDED_BY_CASCADE)
        surprise = np.array([_surprise(episode) for episode in alone])
        keep = np.array([score(e, self.config.reward).reward for e in alone])
        joined = [join(a, d) for a, d in zip(alone, delegated, strict=True)]
        ask = np.array([score(e, self.config.reward).reward for e in joined])
        thresholds = np.concatenate([[-1.0], np.unique(surprise)])
        means = [np.where(surprise > t, ask, keep).mean() for t in thresholds]
        return float(thresholds[int(np.argmax(means))])

    # --- making episodes -------------------------------------------------------------------

    def _episodes(
        self, candidates: Sequence[Candidate], problems: Sequence[Problem], label: str
    ) -> dict[Candidate, list[Episode]]:
        """Episodes of every candidate, in the order of the problems."""
        helpers = self.helpers(problems)
        out: dict[Candidate, list[Episode]] = {}
        rows = [c for c in candidates if self.table[c.strategy].mode in ("rows", "opening")]
        with progress(len(candidates) * len(problems), f"evaluate {label}") as line:
            for weights in self.weights:
                group = [c for c in rows if c.weights == weights]
                out |= self._rolled_out(group, problems, helpers, label, line.update)
            for candidate in candidates:
                if self.table[candidate.strategy].mode == "llm":
                    out[candidate] = self._llm_alone(problems, helpers, candidate, line.update)
        return out

    def _rolled_out(
        self,
        group: Sequence[Candidate],
        problems: Sequence[Problem],
        helpers: Sequence[tuple[str, ...]],
        label: str,
        on_done: Callable[[int], None],
    ) -> dict[Candidate, list[Episode]]:
        """Episodes of candidates that share their weights; what many thresholds lead to, once."""
        found: dict[tuple[Candidate, int], Episode] = {}
        waiting = {(candidate, p): None for candidate in group for p in range(len(problems))}
        while waiting:
            now = self._unlike(waiting)
            jobs = [
                Job(
                    problem=problems[p],
                    identity=(self.config.seed, zlib.crc32(problems[p].uid.encode()), 0),
                    strategy=candidate.strategy,
                    setting=candidate.setting,
                    helpers=helpers[p],
                    episode=f"{label}-{group.index(candidate)}-{problems[p].uid}",
                )
                for candidate, p in now
            ]
            made = self.a.engine.run(
                self.weights[group[0].weights], jobs, temperature=self.temperature, on_done=on_done
            )
            for (candidate, p), episode in zip(now, made, strict=True):
                alike = [
                    one for one in self._alike(candidate, episode, group) if (one, p) in waiting
                ]
                for one in alike:
                    del waiting[one, p]
                    found[one, p] = episode
                on_done(len(alike) - 1)
        return {c: [found[c, p] for p in range(len(problems))] for c in group}

    def _unlike(self, waiting: Iterable[tuple[Candidate, int]]) -> list[tuple[Candidate, int]]:
        """Of those that differ in a threshold alone the one in the middle; all others."""
        places: dict[Any, list[tuple[Candidate, int]]] = {}
        for candidate, p in waiting:
            has_reach = isinstance(self.table[candidate.strategy], ThresholdStrategy)
            one = _family(candidate) if has_reach else candidate
            places.setdefault((one, p), []).append((candidate, p))
        return [place[len(place) // 2] for place in places.values()]

    def _alike(
        self, candidate: Candidate, episode: Episode, group: Sequence[Candidate]
    ) -> list[Candidate]:
        """The candidates that lead to the episode of this one, itself first."""
        rule = self.table[candidate.strategy]
        if not isinstance(rule, ThresholdStrategy):
            return [candidate]
        low, high = rule.reach(candidate.setting.threshold, episode.trace.features_KF)
        return [candidate] + [
            one
            for one in group
            if one != candidate
            and _family(one) == _family(candidate)
            and low <= np.float32(one.setting.threshold) < high
        ]

    def helpers(self, problems: Sequence[Problem]) -> list[tuple[str, ...]]:
        """The helpers of each question, the same for every strategy."""
        rng = np.random.default_rng((self.config.seed, len(problems)))
        return self.a.pool.draw(len(problems), rng)

    def _llm_alone(
        self,
        problems: Sequence[Problem],
        helpers: Sequence[tuple[str, ...]],
        candidate: Candidate,
        on_done: Callable[[int], None],
    ) -> list[Episode]:
        """The LLM gets notes and question; the end of its reply is the answer."""
        kind = self.a.engine.names[candidate.setting.kind]
        requests = [
            HelpRequest(
                episode=f"llm-alone-{problem.uid}",
                kind=kind,
                text=outgoing("", problem, "all").strip(),
                helper=drawn[0],
                reply_tokens=self.config.llm.reply_tokens,
            )
            for problem, drawn in zip(problems, helpers, strict=True)
        ]
        screened = [
            self.a.gate.screen(request, problem.units)
            for request, problem in zip(requests, problems, strict=True)
        ]
        futures = [self.a.client.submit(each) for each in screened]
        trace = empty_trace(self.a.engine.limits.actions, self.a.engine.limits.features)
        episodes = []
        for problem, drawn, left, future in zip(problems, helpers, screened, futures, strict=True):
            reply = future.result()
            reply = dataclasses.replace(reply, text=restored(reply.text, left.placeholders))
            on_done(1)
            answer = reply.text.split(" = ")[-1].strip()
            segments = (
                Segment(kind, left.sent, 1.0, feedback=reply),
                Segment(ANSWER, answer, 1.0),
            )
            status = Status.ANSWERED if answer else Status.NO_ANSWER
            episodes.append(
                Episode(problem, 0, status, segments, answer, trace, drawn[0], "llm_alone")
            )
        return episodes


def _family(candidate: Candidate) -> tuple[str, str, int]:
    """What those have in common that differ in a threshold alone."""
    return candidate.strategy, candidate.weights, candidate.setting.kind


NEEDED_BY_CASCADE = ("slm_cot", "llm_alone")


def _cascade(by_name: Mapping[str, list[Episode]], threshold: float) -> list[Episode]:
    alone, delegated = (by_name[name] for name in NEEDED_BY_CASCADE)
    return [
        join(a, d) if _surprise(a) > threshold else a for a, d in zip(alone, delegated, strict=True)
    ]


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


def learned_rates(
    trained: Sequence[Episode], drafting: Sequence[Episode], kinds: Sequence[int]
) -> LearnedRates:
    """How often and how the learned policy asks, and how sure drafts are.

    trained: its episodes. drafting: those under the weights that a rule will run on.
    """
    is_asked = [is_asked for episode in trained for _, is_asked in episode.drafts]
    action_N = np.concatenate([episode.trace.action_K for episode in trained])
    kind = max(kinds, key=lambda kind: int((action_N == kind).sum()))
    surprises: list[float] = []
    for episode in drafting:
        drafts = [draft for draft, _ in episode.drafts]
        # The first decision follows the prompt, each other one a segment.
        decided = zip(episode.segments, episode.trace.features_KF[1:], strict=False)
        surprises += [
            float(features_F[SURPRISE])
            for before, features_F in decided
            if any(before is draft for draft in drafts)
        ]
    return LearnedRates(sum(is_asked) / max(len(is_asked), 1), kind, tuple(surprises))


def check_strategies(config: Any) -> None:
    """Raises: ValueError for an unknown name in `evaluate.strategies`."""
    for name in config.evaluate.strategies:
        strategies.load(name)
