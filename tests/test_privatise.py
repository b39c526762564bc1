"""Wrapped tasks: profiles, needed values, what a helper answers, and worked solutions."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runs
from collab import tokenizers
from collab.assembly import assemble
from collab.config import default_config
from collab.llm import make_backend
from collab.llm.client import Client
from collab.privacy.detector import Detector
from collab.rollout.episodes import Job
from collab.rollout.state import Limits
from collab.rules import MOST_DISTRACTORS, validate
from collab.tasks import TASKS, grading, make_task, privatise
from collab.tasks.gsm import GsmKnowledge, GsmTask
from collab.tasks.privatise import privatise_dataset_builder, wording
from collab.tasks.privatise.kinds import KINDS, REFERRED
from collab.tasks.privatise.profile import Settings, Wrapper
from collab.tasks.splits import SPLITS
from collab.types import (
    REPLY,
    DrilledTask,
    Exchange,
    FeedbackKind,
    HelpRequest,
    PrivateUnit,
    Problem,
    Resolution,
    Step,
    TeachableTask,
)
from compiling import compiled_once
from fake_llm import passed

BASES = ("world", "gsm", "fanout")
CARD = pathlib.Path(privatise.__file__).with_name("README.md").read_text(encoding="utf-8")


def config_of(base: str, **settings: Any) -> ml_collections.ConfigDict:
    config = default_config()
    config.task.update({"name": "privatise", "train": 160, "validation": 16, "test": 32})
    config.task.privatise.update({"base": base, **settings})
    return config


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A wrapped task, its base, and the problems that need a value of the profile."""

    task: Any
    base: Any
    every: list[Problem]

    @property
    def needing(self) -> list[tuple[Problem, str, str]]:
        """Problem, reference and value."""
        found = [(problem, wording.needed(problem)) for problem in self.every]
        return [(problem, pair[0], pair[1].text) for problem, pair in found if pair]


@pytest.fixture(scope="module")
def all_wrapped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Wrapped]:
    made = {}
    for base in BASES:
        task = make_task(config_of(base), str(tmp_path_factory.mktemp(base)))
        every = [problem for split in SPLITS for problem in task.problems(split)]
        made[base] = Wrapped(task, task.base, every)
    return made


@pytest.fixture(params=BASES)
def wrapped(request: pytest.FixtureRequest, all_wrapped: dict[str, Wrapped]) -> Wrapped:
    return all_wrapped[request.param]


def answer_of(found: Resolution | None) -> str:
    """What a resolution ends in; "" if nothing is answered."""
    return found.steps[-1].answer if found and not found.missing and found.steps else ""


# --- profiles ------------------------------------------------------------------------------


def test_a_problem_is_a_function_of_seed_split_and_uid(wrapped: Wrapped) -> None:
    settings = Settings(wrapped.task.base.name, seed=0, needed_share=0.5, distractors=3)
    wrapper = Wrapper(settings, wrapped.base)
    for split in SPLITS:
        bases = wrapped.base.problems(split)[:15]
        stored = list(wrapped.task.problems(split)[:15])
        assert [wrapper.problem(split, base) for base in reversed(bases)][::-1] == stored
    base = wrapped.base.problems("train")[0]
    first = wrapper.problem("train", base)
    others = [
        wrapper.problem("test", base).notes,
        wrapper.problem("train", dataclasses.replace(base, uid="other")).notes,
        Wrapper(dataclasses.replace(settings, seed=1), wrapped.base).problem("train", base).notes,
    ]
    assert first.notes not in others


def test_the_bases_splits_answers_and_solutions_stay_and_no_two_share_a_question(
    wrapped: Wrapped,
) -> None:
    for split in SPLITS:
        for problem, base in zip(
            wrapped.task.problems(split), wrapped.base.problems(split), strict=True
        ):
            assert problem.uid == f"privatise-{base.uid}"
            inner = wording.unwrapped(problem)
            assert (inner.question, inner.answers, inner.steps) == (
                base.question,
                base.answers,
                base.steps,
            )
            assert problem.units[: len(base.units)] == base.units
    uids = [problem.uid for problem in wrapped.every]
    assert len({*uids}) == len(uids)
    with pytest.raises(ValueError, match="split='dev' must be one of train, validation, test"):
        wrapped.task.problems("dev")


def test_all_twelve_kinds_occur_with_the_weights_of_the_table(wrapped: Wrapped) -> None:
    assert len(KINDS) == 12
    assert len({kind.label for kind in KINDS.values()}) == 12
    units = {unit for problem in wrapped.every for unit in problem.units}
    assert {unit.kind for unit in units} >= KINDS.keys()
    assert all(
        unit.sensitivity == KINDS[unit.kind].sensitivity for unit in units if unit.kind in KINDS
    )


def test_the_detector_finds_every_unit_in_the_notes_and_by_itself(wrapped: Wrapped) -> None:
    for problem in wrapped.every:
        assert Detector(problem.units).leaked([problem.notes]).all()
        for unit in problem.units:
            assert Detector([unit]).leaked([f"please note {unit.text} for later"]).all()


@pytest.mark.parametrize(
    ("kind", "text", "request_text"),
    [
        ("contact", "clara dorsey", "ask C. Dorsey"),
        ("phone", "036 555 6507", "call +44 (0)36-555-6507"),
        ("e-mail", "ada.ellery@mail.example", "ada dot ellery at mail dot example"),
        ("address", "86 willow lane", "86 Willow Ln."),
        ("birth date", "4 june 1971", "born 1971-06-04"),
        ("condition", "asthma", "A S T H M A"),
        ("medication", "naproxen 20 mg", "is naproxen safe"),
        ("amount", "3440 euros", "owes €3,440.00"),
        ("card number", "4218 1668 0617 1598", "4218-1668-0617-1598"),
        ("whereabouts", "dunmore", "off to Dúnmore"),
        ("password", "tundra-702", "Tundra 702"),
        ("employer", "cedar analytics", "works at Cedar-Analytics"),
    ],
)
def test_the_detector_knows_each_kind_in_another_form(
    kind: str, text: str, request_text: str
) -> None:
    unit = PrivateUnit(text, kind)
    assert Detector([unit]).leaked([request_text]).all()
    others = [PrivateUnit(KINDS[kind].draw(np.random.default_rng(at)), kind) for at in range(9)]
    assert not Detector([o for o in others if o != unit]).leaked([request_text]).all()


def test_distractors_are_never_needed_and_nothing_that_is_asked_about(wrapped: Wrapped) -> None:
    counts = {base.uid: len(base.units) for s in SPLITS for base in wrapped.base.problems(s)}
    for problem in wrapped.every:
        own = problem.units[counts[problem.uid.removeprefix("privatise-")] :]
        distractors = [unit for unit in own if not unit.is_needed]
        assert len(distractors) == 3
        assert len({unit.kind for unit in problem.units}) == len(problem.units)
        honest = [wording.unwrapped(problem).question, *(s.statement for s in problem.steps)]
        assert not Detector(distractors).leaked(honest).any()


def test_settings_reach_the_problems_and_do_not_collide(tmp_path: pathlib.Path) -> None:
    kept = set()
    for share, distractors in ((0.0, 0), (1.0, MOST_DISTRACTORS), (0.5, 2)):
        config = config_of("gsm", needed_share=share, distractors=distractors)
        config.task.update({"train": 60, "validation": 1, "test": 1})
        problems = make_task(config, str(tmp_path)).problems("train")
        needed = [sum(unit.is_needed for unit in problem.units) for problem in problems]
        assert {len(p.units) - n for p, n in zip(problems, needed, strict=True)} == {distractors}
        kept.add(sum(needed))
        assert all(problem.notes == "" for problem in problems if not problem.units)
    none, some, most = sorted(kept)
    assert none == 0 < some < most
    assert some / most == pytest.approx(0.5, abs=0.25)


def test_other_base_problems_are_prepared_anew_and_the_same_ones_read_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("gsm")
    config.task.update({"train": 5, "validation": 1, "test": 1})
    first = list(make_task(config, str(tmp_path)).problems("train"))
    config.seed = 1  # other word problems
    assert make_task(config, str(tmp_path)).problems("train")[0].uid != first[0].uid

    def fail(*args: Any) -> None:
        raise AssertionError("prepared a second time")

    monkeypatch.setattr(privatise_dataset_builder.Builder, "_split_generators", fail)
    config.seed = 0
    assert list(make_task(config, str(tmp_path)).problems("train")) == first


# --- needed values -------------------------------------------------------------------------


def test_a_needed_value_is_asked_for_and_stands_in_the_notes_only(wrapped: Wrapped) -> None:
    assert len(wrapped.needing) > 15
    for problem, reference, value in wrapped.needing:
        unit = next(u for u in problem.units if u.text == value and u.is_needed)
        assert KINDS[unit.kind].reference == reference
        assert problem.question.count(reference) == 1
        assert value not in problem.question
        assert not Detector([unit]).leaked([problem.question, *problem.answers]).any()
        assert f"{reference} is {value} ." in problem.notes
        assert problem.steps[0] == Step(reference, value, is_local=True)
        assert not any(step.is_local for step in problem.steps[1:])


def test_needed_units_are_the_set_share_of_questions_that_can_have_one(wrapped: Wrapped) -> None:
    settings = Settings(wrapped.base.name, seed=0, needed_share=1.0, distractors=0)
    wrapper = Wrapper(settings, wrapped.base)
    bases = wrapped.base.problems("train")
    can = sum(wording.needed(wrapper.problem("train", base)) is not None for base in bases)
    has = sum(wording.needed(problem) is not None for problem in wrapped.task.problems("train"))
    assert has / can == pytest.approx(0.5, abs=0.15)


# --- what a helper makes of requests -------------------------------------------------------


@given(data=st.data())
def test_an_open_reference_is_never_resolved_and_with_its_value_always(
    all_wrapped: dict[str, Wrapped], data: st.DataObject
) -> None:
    wrapped = all_wrapped[data.draw(st.sampled_from(BASES))]
    problem, reference, value = data.draw(st.sampled_from(wrapped.needing))
    others = [line for line in problem.notes.removesuffix(" .").split(" . ") if value not in line]
    said = data.draw(st.lists(st.sampled_from(others), max_size=3)) if others else []
    said += data.draw(st.lists(st.sampled_from(["please help", "thanks"]), max_size=1))
    around = "".join(f"{line} . " for line in said)
    asked = data.draw(
        st.sampled_from([problem.question, wrapped.task.chain_request(problem, 0, "")])
    )
    spelled = data.draw(st.sampled_from([reference, f"my own {reference[3:]}", reference.upper()]))
    asked = asked.replace(reference, spelled)
    resolve = wrapped.task.knowledge.resolve
    is_open = reference in wording.references(asked)  # an expression may do without the reference
    for text in (asked, f"{around}{asked}", f"{asked} ; {around}"):
        if is_open:
            assert resolve(text) == Resolution((), missing=reference)
    telling = data.draw(st.sampled_from(["{0} = {1} ; {2}", "{2} ; {0} = {1}", "{0} is {1} . {2}"]))
    for text in (telling.format(reference, value, asked), asked.replace(spelled, value)):
        assert grading.exact_match(answer_of(resolve(text)), problem.answers)


def test_a_question_without_its_value_is_not_answered_around_it(wrapped: Wrapped) -> None:
    for problem, reference, value in wrapped.needing:
        for instead in ("", "some", "it"):
            text = problem.question.replace(reference, instead)
            found = wrapped.task.knowledge.resolve(text)
            assert not grading.exact_match(answer_of(found), problem.answers), problem.uid
            told = wrapped.task.knowledge.resolve(f"{text} ; {reference} = {value}")
            assert told is None or told.missing is None


def test_without_the_guard_a_loose_match_would_answer_around_the_value(
    all_wrapped: dict[str, Wrapped],
) -> None:
    """The test above would notice."""
    wrapped = all_wrapped["gsm"]
    around = [
        grading.exact_match(
            answer_of(wrapped.base.knowledge.resolve(problem.question.replace(reference, "some"))),
            problem.answers,
        )
        for problem, reference, _ in wrapped.needing
    ]
    assert np.mean(around) > 0.3


def test_what_is_not_about_the_value_is_answered_without_it(wrapped: Wrapped) -> None:
    right = total = 0
    for problem, _, value in wrapped.needing:
        for step in problem.steps[1:]:
            if value not in step.query:
                found = wrapped.task.knowledge.resolve(step.query)
                expected = wrapped.base.knowledge.resolve(step.query)
                total += 1
                right += answer_of(found) == answer_of(expected)
    assert total > 10
    assert right == total


def test_questions_that_need_nothing_are_answered_as_before(wrapped: Wrapped) -> None:
    for problem in wrapped.every:
        if wording.needed(problem) is None:
            assert wrapped.task.knowledge.resolve(problem.question) == (
                wrapped.base.knowledge.resolve(problem.question)
            )


def ask(task: Any, *said: str) -> list[tuple[FeedbackKind, str]]:
    """What the scripted helper says to a request and the replies that follow it."""
    config = default_config()
    config.llm.scripted.hops = 99
    config.llm.helpers = {"all": {}}
    client = Client(
        make_backend("scripted", config.llm, knowledge=task.knowledge), config.llm, config.requests
    )
    history: tuple[Exchange, ...] = ()
    for at, text in enumerate(said):
        request = HelpRequest("e", REPLY if at else "ask_solve", text, history, "all")
        feedback = client.submit(passed(request)).result()
        history += (Exchange(request.kind, text, feedback),)
    return [(exchange.feedback.kind, exchange.feedback.text) for exchange in history]


def test_the_scripted_helper_asks_back_and_answers_when_told(wrapped: Wrapped) -> None:
    for problem, reference, value in wrapped.needing[:25]:
        for reply in (value, f"{reference} = {value}"):
            (first, which), (second, text) = ask(wrapped.task, problem.question, reply)
            assert (first, which) == (
                FeedbackKind.CLARIFY,
                f"which {reference.removeprefix('my ')}",
            )
            assert second is FeedbackKind.ANSWER
            assert grading.exact_match(text.rsplit(" = ", 1)[-1], problem.answers)
        assert (
            ask(wrapped.task, f"{problem.notes}\n{problem.question}")[0][0] is FeedbackKind.ANSWER
        )


def test_a_wrong_value_is_no_way_to_the_answer(all_wrapped: dict[str, Wrapped]) -> None:
    for base, wrong in (("gsm", "7919"), ("fanout", "Zanzibar")):
        wrapped = all_wrapped[base]
        for problem, reference, _ in wrapped.needing:
            found = wrapped.task.knowledge.resolve(f"{problem.question} ; {reference} = {wrong}")
            assert not grading.exact_match(answer_of(found), problem.answers)


@given(st.text(max_size=80))
def test_any_text_is_read(text: str) -> None:
    told = wording.read(f"{text} my firm is {text}")
    assert {*told.values} <= {kind.reference for kind in KINDS.values()}


def test_a_statement_ends_with_its_sentence() -> None:
    told = wording.read(
        "my e-mail is a.b@mail.example . My  own firm is Alder Foods. Who leads my firm?\n"
        "my cousin = ada abbott ; my passcode: 23"
    )
    assert told.values == {
        "my e-mail": "a.b@mail.example",
        "my firm": "Alder Foods",
        "my cousin": "ada abbott",
        "my passcode": "23",
    }
    assert " ".join(told.rest.split()) == "Who leads my firm?"
    assert wording.references("the head of my firm's and my own Cousin 's") == [
        "my firm",
        "my cousin",
    ]


# --- worked solutions ----------------------------------------------------------------------


def test_the_solution_reads_the_value_then_goes_the_bases_way(wrapped: Wrapped) -> None:
    task = wrapped.task
    assert isinstance(task, TeachableTask)
    assert isinstance(task, DrilledTask) == isinstance(wrapped.base, DrilledTask)
    for problem in wrapped.every:
        steps, belief = [], ""
        while (step := task.next_step(problem, len(steps), belief)) is not None:
            steps.append(step)
            belief = step.answer
        assert tuple(steps) == problem.steps
    for problem, _, value in wrapped.needing:
        assert task.recall(problem.steps[0], np.random.default_rng(0)) == value
        found = task.knowledge.resolve(task.chain_request(problem, 1, value))
        assert grading.exact_match(answer_of(found), problem.answers)
        for index in range(2, len(problem.steps)):
            belief = problem.steps[index - 1].answer
            base = wording.unwrapped(problem)
            expected = wrapped.base.chain_request(base, index - 1, belief)
            assert task.chain_request(problem, index, belief) == expected


def test_a_value_that_was_read_wrong_leads_where_it_leads(all_wrapped: dict[str, Wrapped]) -> None:
    wrapped = all_wrapped["world"]
    facts = wrapped.base.world.facts
    followed = 0
    for problem, _, value in wrapped.needing:
        relation, subject = problem.steps[1].query.split(" of ", 1)
        assert subject == value
        other = next(name for told, name in facts if told == relation and name != value)
        step = wrapped.task.next_step(problem, 1, other)
        assert (step.query, step.answer) == (f"{relation} of {other}", facts[relation, other])
        assert wrapped.task.next_step(problem, 1, "nobody at all") is None
        assert wrapped.task.chain_request(problem, 1, other).endswith(other)
        followed += 1
    assert followed > 10


def test_readings_are_the_bases_and_what_a_question_may_refer_to(
    all_wrapped: dict[str, Wrapped],
) -> None:
    wrapped = all_wrapped["world"]
    references = {kind.reference for kind in REFERRED}
    for problem in wrapped.every[:60]:
        found = {step.query: step.answer for step in wrapped.task.readings(problem)}
        units = {KINDS[u.kind].reference: u.text for u in problem.units if u.kind in KINDS}
        assert {q: a for q, a in found.items() if q in units} == {
            reference: text for reference, text in units.items() if reference in references
        }
        assert any(query not in units for query in found)
        assert all(step.query in found for step in problem.steps if step.is_local)


@pytest.mark.parametrize("base", BASES)
def test_every_base_assembles_and_makes_traces_and_episodes(
    base: str,
    tiny_config: ml_collections.ConfigDict,
    tmp_path: pathlib.Path,
    compiled: pathlib.Path,
) -> None:
    config = runs.trainable(tiny_config)
    config.task.update({"name": "privatise", "train": 80})
    config.task.privatise.base = base
    config.tokenizer.kind = "byte"
    config.rollout.update({"capacity": 512, "max_segments": 2, "think_tokens": 8, "rows": 2})
    config.rollout.update({"request_tokens": 8, "reply_tokens": 24})
    validate(config)
    with compiled_once(compiled):
        assembly = assemble(config, str(tmp_path))
        problems = assembly.task.problems("train")
        needing = [problem for problem in problems if wording.needed(problem)]
        needing.sort(key=lambda problem: len(problem.question + problem.notes))
        jobs = [Job(needing[at], (0, at, 0), "ask_first") for at in range(2)]
        episodes = assembly.engine.run(assembly.initial_params(), jobs, temperature=1.0)
        assembly.close()
    for episode in episodes:
        asked = episode.exchanges[0]
        assert asked.request == episode.problem.question
        assert asked.feedback.kind is FeedbackKind.CLARIFY
    long = config.rollout.copy_and_resolve_references()
    long.update({"capacity": 4096, "max_segments": 20, "think_tokens": 400})
    long.update({"request_tokens": 400, "answer_tokens": 400, "reply_tokens": 600})
    synthesiser = dataclasses.replace(
        assembly.synthesiser(), limits=Limits.of(long, len(assembly.engine.names))
    )
    traces, _ = synthesiser.batch(problems, np.random.default_rng(0))
    assert len(traces) == config.cold_start.batch


def test_the_default_profile_fits_the_quickstarts_limits(all_wrapped: dict[str, Wrapped]) -> None:
    wrapped = all_wrapped["world"]
    config = default_config()
    config.tokenizer.vocabulary = 1024  # as configs/privatise.py has it
    tokenizer = tokenizers.make_tokenizer(config, corpus=wrapped.task.corpus)
    words = {word for name in wrapped.base.world.type_of for word in name.split()}
    assert np.mean([len(tokenizer.encode(word)) == 1 for word in words]) > 0.95
    lengths = [len(tokenizer.prompt(p.question, p.notes)) for p in wrapped.every]
    assert max(lengths) < 140


# --- a base without solutions, and mistakes ------------------------------------------------


class BareTask:
    """A base that offers problems and knowledge, and no worked solution."""

    name = "bare"

    def __init__(self, config: Any, data_dir: str) -> None:
        inner = GsmTask(config, data_dir)
        self._steps = {problem.question: problem.steps for problem in inner.problems("train")}
        self._problems = {
            split: [dataclasses.replace(p, steps=()) for p in inner.problems(split)]
            for split in SPLITS
        }
        whole = [
            dataclasses.replace(p, steps=(Step(p.question, p.answers[0]),))
            for split in SPLITS
            for p in inner.problems(split)
        ]
        self.knowledge = GsmKnowledge(whole)

    def problems(self, split: str) -> Sequence[Problem]:
        return self._problems[split]

    def corpus(self) -> Sequence[str]:
        return [problem.question for problem in self._problems["train"]]


@pytest.fixture
def bare_config(
    monkeypatch: pytest.MonkeyPatch, tiny_config: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    monkeypatch.setitem(TASKS, "bare", f"{__name__}:BareTask")
    tiny_config.task.update({"name": "privatise", "train": 80})
    tiny_config.task.privatise.base = "bare"
    return tiny_config


def test_a_base_without_solutions_is_a_task_only_and_still_guarded(
    bare_config: ml_collections.ConfigDict, tmp_path: pathlib.Path
) -> None:
    task: Any = make_task(bare_config, str(tmp_path))
    assert not isinstance(task, TeachableTask)
    needing = [(p, wording.needed(p)) for p in task.problems("train")]
    needing = [(problem, found) for problem, found in needing if found]
    assert len(needing) > 10
    for problem, (reference, unit) in needing:
        assert problem.steps == ()
        told = problem.question.replace(reference, unit.text)
        assert answer_of(task.knowledge.resolve(told)) == problem.answers[0]
        for text in (problem.question, problem.question.replace(reference, "some")):
            assert not answer_of(task.knowledge.resolve(text))
    with pytest.raises(ValueError, match=r"'privatise' has no worked solutions to imitate"):
        assemble(bare_config, str(tmp_path / "run"))


@pytest.mark.parametrize("base", ["privatise", "wrold", ""])
def test_a_base_must_be_another_task(base: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=rf"task\.privatise\.base='{base}' must be one of world"):
        make_task(config_of(base), str(tmp_path))


def test_more_distractors_than_kinds_are_refused() -> None:
    config = config_of("world", distractors=MOST_DISTRACTORS + 1)
    with pytest.raises(ValueError, match=r"task\.privatise\.distractors=9 must be at most 8"):
        validate(config)
    known = Problem("u", "q", ("a",), units=tuple(PrivateUnit(k, k) for k in list(KINDS)[:10]))
    wrapper = Wrapper(Settings("gsm", 0, 0.0, 3), BareTask.__new__(BareTask))
    with pytest.raises(ValueError, match=r"distractors=3 is more .*\(2 kinds.*try 2"):
        wrapper.problem("train", known)


# --- the card ------------------------------------------------------------------------------


def test_the_card_has_a_row_for_every_kind_as_the_table_has_it() -> None:
    rows = {
        cells[0]: cells[1:]
        for line in CARD.splitlines()
        if line.startswith("| ")
        and len(cells := [c.strip() for c in line.strip("|").split("|")]) == 5
    }
    del rows["kind"]
    assert rows.keys() == KINDS.keys()
    for name, (label, example, sensitivity, sorts) in rows.items():
        kind = KINDS[name]
        assert label == f"{kind.reference} is"
        assert float(sensitivity) == kind.sensitivity
        assert {re.sub(r"^an? ", "", sort) for sort in sorts.split(", ") if sort} == kind.sorts
        drawn = [kind.draw(np.random.default_rng(at)) for at in range(300)]
        shape = [re.sub(r"\d", "0", value) for value in drawn]
        assert len(re.sub(r"\d", "0", example).split()) in {len(value.split()) for value in shape}
