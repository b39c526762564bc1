"""FanOutQA: splits, canonical answers, steps, requests."""

import hashlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from collab.config import default_config
from collab.tasks import grading
from collab.tasks.fanout import FanoutTask, canonical, split_of
from collab.tasks.splits import SPLITS
from collab.types import Problem, Step


@pytest.fixture(scope="module")
def task() -> FanoutTask:
    return FanoutTask(default_config(), "")


def every(task: FanoutTask) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split)]


def named(task: FanoutTask, start: str) -> Problem:
    return next(problem for problem in every(task) if problem.question.startswith(start))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (True, "yes"),
        (False, "no"),
        (4, "4"),
        (61.6, "61.6"),
        (" Spain ", "Spain"),
        (["a", 2, True], "a; 2; yes"),
        ({"Ann": 3, "Bob": "x"}, "Ann: 3; Bob: x"),
        ({"Show: Part 1": "A; B: c"}, "Show: Part 1: A, B - c"),
        ({"Ann": "", "Bob": 2}, "Ann; Bob: 2"),
        ([], ""),
    ],
)
def test_canonical(answer: object, expected: str) -> None:
    assert canonical(answer) == expected


def test_canonical_is_read_back_part_by_part() -> None:
    answer = {"Show: Part 1": "A; B: c", "Two": 2}
    assert grading.answer_parts(canonical(answer)) == (("Show: Part 1", "A, B - c"), ("Two", "2"))


def test_splits_are_fixed_and_disjoint(task: FanoutTask) -> None:
    assert [len(task.problems(split)) for split in SPLITS] == [184, 40, 86]
    assert len({problem.uid for problem in every(task)}) == 310
    for split in SPLITS:
        for problem in task.problems(split):
            assert split_of(problem.uid.removeprefix("fanout-")) == split


def test_split_of_follows_the_documented_rule() -> None:
    for question_id, split in (("7dcbbbdc7f1120cd", "train"),):
        digest = hashlib.sha256(question_id.encode()).hexdigest()
        assert int(digest[:16], 16) % 100 >= 45
        assert split_of(question_id) == split


def test_a_split_is_cut_to_the_size_asked_for(task: FanoutTask) -> None:
    config = default_config()
    config.task.test = 5
    small = FanoutTask(config, "")
    assert list(small.problems("test")) == list(task.problems("test"))[:5]
    assert len(small.problems("train")) == 184
    with pytest.raises(ValueError, match="split='dev'"):
        small.problems("dev")


def test_steps_of_a_question_by_hand(task: FanoutTask) -> None:
    problem = named(task, "What is the batting hand of each of the first five picks")
    picks = ["Pat Burrell", "Mark Mulder", "Corey Patterson", "Jeff Austin", "JD Drew"]
    hands = ["Right", "Left", "Left", "Right", "Left"]
    whole = "; ".join(f"{pick}: {hand}" for pick, hand in zip(picks, hands, strict=True))
    assert problem.answers == (whole,)
    assert [step.answer for step in problem.steps] == ["; ".join(picks), *hands, whole]
    assert problem.steps[1].query == "What is the batting hand of Pat Burrell?"
    assert problem.steps[-1].query == problem.question


def test_nested_steps_come_before_what_they_answer(task: FanoutTask) -> None:
    problem = named(task, "What is Google's online video platform")
    assert [step.query for step in problem.steps] == [
        "What is Google's online video platform?",
        "Who are the founders of YouTube?",
        "How old is Steve Chen?",
        "How old is Chad Hurley?",
        "How old is Jawed Karim?",
        "Who are the founders of YouTube?",
        problem.question,
    ]


def test_every_problem_is_complete(task: FanoutTask) -> None:
    for problem in every(task):
        assert problem.question
        assert problem.answers[0]
        assert problem.steps[-1].answer == problem.answers[0]
        assert all(step.query and step.answer for step in problem.steps)
        assert (problem.notes, problem.units) == ("", ())
        assert grading.exact_match(problem.answers[0], problem.answers) == 1.0
        assert grading.f1(problem.answers[0], problem.answers) == 1.0
        assert grading.loose_accuracy(problem.answers[0], problem.answers) == 1.0


def test_corpus_holds_training_questions_only(task: FanoutTask) -> None:
    corpus = set(task.corpus())
    assert all(problem.question in corpus for problem in task.problems("train"))
    assert not any(problem.question in corpus for problem in task.problems("test"))


def test_the_package_itself_is_never_imported() -> None:
    code = (
        "import sys; from collab.config import default_config as c; "
        "from collab.tasks.fanout import FanoutTask; FanoutTask(c(), ''); "
        "assert 'fanoutqa' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_text", "answers"),
    [
        ("What is the batting hand of Pat Burrell?", ["Right"]),
        ("batting hand of pat burrell", ["Right"]),
        ("Please tell me: what is the batting hand of Mark Mulder? Thank you very much.", ["Left"]),
        ("Find the largest continent", ["Asia"]),
    ],
)
def test_resolve(task: FanoutTask, request_text: str, answers: list[str]) -> None:
    resolution = task.knowledge.resolve(request_text)
    assert resolution is not None
    assert [step.answer for step in resolution.steps] == answers


def test_a_sub_question_with_parts_brings_the_steps_below_it(task: FanoutTask) -> None:
    resolution = task.knowledge.resolve("What law school did Ketanji Brown Jackson attend?")
    assert resolution is not None
    assert [step.query for step in resolution.steps] == [
        "Where did Ketanji Brown Jackson study law?",
        "What law school did Ketanji Brown Jackson attend?",
    ]


@pytest.mark.parametrize(
    "request_text",
    [
        "",
        "hello",
        "What is the batting hand of Zed Quibble?",
        "What is the height of Mount Zorblax?",
        "What is",
        "1998",
    ],
)
def test_not_understood(task: FanoutTask, request_text: str) -> None:
    assert task.knowledge.resolve(request_text) is None


def test_every_question_brings_its_own_steps_from_many_threads(task: FanoutTask) -> None:
    problems = every(task)
    wrong: list[str] = []

    def work(part: int) -> None:
        for problem in problems[part::4]:
            resolution = task.knowledge.resolve(problem.question)
            if resolution is None or resolution.steps != problem.steps:
                wrong.append(problem.uid)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_sub_questions_about_somebody_unknown_are_rarely_answered(task: FanoutTask) -> None:
    leaves = {s.query for p in task.problems("test") for s in p.steps[:-1] if " of " in s.query}
    exchanged = {leaf.rsplit(" of ", 1)[0] + " of Quentin Zorblax?" for leaf in leaves}
    answered = [text for text in exchanged if task.knowledge.resolve(text) is not None]
    assert len(exchanged) > 50
    assert len(answered) / len(exchanged) < 0.05, answered


def test_wrong_answers_are_wrong_and_of_the_same_kind(task: FanoutTask) -> None:
    rng = np.random.default_rng(0)
    for problem in task.problems("test"):
        for step in problem.steps:
            wrong = task.knowledge.wrong_answer(step, rng)
            assert wrong != step.answer
            if step.answer in ("yes", "no"):
                assert {wrong, step.answer} == {"yes", "no"}
            assert (grading.as_number(wrong) is None) == (grading.as_number(step.answer) is None)
            assert (grading.PART in wrong) == (grading.PART in step.answer)
    age = Step("How old is Steve Chen?", "45")
    draws = {task.knowledge.wrong_answer(age, rng) for _ in range(20)}
    assert "45" not in draws
    assert len(draws) > 1


# --- worked solutions ------------------------------------------------------------------------


def test_requests_for_what_remains_name_the_last_step(task: FanoutTask) -> None:
    problem = named(task, "What is the batting hand of each of the first five picks")
    assert task.chain_request(problem, 0, "") == problem.question
    request = task.chain_request(problem, 3, "Left")
    told = "What is the batting hand of Mark Mulder? = Left"
    assert request == f"{problem.question} So far: {told}"
    resolution = task.knowledge.resolve(request)
    assert resolution is not None
    assert resolution.steps == problem.steps[3:]
    other = request.replace("first five picks", "first five winners of the Zorblax cup")
    assert task.knowledge.resolve(other) is None
