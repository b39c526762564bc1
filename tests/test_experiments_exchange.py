"""Other helpers for a policy: who is asked, what is kept, and that no program is compiled anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runs
from collab.assembly import Assembly, assemble
from collab.evaluate import Evaluator
from collab.report import Outcome
from collab.restore import Restored
from compiling import compiled_once
from experiments import exchange
from experiments.exchange import About, Exchange, changed, exchanged, of_seeds, other_helpers
from experiments.failure import __main__ as failure
from experiments.transfer import __main__ as transfer
from local_models import write_model

MUTE = {"helpers": {"mute": {"timeout_rate": 1.0}}}


@pytest.fixture(scope="module")
def assembly(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assembly]:
    config = runs.small_config()
    config.task.validation = config.task.test = 4
    with compiled_once(compiled):
        yield assemble(config, str(tmp_path_factory.mktemp("exchange")))


def chained(evaluator: Evaluator) -> tuple[list[Outcome], About]:
    """Each question is asked about, and what the helpers said is told."""
    outcomes = evaluator.run(("ask_chain",)).outcomes
    return outcomes, {"requests": evaluator.a.client.counters()["requests"]}


def test_other_helpers_reply_meanwhile_by_the_same_programs(assembly: Assembly) -> None:
    params, own = assembly.initial_params(), assembly.client
    said = {}
    for name, changes in (("own", {}), ("mute", MUTE)):
        with other_helpers(assembly, changes) as other:
            assert other.engine.client is other.client is not own
            episodes = Evaluator(other, params).run(("ask_chain",)).episodes["ask_chain"]
        feedback = [each.feedback for episode in episodes for each in episode.exchanges]
        assert feedback and {each.helper for each in feedback} <= set(other.pool.weights)
        said[name] = {each.kind.value for each in feedback}
    assert said["mute"] == {"unavailable"} and "unavailable" not in said["own"]
    assert assembly.engine.client is own and assembly.engine.pool is assembly.pool
    assert assembly.engine.programs() == {"admit": 1, "feed": 1, "advance": 1}


def test_deeper_keys_are_changed_in_a_copy(assembly: Assembly) -> None:
    copy = changed(assembly.config, {**MUTE, "local.weights": "hf:there", "backend": "local"})
    assert copy.llm.helpers.to_dict() == MUTE["helpers"]
    assert (copy.llm.local.weights, copy.llm.backend) == ("hf:there", "local")
    assert assembly.config.llm.backend == "scripted" and len(assembly.config.llm.helpers) == 3


@pytest.fixture
def job(assembly: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A job whose policy is the random one; `restores` counts how often it was read back."""
    params = assembly.initial_params()
    job = SimpleNamespace(folder=tmp_path, run=SimpleNamespace(label="a-seed0"), restores=0)

    @contextlib.contextmanager
    def restored(asked: Any) -> Iterator[Restored]:
        asked.restores += 1
        yield Restored(assembly, params, params, 1, {})

    monkeypatch.setattr(exchange, "policy_of", restored)
    return job


def test_what_is_measured_is_kept_exchange_by_exchange(job: Any, tmp_path: Path) -> None:
    exchanges = {"own": Exchange({}, chained), "mute": Exchange(MUTE, chained)}
    first = exchanged("study", job, {"own": exchanges["own"]})
    assert {outcome.strategy for outcome in first["own"].outcomes} == {"ask_chain"}
    assert first["own"].about["requests"] > 0
    both = exchanged("study", job, exchanges)
    assert job.restores == 2 and both["own"] == first["own"]
    assert of_seeds("study", [job, job], exchanges)["mute"] == [both["mute"]] * 2
    assert job.restores == 2  # all is there
    assert len(list((tmp_path / "study").glob("*.npz"))) == 2
    exchanged("study", job, {"mute": Exchange({"helpers": {"mute": {"hops": 1}}}, chained)})
    assert job.restores == 3  # another helper of that title


def test_what_was_cut_is_made_again(job: Any) -> None:
    def fails(evaluator: Evaluator) -> tuple[list[Outcome], About]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exchanged("study", job, {"own": Exchange({}, chained), "cut": Exchange({}, fails)})
    assert [path.stem.split("-")[0] for path in job.folder.glob("study/*.npz")] == ["own"]


# --- what the studies measure --------------------------------------------------------------


def counted(outcomes: list[Outcome]) -> dict[str, int]:
    strategies = [outcome.strategy for outcome in outcomes]
    return {strategy: strategies.count(strategy) for strategy in strategies}


def test_the_measures_of_the_studies_ask_the_test_questions(job: Any) -> None:
    found = exchanged("study", job, {
        "noisy": transfer.exchanges()["noisy"],
        "timeout_50": failure.exchanges("world")["timeout_50"],
        "well": failure.exchanges("timeout_50")["well"],
    })  # fmt: skip
    assert counted(found["noisy"].outcomes) == {
        "learned": 4, "recalibrated": 4, "best_constant": 4,
    }  # fmt: skip
    assert found["noisy"].about["ask_bias"] in transfer.BIASES
    assert counted(found["timeout_50"].outcomes) == {"learned": 4, "slm_cot": 4, "oracle": 4}
    assert counted(found["well"].outcomes) == {"learned": 4}


def test_a_language_model_may_help_with_a_few_questions(job: Any, tmp_path: Path) -> None:
    one = transfer.local_exchange(write_model(tmp_path / "model"), 2)
    found = exchanged("study", job, {transfer.LOCAL: one})[transfer.LOCAL]
    assert counted(found.outcomes) == {"learned": 2, "best_constant": 2, "slm_cot": 2}
    assert found.about == {"questions": 2}
