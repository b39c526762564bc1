"""What the head knows and what its requests are worth, boundary by boundary, for a trained run.

`knowledge` reads P(ask) at each drafted step of the test questions, beside whether the draft is
false: a fact of the world, or a sum of a word problem. A draft of what no step of the worked
solution asks is left out, since nothing says what is true there. `verdicts` takes the other turn at
each such boundary of the learned policy's own episodes and compares the answers.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from collab import sharding
from collab.evaluate import Evaluator
from collab.progress import progress
from collab.report import write_whole
from collab.restore import Restored
from collab.rl.batch import collate
from collab.rl.branching import boundaries, branch
from collab.rl.update import log_probabilities
from collab.rollout.episodes import Job
from collab.strategies import Setting
from collab.tasks.grading import exact_match
from collab.types import FIRST_REQUEST_ID, THINK, Episode, Step
from experiments.study import Job as StudyJob
from experiments.trained import policy_of

FILE = "boundaries.json"
BINS = 10


def measured(job: StudyJob) -> dict[str, Any]:
    """`knowledge` and `verdicts` of a finished run, kept in its folder."""
    path = job.folder / FILE
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    with policy_of(job) as run:
        found = {"knowledge": knowledge(run), "verdicts": verdicts(run)}
    write_whole(path, json.dumps(found).encode())
    return found


def _jobs(run: Restored, strategy: str, setting: Setting) -> list[Job]:
    """One episode of each test question, with the helpers that the evaluation drew."""
    problems = run.assembly.task.problems("test")
    helpers = Evaluator(run.assembly, run.params).helpers(problems)
    seed = run.assembly.config.seed
    return [
        Job(
            problem=problem,
            identity=(seed, zlib.crc32(problem.uid.encode()), 0),
            strategy=strategy,
            setting=setting,
            helpers=drawn,
            episode=f"{strategy}-{problem.uid}",
        )
        for problem, drawn in zip(problems, helpers, strict=True)
    ]


def _drafted(episode: Episode, k: int) -> Step | None:
    """The step that was drafted right before decision k and that a helper may know, else None."""
    before = episode.segments[k - 1] if k else None
    if before is None or before.action != THINK:
        return None
    query = before.text.split(" = ")[0].strip()
    steps = {step.query: step for step in episode.problem.steps}
    step = steps.get(query)
    return None if step is None or step.is_local else step


# --- what the head knows -----------------------------------------------------------------------


def knowledge(run: Restored) -> list[dict[str, Any]]:
    """For each drafted step: P(ask) of the trained head, whether the draft is false.

    The episodes ask exactly where a draft is false, so that each step of a question is reached
    from true ones. is_held_out: the step, a fact or a sum, occurs in no training question.
    """
    assembly = run.assembly
    engine, limits = assembly.engine, assembly.engine.limits
    kind = limits.actions - 1
    episodes = engine.run(run.params, _jobs(run, "oracle", Setting(kind)), temperature=0.0)
    trained = {step.query for p in assembly.task.problems("train") for step in p.steps}
    decoder, temperature = engine.decoder, assembly.config.rollout.temperature
    read = jax.jit(
        lambda params, batch: log_probabilities(
            decoder.policy, params, batch, decoder.is_barred_V, temperature
        )[1]
    )
    rows = assembly.config.rollout.rows
    found = []
    for first in range(0, len(episodes), rows):
        part = episodes[first : first + rows]
        batch = collate(
            [episode.trace for episode in part],
            rows=rows,
            capacity=limits.capacity,
            decisions=limits.max_segments,
            actions=limits.actions,
            features=limits.features,
            shards=sharding.row_parts(assembly.mesh),
        )
        logp_BKA = sharding.fetch(read(run.params, sharding.put_rows(batch, assembly.mesh)))
        p_asking_BK = np.exp(logp_BKA[..., FIRST_REQUEST_ID:]).sum(-1)
        for b, episode in enumerate(part):
            for k in boundaries(episode):
                step = _drafted(episode, int(k))
                if step is None:
                    continue
                found.append(
                    {
                        "p_ask": round(float(p_asking_BK[b, k]), 4),
                        "is_false": episode.segments[k - 1].text.strip() != step.statement,
                        "is_held_out": step.query not in trained,
                    }
                )
    return found


def auc(score_N: np.ndarray, is_true_N: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a true one scores above a false one, ties half."""
    if is_true_N.all() or not is_true_N.any():
        return None
    order = np.argsort(score_N, kind="stable")
    _, inverse, counts = np.unique(score_N[order], return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = is_true_N[order]
    ones, zeros = positive.sum(), (~positive).sum()
    return float((rank[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def reliability(p_N: np.ndarray, is_true_N: np.ndarray) -> list[tuple[float, float, int]]:
    """Mean probability, share that is true and count, in `BINS` bins of equal width."""
    place_N = np.minimum((p_N * BINS).astype(int), BINS - 1)
    return [
        (float(p_N[place_N == b].mean()), float(is_true_N[place_N == b].mean()), int(count))
        for b in range(BINS)
        if (count := (place_N == b).sum())
    ]


def calibration_error(p_N: np.ndarray, is_true_N: np.ndarray) -> float:
    """Expected calibration error over those bins (Guo et al. 2017)."""
    bins = reliability(p_N, is_true_N)
    return sum(count * abs(p - share) for p, share, count in bins) / len(p_N)


# --- what requests are worth -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Turn:
    """A boundary of a learned episode, and the same episode with the other turn taken there."""

    has_asked: bool
    em: float
    other_em: float

    @property
    def verdict(self) -> str:
        """Of a request: useful, useless or harmful. Of going on alone: missed, fine or spared."""
        gain = self.em - self.other_em
        if self.has_asked:
            return "useful" if gain > 0 else "harmful" if gain < 0 else "useless"
        return "missed" if gain < 0 else "spared" if gain > 0 else "fine"


def verdicts(run: Restored) -> dict[str, int]:
    """How many boundaries of the learned, greedy episodes came to each verdict."""
    engine = run.assembly.engine
    jobs = _jobs(run, "learned", Setting())
    episodes = engine.run(run.params, jobs, temperature=0.0)
    places = [
        (job, episode, int(k))
        for job, episode in zip(jobs, episodes, strict=True)
        for k in boundaries(episode)
        if _drafted(episode, int(k)) is not None
    ]
    with progress(len(places), "other turns") as line:
        others = engine.run(
            run.params,
            [branch(job, episode, k) for job, episode, k in places],
            temperature=0.0,
            on_done=line.update,
        )
    return tally(
        [
            Turn(bool(episode.trace.action_K[k] >= FIRST_REQUEST_ID), _em(episode), _em(other))
            for (_, episode, k), other in zip(places, others, strict=True)
        ]
    )


def tally(turns: Sequence[Turn]) -> dict[str, int]:
    """Counts by verdict, zeros among them."""
    names = ("useful", "useless", "harmful", "missed", "fine", "spared")
    said = [turn.verdict for turn in turns]
    return {name: said.count(name) for name in names}


def _em(episode: Episode) -> float:
    return exact_match(episode.answer, episode.problem.answers)
