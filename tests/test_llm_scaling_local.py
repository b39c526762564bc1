"""Local models as helpers of a study: what they are taught, their tokens, a folder that loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collab.llm.prompts import parse_feedback
from collab.models.presets import PRESETS
from collab.models.transformer import TransformerConfig
from collab.tokenizers.bpe import FolderTokenizer
from collab.types import FeedbackKind
from experiments.llm_scaling import local
from experiments.llm_scaling.lessons import Lesson, Shares, Teacher
from experiments.llm_scaling.local import Recipe
from local_models import local_llm
from local_models import made as backend_of

PLAIN = Shares(history=0.0, vague=0.0, overshare=0.0)
SMALL = Recipe(lessons=40, steps=2, batch=4, tokens=160, vocabulary=420, warmup=1)
PRESET = "tiny_32x2"


@pytest.fixture
def config(tiny_config: Any) -> Any:
    tiny_config.llm.reply_tokens = 64
    return tiny_config


def lessons(config: Any, data: Path, shares: Shares, count: int = 60) -> list[Lesson]:
    teacher = Teacher(config, str(data), shares, 0)
    return [teacher.lesson(index) for index in range(count)]


def request(lesson: Lesson) -> str:
    return lesson[0][-1].content.split("\n", 1)[1]


def test_a_lesson_is_a_request_as_an_slm_writes_it_and_the_experts_reply(
    config: Any, tmp_path: Path
) -> None:
    teacher = Teacher(config, str(tmp_path), PLAIN, 0)
    whole = set()
    for index in range(300):
        talk, reply = teacher.lesson(index)
        assert [message.role for message in talk] == ["system", "user"]
        asked, (kind, said) = request((talk, reply)).split(" of "), parse_feedback(reply)
        steps = [part.split(" = ") for part in said.split(" ; ")]
        for query, answer in steps:  # what it is told is true
            relation, _, subject = query.partition(" of ")
            assert teacher.world.facts[relation, subject] == answer
            whole.add((relation, subject))
        is_fact = talk[-1].content.startswith("[ask_fact]")
        assert kind is FeedbackKind.ANSWER and len(steps) == (1 if is_fact else len(asked) - 1)
    assert whole == set(teacher.facts)  # held-out ones among them
    assert teacher.lesson(3) == teacher.lesson(3) != teacher.lesson(4)


def test_some_lessons_have_a_past_or_need_to_ask_back(config: Any, tmp_path: Path) -> None:
    past = lessons(config, tmp_path, dataclasses.replace(PLAIN, history=1.0))
    roles = ["system", "user", "assistant", "user"]
    assert all([message.role for message in talk] == roles for talk, _ in past)
    vague = lessons(config, tmp_path, dataclasses.replace(PLAIN, vague=1.0))
    opened = [lesson for lesson in vague if len(lesson[0]) == 2]
    closed = [lesson for lesson in vague if len(lesson[0]) == 4]
    assert opened and closed
    assert all(parse_feedback(reply)[0] is FeedbackKind.CLARIFY for _, reply in opened)
    assert all(" my " in request(lesson) for lesson in opened)
    assert all(talk[-1].content.startswith("[reply]") for talk, _ in closed)
    assert all(parse_feedback(reply)[0] is FeedbackKind.ANSWER for _, reply in closed)


def test_notes_sent_along_change_no_reply(config: Any, tmp_path: Path) -> None:
    plain = lessons(config, tmp_path, PLAIN)
    wordy = lessons(config, tmp_path, dataclasses.replace(PLAIN, overshare=1.0))
    assert all(" . " in request(lesson) for lesson in wordy)
    assert not any(" . " in request(lesson) for lesson in plain)
    assert all(parse_feedback(reply)[0] is FeedbackKind.ANSWER for _, reply in wordy)


def test_what_never_changes_is_a_token_and_only_the_reply_is_learned(
    config: Any, tmp_path: Path
) -> None:
    teacher = Teacher(config, str(tmp_path / "data"), PLAIN, 0)
    given = [teacher.lesson(index) for index in range(SMALL.lessons)]
    local.write_tokenizer(tmp_path / "model", given, teacher.fixed, SMALL.vocabulary)
    tokenizer = FolderTokenizer.from_folder(tmp_path / "model", ())
    assert [len(tokenizer.encode(text)) for text in teacher.fixed] == [1] * len(teacher.fixed)
    tokens_NS, is_said_NS = local.rows_of(tokenizer, given, SMALL)
    assert len(tokens_NS) == SMALL.lessons
    for (talk, reply), tokens_S, is_said_S in zip(given, tokens_NS, is_said_NS, strict=True):
        prompt = tokenizer.chat([(message.role, message.content) for message in talk])
        first = int(np.argmax(is_said_S))
        said = tokens_S[is_said_S].tolist()
        assert tokens_S[:first].tolist() == prompt
        assert tokenizer.decode(said[:-1]) == reply and said[-1] == tokenizer.end_id
    short = dataclasses.replace(SMALL, tokens=8)
    with pytest.raises(ValueError, match=r"recipe\.tokens=8 hold no lesson"):
        local.rows_of(tokenizer, given, short)


def test_a_made_helper_loads_and_is_not_made_again(config: Any, tmp_path: Path) -> None:
    local.make([PRESET], config, tmp_path, SMALL)
    folder = local.place(PRESET, config, tmp_path, SMALL)
    assert folder.is_dir() and not folder.with_suffix(".tmp").exists()
    backend = backend_of(local_llm(f"hf:{folder}"))
    talk, _ = Teacher(config, str(tmp_path / "data"), PLAIN, 0).lesson(0)
    try:
        reply = backend.complete(talk, reply_tokens=4, deadline_s=120.0, helper="")
    finally:
        backend.close()
    assert reply.completion_tokens is not None and 0 < reply.completion_tokens <= 4
    before = (folder / "model.safetensors").stat().st_mtime_ns
    local.make([PRESET], config, tmp_path, SMALL)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    others = [
        local.place("tiny", config, tmp_path, SMALL),
        local.place(PRESET, config, tmp_path, dataclasses.replace(SMALL, steps=3)),
    ]
    config.task.world.seed = 1
    others.append(local.place(PRESET, config, tmp_path, SMALL))
    assert len({folder, *others}) == 4


def test_imitation_learns_replies_and_nothing_else() -> None:
    """Two talks that end alike but for one token, which decides what is replied."""
    network = TransformerConfig(vocabulary=16, **PRESETS[PRESET])
    tokens_NS = np.array([[5, 1, 7, 8, 2], [5, 3, 9, 7, 2]], np.int32)
    is_said_NS = np.array([[False, False, True, True, True]] * 2)
    recipe = Recipe(steps=100, batch=8, tokens=5, warmup=2, learning_rate=1e-2)
    params = local.taught(network, (tokens_NS, is_said_NS), recipe, label="two")
    model = local.Transformer(network)
    positions_BS = np.broadcast_to(np.arange(5), (2, 5))
    hidden, _ = model.apply({"params": params}, tokens_NS, positions_BS)
    likeliest_BS = np.argmax(model.apply({"params": params}, hidden, method=model.unembed), -1)
    assert likeliest_BS[:, 1:4].tolist() == tokens_NS[:, 2:].tolist()
    assert likeliest_BS[0, 0] not in (1, 3)  # what others said is not imitated
