"""Word problems: splits, steps from worked solutions, files and their errors, requests."""

import json
import pathlib
import threading

import numpy as np
import pytest
import reasoning_gym
from ml_collections import ConfigDict

from collab.config import default_config
from collab.tasks import arithmetic, grading, matching
from collab.tasks.gsm import GsmKnowledge, GsmTask, is_kept, read_solution
from collab.types import Problem, Step


def config_of(*, path: str = "", seed: int = 0, train: int = 60, test: int = 20) -> ConfigDict:
    config = default_config()
    config.seed = seed
    config.task.path = path
    config.task.train, config.task.validation, config.task.test = train, 10, test
    return config


@pytest.fixture(scope="module")
def task() -> GsmTask:
    return GsmTask(config_of(), "")


def every(task: GsmTask) -> list[Problem]:
    return [p for split in ("train", "validation", "test") for p in task.problems(split)]


# --- generated -------------------------------------------------------------------------------


def test_splits_have_their_sizes_and_share_no_question(task: GsmTask) -> None:
    assert [len(task.problems(s)) for s in ("train", "validation", "test")] == [60, 10, 20]
    assert len({p.question for p in every(task)}) == 90
    assert len({p.uid for p in every(task)}) == 90


def test_same_seed_same_questions_and_a_size_changes_no_other_split(task: GsmTask) -> None:
    again = GsmTask(config_of(train=30), "")
    assert list(again.problems("test")) == list(task.problems("test"))
    assert list(again.problems("train")) == list(task.problems("train"))[:30]
    other = GsmTask(config_of(seed=1, train=5, test=5), "")
    assert not {p.question for p in every(other)} & {p.question for p in every(task)}


def test_limits_keep_the_shorter_questions_with_smaller_numbers(task: GsmTask) -> None:
    config = config_of(train=20, test=5)
    config.task.gsm.update({"max_steps": 2, "max_number": 60})
    limited = every(GsmTask(config, ""))
    assert len(limited) == 35
    for problem in limited:
        assert len(problem.steps) <= 2
        assert all(arithmetic.is_expression(step.query) for step in problem.steps)
        text = " ; ".join([problem.question, *(step.statement for step in problem.steps)])
        assert all(n <= 60 and n == int(n) for n in matching.numbers(text))
    assert not all(is_kept(p, max_steps=2, max_number=60) for p in every(task))
    assert all(is_kept(p, max_steps=0, max_number=0) for p in every(task))


def test_text_is_no_plain_arithmetic() -> None:
    solved = Problem("p", "How far ?", ("6",), steps=(Step("so x", "3"), Step("3 * 2", "6")))
    assert is_kept(solved, max_steps=0, max_number=6)
    assert not is_kept(solved, max_steps=2, max_number=6)


class FakeSource:
    """Twelve different questions, over and over."""

    def __getitem__(self, index: int) -> dict:
        number = index % 12
        solution = f"1 + {number} = {1 + number}\n#### {1 + number}"
        return {
            "question": f"What is 1 more than {number}?",
            "answer": str(1 + number),
            "metadata": {"answer_cot": solution},
        }


def test_repeated_questions_count_once_and_stay_in_one_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reasoning_gym, "create_dataset", lambda name, **kwargs: FakeSource())
    config = config_of(train=2, test=2)
    config.task.validation = 2
    questions = [problem.question for problem in every(GsmTask(config, ""))]
    assert len(set(questions)) == 6
    config.task.validation = 13
    with pytest.raises(ValueError, match=r"task\.validation=13 is more than gsm_symbolic can make"):
        GsmTask(config, "")


def test_every_problem_is_complete(task: GsmTask) -> None:
    for problem in every(task):
        assert problem.question.endswith(("?", "."))
        assert "final answer" not in problem.question
        assert grading.as_number(problem.answers[0]) is not None
        assert problem.steps[-1].answer == problem.answers[0]
        assert (problem.notes, problem.units) == ("", ())
        assert all(step.query and step.answer for step in problem.steps)


def test_unknown_split_is_named(task: GsmTask) -> None:
    with pytest.raises(ValueError, match="split='dev' must be one of train, validation, test"):
        task.problems("dev")


def test_corpus_covers_training_questions_only(task: GsmTask) -> None:
    corpus = set(task.corpus())
    assert all(p.question in corpus for p in task.problems("train"))
    assert not any(p.question in corpus for p in task.problems("test"))


# --- solutions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "answer", "expected"),
    [
        (
            "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
            "Altogether 48+24 = <<48+24=72>>72 clips.\n#### 72",
            "72",
            (("48 / 2", "24"), ("48 + 24", "72")),
        ),
        (
            "How many in May? ** She sold 48/2 = <<48/2=24>>24.\n#### 24",
            "24",
            (("How many in May?", "24"),),
        ),
        (
            "There are 32 girls x 2 boys/girl = 64 boys.\nNo equation here.\n"
            "   - So 64 boys + 32 girls = 96\n#### 96",
            "96",
            (("32 * 2", "64"), ("64 + 32", "96")),
        ),
        ("Karen = 438 points\n#### 438", "438", (("Karen", "438"),)),
        ("  - Thus, W = 4 episodes\n#### 4", "4", (("Thus, W", "4"),)),
        ("2 + 3 = 5\n#### 7", "7", (("2 + 3", "5"), ("final answer", "7"))),
        ("#### 7", "7", (("final answer", "7"),)),
    ],
)
def test_read_solution(solution: str, answer: str, expected: tuple[tuple[str, str], ...]) -> None:
    steps = read_solution(solution, answer)
    assert tuple((step.query, step.answer) for step in steps) == expected


# --- files -----------------------------------------------------------------------------------


def record(number: int) -> dict[str, str]:
    total = number + 2
    return {
        "question": f"Ann has {number} pears and buys 2 more. How many pears has she now?",
        "answer": f"She has {number}+2=<<{number}+2={total}>>{total}.\n#### {total:,}",
    }


def write(path: pathlib.Path, records: list) -> pathlib.Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


def test_one_file_is_split_by_hash(tmp_path: pathlib.Path) -> None:
    records = [record(number) for number in range(1000, 1080)]
    path = write(tmp_path / "all.jsonl", [*records, "", records[0]])
    task = GsmTask(config_of(path=str(path), train=100, test=100), "")
    questions = [p.question for p in every(task)]
    assert sorted(questions) == sorted(r["question"] for r in records)
    problem = task.problems("train")[0]
    number = int(problem.question.split()[2])
    assert problem.answers == (str(number + 2),)
    assert problem.steps == (Step(f"{number} + 2", str(number + 2)),)
    cut = GsmTask(config_of(path=str(path), train=3, test=1), "")
    assert [len(cut.problems(split)) for split in ("train", "test")] == [3, 1]


def test_a_folder_keeps_the_published_test_set(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "train.jsonl", [record(number) for number in range(100)])
    write(tmp_path / "test.jsonl", [record(number) for number in range(95, 110)])
    config = config_of(path=tmp_path.name, train=200, test=200)
    config.task.validation = 200
    task = GsmTask(config, str(tmp_path.parent))  # relative: found in the data folder
    assert [p.question for p in task.problems("test")] == [
        record(number)["question"] for number in range(95, 110)
    ]
    assert len(task.problems("train")) + len(task.problems("validation")) == 95


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is not a JSON object"),
        ("[1]", "line 2: field 'question'"),
        ({"question": "Q?"}, "line 2: field 'answer' must be a text"),
        ({"question": " ", "answer": "#### 1"}, "line 2: field 'question'"),
        (
            {"question": "Q?", "answer": "it is 7"},
            "line 2: field 'answer' must end in a line '####",
        ),
        ({"question": "Q?", "answer": "#### many"}, "line 2: field 'answer' must end"),
    ],
)
def test_a_bad_line_is_named(tmp_path: pathlib.Path, line: object, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", [record(1), line])
    with pytest.raises(ValueError, match=message):
        GsmTask(config_of(path=str(path)), "")


def test_bytes_that_are_no_text_are_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1 is not a JSON object"):
        GsmTask(config_of(path=str(path)), "")


def test_a_missing_or_too_small_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"task\.path='.*nowhere\.jsonl' must be"):
        GsmTask(config_of(path=str(tmp_path / "nowhere.jsonl")), "")
    with pytest.raises(ValueError, match=r"must hold train\.jsonl"):
        GsmTask(config_of(path=str(tmp_path)), "")
    path = write(tmp_path / "one.jsonl", [record(1)])
    with pytest.raises(ValueError, match="no question for the split"):
        GsmTask(config_of(path=str(path)), "")


# --- requests --------------------------------------------------------------------------------

NOTES = [
    ("A box holds 12 pens and a crate holds 30 boxes. How many pens are in 2 crates?",
     "12*30=<<12*30=360>>360\n360*2=<<360*2=720>>720\n#### 720"),
    ("A box holds 15 pens and a crate holds 30 boxes. How many pens are in 2 crates?",
     "15*30=<<15*30=450>>450\n450*2=<<450*2=900>>900\n#### 900"),
    ("Mia reads 20 pages of her novel on Monday and half as many on Friday. How many in all?",
     "She reads twenty half pages = 10 on Friday\n20+10=<<20+10=30>>30\n#### 30"),
    ("Bea buys tea.", "2*(8+4)=<<2*(8+4)=24>>24\n#### 24"),
    ("Tim cuts a rope into pieces.", "We divide each side, leaving x=14\n#### 14"),
    ("Eve ties ropes into a knot.", "We divide each side, leaving x=15\n#### 15"),
]  # fmt: skip


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> GsmKnowledge:
    records = [{"question": question, "answer": answer} for question, answer in NOTES]
    filler = [record(number) for number in range(2000, 2080)]
    path = write(tmp_path_factory.mktemp("gsm") / "all.jsonl", records + filler)
    return GsmTask(config_of(path=str(path), train=100, test=100), "").knowledge


@pytest.mark.parametrize(
    ("request_text", "answers"),
    [
        (NOTES[0][0], ["360", "720"]),
        (NOTES[1][0].lower().replace("?", ""), ["450", "900"]),
        ("Question: " + NOTES[1][0] + " So far: nothing. What next, 1 or 2?", ["450", "900"]),
        ("Mia reads 20 pages of her novel on Monday", ["10", "30"]),
        ("She reads twenty half pages", ["10"]),
        ("What is 12 * 8?", ["96"]),
        ("12 pens x 8 boxes = 95?", ["96"]),
        ("What is (12 * 30) * 2?", ["360", "720"]),  # bracket by bracket
        ("What is 2 * (8 + 4)?", ["24"]),  # a worked solution takes it in one go
        (NOTES[0][0] + " So far: 12 * 30 = 360", ["720"]),
        (NOTES[0][0] + " So far: 12 * 30 = 361", ["720"]),  # a false belief is still behind us
        ("10 / 4", ["2.5"]),
    ],
)
def test_resolve(knowledge: GsmKnowledge, request_text: str, answers: list[str]) -> None:
    resolution = knowledge.resolve(request_text)
    assert resolution is not None
    assert [step.answer for step in resolution.steps] == answers
    assert resolution.missing is None


@pytest.mark.parametrize(
    "request_text",
    [
        "",
        "pens",
        "How many pens are in 2 crates?",  # fits two problems
        NOTES[0][0].replace("12", "13"),  # a number that no problem has
        "We divide each side, leaving x",  # means something else in each of two problems
        "Mia reads 25 pages of her novel on Monday and half as many on Friday. How many in",
        "What is the weather in Oslo today?",
        "1 / 0",
    ],
)
def test_not_understood(knowledge: GsmKnowledge, request_text: str) -> None:
    assert knowledge.resolve(request_text) is None


def test_every_generated_question_is_found(task: GsmTask) -> None:
    for problem in every(task):
        resolution = task.knowledge.resolve(problem.question)
        assert resolution is not None
        assert resolution.steps == problem.steps


def test_resolve_from_many_threads(task: GsmTask) -> None:
    problems = every(task)
    wrong: list[str] = []

    def work(offset: int) -> None:
        for problem in problems[offset:] + problems[:offset]:
            resolution = task.knowledge.resolve(problem.question)
            if resolution is None or resolution.steps != problem.steps:
                wrong.append(problem.uid)

    threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("answer", ["12", "0", "1", "-3", "0.25", "1000000"])
def test_wrong_answer_is_wrong_and_keeps_the_sign(task: GsmTask, answer: str) -> None:
    rng = np.random.default_rng(0)
    drawn = {task.knowledge.wrong_answer(Step("q", answer), rng) for _ in range(50)}
    assert answer not in drawn
    assert max(float(value) for value in drawn) > float(answer) or answer == "-3"
    assert min(float(value) for value in drawn) < float(answer) or answer in ("0", "1", "0.25")
    assert all((float(value) < 0) == (float(answer) < 0) for value in drawn)
    again = np.random.default_rng(0)
    assert task.knowledge.wrong_answer(Step("q", answer), again) in drawn


# --- worked solutions ------------------------------------------------------------------------


def test_requests_for_what_remains(task: GsmTask) -> None:
    steps = (Step("72 * 0.5", "36"), Step("36 + 17", "53"), Step("53 - 9", "44"))
    problem = Problem("p", "How many pebbles?", ("44",), steps=steps)
    assert task.chain_request(problem, 0, "") == "What is ((72 * 0.5) + 17) - 9?"
    assert task.chain_request(problem, 1, "36") == "What is (36 + 17) - 9?"
    spoken = Problem("s", "How old?", ("7",), steps=(Step("14 / 2", "7"), Step("leaving x", "7")))
    assert task.chain_request(spoken, 0, "") == "How old?"
    assert task.chain_request(spoken, 1, "7") == "How old? So far: 14 / 2 = 7"


def test_the_path_ends_with_the_steps_or_where_the_answer_is_told(task: GsmTask) -> None:
    steps = (Step("3 * 4", "12"), Step("12 + 8", "20"), Step("20 / 2", "10"))
    problem = Problem("p", "How many?", ("10",), steps=steps)
    assert task.next_step(problem, 0, "") == steps[0]
    assert task.next_step(problem, 1, "13") == steps[1]  # as it is
    assert task.next_step(problem, 1, "10") is None
    assert task.next_step(problem, 3, "10") is None
    assert task.next_step(problem, 5, "10") is None
    same = Problem("q", "How many?", ("12",), steps=(Step("3 * 4", "12"), Step("24 / 2", "12")))
    assert task.next_step(same, 1, "12") == same.steps[1]  # that was the step, not the answer
