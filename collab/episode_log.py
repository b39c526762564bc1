"""Episodes of a run as JSON lines, for `collab.view` and for whoever wants to count them.

`episodes/evaluation.jsonl.gz` holds the newest evaluation, every strategy on the same questions;
`episodes/training.jsonl` the newest of some episodes of every few iterations. A line is one
episode, and the same run writes the same lines. Private units are masked as in `samples.txt` unless
`log.private` is set. `collab.samples` is the short text for people.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collab.privacy.detector import Detector
from collab.rewards import Terms, score
from collab.samples import masked
from collab.types import Episode, Segment

_log = logging.getLogger(__name__)
FOLDER, EVALUATION, TRAINING = "episodes", "evaluation.jsonl.gz", "training.jsonl"
TRAINING_BYTES = 32 * 2**20  # of the file; once it is larger, the older half goes


def record(
    episode: Episode,
    terms: Terms,
    *,
    names: Sequence[str],
    show_private: bool,
    strategy: str,
    split: str,
    place: int,
    iteration: int | None = None,
) -> dict[str, Any]:
    """One episode as plain values. names: the actions, in index order.

    strategy: that the episode is counted under, where a cascade took over another one's.
    place: among the episodes of that strategy, or of the iteration.
    """
    problem = episode.problem
    shown = str if show_private else functools.partial(masked, problem=problem)
    left = iter(_left(episode, terms))
    segments = [
        _segment(segment, shown) | {"probabilities": probabilities}
        for segment, probabilities in zip(
            episode.segments, _probabilities(episode, names), strict=True
        )
    ]
    for segment in segments:
        if segment["feedback"] is not None:
            segment.update(next(left))
    return {
        "split": split,
        "iteration": iteration,
        "strategy": strategy,
        "place": place,
        "helper": episode.helper,
        "uid": problem.uid,
        "sample": episode.sample,
        "status": episode.status.name.lower(),
        "is_private": show_private,
        "question": shown(problem.question),
        "notes": shown(problem.notes),
        "answers": [shown(accepted) for accepted in problem.answers],
        "answer": shown(episode.answer),
        "units": [
            dataclasses.asdict(unit) | {"text": unit.text if show_private else None}
            for unit in problem.units
        ],
        "segments": segments,
        "terms": dataclasses.asdict(terms),
    }


def _segment(segment: Segment, shown: Any) -> dict[str, Any]:
    """A segment without what is known of its boundary and of leaks."""
    reply = segment.feedback
    return {
        "action": segment.action,
        "probability": round(segment.probability, 6),
        "text": shown(segment.text),
        "is_cut": segment.is_cut,
        "sent": None
        if reply is None
        else shown(segment.text if segment.sent is None else segment.sent),
        "feedback": None
        if reply is None
        else {
            "kind": reply.kind.value,
            "text": shown(reply.text),
            "failure": reply.failure,
            "helper": reply.helper,
            "is_part": reply.is_part,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "usd": reply.cost_usd,
        },
    }


def _probabilities(episode: Episode, names: Sequence[str]) -> Iterator[dict[str, float] | None]:
    """Of the legal actions at each segment's boundary; None where nobody in the loop decided.

    That is a request which was written for the SLM, or what a cascade joined.
    """
    trace = episode.trace
    given = len(episode.segments) - len(trace.action_K)
    yield from [None] * given
    for logp_A, legal_A in zip(trace.action_logp_KA, trace.legal_KA, strict=True):
        yield {
            names[a]: round(float(np.exp(logp_A[a])), 6) for a in np.flatnonzero(legal_A).tolist()
        }


def _left(episode: Episode, terms: Terms) -> Iterator[dict[str, Any]]:
    """Of each exchange: kinds of the units that it gave away first, and their share of the leak.

    By the detector, and by the judge where the episode was judged, as `collab.rewards` counts them.
    """
    units = episode.problem.units
    found = Detector(units).leaked_by_request(episode.outgoing)
    judged = (None,) * len(found) if episode.judged is None else episode.judged
    before: set[int] = set()
    for by_match, by_judge, share in zip(found, judged, terms.leak_by_exchange, strict=True):
        new = (by_match | (by_judge or frozenset())) - before
        before |= new
        yield {"leaked": [units[unit].kind for unit in sorted(new)], "leak": share}


# --- writing ---------------------------------------------------------------------------------


def write_evaluation(
    workdir: Path,
    by_strategy: Mapping[str, Sequence[Episode]],
    *,
    names: Sequence[str],
    config: Any,
) -> None:
    """Replace the file by this evaluation, `log.test_episodes` questions of every strategy."""
    lines = [
        _line(
            record(
                episode,
                score(episode, config.reward),
                names=names,
                show_private=config.log.private,
                strategy=strategy,
                split="test",
                place=place,
            )
        )
        for strategy, episodes in by_strategy.items()
        for place, episode in enumerate(episodes[: config.log.test_episodes])
    ]
    text = b"".join(line + b"\n" for line in lines)
    _replace(workdir / FOLDER / EVALUATION, gzip.compress(text, mtime=0))


def append_training(
    workdir: Path,
    episodes: Sequence[Episode],
    terms: Sequence[Terms],
    *,
    names: Sequence[str],
    config: Any,
    iteration: int,
) -> None:
    """Add the first `log.train_episodes` of an iteration; the oldest go where they are too many."""
    path = workdir / FOLDER / TRAINING
    path.parent.mkdir(exist_ok=True)
    kept = config.log.train_episodes
    lines = [
        _line(
            record(
                episode,
                term,
                names=names,
                show_private=config.log.private,
                strategy=episode.strategy,
                split="train",
                place=place,
                iteration=iteration,
            )
        )
        for place, (episode, term) in enumerate(zip(episodes[:kept], terms, strict=False))
    ]
    with path.open("ab") as file:
        # The line break comes first: what a kill cut short then spoils no line but itself.
        file.write(b"".join(b"\n" + line for line in lines))
        size = file.tell()
    if size > TRAINING_BYTES:
        newest = path.read_bytes()[-TRAINING_BYTES // 2 :]
        _replace(path, newest[newest.find(b"\n") :])


def _line(episode: Mapping[str, Any]) -> bytes:
    return json.dumps(episode, allow_nan=False).encode("ascii")


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


# --- reading ---------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """The episodes of a file in order, [] where there is none; a kill's half line is left out.

    An iteration that a resumed run repeated stands once, as it came out last.
    Raises: ValueError for a packed file that can't be unpacked.
    """
    content = path.read_bytes() if path.exists() else b""
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is spoilt ({error}); remove it, evaluate again") from error
    episodes: dict[tuple[Any, ...], dict[str, Any]] = {}
    spoilt = 0
    for line in content.split(b"\n"):
        if not line:
            continue
        try:
            episode = json.loads(line)
            key = tuple(episode[name] for name in ("split", "iteration", "strategy", "place"))
        except (ValueError, TypeError, KeyError):
            spoilt += 1
            continue
        episodes.pop(key, None)
        episodes[key] = episode
    if spoilt:
        _log.warning("%s: %d unreadable lines left out", path, spoilt)
    return list(episodes.values())
