"""The probe set of every task, and what scripted helpers of graded strength make of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from collab import tasks
from collab.config import default_config
from collab.llm import make_backend
from collab.llm.client import Client
from collab.llm.errors import TimedOut
from collab.llm.fingerprint import OPEN, Fingerprint, changes
from collab.llm.probe import Probe, probe_set, reply_to, take
from collab.llm.scripted import ScriptedBackend
from collab.privacy.detector import Detector
from collab.privacy.gate import Gate
from collab.types import Feedback, FeedbackKind, Task

HELPERS = {
    "perfect": {"hops": 3},
    "again": {"hops": 3, "latency_s": 0.4, "latency_sigma": 0.5},
    "two_hops": {"hops": 2},
    "half": {"hops": 3, "knowledge_share": 0.5},
    "silent": {"hops": 3, "asks_back": False},
    "wrong": {"hops": 3, "error_rate": 1.0},
}


@pytest.fixture(scope="module", params=["world", "gsm", "fanout"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    config = default_config()
    config.task.update({"name": request.param, "train": 256, "validation": 8, "test": 8})
    return tasks.make_task(config, str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Task:
    config = default_config()
    config.task.update({"train": 512, "validation": 8, "test": 8})
    return tasks.make_task(config, str(tmp_path_factory.mktemp("data")))


def client_of(task: Task, backend: Any = None, **helpers: dict) -> Client:
    config = default_config()
    config.llm.helpers = helpers or HELPERS
    config.llm.retries = 0
    backend = backend or make_backend("scripted", config.llm, knowledge=task.knowledge)
    return Client(backend, config.llm, config.requests)


def taken(task: Task, client: Client, *helpers: str, count: int = 36) -> dict[str, Fingerprint]:
    probes = probe_set(task, count)
    return take(client, Gate("block"), probes, helpers, kind="ask_solve", reply_tokens=64)


# --- the set -------------------------------------------------------------------------------


def test_the_set_is_fixed_and_a_shorter_one_begins_it(task: Task) -> None:
    probes = probe_set(task, 48)
    assert len({probe.id for probe in probes}) == len(probes) == 48
    assert probe_set(task, 48) == probes
    assert probe_set(task, 12) == probes[:12]
    assert probe_set(task, 0) == []


def test_levels_take_turns(task: Task) -> None:
    levels = Counter(probe.hops for probe in probe_set(task, 48))
    has_notes = task.name == "world"
    assert levels == dict.fromkeys(
        (1, 2, 3, OPEN) if has_notes else (1, 2, 3), 12 + 4 * (not has_notes)
    )


def test_the_world_is_asked_about_all_its_relations(world: Task) -> None:
    singles = [probe.relation for probe in probe_set(world, 36) if probe.hops == 1]
    assert len(set(singles)) == 9


def test_the_task_itself_reads_each_probe_as_it_is_meant(task: Task) -> None:
    for probe in probe_set(task, 48):
        told = task.knowledge.resolve(probe.text)
        assert told is not None and (told.missing is not None) == (probe.hops == OPEN)
        if probe.hops != OPEN:
            assert len(told.steps) == probe.hops and told.steps[-1].answer == probe.answer


def test_no_probe_holds_what_only_notes_tell(world: Task) -> None:
    """Neither the units of its own question nor of any other, nor an answer of a local step."""
    problems = [world.problems("train")[index] for index in range(512)]
    by_text = {probe.text: probe for probe in probe_set(world, 500)}
    own = {problem.uid: problem for problem in problems}
    assert len(by_text) > 200 and own
    for probe in by_text.values():
        assert not Detector(probe.units).leaked([probe.text]).any()
    names = {unit.text for problem in problems for unit in problem.units if unit.kind == "name"}
    local = [step for problem in problems for step in problem.steps if step.is_local]
    opened = [probe.text for probe in by_text.values() if probe.hops == OPEN]
    assert opened and all("my " in text for text in opened)
    assert not [text for text in by_text if any(name in text for name in names)]
    assert not [text for text in opened if any(step.answer in text for step in local)]
    public = {
        step.query.split(" of ")[-1]
        for problem in problems
        if not any(step.is_local for step in problem.steps)
        for step in problem.steps
    }
    closed = [probe.text for probe in by_text.values() if probe.hops != OPEN]
    assert all(text.split(" of ")[-1] in public for text in closed)


# --- replies -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(world: Task) -> dict[str, Fingerprint]:
    return taken(world, client_of(world), *HELPERS, count=48)


def test_strength_is_what_a_helper_gets_right(found: dict[str, Fingerprint]) -> None:
    assert found["perfect"].strength == found["again"].strength == 1.0
    assert found["two_hops"].strength == pytest.approx(2 / 3)
    assert found["two_hops"].summary()["right_by_hops"] == {
        "1": [12, 12],
        "2": [12, 12],
        "3": [0, 12],
    }
    assert 0.15 < found["half"].strength < 0.6
    assert found["wrong"].strength < 0.1
    assert found["silent"].summary()["asks_back"] == [0, 12]


def test_helpers_of_other_strength_are_told_apart(found: dict[str, Fingerprint]) -> None:
    for name in ("two_hops", "half", "wrong", "silent"):
        assert changes(found["perfect"], found[name]), name
    assert "answers right at 3 hops: 12 of 12 before, 0 of 12 now" in changes(
        found["perfect"], found["two_hops"]
    )
    assert changes(found["perfect"], found["silent"]) == [
        "asks back where a reference is left open: 12 of 12 before, 0 of 12 now"
    ]


def test_the_same_helper_at_another_pace_is_the_same(found: dict[str, Fingerprint]) -> None:
    assert changes(found["perfect"], found["again"]) == []
    latency = found["again"].summary()
    assert 0.2 < latency["latency_median_s"] < latency["latency_p90_s"]


def test_word_problems_are_graded_by_their_number(task: Task) -> None:
    one = taken(task, client_of(task), "perfect", "two_hops", count=30)
    assert one["perfect"].strength == 1.0
    assert one["two_hops"].strength < 0.8


def test_its_cost_counts(world: Task) -> None:
    client = client_of(world)
    found = taken(world, client, "perfect", "half", count=24)
    counters = client.counters()
    assert counters["requests"] == counters["sent"] == 48
    paid = sum(reply.usd for one in found.values() for reply in one.replies)
    assert counters["usd"] == pytest.approx(paid) and paid > 0


class Broken(ScriptedBackend):
    """Never there."""

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        raise TimedOut("no reply")


def test_a_helper_that_is_away_has_failed_not_erred(world: Task) -> None:
    llm = default_config().llm
    backend = Broken.from_config(llm, knowledge=world.knowledge, seed=0)
    found = taken(world, client_of(world, backend), "one_hop", count=8)["one_hop"]
    assert found.strength == 0.0 and found.summary()["failed"] == 8
    assert changes(found, found)[0].startswith("answered none of the probe requests now (timed_out")


@pytest.mark.parametrize(
    ("answer", "kind", "text", "is_right"),
    [
        ("Kano Bel", FeedbackKind.ANSWER, "head of Tir = Kano Bel", True),
        ("Kano Bel", FeedbackKind.ANSWER, "That is kano bel, since 2020.", True),
        ("Kano Bel", FeedbackKind.ANSWER, "Kano Belsen", False),
        ("Kano Bel", FeedbackKind.CLARIFY, "do you mean Kano Bel", False),
        ("Kano Bel", FeedbackKind.REFUSE, "Kano Bel", False),
        ("7", FeedbackKind.ANSWER, "3 + 4 = 7", True),
        ("7", FeedbackKind.ANSWER, "7 + 5 = 12", False),
        ("", FeedbackKind.CLARIFY, "which clinic", False),
    ],
)
def test_what_counts_as_right(answer: str, kind: FeedbackKind, text: str, is_right: bool) -> None:
    record = reply_to(Probe("ask", 1, answer), Feedback(kind, text, completion_tokens=3))
    assert (record.is_right, record.tokens, record.failure) == (is_right, 3, None)
    assert record.is_statement == (" = " in text)
    assert reply_to(Probe("ask", 1), Feedback(FeedbackKind.UNAVAILABLE, "")).failure
