"""Which known text is a request about: an index of texts by shared words and word pairs.

Tasks build one `TextIndex` over their questions and sub-questions; their `Knowledge` looks requests
up in it. What a match means is the task's business. The index never changes once built, so any
number of threads may read it.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from collab.types import Problem, Step

SO_FAR = "So far:"  # between a question and what is already known of its solution

_TOKEN = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|[^\W\d_]+")

_RARE_SHARE = 0.05  # of the texts have a word that counts as rare


def tokens(text: str) -> list[str]:
    """Lower-case words and numbers ("1,000.50" becomes "1000.50"); everything else separates."""
    return [token.replace(",", "") for token in _TOKEN.findall(text.lower())]


def rest_request(problem: Problem, index: int, belief: str) -> str:
    """The question, with the step before `index` as it is believed, so that the rest is asked."""
    if index == 0:
        return problem.question
    return f"{problem.question} {SO_FAR} {problem.steps[index - 1].query} = {belief}"


def rest_of(steps: Sequence[Step], told: str) -> tuple[Step, ...]:
    """The steps behind the last one whose "query = " stands in `told`; all where none does."""
    done = [place for place, step in enumerate(steps[:-1], 1) if f"{step.query} = " in told]
    return tuple(steps[max(done, default=0) :])


def numbers(text: str) -> frozenset[float]:
    """Values of the numbers that a text states in digits."""
    return frozenset(float(token) for token in tokens(text) if token[0].isdigit())


@dataclasses.dataclass(frozen=True)
class Match:
    """One known text near a request.

    overlap: Dice coefficient of the two weights (1: the same words in the same order).
    covered: share of the known text's weight that the request holds (1: all of it).
    used: share of the request's weight that the known text accounts for (1: nothing else in it).
    """

    index: int
    overlap: float
    covered: float
    used: float


class TextIndex:
    """Inverted index over words and word pairs, weighted by rarity.

    Weights: log(1 + texts / texts that have the feature), so that names and numbers decide between
    questions made from one template, and word pairs keep their order in view.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Index `texts`; a match's `index` counts in their order."""
        self._texts = tuple(texts)
        self._count = len(texts)
        postings: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            for feature in self._features(text):
                postings.setdefault(feature, []).append(index)
        self._postings = {
            feature: np.asarray(indices, np.int64) for feature, indices in postings.items()
        }
        self._weight = {
            feature: float(np.log1p(self._count / len(indices)))
            for feature, indices in postings.items()
        }
        self._unknown = float(np.log1p(self._count))
        self._total_T = np.zeros(self._count)
        for feature, indices in self._postings.items():
            self._total_T[indices] += self._weight[feature]

    @staticmethod
    def _features(text: str) -> list[str]:
        """Words and pairs of neighbours, each once, in order (sums come out the same each time)."""
        words = tokens(text)
        pairs = (f"{first} {second}" for first, second in itertools.pairwise(words))
        return list(dict.fromkeys([*words, *pairs]))

    def is_exchanged(self, request: str, index: int) -> bool:
        """Whether the request and the known text each have a rare word that the other lacks.

        So it is when a request asks the same about somebody else.
        """

        def rare(text: str) -> dict[str, str]:
            # Five letters stand for a word, so that its endings may vary.
            return {
                word[:5]: word
                for word in tokens(text)
                if len(self._postings.get(word, ())) <= _RARE_SHARE * self._count
            }

        ours, theirs = rare(request), rare(self._texts[index])
        return bool(ours.keys() - theirs.keys()) and bool(theirs.keys() - ours.keys())

    def nearest(self, request: str, *, limit: int = 5) -> list[Match]:
        """The best matches, best first: by the Dice overlap of weights; earlier texts win ties."""
        features = self._features(request)
        known = [feature for feature in features if feature in self._postings]
        if not known:
            return []
        hits = [self._postings[feature] for feature in known]
        weights = np.repeat([self._weight[feature] for feature in known], [len(h) for h in hits])
        shared_T = np.bincount(np.concatenate(hits), weights, minlength=self._count)
        asked = sum(self._weight.get(feature, self._unknown) for feature in features)
        overlap_T = 2.0 * shared_T / (self._total_T + asked)
        order = np.argsort(-overlap_T, kind="stable")[:limit]
        return [
            Match(
                int(i),
                overlap=float(overlap_T[i]),
                covered=float(shared_T[i] / self._total_T[i]),
                used=float(shared_T[i] / asked),
            )
            for i in order
            if shared_T[i] > 0
        ]
