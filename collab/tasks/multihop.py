"""Multi-hop questions over Wikipedia from published files: HotpotQA, 2WikiMultihopQA, MuSiQue.

`task.path` names one file; its records' keys tell which data set it is:

- HotpotQA, https://hotpotqa.github.io, hotpot_dev_distractor_v1.json and the like: an array of
  {_id, question, answer, supporting_facts, context, type, level}. It says nothing of steps, so the
  task has no worked solutions (`cold_start.steps=0`).
- 2WikiMultihopQA, https://github.com/Alab-NII/2wikimultihop, dev.json and train.json: the same with
  evidences: [[subject, relation, object]]. A step is "relation of subject". Where the record has an
  answer_id and id_aliases.json ({Q_id, aliases, demonyms} a line) lies beside the file, these names
  are accepted too, as its evaluation does.
- MuSiQue, https://github.com/StonyBrookNLP/musique, musique_ans_v1.0_dev.jsonl and the like: one
  {id, paragraphs, question, question_decomposition: [{id, question, answer,
  paragraph_support_idx}], answer, answer_aliases, answerable} a line. "#1" in a step's question is
  the first step's answer; "Green >> performer" is written "performer of Green". Questions marked
  not answerable (musique_full) are left out.

Where the last step does not give the answer, as in comparisons, the question itself is one more.
Paragraphs are not read: what is known of the world is in the SLM and in the helper, nothing is
private. A split (`decomposed.split_of` of the id) holds the first `task.<split>` questions that
fall to it, and the file is read no further than that; a repeated id or question counts once.

Source: Yang et al. 2018, Ho et al. 2020, Trivedi et al. 2022; formats as each repository's README
states them, 2Wiki's aliases as its 2wikimultihop_evaluate_v1.1.py reads them. The splits are our
choice, because the published test sets have no answers.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections

from collab.tasks import grading, published
from collab.tasks.decomposed import (
    DecomposedTask,
    Node,
    NodeKnowledge,
    QuestionTask,
    split_of,
)
from collab.tasks.splits import SPLITS
from collab.types import Problem, Step, Task

_FILES = (
    "hotpot_dev_distractor_v1.json (https://hotpotqa.github.io), dev.json of 2WikiMultihopQA "
    "(https://github.com/Alab-NII/2wikimultihop) or musique_ans_v1.0_dev.jsonl "
    "(https://github.com/StonyBrookNLP/musique)"
)
_ALIAS_FILE = "id_aliases.json"
_PREPOSITIONS = frozenset({"at", "by", "for", "from", "in", "of", "on", "to"})
_REFERENCE = re.compile(r"#(\d+)")
_LOOSE_SPACE = re.compile(r"\s+(?=[?.,]|['’]s\b)")


@dataclasses.dataclass(frozen=True)
class _Question:
    """One record as it was read. alias_id: key into 2Wiki's file of aliases, or ""."""

    uid: str
    text: str
    answers: tuple[str, ...]
    hops: tuple[Step, ...]
    alias_id: str = ""


def multihop_task(config: ml_collections.ConfigDict, data_dir: str) -> Task:
    """The questions of `task.path`, teachable (`types.TeachableTask`) where the file has steps.

    A relative path may also lie in `data_dir`.
    Raises: ValueError for a path that names no file, a record of no known format or of another than
    the first one's, a field that is missing, and a file with too few questions for a split.
    """
    path = published.locate(config.task.path, data_dir)
    if not config.task.path or not path.is_file():
        raise ValueError(
            f"task.path={config.task.path!r} must be a file of multi-hop questions, but no file is "
            f"there; download {_FILES}"
        )
    chosen, has_steps = _read(path, {split: config.task[split] for split in SPLITS})
    every = [question for questions in chosen.values() for question in questions]
    aliases = _aliases(path.with_name(_ALIAS_FILE), {q.alias_id for q in every} - {""})
    nodes: list[Node] = []
    problems: dict[str, list[Problem]] = {}
    for split, questions in chosen.items():
        problems[split] = []
        for question in questions:
            named = aliases.get(question.alias_id, ())
            answers = tuple(dict.fromkeys([*question.answers, *named]))
            steps = _steps(question, answers)
            nodes += [Node(step.query, (step,)) for step in steps if step.query != question.text]
            nodes.append(Node(question.text, steps))
            problems[split].append(
                Problem(
                    f"multihop-{question.uid}",
                    question.text,
                    answers,
                    steps=steps if has_steps else (),
                )
            )
    return (DecomposedTask if has_steps else QuestionTask)(
        "multihop", problems, NodeKnowledge(nodes)
    )


def _read(path: pathlib.Path, sizes: Mapping[str, int]) -> tuple[dict[str, list[_Question]], bool]:
    """The first questions of every split, and whether the file's format has steps."""
    chosen: dict[str, list[_Question]] = {split: [] for split in SPLITS}
    kind: _Format | None = None
    seen: set[str] = set()
    for where, record in published.records(path):
        found = _format_of(record, where)
        kind = kind or found
        if found is not kind:
            raise ValueError(
                f"task.path: {where} is of {found.name}, but the file's first is of {kind.name}; "
                "give a file of one data set"
            )
        question = found.read(record, where)
        if question is None or seen & {question.uid, question.text}:
            continue
        seen |= {question.uid, question.text}
        split = split_of(question.uid)
        if len(chosen[split]) < sizes[split]:
            chosen[split].append(question)
        if all(len(chosen[split]) == sizes[split] for split in SPLITS):
            break
    for split, questions in chosen.items():
        if len(questions) < sizes[split]:
            fix = f"set task.{split}={len(questions)} or give" if questions else "give"
            raise ValueError(
                f"task.{split}={sizes[split]} is more than {path} has for this split "
                f"({len(questions)}, by the hash of the id); {fix} a larger file"
            )
    return chosen, kind is not None and kind.has_steps


def _steps(question: _Question, answers: tuple[str, ...]) -> tuple[Step, ...]:
    """The hops, and the question itself where the last of them does not answer it."""
    hops = question.hops
    if hops and grading.exact_match(hops[-1].answer, answers):
        return hops
    return (*hops, Step(question.text, answers[0]))


def _aliases(path: pathlib.Path, wanted: set[str]) -> dict[str, tuple[str, ...]]:
    """Other names of what an answer_id stands for; none where the file is not there."""
    found: dict[str, tuple[str, ...]] = {}
    if wanted and path.is_file():
        for where, record in published.records(path):
            if record.get("Q_id") in wanted:
                names = [*_list(record, "aliases", where), *_list(record, "demonyms", where)]
                found[record["Q_id"]] = tuple(_clean(str(name)) for name in names)
    return found


# --- formats -----------------------------------------------------------------------------------


def _hotpot(record: dict[str, Any], where: str) -> _Question:
    return _Question(
        _text(record, "_id", where),
        _text(record, "question", where),
        (_text(record, "answer", where),),
        (),
    )


def _two_wiki(record: dict[str, Any], where: str) -> _Question:
    hops = []
    for triple in _list(record, "evidences", where):
        is_triple = isinstance(triple, list) and len(triple) == 3
        parts = [_clean(part) for part in triple if isinstance(part, str)] if is_triple else []
        if len(parts) != 3 or not all(parts):
            raise ValueError(
                f"task.path: {where}: field 'evidences' must hold [subject, relation, object]"
            )
        subject, relation, value = parts
        hops.append(Step(_phrase(subject, relation), value))
    plain = _hotpot(record, where)
    return dataclasses.replace(plain, hops=tuple(hops), alias_id=record.get("answer_id") or "")


def _musique(record: dict[str, Any], where: str) -> _Question | None:
    if record.get("answerable") is False:
        return None
    hops: list[Step] = []
    for number, hop in enumerate(_list(record, "question_decomposition", where), start=1):
        place = f"{where}, step {number}"
        if not isinstance(hop, dict):
            raise ValueError(f"task.path: {place} must be an object with question and answer")
        query = _resolved(_text(hop, "question", place), [step.answer for step in hops])
        hops.append(Step(query, _text(hop, "answer", place)))
    aliases = [_clean(str(name)) for name in _list(record, "answer_aliases", where)]
    return _Question(
        _text(record, "id", where),
        _text(record, "question", where),
        tuple(dict.fromkeys([_text(record, "answer", where), *filter(None, aliases)])),
        tuple(hops),
    )


@dataclasses.dataclass(frozen=True)
class _Format:
    """A data set. key: what its records have, and those of the formats behind it have not."""

    name: str
    key: str
    has_steps: bool
    read: Callable[[dict[str, Any], str], _Question | None]


_FORMATS = (
    _Format("MuSiQue", "question_decomposition", True, _musique),
    _Format("2WikiMultihopQA", "evidences", True, _two_wiki),
    _Format("HotpotQA", "supporting_facts", False, _hotpot),
)


def _format_of(record: Iterable[str], where: str) -> _Format:
    for candidate in _FORMATS:
        if candidate.key in record:
            return candidate
    keys = " or ".join(repr(candidate.key) for candidate in _FORMATS)
    raise ValueError(
        f"task.path: {where} has no key {keys}, so it is of no known format; the published test "
        f"files, which have no answers, can't be used: take {_FILES}"
    )


def _resolved(query: str, answers: list[str]) -> str:
    """A sub-question with the answers that it refers to, relations in words."""

    def answer(match: re.Match[str]) -> str:
        number = int(match[1])
        return answers[number - 1] if 1 <= number <= len(answers) else match[0]

    query = _LOOSE_SPACE.sub("", _REFERENCE.sub(answer, query))
    subject, arrow, relation = query.partition(" >> ")
    return _phrase(subject, relation) if arrow else query


def _phrase(subject: str, relation: str) -> str:
    """A relation and its subject in words: "director of Beat Girl", "Judith Viorst educated at"."""
    is_open = relation.rpartition(" ")[2] in _PREPOSITIONS
    return f"{subject} {relation}" if is_open else f"{relation} of {subject}"


def _clean(text: str) -> str:
    return " ".join(text.split())


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"task.path: {where}: field {key!r} must be a text that is not empty")
    return _clean(value)


def _list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise ValueError(f"task.path: {where}: field {key!r} must be a list")
    return value
