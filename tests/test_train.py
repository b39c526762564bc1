"""Training as a whole: stop and go on, kills, meshes, and what is written.

Started as a program, this file trains the unbroken run's config in a folder, to be killed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

import runs
from collab import episode_log, sharding
from collab import train as train_module
from collab.assembly import assemble
from collab.checkpoint import Checkpointer
from collab.detectors import figures
from collab.llm import errors
from collab.llm.serve import serving
from collab.metrics import OF_A_PROCESS, Writers, read_jsonl
from collab.rewards import score
from collab.rl import batch as batch_module
from collab.sharding import leaf_paths
from collab.train import Trainer
from collab.types import FIRST_REQUEST_ID
from compiling import compiled_once
from episodes import NAMES, answer, ask, make_episode, think
from fake_llm import FakeBackend, JudgeBackend

COLD, LAST = 4, 8  # cold-start steps, and steps in all: one fits the head, three are iterations
FIRST_RL = COLD + 1
STOPS = (2, COLD, FIRST_RL + 1)


def small_config() -> ml_collections.ConfigDict:
    config = runs.small_config()
    config.cold_start.steps, config.rl.iterations = COLD, LAST - FIRST_RL
    return config


def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches as large as can be, so that one program serves all; a metrics line each step."""
    monkeypatch.setattr(batch_module, "LENGTH_BUCKET", small_config().rollout.capacity)
    monkeypatch.setattr(batch_module, "ROW_SHARES", 1)
    monkeypatch.setattr(batch_module, "WRITTEN_SHARES", 1)
    monkeypatch.setattr(train_module, "IMITATION_LOG_EVERY", 1)


@pytest.fixture(scope="module", autouse=True)
def quick(compiled: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as monkeypatch, compiled_once(compiled):
        one_shape(monkeypatch)
        yield compiled


def everything(trainer: Trainer) -> dict[str, np.ndarray]:
    """Parameters, optimizer state, optimiser steps and reference by path."""
    tree = {"learner": trainer.state, "reference": trainer.reference}
    leaves = jax.tree.leaves(sharding.fetch(tree))
    return dict(zip(leaf_paths(tree), leaves, strict=True))


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    different = [path for path in found if not np.array_equal(found[path], expected[path])]
    assert not different


def lines(workdir: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without the meters of a process."""
    return [
        {key: value for key, value in line.items() if not key.startswith(OF_A_PROCESS)}
        for line in read_jsonl(workdir / "metrics.jsonl")
    ]


class Record:
    """State and programs of a run after each step."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, np.ndarray]] = {}
        self.programs: dict[int, dict[str, int]] = {}

    def __call__(self, trainer: Trainer, step: int) -> bool:
        self.states[step] = everything(trainer)
        self.programs[step] = trainer.programs()
        return False


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, quick: Path) -> tuple[Path, Record]:
    """A run from the first step to the last."""
    workdir, record = tmp_path_factory.mktemp("unbroken"), Record()
    _, trainer = runs.train(small_config(), workdir, record)
    record(trainer, trainer.step)
    assert trainer.step == trainer.total == LAST
    return workdir, record


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, quick: Path) -> tuple[Path, Record]:
    """The same run by five trainers, each of which stops the next. Folders are kept per stop."""
    workdir, record = tmp_path_factory.mktemp("broken"), Record()
    for stop in (*STOPS, LAST):
        _, trainer = runs.train(small_config(), workdir, lambda _, step, stop=stop: step == stop)
        assert trainer.step == stop
        record(trainer, stop)
        shutil.copytree(workdir, workdir.with_name(f"stopped-{stop}"))
    return workdir, record


# --- stop and go on ------------------------------------------------------------------------


@pytest.mark.parametrize("step", [*STOPS, LAST])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    unbroken: tuple[Path, Record], broken: tuple[Path, Record], step: int
) -> None:
    """Inside imitation, across the solve-rate step, and inside the policy gradient."""
    assert_equal(broken[1].states[step], unbroken[1].states[step])


def test_the_run_really_moves(unbroken: tuple[Path, Record]) -> None:
    """Else bit-equality says nothing: each step changes the learner, each stage the parameters."""

    def changed(before: int, after: int, part: str) -> list[str]:
        old, new = unbroken[1].states[before], unbroken[1].states[after]
        return [p for p in new if p.startswith(part) and not np.array_equal(old[p], new[p])]

    for step in range(LAST):
        assert changed(step, step + 1, "learner/"), step
    assert changed(0, COLD, "learner/params/lm/")
    assert changed(COLD, FIRST_RL, "learner/params/action_head/")  # the fit to the labels
    assert not changed(COLD, FIRST_RL, "learner/params/lm/")
    assert changed(FIRST_RL, LAST, "learner/params/lm/")
    assert not changed(FIRST_RL, LAST, "reference/")


def test_a_run_whose_control_tokens_decide_and_whose_critic_credits(tmp_path: Path) -> None:
    """From the first step to the last; the critic has learned, and so has the trunk."""
    config = small_config()
    config.model.head, config.cold_start.label_steps = "tokens", 0
    config.rl.credit, config.rl.objective, config.rl.updates = "value", "ppo", 2
    config.reward.gated = False  # so that there is something to learn
    record = Record()
    _, trainer = runs.train(config, tmp_path, record)
    found, start = everything(trainer), record.states[FIRST_RL]
    assert not any("action_head" in path for path in found)
    for part in ("learner/params/lm/", "learner/params/value_head/"):
        changed = [
            p for p in found if p.startswith(part) and not np.array_equal(found[p], start[p])
        ]
        assert changed
    iterations = [line for line in lines(tmp_path) if line["stage"] == "policy_gradient"]
    assert len(iterations) == LAST - FIRST_RL
    assert all(np.isfinite(line["value_loss"]) for line in iterations)


def test_metrics_of_a_stopped_run_are_those_of_an_unbroken_one(
    unbroken: tuple[Path, Record], broken: tuple[Path, Record]
) -> None:
    expected = lines(unbroken[0])
    assert [line["step"] for line in expected] == list(range(LAST))
    assert lines(broken[0]) == expected


def test_no_program_is_compiled_after_the_first_iteration(unbroken: tuple[Path, Record]) -> None:
    programs = unbroken[1].programs
    assert programs[1]["imitate"] == programs[LAST]["imitate"] == 1
    assert programs[FIRST_RL + 1] == programs[LAST]
    assert set(programs[LAST].values()) <= {1}


# --- meshes --------------------------------------------------------------------------------


def test_a_checkpoint_goes_to_another_mesh_and_back(
    broken: tuple[Path, Record], tmp_path: Path
) -> None:
    """From one device to data=4, fsdp=2, one iteration there, and back to one for the last."""
    shutil.copytree(broken[0].with_name(f"stopped-{FIRST_RL + 1}"), tmp_path, dirs_exist_ok=True)
    wide, seen = small_config(), {}
    wide.mesh.update({"data": 4, "fsdp": 2, "model": 1})

    def stop_before_last(trainer: Trainer, step: int) -> bool:
        seen[trainer.a.mesh.size, step] = everything(trainer)
        return step == LAST - 1

    _, trainer = runs.train(wide, tmp_path, stop_before_last)
    assert_equal(seen[8, FIRST_RL + 1], broken[1].states[FIRST_RL + 1])
    assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(trainer.state)} == {8}
    _, trainer = runs.train(small_config(), tmp_path, stop_before_last)
    assert_equal(everything(trainer), seen[8, LAST - 1])
    assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(trainer.state)} == {1}
    _, trainer = runs.train(small_config(), tmp_path)
    assert trainer.step == LAST
    # The unbroken run's numbers but for the order of sums, which Adam's division magnifies.
    for path, value in broken[1].states[LAST].items():
        np.testing.assert_allclose(everything(trainer)[path], value, atol=5e-3, err_msg=path)


# --- what is written -----------------------------------------------------------------------


def test_every_iteration_writes_every_figure_and_the_alarms(unbroken: tuple[Path, Record]) -> None:
    written = [
        line
        for line in read_jsonl(unbroken[0] / "metrics.jsonl")
        if line["stage"] == "policy_gradient"
    ]
    assert len(written) == LAST - FIRST_RL
    episode = make_episode(think(), ask(), answer())
    names = figures([episode], [score(episode, small_config().reward)], NAMES).keys()
    assert len(names) > 20
    for line in written:
        assert names <= line.keys()
        assert {
            "alarms",
            "loss",
            "gradient_norm",
            "sampler_gap",
            "kl",
            "head_entropy",
            "zero_variance_groups",
            "replies_cut",
            "client/usd",
        } <= line.keys()
        assert line["usd"] <= line["client/usd"]
        assert "nonfinite" not in line
        assert line["sampler_gap"] < 1e-4


def test_the_seconds_of_an_iteration_are_accounted_for(unbroken: tuple[Path, Record]) -> None:
    parts = ("decode", "wait", "prefill", "update", "host")
    for line in read_jsonl(unbroken[0] / "metrics.jsonl"):
        if line["stage"] != "policy_gradient":
            continue
        seconds = {part: line[f"time/{part}_s"] for part in parts}
        assert sum(seconds.values()) == pytest.approx(line["time/wall_s"])
        assert all(seconds[part] > 0.0 for part in ("decode", "prefill", "update", "host"))
        assert seconds["wait"] < 0.1 * line["time/wall_s"]  # the helper answers at once
        assert line["engine/decode_steps"] > 0
        assert line["engine/prefilled"] >= line["tokens_prefilled"] > 0
        assert line["engine/prefill_ratio"] == 1.0
        assert 0.0 < line["engine/busy_share"] <= 1.0
        assert "engine/mfu" not in line  # of this device nothing is known


def test_the_gap_to_the_best_constant_rule_is_logged_also_by_a_resumed_run(
    unbroken: tuple[Path, Record], broken: tuple[Path, Record]
) -> None:
    for workdir, _ in (unbroken, broken):
        written = read_jsonl(workdir / "metrics.jsonl")
        (judged,) = (line for line in written if line["stage"] == "solve_rate")
        rules = ["never", *NAMES[FIRST_REQUEST_ID:]]
        best = max(judged[f"constant_{rule}"] for rule in rules)
        later = [line for line in written if line["stage"] == "policy_gradient"]
        assert len(later) == LAST - FIRST_RL
        for line in later:
            assert line["gap_to_constant"] == pytest.approx(line["reward"] - best)


def test_the_spend_of_a_resumed_run_goes_on(
    unbroken: tuple[Path, Record], broken: tuple[Path, Record]
) -> None:
    """Replies are paid anew after a stop, for the cache is gone; what was paid stays paid."""
    spent = {
        workdir: [
            line["client/usd"]
            for line in read_jsonl(workdir / "metrics.jsonl")
            if line["stage"] == "policy_gradient"
        ]
        for workdir in (unbroken[0], broken[0])
    }
    for dollars in spent.values():
        assert dollars == sorted(dollars) and dollars[0] > 0.0
    assert spent[broken[0]][0] >= spent[unbroken[0]][0]
    assert spent[broken[0]][-1] >= spent[unbroken[0]][-1]


def test_verdicts_of_a_judge_are_part_of_the_reward_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that sees every unit in every request, and an audit judge that sees none."""
    rated, units = list[float](), set[str]()
    assign = train_module.assign

    def spied(batch: Any, episodes: Any, terms: Any, **settings: Any) -> dict[str, float]:
        for episode, term in zip(episodes, terms, strict=True):
            assert term.leak == pytest.approx(1.0 if episode.outgoing else 0.0)
            rated.append(term.leak)
            units.update(unit.text for unit in episode.problem.units if episode.outgoing)
        return assign(batch, episodes, terms, **settings)

    monkeypatch.setattr(train_module, "assign", spied)
    config = small_config()
    config.rl.iterations = 1
    all_seeing, blind = (JudgeBackend(lambda unit, text, says=s: says) for s in (True, False))
    with serving(all_seeing) as judge_url, serving(blind) as audit_url:
        for name, url in (("judge", judge_url), ("audit_judge", audit_url)):
            config.privacy[name].update(
                {"mode": "log", "backend": "openai", "base_url": url, "model": "judge"}
            )
        config.privacy.judge.mode = "reward"
        assembly, _ = runs.train(config, tmp_path)
        assembly.close()
    line = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert 0.0 < line["leak"] == pytest.approx(np.mean(rated))
    assert line["judge/requests"] == line["judge/audit_requests"] > 0
    assert line["judge/no_verdict"] == line["judge/audit_no_verdict"] == 0
    assert line["judge/both"] + line["judge/judge_only"] == line["judge/units"] > 0
    assert line["judge/unaudited_only"] == line["judge/audit_units"] == line["judge/units"]
    heard = "".join(message.content for talk in all_seeing.talks for message in talk)
    assert units and all(text in heard for text in units)


def test_training_goes_on_when_the_judge_is_down(tmp_path: Path) -> None:
    config = small_config()
    config.rl.iterations, config.llm.retries = 1, 0
    config.privacy.judge.update({"mode": "reward", "backend": "openai", "model": "judge"})
    broken = FakeBackend(errors.ServerFailed("out of memory"))
    broken.helper_names = ("judge",)
    with serving(broken) as url:
        config.privacy.judge.base_url = url
        assembly, trainer = runs.train(config, tmp_path)
        assembly.close()
    assert trainer.step == trainer.total
    line = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert line["judge/no_verdict"] == line["judge/requests"] > 0
    assert line["judge/failures"] > 0
    assert line["judge/units"] == 0
    assert line["alarms"] >= 1


def test_without_constant_problems_there_is_no_gap(
    broken: tuple[Path, Record], tmp_path: Path
) -> None:
    shutil.copytree(broken[0].with_name(f"stopped-{COLD}"), tmp_path, dirs_exist_ok=True)
    config = small_config()
    config.rl.constant_problems = 0
    runs.train(config, tmp_path)
    assert not any("gap_to_constant" in line for line in lines(tmp_path))


def test_solutions_that_fit_no_rollout_are_counted(unbroken: tuple[Path, Record]) -> None:
    shares = [line["unfit_share"] for line in lines(unbroken[0]) if line["stage"] == "imitation"]
    assert len(shares) == COLD
    assert all(0.0 <= share < 1.0 for share in shares)


def test_an_alarm_is_said_in_words_once(
    unbroken: tuple[Path, Record], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    _, trainer = runs.train(small_config(), tmp_path)
    caplog.clear()
    assert [trainer._warn(iteration, ["a bad sign"]) for iteration in (3, 4)] == [1, 1]
    assert [record.getMessage() for record in caplog.records] == ["iteration 3: a bad sign"]


def test_samples_mask_private_units(unbroken: tuple[Path, Record]) -> None:
    text = (unbroken[0] / "samples.txt").read_text(encoding="utf-8")
    assert text.startswith("=== iteration 0 ===\nquestion")
    notes = re.findall(r"^notes +(.*)$", text, flags=re.MULTILINE)
    assert len(notes) == small_config().log.samples
    assert all(re.search(r"\[\w+\]", line) for line in notes)
    problems = assemble(small_config(), str(unbroken[0])).task.problems("train")
    shown = [p for p in problems if f"question  {p.question}" in text and p.units]
    assert shown
    assert not [u.text for p in shown for u in p.units if u.text in "\n".join(notes)]


def test_a_stopped_run_leaves_the_episodes_of_an_unbroken_one(
    unbroken: tuple[Path, Record], broken: tuple[Path, Record]
) -> None:
    config = small_config()
    kept = min(config.log.train_episodes, config.rl.problems * config.rl.samples)
    episodes = episode_log.read(unbroken[0] / "episodes" / "training.jsonl")
    assert [(one["iteration"], one["place"]) for one in episodes] == [(0, p) for p in range(kept)]
    assert episode_log.read(broken[0] / "episodes" / "training.jsonl") == episodes
    for segment in (segment for one in episodes for segment in one["segments"]):
        odds = segment["probabilities"]
        assert odds[segment["action"]] == pytest.approx(segment["probability"], abs=2e-6)
        assert sum(odds.values()) == pytest.approx(1.0, abs=1e-5)


# --- the ways it ends early ----------------------------------------------------------------


def train_in(workdir: Path, cache: Path) -> None:
    """What the child of the next test runs."""
    with pytest.MonkeyPatch.context() as monkeypatch, compiled_once(cache):
        one_shape(monkeypatch)
        print("at work", flush=True)
        runs.train(small_config(), workdir, lambda _, step: print("step", step, flush=True))


@pytest.mark.parametrize(
    "kills", [3, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_kills_at_any_moment_cost_nothing_but_time(
    unbroken: tuple[Path, Record], quick: Path, tmp_path: Path, kills: int
) -> None:
    """kill -9 some time after a step that is drawn; whoever comes next ends the run as unbroken."""
    rng = random.Random(0)
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), str(quick)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        last = f"step {rng.randint(1, LAST - 1)}\n"
        try:
            for line in child.stdout:
                if line == last:
                    break
            time.sleep(rng.uniform(0.0, 0.2))
        finally:
            child.kill()
            child.communicate()
        assert child.returncode in (-signal.SIGKILL, 0)
    _, trainer = runs.train(small_config(), tmp_path)
    assert_equal(everything(trainer), unbroken[1].states[LAST])
    assert lines(tmp_path) == lines(unbroken[0])


def test_a_kill_during_imitation_costs_no_more_than_the_steps_since_the_last_save(
    quick: Path, tmp_path: Path
) -> None:
    """As if killed at the step: nothing is saved on the way out."""
    config = small_config()
    config.checkpoint.imitation_every = 2

    class KilledError(Exception):
        pass

    def kill(trainer: Trainer, step: int) -> bool:
        if step == 3:
            raise KilledError
        return False

    with pytest.raises(KilledError):
        runs.train(config, tmp_path, kill)
    started_at = []
    runs.train(config, tmp_path, lambda _, step: bool(started_at.append(step)) or step == COLD)
    assert started_at[0] == 2


def test_sigterm_ends_the_command_with_a_checkpoint_and_the_same_command_goes_on(
    quick: Path, tmp_path: Path
) -> None:
    config = small_config()
    config.compile_cache, config.evaluate.strategies = str(quick), ("learned",)
    runs.write_config(tmp_path / "small.py", config)
    command = [sys.executable, "-m", "collab.main", f"--config={tmp_path}/small.py"]
    command.append(f"--workdir={tmp_path}/run")
    environment = os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    said = []
    try:
        for line in child.stderr:
            said.append(line)
            if line.startswith("imitation: 4/4"):
                child.send_signal(signal.SIGTERM)
        assert child.wait(120) == 0
    finally:
        child.kill()
    assert "SIGTERM: stopping after this step; again to kill\n" in said
    stopped = re.fullmatch(rf"stopped at step (\d) of {LAST}; the same command goes on\n", said[-1])
    assert stopped and COLD <= int(stopped[1]) < LAST
    checkpointer = Checkpointer(tmp_path / "run" / "checkpoints", keep=1)
    assert checkpointer.steps()[-1] == int(stopped[1])
    checkpointer.close()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"resumed at step {stopped[1]} of {LAST}\n" in done.stderr
    assert "\n> learned " in done.stdout
    assert (tmp_path / "run" / "evaluation.json").is_file()


@pytest.mark.parametrize("steps", [COLD, 2])
def test_an_imitation_that_blows_up_stops_and_names_its_rate(steps: int, tmp_path: Path) -> None:
    """In its last step, too, whose loss is that of the parameters before it."""
    config = small_config()
    config.cold_start.update({"learning_rate": 1e30, "steps": steps})
    with pytest.raises(FloatingPointError, match=r"lower cold_start\.learning_rate"):
        runs.train(config, tmp_path)
    assert len(list(tmp_path.glob("bad_batch_*.npz"))) == 1
    assembly = assemble(config, str(tmp_path))
    like = Trainer(assembly, Writers(), lambda step: False).steps.checkpoint_layout()
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=9)
    for step in checkpointer.steps():  # none that was saved is spoilt
        restored = checkpointer.restore(step, like=like)
        assert restored is not None
        leaves = jax.tree.leaves(restored.state["learner"].params)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
    checkpointer.close()


def test_figures_of_a_line_do_not_share_a_name() -> None:
    """The client's meters stand beside the episodes' means; both have a usd."""
    episode = make_episode(think(), ask(), answer())
    names = figures([episode], [score(episode, small_config().reward)], NAMES).keys()
    assert "usd" in names and not any(name.startswith("client/") for name in names)


def test_a_loss_that_is_not_finite_stops_saves_the_batch_and_names_the_leaf(
    broken: tuple[Path, Record], tmp_path: Path
) -> None:
    shutil.copytree(broken[0].with_name(f"stopped-{FIRST_RL + 1}"), tmp_path, dirs_exist_ok=True)

    def poison(trainer: Trainer, step: int) -> bool:
        head = trainer.state.params["action_head"]
        poisoned = jax.tree.map(
            lambda leaf: jax.device_put(np.full(leaf.shape, np.nan, leaf.dtype), leaf.sharding),
            head,
        )
        trainer.reference = {**trainer.reference, "action_head": poisoned}
        return False

    with pytest.raises(FloatingPointError) as caught:
        runs.train(small_config(), tmp_path, poison)
    message = str(caught.value)
    assert f"not finite at step {FIRST_RL + 1}" in message
    assert "action_head" in message
    assert "lower rl.learning_rate" in message
    (saved,) = tmp_path.glob("bad_batch_*.npz")
    assert str(saved) in message
    assert {"tokens_QRS", "advantage_BN", "action_BK"} <= set(np.load(saved))
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=9)
    assert checkpointer.steps()[-1] == FIRST_RL + 1  # the poisoned parameters were not saved
    checkpointer.close()
    _, trainer = runs.train(small_config(), tmp_path)
    assert_equal(everything(trainer), broken[1].states[LAST])


if __name__ == "__main__":
    train_in(Path(sys.argv[1]), Path(sys.argv[2]))
