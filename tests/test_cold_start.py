"""One imitation for several runs: what begins with another's cold start equals one that imitated.

The rules of a config are in test_config.py, training itself in test_train.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

import runs
from collab import cold_start, restore, sharding
from collab.config import default_config
from collab.metrics import read_jsonl
from collab.sharding import leaf_paths
from collab.train import Trainer
from conftest import TINY

pytestmark = pytest.mark.usefixtures("quick")

COLD = 2


def short_config(**changes: Any) -> ml_collections.ConfigDict:
    config = default_config()
    config.update_from_flattened_dict(TINY)
    config.cold_start.steps, config.rl.iterations = COLD, 1
    runs.trainable(config)
    config.update_from_flattened_dict({key.replace("__", "."): changes[key] for key in changes})
    return config


def begun(config: Any, workdir: Path, stop: int = -1) -> Trainer:
    """What `run.train` does before the evaluation."""
    workdir.mkdir(exist_ok=True)
    restore.check_same_run(config, workdir, is_resumed=True)
    restore.take_over(config, workdir)
    restore.write_config(config, workdir)
    return runs.train(config, workdir, lambda trainer, step: step == stop)[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """A run that imitated and trained to the end."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    return workdir, begun(short_config(), workdir)


def final(trainer: Trainer) -> dict[str, np.ndarray]:
    tree = {"learner": trainer.state, "reference": trainer.reference}
    leaves = jax.tree.leaves(sharding.fetch(tree))
    return dict(zip(leaf_paths(tree), leaves, strict=True))


def stages(workdir: Path) -> list[str]:
    return [line["stage"] for line in read_jsonl(workdir / "metrics.jsonl")]


# --- beginning elsewhere -------------------------------------------------------------------


def test_a_run_from_a_cold_start_equals_the_run_that_made_it_also_when_it_was_stopped(
    source: tuple[Path, Trainer], tmp_path: Path
) -> None:
    folder, theirs = source
    given = tmp_path / "given"
    shutil.copytree(folder, given)
    config = short_config(cold_start__from_run=str(given))
    stopped = begun(config, tmp_path / "run", stop=COLD + 1)
    assert stopped.step == COLD + 1
    shutil.rmtree(given)  # no longer needed
    ours = begun(config, tmp_path / "run")
    assert ours.step == theirs.step == COLD + 2
    assert "imitation" in stages(folder)
    assert stages(tmp_path / "run") == ["solve_rate", "policy_gradient"]
    expected, found = final(theirs), final(ours)
    assert found.keys() == expected.keys()
    assert [path for path in found if not np.array_equal(found[path], expected[path])] == []
    assert not (tmp_path / "run" / cold_start.FOLDER).exists()


def test_a_critic_and_features_that_are_kept_from_the_head_need_no_cold_start_of_their_own(
    source: tuple[Path, Trainer], tmp_path: Path
) -> None:
    """What begins with another's equals what imitated with a critic and without the features."""
    changes = {"rl.credit": "value", "model.features": ("max_nll",)}

    def imitated(name: str, changes: dict[str, Any], begins: Path | str = "") -> dict[str, Any]:
        config = short_config(cold_start__from_run=str(begins))
        config.update_from_flattened_dict(changes)
        found = final(begun(config, tmp_path / name, stop=COLD))
        return {path: leaf for path, leaf in found.items() if path.startswith("learner/params/")}

    def differ(some: dict[str, Any], others: dict[str, Any]) -> list[str]:
        return [path for path in some if not np.array_equal(some[path], others[path])]

    alone = imitated("alone", changes)
    given = imitated("given", changes, source[0])
    back = imitated("back", {}, tmp_path / "alone")
    assert given.keys() == alone.keys() and differ(given, alone) == []
    assert {path for path in alone if path not in back} == {
        f"learner/params/value_head/{name}" for name in ("bias", "kernel")
    }
    assert differ(back, alone) == []


def test_told_to_stop_at_once_it_goes_on_from_there(
    source: tuple[Path, Trainer], tmp_path: Path
) -> None:
    config = short_config(cold_start__from_run=str(source[0]), rl__iterations=0)
    assert begun(config, tmp_path / "run", stop=COLD).step == COLD
    assert begun(config, tmp_path / "run").step == COLD + 1


def test_a_run_that_is_stopped_before_its_imitation_is_done_keeps_none(
    tmp_path: Path, source: tuple[Path, Trainer]
) -> None:
    workdir = tmp_path / "run"
    begun(short_config(), workdir, stop=1)
    assert not cold_start.is_kept(workdir)
    config = short_config(cold_start__from_run=str(workdir))
    with pytest.raises(ValueError, match="has not finished its imitation"):
        restore.take_over(config, tmp_path)


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "was"),
    [
        ("seed", 1, "0"),
        ("task.name", "gsm", "'world'"),
        ("task.world.people", 9, "8"),
        ("task.train", 33, "32"),
        ("tokenizer.vocabulary", 513, "512"),
        ("chain_request", "ask_fact", "'ask_solve'"),
        ("model.preset", "small", "'tiny'"),
        ("cold_start.steps", 3, "2"),
        ("cold_start.ask_share", 0.25, "0.5"),
    ],
)
def test_a_cold_start_of_another_config_is_refused_by_its_key(
    path: str, value: Any, was: str, source: tuple[Path, Trainer], tmp_path: Path
) -> None:
    folder = source[0]
    config = short_config(cold_start__from_run=str(folder))
    config.update_from_flattened_dict({path: value})
    with pytest.raises(ValueError) as refused:
        restore.take_over(config, tmp_path)
    assert str(refused.value) == (
        f"{path}={value!r}, but the cold start in {folder} was made with {path}={was}; set it "
        "back, or name another cold_start.from_run"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_may_change_after_a_cold_start(
    source: tuple[Path, Trainer], tmp_path: Path
) -> None:
    changes = {"task.data_dir": "/data", "task.test": 9, "cold_start.label_steps": 0}
    changes |= {"rl.objective": "dapo", "reward.turn": 0.3, "cold_start.judge": "answer"}
    changes |= {"rl.credit": "value", "model.features": ()}
    config = short_config(cold_start__from_run=str(source[0]))
    config.update_from_flattened_dict(changes)
    restore.take_over(config, tmp_path)
    theirs = {path.name: path.read_bytes() for path in (source[0] / "tokenizer").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()} == theirs


def test_a_folder_of_no_run_is_refused(tmp_path: Path) -> None:
    config = short_config(cold_start__from_run=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"from_run='.*absent' is not the folder of a run"):
        restore.take_over(config, tmp_path)


def test_another_tokenizer_that_stands_there_already_is_refused(
    source: tuple[Path, Trainer], tmp_path: Path
) -> None:
    config = short_config(cold_start__from_run=str(source[0]))
    restore.take_over(config, tmp_path)
    next((tmp_path / "tokenizer").iterdir()).write_bytes(b"other")
    with pytest.raises(ValueError, match=r"is not that of cold_start\.from_run"):
        restore.take_over(config, tmp_path)


def test_a_run_that_has_begun_does_not_change_its_cold_start(
    source: tuple[Path, Trainer], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(source[0], folder)
    config = short_config(cold_start__from_run="elsewhere")
    with pytest.raises(ValueError, match=r"cold_start\.from_run='elsewhere', but what stands in"):
        restore.check_same_run(config, folder, is_resumed=True)
