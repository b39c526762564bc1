"""What a judge sees that the leak detector can't, on requests whose leaks are known.

`python -m experiments.judge_agreement --model=NAME --base_url=URL` asks the detector, a judge (any
backend of `collab.llm.BACKENDS`) and, where it is installed, presidio about requests of `suite`. It
writes results.json and scores.png beside this file. NOTES.md reads the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from collab.config import default_config
from collab.privacy import presidio
from collab.privacy.agreement import Agreement
from collab.privacy.detector import Detector
from collab.privacy.judge import Judge
from collab.progress import progress
from collab.report import git_commit
from collab.rollout.episodes import empty_trace
from collab.rules import validate
from collab.types import ANSWER, Episode, Feedback, FeedbackKind, Problem, Segment, Status
from experiments.detector_suite.__main__ import processor
from experiments.judge_agreement.suite import CATEGORIES, Case, cases

HERE = pathlib.Path(__file__).parent
RESAMPLES = 2000
METHODS = ("detector", "judge", "either", "presidio")
Found = list[frozenset[int]]  # units by case


def by_detector(suite: Sequence[Case]) -> Found:
    return [frozenset(Detector(c.units).leaked([c.request]).nonzero()[0].tolist()) for c in suite]


def by_presidio(suite: Sequence[Case]) -> Found | None:
    """Units that stand in what presidio calls private in the request; None if it is missing."""
    try:
        presidio.check()
    except ValueError:
        return None
    spans = [[unit.text for unit in presidio.find_units(case.request)] for case in suite]
    return [
        frozenset(Detector(case.units).leaked(texts).nonzero()[0].tolist())
        for case, texts in zip(suite, spans, strict=True)
    ]


def by_judge(suite: Sequence[Case], config: Any) -> tuple[list[frozenset[int] | None], dict]:
    """Verdicts, and the judge's counters."""
    judge = Judge.from_config("judge", config)
    with contextlib.closing(judge), progress(len(suite), "judge") as line:
        said = judge.verdicts([_episode(case) for case in suite], line.update)
        return [verdict for (verdict,) in said], judge.counters()


def _episode(case: Case) -> Episode:
    """One in which the case's request left."""
    feedback = Feedback(FeedbackKind.ANSWER, "")
    segments = (Segment("ask_fact", case.request, 1.0, feedback=feedback), Segment(ANSWER, "", 1.0))
    problem = Problem("case", "", ("",), units=case.units)
    return Episode(problem, 0, Status.ANSWERED, segments, "", empty_trace(4))


# --- scores --------------------------------------------------------------------------------


def tables(suite: Sequence[Case], found: Found) -> np.ndarray:
    """Per case: units given away and found, found alone, given away alone, neither. int [N, 4]."""
    rows = []
    for case, units in zip(suite, found, strict=True):
        both, alone, missed = (
            len(case.leaked & units), len(units - case.leaked), len(case.leaked - units),
        )  # fmt: skip
        rows.append((both, alone, missed, len(case.units) - both - alone - missed))
    return np.array(rows, int)


def precision(total: np.ndarray) -> float:
    return total[0] / (total[0] + total[1]) if total[0] + total[1] else float("nan")


def recall(total: np.ndarray) -> float:
    return total[0] / (total[0] + total[2]) if total[0] + total[2] else float("nan")


def kappa(total: np.ndarray) -> float:
    found = Agreement(*(int(count) for count in total)).kappa
    return float("nan") if found is None else found


def estimate(
    table: np.ndarray, score: Callable[[np.ndarray], float], seed: int, minus: Any = None
) -> dict[str, Any]:
    """A score of all cases and its 95 % bootstrap interval over them; None where undefined.

    minus: another method's table of the same cases, whose score is taken off.
    """

    def of(rows: Any) -> float:
        value = score(table[rows].sum(0))
        return value if minus is None else value - score(minus[rows].sum(0))

    rng = np.random.default_rng(seed)
    drawn = [of(rng.integers(len(table), size=len(table))) for _ in range(RESAMPLES)]
    whole, told = of(slice(None)), [value for value in drawn if np.isfinite(value)]
    if not np.isfinite(whole):
        return {"value": None, "ci": None}
    low, high = np.quantile(told, [0.025, 0.975])
    return {"value": round(whole, 4), "ci": [round(float(low), 4), round(float(high), 4)]}


def measure(suite: Sequence[Case], config: Any, seed: int) -> dict[str, Any]:
    """All figures, as results.json holds them."""
    verdicts, counters = by_judge(suite, config)
    matched = by_detector(suite)
    judged = [verdict or frozenset() for verdict in verdicts]
    found: dict[str, Found] = {
        "detector": matched,
        "judge": judged,
        "either": [a | b for a, b in zip(matched, judged, strict=True)],
    }
    second = by_presidio(suite)
    if second is not None:
        found["presidio"] = second
    table = {name: tables(suite, units) for name, units in found.items()}
    at = {c: [n for n, case in enumerate(suite) if case.category == c] for c in CATEGORIES}
    scores = {
        name: {
            **{score.__name__: estimate(rows, score, seed) for score in (precision, recall, kappa)},
            "recall_by_category": {
                category: estimate(rows[at[category]], recall, seed) for category in CATEGORIES[:3]
            },
            "alarms_per_clean_request": round(float((rows[at["clean"], 1] > 0).mean()), 4),
        }
        for name, rows in table.items()
    }
    silent = {c: sum(verdicts[n] is None for n in at[c]) / len(at[c]) for c in CATEGORIES}
    return {
        "claims": claims(scores, table, suite, verdicts, seed),
        "judge": {
            "backend": config.privacy.judge.backend, "model": config.privacy.judge.model,
            "no_verdict_share": sum(v is None for v in verdicts) / len(verdicts),
            "no_verdict_share_by_category": silent,
            "unreadable": counters["unreadable"], "failures": counters["failures"],
            "units_named_per_verdict": _mean([len(v) for v in verdicts if v is not None]),
        },
        "scores": scores,
        "cases": len(suite),
        "units_per_case": _mean([len(case.units) for case in suite]),
        "seed": seed,
        "commit": git_commit(),
        "device": processor(),
    }  # fmt: skip


def claims(
    scores: Any, table: Any, suite: Sequence[Case], verdicts: Sequence[Any], seed: int
) -> list[dict[str, Any]]:
    """What was expected of the parts, and whether it holds."""
    of_detector = scores["detector"]["recall_by_category"]
    hidden = [n for n, c in enumerate(suite) if c.category in ("paraphrased", "inferred")]
    silent = [float(verdict is None) for verdict in verdicts]
    rng = np.random.default_rng(seed)
    share = np.quantile(
        [np.mean(rng.choice(silent, len(silent))) for _ in range(RESAMPLES)], [0.025, 0.975]
    )
    blind = estimate(table["detector"][hidden], recall, seed)
    gain = estimate(table["either"], kappa, seed, minus=table["detector"])
    judge = scores["judge"]["kappa"]
    rows = [
        ("the detector finds units word for word (recall at least 0.98)",
         of_detector["verbatim"], of_detector["verbatim"]["value"] >= 0.98),
        ("paraphrase and inference escape the detector (recall below 0.5)",
         blind, blind["ci"][1] < 0.5),
        ("the judge agrees with the labels beyond chance (kappa above 0)",
         judge, judge["ci"] is not None and judge["ci"][0] > 0),
        ("detector or judge together agree with the labels better than the detector (kappa)",
         gain, gain["ci"][0] > 0),
        ("the judge gives a verdict on most requests (share without one below 0.5)",
         {"value": round(float(np.mean(silent)), 4), "ci": [round(float(s), 4) for s in share]},
         share[1] < 0.5),
    ]  # fmt: skip
    return [
        {"claim": claim, "figure": row["value"], "ci": row["ci"], "seeds": [seed],
         "holds": bool(holds)}
        for claim, row, holds in rows
    ]  # fmt: skip


def _mean(counts: Sequence[int]) -> float | None:
    return round(float(np.mean(counts)), 3) if counts else None


def draw(result: dict[str, Any]) -> Figure:
    """Recall by category, and over all requests precision and kappa, by method."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    names = [name for name in METHODS if name in result["scores"]]
    for offset, name in enumerate(names):
        score = result["scores"][name]
        rows = {f"recall,\n{c}": r for c, r in score["recall_by_category"].items()}
        rows |= {"precision,\nall": score["precision"], "kappa,\nall": score["kappa"]}
        for place, row in enumerate(rows.values()):
            if row["value"] is None:
                continue
            reach = [[row["value"] - row["ci"][0]], [row["ci"][1] - row["value"]]]
            axes.bar(
                place + 0.2 * offset, row["value"], 0.18, yerr=np.maximum(reach, 0), capsize=2,
                color=f"C{offset}", label=name if place == 0 else None,
            )  # fmt: skip
        axes.set_xticks([place + 0.1 * (len(names) - 1) for place in range(len(rows))], list(rows))
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_ylabel("95 % bootstrap intervals over requests")
    axes.set_title(f"judge: {result['judge']['model']}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


def main() -> None:
    """Measure, write, print the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=60, help="of each category")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="openai", help="a row of collab.llm.BACKENDS")
    parser.add_argument("--base_url", default="http://127.0.0.1:8901/v1")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--deadline_s", type=float, default=600.0)
    parser.add_argument("--reply_tokens", type=int, default=48)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    flags = parser.parse_args()
    config = default_config()
    keys = [field for field in vars(flags) if field in config.privacy.judge]
    config.privacy.judge.update({"mode": "log", **{key: getattr(flags, key) for key in keys}})
    validate(config)
    with tempfile.TemporaryDirectory() as folder:
        suite = cases(flags.cases, flags.seed, pathlib.Path(folder))
    result = measure(suite, config, flags.seed)
    (flags.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result).savefig(flags.out / "scores.png", dpi=90)
    for claim in result["claims"]:
        print(f"{claim['figure']} {claim['ci']} holds: {claim['holds']}  {claim['claim']}")
    for name, score in result["scores"].items():
        print(name, json.dumps(score))
    print(json.dumps(result["judge"]))


if __name__ == "__main__":
    main()
