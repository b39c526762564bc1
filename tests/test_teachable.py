"""The contract of every task in the table: problems, worked solutions, traces made of them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import ml_collections
import numpy as np
import pytest

import multihop_files
import runs
from collab.config import default_config
from collab.rl.traces import Synthesiser
from collab.rollout.state import legal_actions
from collab.tasks import TASKS, grading, make_task
from collab.tasks.splits import SPLITS
from collab.types import ANSWER_ID, REPLY_ID, THINK_ID, Problem, Step, Trace

REQUESTS = ("ask_fact", "ask_hint", "ask_check", "ask_solve")
# Bytes are many: an episode of gsm has about 900, one of fanout 2,500.
LIMITS = {
    "capacity": 4096,
    "max_segments": 20,
    "max_asks": 3,
    "think_tokens": 400,
    "request_tokens": 300,
    "answer_tokens": 400,
    "reply_tokens": 600,
}


def make_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.task.update({"train": 96, "validation": 16, "test": 16})
    config.tokenizer.kind = "byte"
    config.rollout.update(LIMITS)
    config.requests = dict.fromkeys(REQUESTS, "Help.")
    return config


def task_config(name: str, data_dir: pathlib.Path) -> ml_collections.ConfigDict:
    """A config for a row of TASKS, or for "multihop" and one of its data sets with steps."""
    config = make_config()
    config.task.name, _, kind = name.partition(" ")
    if config.task.name == "multihop":
        config.task.path = "questions.json"
        multihop_files.make(data_dir / config.task.path, kind or "MuSiQue", 240)
    return config


@pytest.fixture(scope="module", params=[*TASKS, "multihop 2WikiMultihopQA"])
def named(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    return request.param, make_task(task_config(request.param, folder), str(folder))


@pytest.fixture(scope="module")
def task(named: tuple[str, Any]) -> Any:
    return named[1]


def true_path(task: Any, problem: Problem) -> list[Step]:
    """The steps that the task gives when every belief is true."""
    steps: list[Step] = []
    belief = ""
    while (step := task.next_step(problem, len(steps), belief)) is not None:
        steps.append(step)
        belief = step.answer
    return steps


# --- problems and solutions ----------------------------------------------------------------


def test_problems_are_fixed_and_no_two_splits_share_one(
    named: tuple[str, Any], tmp_path: pathlib.Path
) -> None:
    name, task = named
    config = task_config(name, tmp_path)
    again = make_task(config, str(tmp_path))
    uids: list[str] = []
    for split in SPLITS:
        problems = list(task.problems(split))
        assert 0 < len(problems) <= config.task[split]
        assert list(again.problems(split)) == problems
        uids += [problem.uid for problem in problems]
    assert len(set(uids)) == len(uids)


def test_a_worked_solution_is_the_problems_own_and_ends_in_its_answer(task: Any) -> None:
    for split in SPLITS:
        for problem in task.problems(split):
            steps = true_path(task, problem)
            assert tuple(steps) == problem.steps
            assert grading.exact_match(steps[-1].answer, problem.answers) == 1.0
            assert all(step.query and step.answer for step in steps)


def test_what_remains_can_be_asked_for_and_is_answered_by_the_tasks_knowledge(task: Any) -> None:
    is_answered, is_same = [], []
    for problem in task.problems("train"):
        steps = problem.steps
        for index in range(len(steps)):
            if any(step.is_local for step in steps[index:]):
                continue
            belief = steps[index - 1].answer if index else ""
            found = task.knowledge.resolve(task.chain_request(problem, index, belief))
            is_understood = found is not None and found.missing is None
            is_answered.append(is_understood and found.steps[-1].answer == steps[-1].answer)
            is_same.append(is_understood and found.steps == steps[index:])
    assert len(is_answered) >= 96
    assert np.mean(is_answered) > 0.95
    assert np.mean(is_same) > 0.8  # none of what is known already, and nothing else


def test_a_step_can_be_asked_for_by_its_query(task: Any) -> None:
    steps = [s for p in task.problems("train") for s in p.steps if not s.is_local]
    pairs = [(step, task.knowledge.resolve(step.query)) for step in steps]
    right = sum(
        found is not None and found.steps[-1].answer == step.answer for step, found in pairs
    )
    assert right / len(steps) > 0.8


def test_memory_is_the_truth_unless_the_task_knows_better(task: Any) -> None:
    steps = [s for p in task.problems("train") for s in p.steps if not s.is_local]
    told = [task.recall(step, np.random.default_rng(0)) for step in steps]
    assert told == [task.recall(step, np.random.default_rng(0)) for step in steps]
    is_known = [answer == step.answer for answer, step in zip(told, steps, strict=True)]
    assert 0.0 < np.mean(is_known) < 1.0 if hasattr(task, "drill") else all(is_known)


# --- traces --------------------------------------------------------------------------------


@dataclasses.dataclass
class Made:
    """A batch of traces with what made it."""

    by: Synthesiser
    traces: list[Trace]


@pytest.fixture(scope="module")
def made(task: Any) -> Made:
    config = make_config()
    config.cold_start.update({"batch": 48, "overshare": 0.5, "vague": 0.5})
    synthesiser = runs.synthesiser(task, config, helpers=list(config.llm.helpers))
    traces, _ = synthesiser.batch(task.problems("train"), np.random.default_rng(0))
    return Made(synthesiser, traces)


def parts(made: Made, trace: Trace) -> list[tuple[int, str, str]]:
    """Action, text and what followed it (feedback or "") of every segment."""
    found = []
    ends = [*trace.decided_at_K[1:] + 1, len(trace.tokens_S)]
    for at, action, stop in zip(trace.decided_at_K, trace.action_K, ends, strict=True):
        ids = trace.tokens_S[at + 2 : stop]
        cut = list(ids).index(made.by.tokenizer.end_id)
        rest = made.by.tokenizer.decode(ids[cut + 1 :])
        found.append((int(action), made.by.tokenizer.decode(ids[:cut]), rest))
    return found


def test_traces_take_legal_actions_only(made: Made) -> None:
    clarify = made.by.tokenizer.control["feedback_clarify"]
    for trace in made.traces:
        tokens, asks, last, end = trace.tokens_S, 0, -1, 0
        for k, (at, action) in enumerate(zip(trace.decided_at_K, trace.action_K, strict=True)):
            legal_A = legal_actions(
                made.by.limits,
                length_B=np.array([at + 1]),
                asks_B=np.array([asks]),
                decisions_B=np.array([k]),
                is_drafted_B=np.array([last == THINK_ID]),
                is_asked_back_B=np.array([k > 0 and clarify in tokens[end : at + 1]]),
            )[0]
            assert legal_A[action]
            assert trace.legal_KA[k][action]
            if trace.legal_KA[k].sum() > 1:  # else the choice is not to be imitated
                np.testing.assert_array_equal(trace.legal_KA[k], legal_A)
            assert tokens[at + 1] == made.by.tokenizer.control[made.by.names[action]]
            asks, last, end = asks + (action >= REPLY_ID), int(action), int(at) + 1
        assert len(tokens) <= made.by.limits.capacity


def test_only_what_the_slm_writes_is_taught(made: Made) -> None:
    control_V = made.by.tokenizer.is_control_V
    for trace in made.traces:
        expected = np.zeros(len(trace.tokens_S), bool)
        for at in trace.decided_at_K:
            segment = trace.tokens_S[at + 2 :]
            length = int(np.argmax(segment == made.by.tokenizer.end_id)) + 1
            expected[at + 2 : at + 2 + length] = True
            assert not control_V[segment[: length - 1]].any()
        np.testing.assert_array_equal(trace.sampled_S, expected)


def test_whole_traces_draft_ask_with_every_kind_and_end_in_an_answer(made: Made, task: Any) -> None:
    asked: set[int] = set()
    right = whole = 0
    answers = {problem.answers for problem in task.problems("train")}
    for trace in made.traces:
        segments = parts(made, trace)
        assert segments[0][0] == THINK_ID
        asked |= {action for action, _, _ in segments if action >= REPLY_ID}
        assert all(text for _, text, _ in segments)
        if segments[-1][0] == ANSWER_ID:
            whole += 1
            right += any(grading.exact_match(segments[-1][1], known) for known in answers)
    assert whole > 20
    assert asked >= {made.by.names.index(name) for name in REQUESTS}
    # A world's SLM remembers some facts wrong, and its traces end where that leads.
    assert right / whole > (0.2 if hasattr(task, "drill") else 0.99)
