"""Grade-school word problems: generated offline, or GSM8K from its published JSONL files.

With `task.path` empty, questions come from reasoning-gym's `gsm_symbolic` (85 templates filled with
numbers and names). Each split draws from seeds of its own and keeps a third of the questions, told
by their hash, so no question stands in two splits and a split's size changes no other split. All
splits share templates: what is held out is the question, not the kind of question. For an SLM that
learns to calculate first, `task.gsm` keeps the shorter ones with smaller whole numbers.

With `task.path` set, a folder with train.jsonl and test.jsonl (a tenth of the former, by hash, is
validation) or one file (15 % test, 10 % validation, by hash). A repeated question counts once, and
one that the test file has too is in no other split. A split holds at most `task.<split>` questions.

Steps come from the worked solution: each equation is one step, `query` the expression (or, where it
is not plain arithmetic, the text before the equals sign), `answer` its value; sentences without an
equation are left out. The last step's answer is the problem's.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import ml_collections
import numpy as np

from collab.tasks import arithmetic, grading, matching, published
from collab.tasks.decomposed import DecomposedTask
from collab.tasks.splits import SPLITS
from collab.types import Problem, Resolution, Step

_SEEDS_PER_SPLIT = 10_000_000  # reasoning-gym makes question i from seed + i
_ROUND = 2048  # questions made at a time
_SUFFIX = "Give the result as your final answer. Do not include units."
_ANNOTATION = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
_FINAL = re.compile(r"^####\s*(.+?)\s*$", re.MULTILINE)
_FINAL_QUERY = "final answer"
_MIN_SHARE = 0.8  # of a known text's weight, or of the request's, for a match
_MIN_TOKENS = 4  # of a request, or sub-question, that is matched by its words


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _steps_of_line(line: str) -> Iterator[Step]:
    """Steps of one sentence: of its <<a*b=c>> annotations, else of its last equation."""
    question, is_socratic, sentence = line.partition(" ** ")
    found = []
    for left, right in _ANNOTATION.findall(sentence if is_socratic else line):
        value = grading.as_number(right)
        if value is not None:
            found.append(Step(arithmetic.spell(left), grading.canonical_number(value)))
    if not found:
        equation = arithmetic.read_equation(_ANNOTATION.sub("", line).lstrip(" -•*"))
        if equation is not None:
            found.append(Step(equation.left, grading.canonical_number(equation.value)))
    if is_socratic and found:
        found = [Step(question.strip(), found[-1].answer)]
    yield from found


def read_solution(solution: str, answer: str) -> tuple[Step, ...]:
    """Steps of a worked solution, the last of them giving `answer` (added where none does)."""
    body = _FINAL.sub("", solution)
    steps = [step for line in body.splitlines() for step in _steps_of_line(line)]
    if not steps or steps[-1].answer != answer:
        steps.append(Step(_FINAL_QUERY, answer))
    return tuple(steps)


def _problem(question: str, solution: str, value: Fraction) -> Problem:
    answer = grading.canonical_number(value)
    uid = hashlib.sha256(question.encode()).hexdigest()[:12]
    return Problem(f"gsm-{uid}", question, (answer,), steps=read_solution(solution, answer))


# --- generated ---------------------------------------------------------------------------------


def is_kept(problem: Problem, *, max_steps: int, max_number: int) -> bool:
    """Whether a question is within `config.task.gsm`; a limit of 0 is none."""
    queries = [step.query for step in problem.steps]
    if max_steps and not (
        len(queries) <= max_steps and all(map(arithmetic.is_expression, queries))
    ):
        return False
    stated = matching.numbers(" ; ".join([problem.question, *(s.statement for s in problem.steps)]))
    return not max_number or all(n <= max_number and n.is_integer() for n in stated)


def _generate(seed: int, split: int, count: int, limits: Mapping[str, int]) -> list[Problem]:
    """`count` different questions of one split; a longer list starts with the shorter one.

    limits: `config.task.gsm`.
    """
    import reasoning_gym  # takes seconds to import, and the extra is optional

    first_seed = (seed * len(SPLITS) + split) * _SEEDS_PER_SPLIT
    found: dict[str, Problem] = {}
    size = 0
    while len(found) < count:
        start, size, before = size, size + _ROUND, len(found)
        source = reasoning_gym.create_dataset("gsm_symbolic", seed=first_seed, size=size)
        for index in range(start, size):
            item = source[index]
            question = item["question"].removesuffix(_SUFFIX).strip()
            if _hash(question) % len(SPLITS) == split and question not in found:
                solution = item["metadata"]["answer_cot"]
                problem = _problem(question, solution, Fraction(item["answer"]))
                if is_kept(problem, **limits):
                    found[question] = problem
            if len(found) == count:
                break
        if len(found) == before:
            raise ValueError(
                f"task.{SPLITS[split]}={count} is more than gsm_symbolic can make ({before}); "
                "ask for fewer questions, or raise the limits of task.gsm"
            )
    return list(found.values())


# --- published ---------------------------------------------------------------------------------


def _read_line(line: bytes, where: str) -> Problem:
    """One GSM8K record. Raises: ValueError that names file, line and field."""
    try:
        record: Any = json.loads(line)
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise ValueError(
            f"{where} is not a JSON object; GSM8K has one object a line with question and answer"
        ) from error
    fields = record if isinstance(record, dict) else {}
    for field in ("question", "answer"):
        if not isinstance(fields.get(field), str) or not fields[field].strip():
            raise ValueError(f"{where}: field {field!r} must be a text that is not empty")
    final = _FINAL.search(fields["answer"])
    value = grading.as_number(final[1]) if final else None
    if value is None:
        raise ValueError(f"{where}: field 'answer' must end in a line '#### <number>'")
    return _problem(fields["question"].strip(), fields["answer"], value)


def _read_file(path: pathlib.Path) -> dict[str, Problem]:
    """Problems of one JSONL file by question, first of each; blank lines are allowed."""
    found: dict[str, Problem] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            problem = _read_line(line, f"task.path: {path}, line {number}")
            found.setdefault(problem.question, problem)
    return found


def _load(path: pathlib.Path) -> dict[str, list[Problem]]:
    """Problems by split from one file or from the folder of the published two."""
    splits: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    if not path.exists():
        raise ValueError(
            f"task.path={str(path)!r} must be a GSM8K JSONL file or a folder with train.jsonl and "
            "test.jsonl, but nothing is there; fix the path or leave it empty to generate questions"
        )
    if path.is_dir():
        files = {name: path / f"{name}.jsonl" for name in ("train", "test")}
        for file in files.values():
            if not file.is_file():
                raise ValueError(f"task.path={str(path)!r} must hold {file.name}; add the file")
        test = _read_file(files["test"])
        splits["test"] = list(test.values())
        for question, problem in _read_file(files["train"]).items():
            if question not in test:
                is_held_out = _hash(question) % 100 < 10
                splits["validation" if is_held_out else "train"].append(problem)
    else:
        for question, problem in _read_file(path).items():
            part = _hash(question) % 100
            split = "test" if part < 15 else "validation" if part < 25 else "train"
            splits[split].append(problem)
    for split, problems in splits.items():
        if not problems:
            raise ValueError(
                f"task.path={str(path)!r} has no question for the split {split!r}; "
                "give a file with more questions"
            )
    return splits


# --- the task ----------------------------------------------------------------------------------


class GsmKnowledge:
    """Solves requests that hold a known question, a telling part of one, or plain arithmetic."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Index questions and sub-questions. Never changes afterwards, so threads may share it."""
        known: dict[str, tuple[Step, ...]] = {}
        contested: set[str] = set()
        for problem in problems:
            known[problem.question] = problem.steps
            for step in problem.steps:
                is_short = len(matching.tokens(step.query)) < _MIN_TOKENS
                if is_short or arithmetic.is_expression(step.query):
                    continue
                if known.setdefault(step.query, (step,)) != (step,):
                    contested.add(step.query)  # "leaving x" means something else elsewhere
        # What a worked solution does in one go is one step, brackets or not.
        self._single = {step.query for problem in problems for step in problem.steps}
        texts = [text for text in known if text not in contested]
        self._steps = [known[text] for text in texts]
        self._numbers = [matching.numbers(text) for text in texts]
        self._index = matching.TextIndex(texts)

    def resolve(self, text: str) -> Resolution | None:
        """Steps that answer the request, or None.

        In this order: a request that holds a whole question with all its numbers (without the
        steps that it tells behind "So far:"); arithmetic, solved exactly, bracket by bracket; a
        part of one question (four words or more, every number from there). A part that fits several
        problems equally well is not understood.
        """
        matches = self._index.nearest(text)
        stated = matching.numbers(text)
        for match in matches:
            if match.covered >= _MIN_SHARE and self._numbers[match.index] <= stated:
                told = text.partition(matching.SO_FAR)[2]
                return Resolution(matching.rest_of(self._steps[match.index], told))
        expressions = arithmetic.find_expressions(text)
        if expressions:
            longest, value = max(expressions, key=lambda found: len(found[0]))
            is_single = longest in self._single
            parts = [(longest, value)] if is_single else arithmetic.take_apart(longest)
            return Resolution(
                tuple(Step(part, grading.canonical_number(result)) for part, result in parts)
            )
        if len(matching.tokens(text)) < _MIN_TOKENS:
            return None
        near = [m for m in matches if m.used >= _MIN_SHARE and self._holds(m.index, stated)]
        if not near:
            return None
        best = max(near, key=lambda match: match.used)
        rivals = {self._steps[m.index] for m in near if m.used > best.used - 1e-9}
        return Resolution(self._steps[best.index]) if len(rivals) == 1 else None

    def _holds(self, index: int, stated: frozenset[float]) -> bool:
        results = {float(step.answer) for step in self._steps[index]}
        return stated <= self._numbers[index] | results

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        """The true value, off by 1 up to a quarter of it (at least 3); no sign is ever turned."""
        value = Fraction(step.answer)
        offset = int(rng.integers(1, max(3, min(int(abs(value)) // 4, 10**6)) + 1))
        is_up = bool(rng.integers(2)) or abs(value) <= offset
        away = offset if is_up else -offset
        return grading.canonical_number(value + away if value >= 0 else value - away)


class GsmTask(DecomposedTask):
    """Word problems whose answer is one number (`types.TeachableTask`); splits: see the head."""

    def __init__(self, config: ml_collections.ConfigDict, data_dir: str) -> None:
        """Make or read every split. A relative `task.path` may also lie in `data_dir`."""
        task = config.task
        if task.path:
            loaded = _load(published.locate(task.path, data_dir))
            problems = {split: loaded[split][: task[split]] for split in SPLITS}
        else:
            problems = {
                split: _generate(config.seed, index, task[split], task.gsm)
                for index, split in enumerate(SPLITS)
            }
        known = [problem for split in SPLITS for problem in problems[split]]
        super().__init__("gsm", problems, GsmKnowledge(known))

    # --- worked solutions ------------------------------------------------------------------

    def next_step(self, problem: Problem, index: int, belief: str) -> Step | None:
        """The worked solution's step as it is: a false belief is not carried on.

        None also where the belief is the answer already, told by a helper in one go.
        """
        if index >= len(problem.steps):
            return None
        is_told = belief == problem.answers[0] != problem.steps[index - 1].answer
        return None if index > 0 and is_told else problem.steps[index]

    def chain_request(self, problem: Problem, index: int, belief: str) -> str:
        """The remaining steps as one nested expression: "What is (36 + 17) - 9?".

        Where one of them is no arithmetic, the question itself with the last step done.
        """
        rest = problem.steps[index:]
        if not all(arithmetic.is_expression(step.query) for step in rest):
            return matching.rest_request(problem, index, belief)
        return f"What is {arithmetic.nest([(step.query, step.answer) for step in rest])}?"
