"""A trained policy read back for a study: as it was, with a key changed, and looked at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import runs
from compiling import compiled_once
from experiments import trained


@pytest.fixture(scope="module")
def finished(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A run of a study, in the small, and its trainer."""
    config, folder = runs.short_config(), tmp_path_factory.mktemp("finished")
    with compiled_once(compiled):
        assembly, trainer = runs.train(config, folder)
        assembly.close()
        yield SimpleNamespace(config=config, folder=folder), trainer


def test_a_policy_comes_back_with_what_is_changed(finished: tuple[Any, Any]) -> None:
    job, trainer = finished
    with trained.policy_of(job, {"privacy.gate": "block", "evaluate.greedy": False}) as run:
        assert run.assembly.gate.mode == "block" and not run.assembly.config.evaluate.greedy
        assert run.step == trainer.total
        found, kept = (jax.tree.leaves(tree) for tree in (run.params, trainer.state.params))
        assert all(np.array_equal(a, b) for a, b in zip(found, kept, strict=True))
    assert job.config.privacy.gate == "observe"  # the job's own config stays
    with trained.policy_of(job) as run:
        assert run.assembly.gate.mode == "observe"


def test_an_unknown_change_is_refused(finished: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"'privacy\.gat' is unknown; did you mean privacy\.gate"):
        trained.policy_of(finished[0], {"privacy.gat": "off"}).__enter__()


def test_a_dial_is_turned_once(finished: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = finished
    found = trained.dial(job, (-32.0, 32.0), name="dial")
    questions = job.config.task.test
    assert [one.strategy for one in found] == ["bias -32"] * questions + ["bias +32"] * questions
    assert all(one.split == "test" for one in found)
    asks = [np.mean([o.asks for o in found if o.strategy == trained.at_bias(b)]) for b in (-32, 32)]
    assert asks[1] > asks[0]
    looked: list[Path] = []
    look = trained.policy_of

    def spied(job: Any, changes: Any) -> Any:
        looked.append(job.folder)
        return look(job, changes)

    monkeypatch.setattr(trained, "policy_of", spied)
    assert trained.dial(job, (-32.0, 32.0), name="dial") == found and not looked
    assert len(trained.dial(job, (0.0,), name="dial")) == questions and looked  # other biases
