"""Evaluation: every strategy meets the same questions, helpers and replies; the test split once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

import runs
from collab import report
from collab.assembly import assemble
from collab.evaluate import (
    COLD,
    TRAINED,
    Candidate,
    Evaluation,
    Evaluator,
    _cascade,
    check_strategies,
    join,
    learned_rates,
)
from collab.privacy.panel import Panel
from collab.report import METRICS
from collab.rollout.episodes import Job
from collab.strategies import STRATEGIES, Setting
from collab.types import Episode, Step
from compiling import compiled_once
from episodes import answer, ask, half_asked, make_episode, make_problem, think

COMPOSED = {"cascade"}
WITHOUT_SLM = {"llm_alone", "cascade"}


@pytest.fixture(scope="module", autouse=True)
def quick(compiled: Path) -> Iterator[None]:
    with compiled_once(compiled, is_optimised=True):
        yield


def small_config() -> ml_collections.ConfigDict:
    config = runs.small_config()
    config.task.validation = config.task.test = 6
    return config


@dataclasses.dataclass
class Watch:
    """What an evaluation asked its parts for, in order."""

    splits: list[str] = dataclasses.field(default_factory=list)
    jobs: list[tuple[Any, Job]] = dataclasses.field(default_factory=list)  # with the parameters


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluator, Evaluation, Watch]:
    """Random weights with a lively head, and another set as those of the cold start."""
    assembly, watch = assemble(small_config(), str(tmp_path_factory.mktemp("evaluate"))), Watch()
    params = assembly.initial_params()
    keys = iter(jax.random.split(jax.random.key(4), 8))
    for head in ("action_head", "feature_head"):
        params[head] = jax.tree.map(
            lambda leaf: jax.random.normal(next(keys), leaf.shape), params[head]
        )
    evaluator = Evaluator(assembly, params, jax.tree.map(lambda leaf: 0.5 * leaf, params))
    problems, run = assembly.task.problems, assembly.engine.run

    def spied_problems(split: str) -> Any:
        watch.splits.append(split)
        return problems(split)

    def spied_run(weights: Any, jobs: Sequence[Job], **kwargs: Any) -> list[Episode]:
        watch.jobs += [(weights, job) for job in jobs]
        return run(weights, jobs, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(assembly.task, "problems", spied_problems)
        monkeypatch.setattr(assembly.engine, "run", spied_run)
        evaluation = evaluator.run()
    return evaluator, evaluation, watch


def uids(evaluator: Evaluator, split: str) -> list[str]:
    return [problem.uid for problem in evaluator.a.task.problems(split)]


def test_every_strategy_has_a_row_with_every_key(
    watched: tuple[Evaluator, Evaluation, Watch], tmp_path: Path
) -> None:
    evaluator, evaluation, _ = watched
    config = evaluator.config
    rows = report.summarise(evaluation.outcomes, resamples=config.evaluate.bootstrap, seed=0)
    assert [row["strategy"] for row in rows] == list(STRATEGIES)
    assert METRICS == (
        "em", "f1", "asks", "turns", "tokens", "leaked_units", "leak", "usd", "reward",
    )  # fmt: skip
    documented = {"strategy", "task", "helper", "split", "episodes", *METRICS}
    documented |= {f"{name}_ci" for name in METRICS} | {"ask_rate_known", "ask_rate_unknown"}
    for row in rows:
        assert documented <= row.keys()
        assert (row["task"], row["split"], row["episodes"]) == ("world", "test", config.task.test)
        assert row["em_ci"][0] <= row["em"] <= row["em_ci"][1]
    by_name = {row["strategy"]: row for row in rows}
    assert by_name["slm_cot"]["asks"] == 0.0
    assert by_name["llm_alone"]["asks"] == 1.0
    assert by_name["llm_alone"]["leaked_units"] > 0.0  # it is told the notes
    assert by_name["ask_every_hop"]["asks"] > 0.0


def test_the_test_split_is_run_once_with_what_was_chosen(
    watched: tuple[Evaluator, Evaluation, Watch],
) -> None:
    evaluator, evaluation, watch = watched
    assert watch.splits == ["validation", "test"]
    test, validation = set(uids(evaluator, "test")), set(uids(evaluator, "validation"))
    assert not test & validation
    where = [job.problem.uid in test for _, job in watch.jobs]
    assert where == sorted(where)  # all of validation before any of test
    run_on_test = [
        (Candidate(job.strategy, job.setting, name), job.problem.uid)
        for weights, job in watch.jobs
        for name in (TRAINED, COLD)
        if weights is evaluator.weights[name] and job.problem.uid in test
    ]
    chosen = {c for c in evaluation.chosen.values() if c.strategy not in WITHOUT_SLM}
    assert {candidate for candidate, _ in run_on_test} == chosen
    assert len(run_on_test) == len(set(run_on_test)) == len(chosen) * len(test)
    assert evaluation.chosen.keys() == STRATEGIES.keys()


def test_candidates_are_tried_on_validation_with_both_weights(
    watched: tuple[Evaluator, Evaluation, Watch],
) -> None:
    """The learned policy runs on the cold start's only to tell how sure its drafts are."""
    evaluator, evaluation, watch = watched
    validation = set(uids(evaluator, "validation"))
    tried: dict[tuple[str, str], set[Any]] = {}
    for weights, job in watch.jobs:
        name = TRAINED if weights is evaluator.weights[TRAINED] else COLD
        if job.problem.uid in validation:
            tried.setdefault((job.strategy, name), set()).add(job.setting)
    assert evaluation.chosen["learned"] == Candidate("learned")
    assert tried["best_constant", COLD] == tried["best_constant", TRAINED]
    assert len(tried["best_constant", TRAINED]) == 1 + len(evaluator.kinds)
    assert len(tried["step_cascade", TRAINED]) > 3
    assert tried["step_cascade", COLD] != tried["step_cascade", TRAINED]  # each over its own grid


def test_thresholds_that_lead_to_one_episode_share_it(
    watched: tuple[Evaluator, Evaluation, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the episodes that it has when it is run alone, and most are not run."""
    evaluator = watched[0]
    problems, run = evaluator.a.task.problems("validation"), evaluator.a.engine.run
    made: list[Job] = []

    def spied(weights: Any, jobs: Sequence[Job], **kwargs: Any) -> list[Episode]:
        made.extend(jobs)
        return run(weights, jobs, **kwargs)

    monkeypatch.setattr(evaluator.a.engine, "run", spied)
    candidates = [
        Candidate("step_cascade", Setting(kind, threshold))
        for kind in evaluator.kinds
        for threshold in (-1.0, 0.0, 2.0, 4.0, 6.0, 8.0)
    ]
    together = evaluator._episodes(candidates, problems, "together")
    assert len(made) < 0.8 * len(candidates) * len(problems)
    tokens = set()
    for candidate in candidates:
        alone = evaluator._episodes([candidate], problems, "alone")[candidate]
        for one, other in zip(together[candidate], alone, strict=True):
            np.testing.assert_array_equal(one.trace.tokens_S, other.trace.tokens_S)
            assert [s.action for s in one.segments] == [s.action for s in other.segments]
            tokens.add((one.problem.uid, one.trace.tokens_S.tobytes()))
    assert len(tokens) > 2 * len(problems)  # thresholds do make a difference here


def test_the_best_candidate_on_validation_is_chosen(
    watched: tuple[Evaluator, Evaluation, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the test split would have preferred: here each split prefers another setting."""
    evaluator = watched[0]
    test = set(uids(evaluator, "test"))
    wanted = {"validation": 1.0, "test": 0.0}  # best_constant: thresholds above 0 never ask

    def made(
        candidates: Sequence[Candidate], problems: Sequence[Any], label: str
    ) -> dict[Candidate, list[Episode]]:
        split = "test" if problems[0].uid in test else "validation"
        return {
            candidate: [
                make_episode(
                    answer("right" if candidate.setting.threshold == wanted[split] else "wrong"),
                    problem=dataclasses.replace(problem, answers=("right",)),
                )
                for problem in problems
            ]
            for candidate in candidates
        }

    monkeypatch.setattr(evaluator, "_episodes", made)
    evaluation = evaluator.run(["best_constant"])
    assert evaluation.chosen["best_constant"].setting.threshold == 1.0
    assert {outcome.em for outcome in evaluation.outcomes} == {0.0}


def test_every_strategy_meets_the_same_questions_and_helpers(
    watched: tuple[Evaluator, Evaluation, Watch],
) -> None:
    evaluator, evaluation, _ = watched
    met = {
        name: [(episode.problem.uid, episode.helper) for episode in episodes]
        for name, episodes in evaluation.episodes.items()
    }
    assert [uid for uid, _ in met["learned"]] == uids(evaluator, "test")
    assert len({helper for _, helper in met["learned"]}) > 1
    assert all(pairs == met["learned"] for pairs in met.values())
    identities = {}
    for _, job in watched[2].jobs:
        identities.setdefault(job.problem.uid, set()).add(job.identity)
    assert all(len(found) == 1 for found in identities.values())  # and the same random numbers


def test_the_learned_policy_alone_runs_under_the_ask_bias(
    watched: tuple[Evaluator, Evaluation, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both splits; rules that are tuned to it see what it does under the bias."""
    first, evaluation, _ = watched
    evaluator = Evaluator(first.a, first.weights[TRAINED], first.weights[COLD], ask_bias=-32.0)
    jobs: list[Job] = []
    run, programs = first.a.engine.run, first.a.engine.programs()

    def spied(weights: Any, made: Sequence[Job], **kwargs: Any) -> list[Episode]:
        jobs.extend(made)
        return run(weights, made, **kwargs)

    monkeypatch.setattr(first.a.engine, "run", spied)
    found = evaluator.run(["learned", "random_rate"])
    assert {job.setting.threshold for job in jobs if job.strategy == "learned"} == {-32.0}
    asks = dict.fromkeys(("learned", "random_rate"), 0.0)
    for row in found.outcomes:
        asks[row.strategy] += row.asks
    assert asks == {"learned": 0.0, "random_rate": 0.0}
    assert sum(row.asks for row in evaluation.outcomes if row.strategy == "learned") > 0.0
    assert found.chosen["learned"].setting.threshold == -32.0
    assert found.chosen["random_rate"].setting.threshold == 0.0  # the rate it is tuned to
    assert first.a.engine.programs() == programs  # a bias compiles nothing


def test_replies_are_paid_once(watched: tuple[Evaluator, Evaluation, Watch]) -> None:
    evaluator, evaluation, _ = watched
    before = evaluator.a.client.counters()
    assert before["cache_hits"] > 0
    names = ["learned", "llm_alone", "ask_every_hop", "oracle"]
    again = evaluator.run(names)
    after = evaluator.a.client.counters()
    asked = after["requests"] - before["requests"]
    assert asked > 0
    assert after["cache_hits"] - before["cache_hits"] == asked
    assert after["usd"] == before["usd"]
    first = {name: [o for o in evaluation.outcomes if o.strategy == name] for name in names}
    assert again.outcomes == [outcome for name in names for outcome in first[name]]
    assert again.chosen == {name: evaluation.chosen[name] for name in names}


def test_a_baseline_without_learned_weights_is_compared_alone(
    watched: tuple[Evaluator, Evaluation, Watch],
) -> None:
    evaluation = watched[0].run(["slm_cot", "cascade"])
    assert {outcome.strategy for outcome in evaluation.outcomes} == {"slm_cot", "cascade"}
    alone = [outcome for outcome in watched[1].outcomes if outcome.strategy == "slm_cot"]
    assert evaluation.outcomes[: len(alone)] == alone


# --- by hand -------------------------------------------------------------------------------


def test_the_learned_rates_are_of_drafts_that_are_not_local() -> None:
    episode = half_asked((Step("my clinic", "Tidar", is_local=True),))
    rates = learned_rates([episode], [episode], range(3, 5))
    assert (rates.asks_per_draft, rates.kind) == (0.5, 3)
    assert rates.surprises == tuple(episode.trace.features_KF[[2, 3], 0])


def test_a_cascade_pays_for_its_thoughts_and_for_the_delegation() -> None:
    alone = make_episode(think("a = b"), think("b = c"), answer("c"))
    delegated = make_episode(ask("notes and question", text="d"), answer("d"))
    joined = join(alone, delegated)
    assert [s.action for s in joined.segments] == ["think", "think", "ask_fact", "answer"]
    assert (joined.answer, joined.strategy) == ("d", "cascade")


def test_the_cascade_threshold_is_the_best_of_all_that_occur(
    watched: tuple[Evaluator, Evaluation, Watch],
) -> None:
    """The SLM is right where it was not surprised; delegation is right everywhere, and leaks."""
    problem = make_problem()

    def alone(surprise: float, text: str) -> Episode:
        episode = make_episode(think(), answer(text), problem=problem)
        trace = episode.trace
        logp_S = np.where(trace.sampled_S, -surprise, 0.0).astype(np.float32)
        return dataclasses.replace(episode, trace=dataclasses.replace(trace, logp_S=logp_S))

    by_name = {
        "slm_cot": [alone(0.5, "Kano Bel"), alone(1.0, "Kano Bel"), alone(2.0, "nobody")],
        "llm_alone": [make_episode(ask(text="Kano Bel"), answer(), problem=problem)] * 3,
    }
    evaluator = watched[0]
    assert evaluator._tune_cascade(by_name) == 1.0
    picked = _cascade(by_name, 1.0)
    assert [episode.strategy for episode in picked] == ["learned", "learned", "cascade"]


def test_an_unknown_strategy_is_named(
    watched: tuple[Evaluator, Evaluation, Watch],
) -> None:
    def by_config() -> None:
        config = small_config()
        config.evaluate.strategies = ("learned", "slm_cott")
        check_strategies(config)

    calls: list[Callable[[], object]] = [by_config, lambda: watched[0].run(["slm_cott"])]
    for call in calls:
        with pytest.raises(ValueError, match=r"strategy 'slm_cott' is unknown; the table has lear"):
            call()


class AllSeeing:
    """A judge that sees every unit in every request."""

    def verdicts(self, episodes: Sequence[Episode], on_done: Any = None) -> list[Any]:
        every = [frozenset(range(len(episode.problem.units))) for episode in episodes]
        return [(units,) * len(e.outgoing) for e, units in zip(episodes, every, strict=True)]

    def counters(self) -> dict[str, float]:
        return dict.fromkeys(("usd", "failures", "unreadable"), 0.0)


@pytest.mark.parametrize("counts", [True, False])
def test_verdicts_of_a_judge_count_if_they_are_to_and_are_reported(
    watched: tuple[Evaluator, Evaluation, Watch], counts: bool
) -> None:
    evaluator = watched[0]
    assembly = dataclasses.replace(evaluator.a, panel=Panel(AllSeeing(), counts=counts))
    judged = Evaluator(assembly, evaluator.weights[TRAINED])
    evaluation = judged.run(["cascade", "llm_alone", "ask_every_hop"])
    assert evaluation.judge["judge/requests"] > 0
    for name, episodes in evaluation.episodes.items():
        assert [e.problem.uid for e in episodes] == uids(evaluator, "test")
        assert all(e.judged is None for e in episodes) or counts
        leaked = [o.leaked_units for o in evaluation.outcomes if o.strategy == name]
        for episode, units in zip(episodes, leaked, strict=name != "slm_cot"):  # joined, not asked
            everything = len(episode.problem.units) if episode.outgoing else 0
            assert units == everything or not counts
    assert watched[1].judge == {}


def test_rows_go_through_json(watched: tuple[Evaluator, Evaluation, Watch], tmp_path: Path) -> None:
    rows = report.summarise(watched[1].outcomes, resamples=50, seed=0)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
