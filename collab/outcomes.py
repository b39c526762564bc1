"""Outcomes: what every question of an evaluation came to, on disk so that runs can be compared.

Numbers and ids only: no question, note, request or reply. What one run says is in
`collab.report`; studies pair the same questions over several runs.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from collab.report import Outcome, write_whole
from collab.rewards import Terms
from collab.types import Episode, FeedbackKind, Status

FILE = "outcomes.npz"
_FIELDS = tuple(field.name for field in dataclasses.fields(Outcome))
_TEXTS = ("strategy", "task", "helper", "split", "uid")
_NEWER = ("tokens", "leak")  # than some files, which read as NaN there
_COUNTS = ("drafts_known", "asked_known", "drafts_unknown", "asked_unknown")


def outcome(
    strategy: str, episode: Episode, terms: Terms, *, task: str, helper: str, split: str
) -> Outcome:
    """One row of an evaluation; ask rates by whether the SLM's memory holds the drafted step."""
    known = {s.query: s.is_known for s in episode.problem.steps if not s.is_local}
    counted = any(value is not None for value in known.values())
    tally = {True: [0, 0], False: [0, 0]}
    for draft, is_asked in episode.drafts:
        is_known = known.get(draft.text.split(" = ")[0])
        if is_known is not None:
            tally[is_known][0] += 1
            tally[is_known][1] += is_asked
    unavailable = [e.feedback.kind is FeedbackKind.UNAVAILABLE for e in episode.exchanges]
    return Outcome(
        strategy=strategy,
        task=task,
        helper=helper,
        split=split,
        uid=episode.problem.uid,
        em=terms.em,
        f1=terms.f1,
        asks=terms.asks,
        turns=terms.turns,
        tokens=terms.tokens,
        leaked_units=terms.leaked_units,
        leak=terms.leak,
        usd=terms.usd,
        reward=terms.reward,
        failures=sum(unavailable) + (episode.status is Status.LLM_FAILED),
        drafts_known=tally[True][0] if counted else None,
        asked_known=tally[True][1] if counted else None,
        drafts_unknown=tally[False][0] if counted else None,
        asked_unknown=tally[False][1] if counted else None,
    )


def write_outcomes(path: str | os.PathLike[str], outcomes: Sequence[Outcome]) -> None:
    """Write one column a field, compressed. The file is whole or not there.

    A count that is None, not known to the task, is stored as -1.
    """
    columns = {}
    for name in _FIELDS:
        values = [getattr(outcome, name) for outcome in outcomes]
        if name in _COUNTS:
            columns[name] = np.array([-1 if value is None else value for value in values], np.int32)
        else:
            columns[name] = np.array(values, np.str_ if name in _TEXTS else np.float64)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **columns)
    write_whole(path, file.getvalue())


def read_outcomes(path: str | os.PathLike[str]) -> list[Outcome]:
    """What `write_outcomes` wrote. Raises: ValueError for a file that is missing or another's.

    A figure that is newer than the file is NaN, which a mean refuses.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [math.nan] * len(file["strategy"])
            columns = {
                name: missing if name in _NEWER and name not in file else file[name].tolist()
                for name in _FIELDS
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{pathlib.Path(path)} holds no outcomes ({type(error).__name__}); run the evaluation "
            "again: --mode=evaluate writes it"
        ) from error
    for name in _COUNTS:
        columns[name] = [None if value < 0 else value for value in columns[name]]
    rows = zip(*(columns[name] for name in _FIELDS), strict=True)
    return [Outcome(**dict(zip(_FIELDS, row, strict=True))) for row in rows]
