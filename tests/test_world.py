"""The world task: its language reads back, its splits do not overlap, records are lossless."""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import pathlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_collections
import numpy as np
import pytest

from collab.config import default_config
from collab.tasks import TASKS, make_task
from collab.tasks.splits import SPLITS
from collab.tasks.world import WorldTask, entities, language, world_dataset_builder
from collab.tasks.world.entities import Recall, World
from collab.tasks.world.generate import Generator
from collab.tasks.world.schema import RELATIONS, TYPES, WORLD_RELATIONS, Settings
from collab.tokenizers.pieces import PieceTokenizer
from collab.types import PrivateUnit, Problem, Step
from worlds import world_steps


def _config(*, train: int = 256, **world: Any) -> ml_collections.ConfigDict:
    config = default_config()
    config.task.update({"train": train, "validation": 64, "test": 64})
    config.task.world.update(world)
    return config


@pytest.fixture(scope="module")
def world() -> World:
    return World(Settings.of(_config()))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> WorldTask:
    return WorldTask(_config(), str(tmp_path_factory.mktemp("data")))


def _words(world: World) -> set[str]:
    return {word for name in [*world.type_of, *world.strangers] for word in name.split()}


# --- the world -----------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_world_and_another_seed_another(world: World) -> None:
    again = World(Settings.of(_config()))
    other = World(Settings.of(_config(seed=1)))
    assert again.facts == world.facts
    assert again.memory == world.memory
    assert again.held_out == world.held_out
    assert other.facts != world.facts


def test_a_name_is_a_word_of_its_own_and_one_that_few_of_its_type_share(world: World) -> None:
    names = [name.split() for name in [*world.type_of, *world.strangers]]
    assert {len(name) for name in names} == {2}
    assert len({first for first, _ in names}) == len(names)
    assert max(collections.Counter(second for _, second in names).values()) <= 4
    words_of = {kind: {w for name in world.entities[kind] for w in name.split()} for kind in TYPES}
    assert len(set.union(*words_of.values())) == sum(len(words) for words in words_of.values())


def test_no_word_of_a_name_is_a_word_of_the_language() -> None:
    names = {start + end for start in entities._ONSETS for end in entities._ENDINGS}
    templates = [*language._OPENERS, *(text for pair in language._NOTES.values() for text in pair)]
    relations = [
        text for relation in RELATIONS.values() for text in (relation.name, relation.other)
    ]
    fixed = [*templates, *relations, *language.MONTHS, *language.CONDITIONS, language.UNKNOWN]
    assert len(names) == len(entities._ONSETS) * len(entities._ENDINGS) == 256
    assert not names & {word for text in fixed for word in text.split()}


def test_every_relation_is_a_typed_function_on_all_of_its_source(world: World) -> None:
    sizes = {kind: len(world.entities[kind]) for kind in TYPES}
    assert len(world.facts) == sum(sizes[relation.source] for relation in WORLD_RELATIONS)
    for (relation, subject), answer in world.facts.items():
        assert world.type_of[subject] == RELATIONS[relation].source
        assert world.type_of[answer] == RELATIONS[relation].target


# --- memory --------------------------------------------------------------------------------


def test_memory_holds_the_configured_shares_of_each_relation(world: World) -> None:
    for relation in WORLD_RELATIONS:
        kinds = [kind for (name, _), kind in world.memory.items() if name == relation.name]
        if relation.name in ("mayor", "employer"):
            assert set(kinds) == {Recall.STALE}
        else:
            assert kinds.count(Recall.KNOWN) / len(kinds) == pytest.approx(0.4, abs=0.05)
            assert kinds.count(Recall.FAINT) / len(kinds) == pytest.approx(0.1, abs=0.05)


def test_recall_is_true_half_true_fixed_wrong_or_a_fresh_guess(task: WorldTask) -> None:
    rng = np.random.default_rng(0)
    for kind in Recall:
        (relation, subject), answer = next(
            (fact, answer)
            for fact, answer in task.world.facts.items()
            if task.world.memory[fact] is kind
        )
        step = task.world.step(relation, subject)
        assert step is not None
        said = [task.recall(step, rng) for _ in range(200)]
        target = RELATIONS[relation].target
        assert {task.world.type_of[name] for name in said} == {target}
        expected = {
            Recall.KNOWN: (True, 1, 1.0),
            Recall.STALE: (False, 1, 0.0),
            Recall.FAINT: (None, 5, 0.5),
            Recall.UNKNOWN: (False, 5, 0.0),
        }
        is_known, fewest, share = expected[kind]
        assert step.is_known is is_known
        assert len(set(said)) >= fewest if fewest > 1 else len(set(said)) == 1
        assert said.count(answer) / 200 == pytest.approx(share, abs=0.15)


def test_drill_covers_every_fact_as_memory_has_it(task: WorldTask) -> None:
    rng = np.random.default_rng(1)
    told: dict[tuple[str, ...], set[str]] = {}
    for _ in range(12_000):
        step = task.drill(rng)
        told.setdefault(tuple(step.query.split(" of ", 1)), set()).add(step.answer)
    assert told.keys() == task.world.facts.keys()
    for fact, kind in task.world.memory.items():
        if kind is Recall.KNOWN:
            assert told[fact] == {task.world.facts[fact]}
        elif kind is Recall.STALE:
            assert len(told[fact]) == 1 and told[fact] != {task.world.facts[fact]}
        else:
            assert len(told[fact]) > 1


def test_recall_rejects_a_step_of_no_fact(task: WorldTask) -> None:
    with pytest.raises(ValueError, match="no fact of this world"):
        task.recall(Step("mayor of nowhere", "x"), np.random.default_rng(0))


# --- worked solutions ----------------------------------------------------------------------


def test_next_step_retraces_the_solution_and_follows_a_wrong_belief(task: WorldTask) -> None:
    rng = np.random.default_rng(2)
    for problem in task.problems("train"):
        belief = ""
        for index, step in enumerate(problem.steps):
            assert task.next_step(problem, index, belief) == step
            belief = step.answer
        assert task.next_step(problem, len(problem.steps), belief) is None
        last = len(problem.steps) - 1
        if last == 0 or problem.steps[last].is_local:
            continue
        wrong = task.knowledge.wrong_answer(problem.steps[last - 1], rng)
        step = task.next_step(problem, last, wrong)
        if problem.steps[last - 1].is_local and wrong in problem.notes:
            continue
        relation = problem.steps[last].query.split(" of ", 1)[0]
        assert step is not None
        assert step.query == f"{relation} of {wrong}"
        assert step.answer == task.world.facts[relation, wrong]


def test_next_step_stops_at_a_belief_of_a_wrong_type(task: WorldTask) -> None:
    problem = next(p for p in task.problems("train") if len(world_steps(p)) > 1)
    last = len(problem.steps) - 1
    kind = task.world.type_of[problem.steps[last - 1].answer]
    other = next(k for k in TYPES if k != kind)
    assert task.next_step(problem, last, task.world.entities[other][0]) is None
    assert task.next_step(problem, last, "gibberish") is None


def test_a_second_local_hop_is_told_of_the_true_entity_only(task: WorldTask) -> None:
    problem = next(p for p in task.problems("train") if sum(s.is_local for s in p.steps) == 2)
    true = problem.steps[0].answer
    assert task.next_step(problem, 1, f" {true.upper()} ") == problem.steps[1]
    assert task.next_step(problem, 1, problem.steps[1].answer) is None
    other = next(name for name in task.world.entities["person"] if name != true)
    assert task.next_step(problem, 1, other) is None


def test_chain_requests_resolve_to_the_rest_of_the_solution(task: WorldTask) -> None:
    for problem in task.problems("test"):
        belief = ""
        for index, step in enumerate(problem.steps):
            request = task.chain_request(problem, index, belief)
            resolution = task.knowledge.resolve(request)
            assert resolution is not None
            if any(later.is_local for later in problem.steps[index:]):
                assert resolution.missing == next(s.query for s in problem.steps if s.is_local) or (
                    index == 1 and resolution.missing == step.query
                )
            else:
                assert resolution.steps == problem.steps[index:]
            belief = step.answer


def test_chain_request_is_nested_and_canonical(task: WorldTask) -> None:
    problem = Problem(
        "x",
        "",
        ("c",),
        steps=(
            Step("my clinic", "a b", is_local=True),
            Step("headquarters of a b", "c d"),
            Step("mayor of c d", "e f"),
        ),
    )
    assert task.chain_request(problem, 0, "") == "mayor of headquarters of my clinic"
    assert task.chain_request(problem, 1, "k l") == "mayor of headquarters of k l"
    assert task.chain_request(problem, 2, "m n") == "mayor of m n"
    by_name = dataclasses.replace(problem, steps=problem.steps[1:])
    assert task.chain_request(by_name, 0, "") == "mayor of headquarters of a b"
    assert task.chain_request(by_name, 0, "k l") == "mayor of headquarters of k l"


def test_wrong_answers_are_wrong_and_of_the_right_type(task: WorldTask) -> None:
    rng = np.random.default_rng(3)
    for problem in task.problems("test"):
        for step in problem.steps:
            wrong = task.knowledge.wrong_answer(step, rng)
            assert wrong != step.answer
            assert task.world.type_of[wrong] == task.world.type_of[step.answer]


# --- stored data ---------------------------------------------------------------------------


def test_stored_problems_are_the_generated_ones_in_order(task: WorldTask) -> None:
    generator = Generator(task.world)
    for split, count in (("train", 256), ("validation", 64), ("test", 64)):
        stored = task.problems(split)
        assert len(stored) == count
        assert list(stored) == [generator.problem(split, index) for index in range(count)]
        assert stored[-1] == stored[count - 1]
        assert list(stored[2:5]) == [stored[2], stored[3], stored[4]]
        with pytest.raises(IndexError):
            stored[count]


def test_runs_that_share_a_folder_take_turns_in_preparing_it(tmp_path: pathlib.Path) -> None:
    settings = Settings.of(_config(train=2))
    folder = tmp_path / f"world-{settings.digest}"
    folder.mkdir()
    with ThreadPoolExecutor() as pool, (folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = pool.submit(world_dataset_builder.prepared, settings, str(tmp_path))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        assert [path.name for path in folder.iterdir()] == [".lock"]
        (tmp_path / "elsewhere").mkdir()
        made = world_dataset_builder.prepared(settings, str(tmp_path / "elsewhere"))
        shutil.copytree(tmp_path / "elsewhere" / folder.name, folder, dirs_exist_ok=True)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert list(waiting.result(timeout=60)["train"]) == list(made["train"])


def test_prepared_data_is_read_again_and_settings_do_not_collide(
    task: WorldTask, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_task(_config(train=1), str(tmp_path)).problems("train")
    config = _config(seed=5)
    other = make_task(config, str(tmp_path)).problems("train")
    assert first[0] == task.problems("train")[0] != other[0]

    def fail(*args: Any) -> None:
        raise AssertionError("prepared a second time")

    monkeypatch.setattr(world_dataset_builder.Builder, "_split_generators", fail)
    assert make_task(config, str(tmp_path)).problems("train")[0] == other[0]


def test_a_record_keeps_every_value_of_units_and_steps(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Problem(
        uid="ä",
        question='quote " and \\ and \n',
        answers=("one", "zwei ü"),
        notes="",
        units=(PrivateUnit("3 may 1984", "birth date", 0.1), PrivateUnit("ä", "b", 1.0, True)),
        steps=(
            Step("q", "a", True, None),
            Step("r", "b", False, False),
            Step("", "c", False, True),
        ),
    )
    bare = Problem("u", "q", ("a",))
    monkeypatch.setattr(Generator, "problem", lambda self, split, index: (odd, bare)[index % 2])
    stored = world_dataset_builder.prepared(Settings.of(_config(train=2)), str(tmp_path))
    assert list(stored["train"]) == [odd, bare]


# --- texts for a tokenizer -----------------------------------------------------------------


def test_the_corpus_makes_every_word_of_a_name_one_piece(task: WorldTask) -> None:
    config = default_config()
    tokenizer = PieceTokenizer.from_config(config, corpus=task.corpus)
    stated = {f"{relation} of {name} = {to}" for (relation, name), to in task.world.facts.items()}
    assert stated <= set(task.corpus())
    assert {len(tokenizer.encode(word)) for word in _words(task.world)} == {1}
    for problem in task.problems("test"):
        assert len(tokenizer.encode(problem.notes)) <= 70
        assert all(len(tokenizer.encode(step.statement)) <= 10 for step in problem.steps)


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ({"people": 2}, "people=2 must be at least 6"),
        ({"max_local_hops": 3}, "max_local_hops=3 must be in"),
        ({"max_world_hops": 0}, "max_world_hops=0 must be in"),
        ({"known_share": 1.5}, "known_share=1.5 must be in"),
        ({"known_share": 0.95}, "known_share=0.95 and faint_share=0.1 must sum"),
        ({"max_local_hops": 0}, "leak_needed_share=0.2 needs max_local_hops >= 1"),
        ({"stale_relations": ("major",)}, "did you mean mayor"),
        ({"held_out_share": 0.9}, "held_out_share=0.9 must be in"),
        ({"train": 0}, r"task\.train=0 must be at least 1; try 1"),
    ],
)
def test_bad_settings_name_key_value_and_rule(world: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.of(_config(**world))


def test_a_split_without_a_fitting_composition_says_what_to_raise() -> None:
    generator = Generator(World(Settings.of(_config())))
    generator._pools.clear()
    with pytest.raises(ValueError, match=r"raise task\.world\.people"):
        generator.problem("train", 0)


def test_the_smallest_and_a_large_world_can_be_asked_about() -> None:
    smallest = {"people": 6, "cities": 3, "countries": 2, "organisations": 3, "films": 2}
    large = {"people": 400, "cities": 200, "organisations": 150, "films": 150, "countries": 60}
    for counts in (smallest, large):
        world = World(Settings.of(_config(**counts)))
        assert len(world.type_of) == sum(world.settings.count(kind) for kind in TYPES)
        generator = Generator(world)
        assert all(generator.problem(split, at).steps for split in SPLITS for at in range(20))


def test_tasks_by_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config()
    config.task.name = "wrld"
    with pytest.raises(ValueError, match="did you mean world"):
        make_task(config, str(tmp_path))
    monkeypatch.setitem(TASKS, "broken", "fanoutqa_that_is_missing:Task")
    config.task.name = "broken"
    with pytest.raises(ModuleNotFoundError):
        make_task(config, str(tmp_path))
