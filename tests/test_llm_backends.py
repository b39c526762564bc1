"""What every row of BACKENDS owes its client: names, types of failure, one reply to one talk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import ml_collections
import numpy as np
import pytest

from collab.config import default_config
from collab.llm import BACKENDS, Backend, Completion, Message, errors, make_backend
from collab.llm.replay import ReplayBackend
from collab.llm.serve import serving
from collab.types import Resolution, Step
from compiling import compiled_once
from local_models import local_llm, write_model

TALK = [Message("system", "Be brief."), Message("user", "[ask_fact] State it.\ncapital of Norway")]


class Capitals:
    """One fact."""

    def resolve(self, text: str) -> Resolution | None:
        return Resolution((Step("capital of Norway", "Oslo"),)) if "Norway" in text else None

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        return "Bergen"


@pytest.fixture(scope="module", params=BACKENDS)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    """A row of the table, ready; a new row needs a line here."""
    folder = tmp_path_factory.mktemp("backend")
    llm = default_config().llm
    with contextlib.ExitStack() as stack:
        if request.param == "openai":
            url = stack.enter_context(serving(scripted(llm)))
            llm.update({"base_url": url, "model": "scripted"})
        if request.param == "local":
            stack.enter_context(compiled_once(folder / "programs"))
            llm = local_llm(write_model(folder / "model"))
        made = make_backend(request.param, llm, knowledge=Capitals(), seed=3)
        stack.callback(made.close)
        yield made


def scripted(llm: ml_collections.ConfigDict) -> Backend:
    return make_backend("scripted", llm, knowledge=Capitals(), seed=3)


def complete(backend: Backend, messages: list[Message], helper: str = "") -> Completion:
    return backend.complete(messages, reply_tokens=8, deadline_s=60.0, helper=helper)


def test_it_says_where_requests_go_and_who_answers(backend: Backend) -> None:
    assert isinstance(backend.is_local, bool)
    assert backend.where == "" or backend.where.startswith("http")
    assert backend.helper_names and all(backend.helper_names)
    backend.check()


def test_the_same_talk_gets_the_same_reply_under_every_name(backend: Backend) -> None:
    first = complete(backend, TALK)
    assert first.text
    assert first.prompt_tokens is not None and first.prompt_tokens > 0
    assert first.completion_tokens is not None and first.completion_tokens > 0
    assert complete(backend, TALK) == first
    assert complete(backend, TALK, backend.helper_names[0]).text == first.text


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([Message("user", "x y " * 100_000)], errors.ContextTooLong),
        ([Message("system", "x"), Message("tool", "x")], errors.BadRequest),
    ],
)
def test_what_it_cannot_answer_is_refused_by_type(
    backend: Backend, messages: list[Message], error: type[errors.HelpError]
) -> None:
    with pytest.raises(error):
        complete(backend, messages)


def test_an_unknown_helper_is_named_or_unheard_of(backend: Backend) -> None:
    """A server with one `llm.model` does not see the helper's name."""
    if backend.where:
        assert complete(backend, TALK, "nobody") == complete(backend, TALK)
    else:
        with pytest.raises(errors.ModelNotFound, match="nobody"):
            complete(backend, TALK, "nobody")


def test_a_replay_keeps_what_it_says_of_itself(backend: Backend) -> None:
    settings = {"backend_name": "x", "model": "", "temperature": 0.0}
    wrapped = ReplayBackend(backend, None, "off", **settings)
    for name in ("is_local", "where", "helper_names"):
        assert getattr(wrapped, name) == getattr(backend, name)


@pytest.mark.parametrize("name", BACKENDS)
def test_bad_settings_are_value_errors_at_once(name: str) -> None:
    """Nothing is reached, loaded or compiled for them."""
    spoil: dict[str, Callable[[ml_collections.ConfigDict], None]] = {
        "scripted": lambda llm: llm.scripted.update({"error_rate": 2.0}),
        "openai": lambda llm: llm.update({"base_url": "nonsense"}),
        "local": lambda llm: None,  # no weights by default
    }
    llm = default_config().llm
    spoil[name](llm)
    with pytest.raises(ValueError, match=r"llm\."):
        make_backend(name, llm, knowledge=Capitals())
