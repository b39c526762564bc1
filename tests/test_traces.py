"""Synthesised traces: legal, true to the task's memory, short when asked to be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from collab.assembly import Assembly, assemble
from collab.config import default_config
from collab.rl.traces import (
    Synthesiser,
    TraceDoesNotFitError,
    TraceWriter,
    _shortened,
    _some_notes,
    longest_at,
)
from collab.tasks.world import language
from collab.types import (
    ANSWER_ID,
    FIRST_REQUEST_ID,
    THINK_ID,
    Feedback,
    FeedbackKind,
    Problem,
    Step,
    Trace,
)


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    config = default_config()
    config.task.update({"train": 64, "validation": 8, "test": 8})
    config.rollout.rows = 8
    return assemble(config, str(tmp_path_factory.mktemp("run")))


def synthesiser(assembly: Assembly, **settings: Any) -> Synthesiser:
    changed = assembly.config.cold_start.to_dict() | {"batch": 24} | settings
    return dataclasses.replace(assembly.synthesiser(), settings=changed)


def texts(assembly: Assembly, trace: Trace) -> list[str]:
    """What the policy wrote after each decision."""
    end, found = assembly.tokenizer.end_id, []
    for at in trace.decided_at_K:
        tail = trace.tokens_S[at + 2 :].tolist()
        found.append(assembly.tokenizer.decode(tail[: tail.index(end)]).strip())
    return found


def test_a_batch_is_whole_legal_and_a_function_of_its_randomness(assembly: Assembly) -> None:
    problems = assembly.task.problems("train")
    maker = synthesiser(assembly)
    first, again = (maker.batch(problems, np.random.default_rng(3))[0] for _ in range(2))
    assert len(first) == 24
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.tokens_S, other.tokens_S)
        rows = np.arange(len(one.action_K))
        assert one.legal_KA[rows, one.action_K].all()
        assert len(one.tokens_S) <= assembly.engine.limits.capacity


@pytest.mark.parametrize("longest", [64, 128])
def test_no_trace_is_longer_than_asked(assembly: Assembly, longest: int) -> None:
    problems = assembly.task.problems("train")
    batch, _ = synthesiser(assembly).batch(problems, np.random.default_rng(0), longest=longest)
    assert max(len(trace.tokens_S) for trace in batch) <= longest
    assert any(trace.action_K[-1] == ANSWER_ID for trace in batch)
    assert any((trace.action_K >= FIRST_REQUEST_ID).any() for trace in batch)


def test_the_share_of_solutions_that_do_not_fit_is_told(assembly: Assembly) -> None:
    """None does not with the limits of the config; many do not where two thoughts are one each."""
    problems, maker = assembly.task.problems("train"), synthesiser(assembly)
    assert maker.batch(problems, np.random.default_rng(0))[1] == 0.0
    tight = dataclasses.replace(maker, limits=dataclasses.replace(maker.limits, max_segments=4))
    assert 0.2 < tight.batch(problems, np.random.default_rng(0))[1] < 1.0


def test_limits_that_nothing_fits_name_the_keys(assembly: Assembly) -> None:
    maker = synthesiser(assembly, drill_share=0.0, read_share=0.0)
    with pytest.raises(ValueError, match=r"cold_start\.curriculum"):
        maker.batch(assembly.task.problems("train"), np.random.default_rng(0), longest=8)


@pytest.mark.parametrize("share", ["drill_share", "read_share"])
def test_drills_that_fit_no_segment_name_the_keys(assembly: Assembly, share: str) -> None:
    """As with a byte tokenizer, to which a fact is longer than a draft may be."""
    limits = dataclasses.replace(assembly.engine.limits, think_tokens=4)
    shares = {"drill_share": 0.0, "read_share": 0.0, share: 0.5}
    maker = dataclasses.replace(synthesiser(assembly, **shares), limits=limits)
    with pytest.raises(ValueError, match=r"think_tokens"):
        maker.batch(assembly.task.problems("train"), np.random.default_rng(0))


def test_without_asking_a_trace_is_what_the_memory_holds(assembly: Assembly) -> None:
    """Steps that the SLM knows come out true, and the last belief is the answer."""
    maker = synthesiser(assembly, ask_share=0.0)
    known = [
        problem
        for problem in assembly.task.problems("train")
        if all(step.is_local or step.is_known for step in problem.steps)
    ]
    assert known
    for problem in known:
        trace = maker.episode(problem, np.random.default_rng(0))
        assert texts(assembly, trace) == [s.statement for s in problem.steps] + [problem.answers[0]]
        assert trace.action_K.tolist() == [THINK_ID] * len(problem.steps) + [ANSWER_ID]


def test_asking_at_every_step_gives_the_true_answer(assembly: Assembly) -> None:
    """Single facts from a helper that knows all: every trace ends in the truth."""
    maker = synthesiser(assembly, ask_share=1.0, solve_share=0.0, overshare=0.0, vague=0.0)
    for problem in assembly.task.problems("train")[:16]:
        said = texts(assembly, maker.episode(problem, np.random.default_rng(0)))
        assert said[-1] == problem.answers[0]


def test_a_spoiled_draft_is_asked_about_and_not_imitated(assembly: Assembly) -> None:
    maker = synthesiser(
        assembly, spoil_share=1.0, ask_share=0.0, ask_lean=0.0, solve_share=0.0, overshare=0.0
    )
    problem = next(p for p in assembly.task.problems("train") if not p.steps[-1].is_local)
    trace = maker.episode(problem, np.random.default_rng(0))
    said, drafted = texts(assembly, trace), {}
    local = {step.statement for step in problem.steps if step.is_local}
    for k, action in enumerate(trace.action_K):
        is_written = bool(trace.sampled_S[trace.decided_at_K[k] + 2])
        if action != THINK_ID or said[k] in local:
            assert is_written
        else:
            assert not is_written
            assert trace.action_K[k + 1] >= FIRST_REQUEST_ID
            drafted[said[k]] = True
    assert drafted and not set(drafted) & {step.statement for step in problem.steps}
    assert said[-1] == problem.answers[0]


def test_a_spoiled_draft_that_nothing_came_back_on_is_drafted_again(assembly: Assembly) -> None:
    maker = dataclasses.replace(
        synthesiser(assembly, spoil_share=1.0, vague=0.0, overshare=0.0),
        teacher=lambda request: Feedback(FeedbackKind.REFUSE, "I do not know"),
    )
    problem = assembly.task.problems("train")[0]
    said = texts(assembly, maker.episode(problem, np.random.default_rng(0)))
    assert {step.statement for step in problem.steps} <= set(said)
    assert said[-1] == problem.answers[0]


def test_a_reading_tells_what_the_notes_hold(assembly: Assembly) -> None:
    problem = assembly.task.problems("train")[0]
    maker = synthesiser(assembly)
    trace = maker.reading(problem, np.random.default_rng(0), assembly.engine.limits.capacity)
    held = {f"{query} = {value}" for query, value in language.read_notes(problem.notes)}
    assert set(texts(assembly, trace)) == held
    assert len(held) >= 4
    short = maker.reading(problem, np.random.default_rng(0), 48)
    assert set(texts(assembly, short)) < held
    assert len(short.tokens_S) <= 48


def test_reads_every_wording_of_the_notes() -> None:
    notes = (
        "i live in a b . my own doctor is c d . c d 's hospital is e f . the home of g h is i j . "
        "my favourite film is k l . my name is m n . my condition is gout ."
    )
    assert language.read_notes(notes) == [
        ("my home", "a b"), ("my doctor", "c d"), ("hospital of c d", "e f"),
        ("home of g h", "i j"), ("my film", "k l"),
    ]  # fmt: skip


def test_drilled_and_read_drafts_are_no_choice(assembly: Assembly) -> None:
    """What follows them is not a decision to imitate."""
    maker = synthesiser(assembly)
    drilled = maker.drill(np.random.default_rng(0), 200)
    read = maker.reading(assembly.task.problems("train")[0], np.random.default_rng(0), 200)
    assert (drilled.legal_KA.sum(axis=1) == 1).all()
    assert (read.legal_KA.sum(axis=1) == 1).all()


def test_shortened_notes_keep_what_a_solution_reads() -> None:
    steps = (Step("my doctor", "a b", is_local=True), Step("mayor of a b", "c d"))
    notes = "my name is x y . my doctor is a b . my film is e f ."
    problem = Problem("0", "q", ("c d",), notes=notes, steps=steps)
    rng = np.random.default_rng(0)
    assert _shortened(problem, 0.0, rng).notes == "my doctor is a b ."
    assert _shortened(problem, 1.0, rng).notes == notes
    assert _shortened(dataclasses.replace(problem, notes=""), 0.5, rng).notes == ""


def test_an_illegal_or_long_segment_is_refused(assembly: Assembly) -> None:
    engine = assembly.engine
    writer = TraceWriter(assembly.tokenizer, engine.names, engine.limits)
    writer.prompt(assembly.task.problems("train")[0])
    with pytest.raises(TraceDoesNotFitError):
        writer.segment(ANSWER_ID, "at once")  # a draft comes first
    with pytest.raises(TraceDoesNotFitError):
        writer.segment(THINK_ID, "word " * 50)


def test_the_curriculum_names_a_limit_for_every_step() -> None:
    curriculum = ((2, 64), (1, 128))
    assert [longest_at(step, curriculum) for step in range(5)] == [64, 64, 128, 0, 0]
    assert longest_at(0, ()) == 0


@pytest.mark.parametrize(
    "notes", ["i live in bel no . my film is ze lo .", "I live in Oslo. My film is Nosferatu."]
)
def test_an_overshared_request_carries_whole_sentences(notes: str) -> None:
    problem = Problem("p", "?", ("x",), notes=notes)
    whole = {sentence.strip(" .") for sentence in notes.split(". ")}
    seen = set()
    for seed in range(20):
        carried = _some_notes(problem, np.random.default_rng(seed))
        seen |= set(carried.removesuffix(" . ").split(" . "))
    assert seen == whole
