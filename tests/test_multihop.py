"""Multi-hop files: three published formats, steps, answers, splits, what is wrong with a file."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

import multihop_files
from collab import assembly
from collab.config import default_config
from collab.tasks import grading, make_task, published
from collab.tasks.decomposed import split_of
from collab.tasks.splits import SPLITS
from collab.types import Problem, Step, TeachableTask

KINDS = list(multihop_files.MAKERS)


def config_of(path: pathlib.Path | str, *sizes: int) -> ml_collections.ConfigDict:
    config = default_config()
    config.task.update({"name": "multihop", "path": str(path)})
    config.task.update(dict(zip(SPLITS, sizes or (60, 10, 20), strict=True)))
    return config


def loaded(path: pathlib.Path, *sizes: int) -> Any:
    return make_task(config_of(path, *sizes), "")


def every(task: Any) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split)]


def sized(records: list[dict[str, Any]]) -> tuple[int, ...]:
    """How many records fall to each split."""
    splits = [split_of(record.get("_id") or record["id"]) for record in records]
    return tuple(splits.count(split) for split in SPLITS)


def read_one(tmp_path: pathlib.Path, kind: str, **fields: Any) -> Problem:
    """The problem of a record with some fields changed, in a file with others."""
    special = multihop_files.MAKERS[kind](0) | fields
    records = [special, *(multihop_files.MAKERS[kind](number) for number in range(1, 40))]
    path = multihop_files.write(tmp_path / "questions", kind, records)
    task = loaded(path, *sized(records))
    uid = f"multihop-{special.get('_id') or special['id']}"
    return next(problem for problem in every(task) if problem.uid == uid)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def task(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loaded(multihop_files.make(tmp_path_factory.mktemp("data") / "file", kind, 200))


# --- what a file becomes ---------------------------------------------------------------------


def test_splits_are_told_by_the_id_and_as_large_as_asked(task: Any, kind: str) -> None:
    assert [len(task.problems(split)) for split in SPLITS] == [60, 10, 20]
    order = [multihop_files.MAKERS[kind](number) for number in range(200)]
    for split in SPLITS:
        ids = [record.get("_id") or record["id"] for record in order]
        mine = [f"multihop-{uid}" for uid in ids if split_of(uid) == split]
        problems = task.problems(split)
        assert [problem.uid for problem in problems] == mine[: len(problems)]
    with pytest.raises(ValueError, match="split='dev'"):
        task.problems("dev")


def test_only_files_with_steps_are_teachable(task: Any, kind: str) -> None:
    assert isinstance(task, TeachableTask) == (kind != "HotpotQA")
    for problem in every(task):
        assert (problem.notes, problem.units) == ("", ())
        assert bool(problem.steps) == (kind != "HotpotQA")


def test_corpus_covers_training_questions_and_answers(task: Any) -> None:
    corpus = "\n".join(task.corpus())
    for problem in task.problems("train"):
        assert problem.question in corpus and problem.answers[0] in corpus
    assert not any(problem.question in corpus for problem in task.problems("test"))


def test_hotpot_by_hand(tmp_path: pathlib.Path) -> None:
    problem = read_one(
        tmp_path, "HotpotQA", _id="abc", question=" Were Ann and Bob\nkin? ", answer="yes"
    )
    assert problem == Problem("multihop-abc", "Were Ann and Bob kin?", ("yes",))
    assert grading.exact_match("Yes.", problem.answers) == 1.0
    assert grading.f1("yes and no", problem.answers) == 0.0


def test_two_wiki_chains_end_in_their_last_relation(tmp_path: pathlib.Path) -> None:
    problem = read_one(
        tmp_path,
        "2WikiMultihopQA",
        question="Who is the mother of the director of film Polish-Russian War (Film)?",
        answer="Małgorzata Braunek",
        evidences=[
            ["Polish-Russian War", "director", "Xawery Żuławski"],
            ["Xawery Żuławski", "mother", "Małgorzata Braunek"],
        ],
    )
    assert [step.statement for step in problem.steps] == [
        "director of Polish-Russian War = Xawery Żuławski",
        "mother of Xawery Żuławski = Małgorzata Braunek",
    ]


def test_two_wiki_comparisons_end_in_the_question(tmp_path: pathlib.Path) -> None:
    question = "Are Payment and My Cousin from the same country?"
    evidences = [["Payment", "country", "Japan"], ["My Cousin", "country", "France"]]
    problem = read_one(
        tmp_path, "2WikiMultihopQA", question=question, answer="no", evidences=evidences
    )
    assert problem.steps == (
        Step("country of Payment", "Japan"),
        Step("country of My Cousin", "France"),
        Step(question, "no"),
    )


def test_two_wiki_aliases_lie_beside_the_file(tmp_path: pathlib.Path) -> None:
    lines = [
        {"Q_id": "Q7", "aliases": ["Nizza", "Nice,  France"], "demonyms": ["Niçois"]},
        {"Q_id": "Q8", "aliases": ["Oslo"], "demonyms": []},
    ]
    (tmp_path / "id_aliases.json").write_text("\n".join(map(json.dumps, lines)))
    evidences = [["Beat", "director", "Ed"], ["Ed", "place of death", "Nizza"]]
    problem = read_one(
        tmp_path, "2WikiMultihopQA", answer="Nice", answer_id="Q7", evidences=evidences
    )
    assert problem.answers == ("Nice", "Nizza", "Nice, France", "Niçois")
    assert len(problem.steps) == 2  # an alias in the evidence answers the question
    plain = read_one(tmp_path, "2WikiMultihopQA", answer="Nice", answer_id="", evidences=evidences)
    assert plain.answers == ("Nice",)
    assert plain.steps[-1] == Step(plain.question, "Nice")


def test_musique_references_are_resolved(tmp_path: pathlib.Path) -> None:
    hops = [
        ("Hello Love >> performer", "Hank Snow"),
        ("Hank #2 >> educated at", "Rutgers"),
        ("What city did #1 leave for #2 ?", "Bristol"),
        ("who owns #3 's airport and is #9", "12"),
    ]
    problem = read_one(
        tmp_path,
        "MuSiQue",
        answer="twelve",
        answer_aliases=["12", "12", " a dozen", ""],
        question_decomposition=[
            {"id": 1, "question": query, "answer": value, "paragraph_support_idx": None}
            for query, value in hops
        ],
    )
    assert problem.answers == ("twelve", "12", "a dozen")
    assert [step.query for step in problem.steps] == [
        "performer of Hello Love",
        "Hank #2 educated at",  # no earlier step has that number
        "What city did Hank Snow leave for Rutgers?",
        "who owns Bristol's airport and is #9",
    ]
    assert grading.exact_match("It is 12", problem.answers) == 1.0


def test_questions_that_count_once_or_not_at_all(tmp_path: pathlib.Path) -> None:
    records = [multihop_files.musique(number) for number in range(100)]
    unanswerable = [record | {"answerable": False, "answer": "x"} for record in records]
    again = [record | {"answer": "y"} for record in records]
    twins = [(record, record | {"id": f"other_{record['id']}"}) for record in records]
    path = multihop_files.write(
        tmp_path / "full", "MuSiQue", [*unanswerable, *sum(twins, ()), *again]
    )
    problems = every(loaded(path, *sized(records)))
    assert sorted(p.question for p in problems) == sorted(r["question"] for r in records)
    assert not any("other" in problem.uid for problem in problems)
    assert not {"x", "y"} & {answer for problem in problems for answer in problem.answers}


def test_a_relative_path_may_lie_in_the_data_folder(tmp_path: pathlib.Path) -> None:
    multihop_files.make(tmp_path / "deep.json", "HotpotQA", 40)
    task = make_task(config_of("deep.json", 4, 2, 2), str(tmp_path))
    assert len(every(task)) == 8


# --- large and broken files ------------------------------------------------------------------


def test_a_file_is_read_no_further_than_needed(tmp_path: pathlib.Path, kind: str) -> None:
    path = multihop_files.make(tmp_path / "cut", kind, 100)
    text = path.read_text()
    path.write_text(text[: int(len(text) * 0.9)])
    assert len(every(loaded(path, 5, 2, 2))) == 9
    with pytest.raises(ValueError, match=r"(record|line) 9\d is not a whole JSON object"):
        loaded(path, 100, 2, 2)


@given(
    values=st.lists(
        st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.lists(st.none())),
        max_size=8,
    ),
    chunk=st.integers(1, 40),
    is_array=st.booleans(),
)
def test_records_come_back_whole_whatever_the_chunk(
    values: list[Any],
    chunk: int,
    is_array: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("records") / "file"
    lines = [json.dumps(value, ensure_ascii=is_array) for value in values]
    text = json.dumps(values, indent=1) if is_array else "\n\n".join(lines)
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "_CHUNK", chunk)
        assert [record for _, record in published.records(path)] == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{}, 3]", "record 2 is not a whole JSON object"),
        ("[{}, {", "record 2 is not"),
        ("[{}", "record 2 is not"),
        ("{}\n\n{broken}", "line 3 is not"),
        ("{}\nnull", "line 2 is not"),
        ("<html>", "line 1 is not"),
        (b'[{}, {"a": "\xff"}]', "is not a whole JSON object"),
    ],
)
def test_unreadable_records_are_named(
    tmp_path: pathlib.Path, text: str | bytes, message: str
) -> None:
    path = tmp_path / "bad"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"task.path: .*bad, .*{message}"):
        list(published.records(path))


def test_a_record_without_end_is_given_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "_CHUNK", 64)
    monkeypatch.setattr(published, "_LONGEST", 1000)
    path = tmp_path / "endless"
    path.write_text('[{"a": "' + "x" * 10_000 + '"}]')
    with pytest.raises(ValueError, match="record 1 is not a whole"):
        list(published.records(path))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("HotpotQA", {"answer": ""}, "record 2: field 'answer' must be a text"),
        ("HotpotQA", {"question": 3}, "record 2: field 'question' must be a text"),
        ("HotpotQA", {"_id": None}, "record 2: field '_id' must be a text"),
        ("2WikiMultihopQA", {"evidences": "x"}, "record 2: field 'evidences' must be a list"),
        ("2WikiMultihopQA", {"evidences": [["a", "b"]]}, "record 2: field 'evidences' must hold"),
        ("2WikiMultihopQA", {"evidences": [["a", "b", 3]]}, "must hold .subject, relation"),
        ("MuSiQue", {"question_decomposition": {}}, "line 2: field 'question_decomposition' must"),
        ("MuSiQue", {"question_decomposition": [3]}, "line 2, step 1 must be an object"),
        (
            "MuSiQue",
            {"question_decomposition": [{"question": "q", "answer": " "}]},
            "line 2, step 1: field 'answer' must be a text",
        ),
        ("MuSiQue", {"answer_aliases": None}, "line 2: field 'answer_aliases' must be a list"),
    ],
)
def test_fields_that_are_wrong_are_named(
    tmp_path: pathlib.Path, kind: str, fields: dict[str, Any], message: str
) -> None:
    maker = multihop_files.MAKERS[kind]
    path = multihop_files.write(tmp_path / "bad", kind, [maker(0), maker(1) | fields])
    with pytest.raises(ValueError, match=rf"task\.path: .*{message}"):
        loaded(path)


def test_unknown_mixed_missing_and_short_files_are_named(tmp_path: pathlib.Path) -> None:
    unlabelled = {"_id": "a", "question": "Who?", "context": []}
    path = multihop_files.write(tmp_path / "test.json", "HotpotQA", [unlabelled])
    with pytest.raises(ValueError, match=r"record 1 has no key 'question_decomp.*no answers"):
        loaded(path)
    mixed = [multihop_files.hotpot(0), multihop_files.two_wiki(1)]
    path = multihop_files.write(tmp_path / "mixed.json", "HotpotQA", mixed)
    with pytest.raises(ValueError, match=r"record 2 is of 2WikiMultihopQA, but .* of HotpotQA"):
        loaded(path)
    for missing in (tmp_path / "nowhere.json", tmp_path, ""):
        with pytest.raises(ValueError, match=r"task\.path='.*' must be .*hotpotqa\.github\.io"):
            make_task(config_of(missing), "")
    path = multihop_files.make(tmp_path / "few.json", "HotpotQA", 100)
    has = sized([multihop_files.hotpot(number) for number in range(100)])[0]
    with pytest.raises(ValueError, match=rf"task\.train=99 is more .*\({has}, .*set task.train"):
        loaded(path, 99, 1, 1)
    with pytest.raises(ValueError, match=r"\(0, by the hash of the id\); give a larger file"):
        loaded(multihop_files.make(tmp_path / "one.json", "HotpotQA", 1), 1, 1, 1)


# --- requests --------------------------------------------------------------------------------


def test_questions_and_steps_are_answered(task: Any, kind: str) -> None:
    for problem in every(task):
        resolution = task.knowledge.resolve(f"Please tell me: {problem.question}")
        assert resolution is not None
        assert grading.exact_match(resolution.steps[-1].answer, problem.answers) == 1.0
        assert resolution.steps == (problem.steps or (Step(problem.question, problem.answers[0]),))
        for step in problem.steps[:-1]:
            found = task.knowledge.resolve(step.query)
            assert found is not None
            assert found.steps[-1] == step


def test_nothing_is_known_of_others(task: Any) -> None:
    for problem in task.problems("test"):
        stranger = problem.question
        for word in problem.question.split():
            if word.istitle() and word not in ("Who", "Where", "Which", "Were", "Are", "How"):
                stranger = stranger.replace(word.strip("?,"), "Zorblax")
        assert task.knowledge.resolve(stranger) is None


def test_a_file_without_steps_needs_no_cold_start(tmp_path: pathlib.Path) -> None:
    path = multihop_files.make(tmp_path / "hotpot.json", "HotpotQA", 80)
    config = config_of(path, 20, 5, 5)
    config.tokenizer.kind = "byte"
    with pytest.raises(ValueError, match=r"'multihop' has no worked .*try cold_start\.steps=0"):
        assembly.assemble(config, str(tmp_path / "run"))
    config.cold_start.steps = 0
    parts = assembly.assemble(config, str(tmp_path / "run"))
    assert parts.task.problems("train")[0].steps == ()
    parts.close()
