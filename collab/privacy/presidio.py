"""Private units that nobody labelled, found by the patterns of presidio-analyzer.

The package is the extra `presidio`. Without a language model it knows numbers and addresses of many
kinds, but no name, illness or salary, and no password. Nothing is downloaded.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from collab.types import PrivateUnit

LANGUAGE = "en"
LEAST_SCORE = 0.4  # below are patterns that any run of digits fits, such as a driver's licence


def find_units(notes: str) -> tuple[PrivateUnit, ...]:
    """The units in `notes` by place; of those that overlap the surest, then the longest.

    Their kinds are presidio's own in small letters: "email address". Each text is named once.
    Raises: ValueError where the package is missing.
    """
    text = notes.encode("utf-8", "replace").decode()  # half a surrogate pair; places stay
    found = _analyzer().analyze(text, LANGUAGE, score_threshold=LEAST_SCORE)
    kept: list[Any] = []
    for result in sorted(found, key=lambda r: (-r.score, r.start - r.end, r.start)):
        if all(result.end <= other.start or other.end <= result.start for other in kept):
            kept.append(result)
    units: dict[str, PrivateUnit] = {}
    for result in sorted(kept, key=lambda r: int(r.start)):
        name, kind = notes[result.start : result.end], result.entity_type.lower()
        units.setdefault(name, PrivateUnit(name, kind.replace("_", " ")))
    return tuple(units.values())


def check() -> None:
    """Raises: ValueError where the package is missing."""
    _analyzer()


@functools.cache
def _analyzer() -> Any:
    """Presidio's engine over a tokenizer that knows words and nothing else."""
    try:
        import spacy  # both come with it
        import tldextract.tldextract
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NlpArtifacts, NlpEngine
    except ImportError as error:
        raise ValueError(
            f"privacy.recognisers='presidio' needs a package that is missing ({error.name}); "
            "pip install -e '.[presidio]', or set privacy.recognisers=''"
        ) from None
    # It warns of each recogniser of another language, and of an engine that is not its own.
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    # Its e-mail recogniser would ask the internet for the list of domain endings, once.
    tldextract.tldextract.TLD_EXTRACTOR.suffix_list_urls = ()

    class Words(NlpEngine):
        """The default engine would download a language model."""

        def __init__(self) -> None:
            self._split = spacy.blank(LANGUAGE)

        def load(self) -> None:
            """There is nothing to load."""

        def is_loaded(self) -> bool:
            return True

        def process_text(self, text: str, language: str) -> NlpArtifacts:
            words = self._split(text)
            places, lemmas = [word.idx for word in words], [word.lower_ for word in words]
            return NlpArtifacts([], words, places, lemmas, self, language)

        def process_batch(self, texts: Any, language: str, *args: Any, **kwargs: Any) -> Any:
            return ((text, self.process_text(text, language)) for text in texts)

        def is_stopword(self, word: str, language: str) -> bool:
            return bool(self._split.vocab[word].is_stop)

        def is_punct(self, word: str, language: str) -> bool:
            return bool(self._split.vocab[word].is_punct)

        def get_supported_entities(self) -> list[str]:
            return []

        def get_supported_languages(self) -> list[str]:
            return [LANGUAGE]

    return AnalyzerEngine(nlp_engine=Words(), supported_languages=[LANGUAGE])
