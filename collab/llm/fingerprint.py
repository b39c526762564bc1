"""What a helper's replies to the probe set say of it, and whether two fingerprints differ.

A fingerprint keeps one record a request, without any text; every figure is computed from those. Two
are compared on the requests that both answered, so one probe set may be longer than the other. How
replies are got is in `probe`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from collab.types import FeedbackKind

OPEN = 0  # `Reply.hops` of a request that leaves a private reference open
FALSE_ALARMS = 0.02  # of comparisons of a helper with itself, at most, over all tests in one
LENGTH_FACTOR = 1.5  # between median lengths; less is no other style
USD_FACTOR = 1.5  # between mean prices of a request
LATENCY_FACTOR, LATENCY_LEAST_S = 5.0, 1.0  # between medians; servers are slower at noon


@dataclasses.dataclass(frozen=True)
class Reply:
    """One probe request and its reply, in figures.

    id: digest of the request. hops: facts to be chained, OPEN where it can't be answered.
    relation: of the fact asked for, "" where the task has none. is_statement: the reply has the
    form "query = answer". kind: `FeedbackKind` by its value. failure: as in `Feedback`.
    """

    id: str
    hops: int
    relation: str
    kind: str
    is_right: bool
    is_statement: bool
    tokens: int
    latency_s: float
    usd: float
    failure: str | None = None


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """A helper, by what it replied to a probe set."""

    helper: str
    replies: tuple[Reply, ...]

    @property
    def answered(self) -> tuple[Reply, ...]:
        """Replies to requests that didn't fail: an outage says nothing about who helps."""
        return tuple(reply for reply in self.replies if reply.failure is None)

    @property
    def strength(self) -> float:
        """Share of the answerable probe requests that it answered right, in [0, 1].

        0 where no request was answered at all.
        """
        told = [reply.is_right for reply in self.answered if reply.hops != OPEN]
        return sum(told) / len(told) if told else 0.0

    def summary(self) -> dict[str, Any]:
        """Figures for people: shares as [successes, requests], by hops and by relation."""
        told = [reply for reply in self.answered if reply.hops != OPEN]
        singles = [reply for reply in told if reply.hops == 1]
        latency_s = sorted(reply.latency_s for reply in self.answered)
        return {
            "strength": round(self.strength, 4),
            "right_by_hops": {
                str(hops): _tally(told, _at(hops), _is_right)
                for hops in sorted({reply.hops for reply in told})
            },
            "right_by_relation": {
                name: _tally([r for r in singles if r.relation == name], _any, _is_right)
                for name in sorted({reply.relation for reply in singles if reply.relation})
            },
            "asks_back": _tally(self.answered, _is_open, _asks_back),
            "refuses": _tally(told, _any, _refuses),
            "states": _tally(told, _any, _is_statement),
            "kinds": {
                kind.value: count
                for kind in FeedbackKind
                if (count := sum(reply.kind == kind.value for reply in self.answered))
            },
            "tokens_median": _median([reply.tokens for reply in self.answered]),
            "latency_median_s": _median(latency_s),
            "latency_p90_s": latency_s[math.ceil(0.9 * len(latency_s)) - 1] if latency_s else None,
            "usd_per_request": _mean([reply.usd for reply in self.answered]),
            "failed": len(self.replies) - len(self.answered),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values; the summary is for readers, `from_json` takes the replies alone."""
        replies = [dataclasses.asdict(reply) for reply in self.replies]
        return {"helper": self.helper, "summary": self.summary(), "replies": replies}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fingerprint:
        """Raises: KeyError or TypeError for anything that `to_json` didn't write."""
        return cls(content["helper"], tuple(Reply(**reply) for reply in content["replies"]))


# --- comparing -------------------------------------------------------------------------------


def changes(before: Fingerprint, after: Fingerprint) -> list[str]:
    """In words, what is another than it was; [] where nothing is beyond noise.

    Shares are compared by Fisher's exact test, lengths by a sign test over pairs, together with at
    most FALSE_ALARMS (Bonferroni). Price and latency are no matter of chance: they count where they
    changed by a factor. What was probed once can't tell other facts from chance, so a helper that
    is as often right about other facts passes.
    """
    then = {reply.id: reply for reply in before.replies}
    pairs = [(then[reply.id], reply) for reply in after.replies if reply.id in then]
    if not pairs:
        return ["was probed with other requests (of another task?), so nothing can be compared"]
    if not after.answered or not before.answered:
        which = after if not after.answered else before
        names = sorted({reply.failure or "" for reply in which.replies})
        when = "now" if which is after else "before"
        return [f"answered none of the probe requests {when} ({', '.join(names)})"]
    tests = [
        *_share_tests(pairs),
        *_length_test([pair for pair in pairs if pair[0].failure is None is pair[1].failure]),
    ]
    level = FALSE_ALARMS / len(tests)
    both = [[reply for reply in side if reply.failure is None] for side in zip(*pairs, strict=True)]
    return [words for p, words in tests if p <= level] + _by_factor(*both)


def _share_tests(pairs: Sequence[tuple[Reply, Reply]]) -> list[tuple[float, str]]:
    """p-value and words of every share that both sides have."""
    levels = sorted({before.hops for before, _ in pairs} - {OPEN})
    shares: list[tuple[str, Callable[[Reply], bool], Callable[[Reply], bool]]] = [
        ("answers right", _is_answerable, _is_right),
        *(
            (f"answers right at {hops} hop{'s' * (hops > 1)}", _at(hops), _is_right)
            for hops in levels
        ),
        ("asks back where a reference is left open", _is_open, _asks_back),
        ("refuses", _is_answerable, _refuses),
        ('writes "query = answer"', _is_answerable, _is_statement),
    ]
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    failed = _tally(before, _any, _has_failed), _tally(after, _any, _has_failed)
    tests = [_tested("fails", *failed)]
    for words, counts, holds in shares:
        tallies = [
            _tally([reply for reply in side if reply.failure is None], counts, holds)
            for side in (before, after)
        ]
        if tallies[0][1] and tallies[1][1]:
            tests.append(_tested(words, *tallies))
    return tests


def _tested(words: str, before: Sequence[int], after: Sequence[int]) -> tuple[float, str]:
    told = f"{words}: {before[0]} of {before[1]} before, {after[0]} of {after[1]} now"
    return fisher_exact(before[0], before[1], after[0], after[1]), told


def _length_test(pairs: Sequence[tuple[Reply, Reply]]) -> list[tuple[float, str]]:
    """Sign test over the pairs; only where the medians are far enough apart to be a style."""
    if not pairs:
        return []
    lengths = [[max(reply.tokens, 1) for reply in side] for side in zip(*pairs, strict=True)]
    was, now = (statistics.median(side) for side in lengths)
    is_far = max(was, now) / min(was, now) >= LENGTH_FACTOR
    longer = sum(a > b for b, a in zip(*lengths, strict=True))
    shorter = sum(a < b for b, a in zip(*lengths, strict=True))
    p = sign_test(longer, shorter) if is_far else 1.0
    return [(p, f"replies have {was:g} tokens before, {now:g} now (medians)")]


def _by_factor(before: Sequence[Reply], after: Sequence[Reply]) -> list[str]:
    words = []
    was, now = (_mean([reply.usd for reply in side]) or 0.0 for side in (before, after))
    if max(was, now) > USD_FACTOR * min(was, now):
        words.append(f"costs ${was:.2g} a request before, ${now:.2g} now")
    was, now = (_median([reply.latency_s for reply in side]) or 0.0 for side in (before, after))
    is_far = max(was, now) >= LATENCY_FACTOR * min(was, now)
    if is_far and abs(now - was) >= LATENCY_LEAST_S:
        words.append(f"takes {was:.2g} s a request before, {now:.2g} s now (medians)")
    return words


def pool_changes(
    before: Mapping[str, Fingerprint], after: Mapping[str, Fingerprint]
) -> dict[str, list[str]]:
    """What changed between two pools, by helper; those without a change are left out.

    A helper of a new name is compared with the one of the old pool that is most like it.
    """
    found: dict[str, list[str]] = {}
    for name, now in after.items():
        if name in before:
            words = changes(before[name], now)
        else:
            likest = min(
                before, key=lambda old: (len(changes(before[old], now)), _gap(before[old], now))
            )
            told = changes(before[likest], now)
            words = [f"new, nearest is {shown(likest)}" + ("" if told else ", no change found")]
            words += told
        if words:
            found[name] = words
    gone = {name: ["no longer in the pool"] for name in before if name not in after}
    return found | gone


def shown(helper: str) -> str:
    """A helper's name as sentences have it; the only one has none."""
    return f"helper {helper}" if helper else "the helper"


# --- exact tests -----------------------------------------------------------------------------


def fisher_exact(a: int, of_a: int, b: int, of_b: int) -> float:
    """Two-sided p-value that a of of_a and b of of_b share one rate; totals of 0 give 1.

    Source: Fisher's exact test, tables at most as likely as the one seen (R's `fisher.test`).
    """
    total, successes = of_a + of_b, a + b

    def ways(k: int) -> int:
        return math.comb(of_a, k) * math.comb(of_b, successes - k)

    possible = range(max(0, successes - of_b), min(of_a, successes) + 1)
    extreme = sum(count for k in possible if (count := ways(k)) <= ways(a))
    return extreme / math.comb(total, successes)


def sign_test(more: int, less: int) -> float:
    """Two-sided p-value that either direction is as likely; ties are left out by the caller."""
    n = more + less
    tail = sum(math.comb(n, k) for k in range(min(more, less) + 1))
    return min(1.0, 2.0 * tail / 2**n)


# --- the file --------------------------------------------------------------------------------


def save(path: pathlib.Path, fingerprints: Mapping[str, Fingerprint]) -> None:
    """Write a pool's fingerprints as JSON, whole or not at all."""
    content = {name: fingerprint.to_json() for name, fingerprint in fingerprints.items()}
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def load(path: pathlib.Path) -> dict[str, Fingerprint]:
    """Raises: ValueError for a file that `save` didn't write, OSError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Fingerprint.from_json(row) for name, row in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no fingerprints of helpers; remove it, the next training makes it anew"
        ) from error


# --- small parts -----------------------------------------------------------------------------


def _tally(
    replies: Sequence[Reply], counts: Callable[[Reply], bool], holds: Callable[[Reply], bool]
) -> list[int]:
    counted = [holds(reply) for reply in replies if counts(reply)]
    return [sum(counted), len(counted)]


def _any(reply: Reply) -> bool:
    return True


def _is_answerable(reply: Reply) -> bool:
    return reply.hops != OPEN


def _at(hops: int) -> Callable[[Reply], bool]:
    return lambda reply: reply.hops == hops


def _is_open(reply: Reply) -> bool:
    return reply.hops == OPEN


def _is_right(reply: Reply) -> bool:
    return reply.is_right


def _is_statement(reply: Reply) -> bool:
    return reply.is_statement


def _asks_back(reply: Reply) -> bool:
    return reply.kind == FeedbackKind.CLARIFY.value


def _refuses(reply: Reply) -> bool:
    return reply.kind == FeedbackKind.REFUSE.value


def _has_failed(reply: Reply) -> bool:
    return reply.failure is not None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _gap(a: Fingerprint, b: Fingerprint) -> float:
    return abs(a.strength - b.strength)
