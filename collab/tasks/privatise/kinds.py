"""The twelve kinds of private units: how a note tells one, what it weighs, how a value is made up.

Values are short and lower case, as the world task's notes are, so that a small model can copy them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from collab.tasks.mentions import NAME, NUMBER, ORGANISATION, PERSON, PLACE
from collab.tasks.world.language import CONDITIONS, MONTHS, date_text

_FIRST = ("ada", "bruno", "clara", "edgar", "freya", "hugo", "irene", "jonas", "karin", "oskar")
_LAST = ("abbott", "brandt", "carver", "dorsey", "ellery", "fisher", "harlan", "lowell", "porter")
_TOWNS = ("dunmore", "eastleigh", "harrow", "kingsway", "marlow", "norwood", "redhill", "torrance")
_TREES = ("alder", "birch", "cedar", "hazel", "juniper", "maple", "rowan", "willow")
_STREETS = ("street", "road", "lane", "avenue")
_TRADES = ("logistics", "analytics", "partners", "foods")
_DRUGS = ("metformin", "sertraline", "warfarin", "lisinopril", "quetiapine", "naproxen")
_DOSES_MG = (5, 10, 20, 50)
_WORDS = ("anvil", "comet", "gravel", "kestrel", "orbit", "saffron", "tundra", "walnut")
_YEARS = (1940, 2005)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of private unit.

    label: the notes say "my <label> is <value>", one word. sensitivity: weight in the leak term.
    sorts: of mentions that such a unit may stand in for; empty where it is never needed.
    """

    name: str
    label: str
    sensitivity: float
    draw: Callable[[np.random.Generator], str]
    sorts: frozenset[str] = frozenset()

    @property
    def reference(self) -> str:
        """How a question refers to the unit."""
        return f"my {self.label}"

    def line(self, value: str) -> str:
        """The sentence of the notes that tells a value, without its full stop."""
        return f"{self.reference} is {value}"


def _one_of(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _digits(rng: np.random.Generator, count: int) -> str:
    return "".join(str(digit) for digit in rng.integers(10, size=count))


def _contact(rng: np.random.Generator) -> str:
    return f"{_one_of(rng, _FIRST)} {_one_of(rng, _LAST)}"


def _phone(rng: np.random.Generator) -> str:
    return f"0{_digits(rng, 2)} 555 {_digits(rng, 4)}"


def _email(rng: np.random.Generator) -> str:
    return f"{_one_of(rng, _FIRST)}.{_one_of(rng, _LAST)}@mail.example"


def _address(rng: np.random.Generator) -> str:
    return f"{rng.integers(2, 100)} {_one_of(rng, _TREES)} {_one_of(rng, _STREETS)}"


def _birth_date(rng: np.random.Generator) -> str:
    month = 1 + int(rng.integers(len(MONTHS)))
    return date_text(int(rng.integers(*_YEARS)), month, int(rng.integers(1, 29)))


def _condition(rng: np.random.Generator) -> str:
    return _one_of(rng, CONDITIONS)


def _medication(rng: np.random.Generator) -> str:
    return f"{_one_of(rng, _DRUGS)} {_DOSES_MG[int(rng.integers(len(_DOSES_MG)))]} mg"


def _amount(rng: np.random.Generator) -> str:
    return f"{10 * rng.integers(11, 1000)} euros"


def _card(rng: np.random.Generator) -> str:
    return " ".join((f"4{_digits(rng, 3)}", *(_digits(rng, 4) for _ in range(3))))


def _whereabouts(rng: np.random.Generator) -> str:
    return _one_of(rng, _TOWNS)


def _password(rng: np.random.Generator) -> str:
    return f"{_one_of(rng, _WORDS)}-{_digits(rng, 3)}"


def _employer(rng: np.random.Generator) -> str:
    return f"{_one_of(rng, _TREES)} {_one_of(rng, _TRADES)}"


# Weights: our choice. 3 opens an account, 2 is about health, 1.5 leads to the door, 1 identifies
# or exposes a person, 0.5 is told to strangers now and then.
_ALL_KINDS = (
    Kind("contact", "cousin", 0.5, _contact, frozenset({PERSON, NAME})),
    Kind("phone", "phone", 1.0, _phone),
    Kind("e-mail", "e-mail", 0.5, _email),
    Kind("address", "address", 1.5, _address),
    Kind("birth date", "birthday", 1.0, _birth_date),
    Kind("condition", "condition", 2.0, _condition),
    Kind("medication", "medication", 2.0, _medication),
    Kind("amount", "overdraft", 1.0, _amount, frozenset({NUMBER})),
    Kind("card number", "card", 3.0, _card),
    Kind("whereabouts", "destination", 1.0, _whereabouts, frozenset({PLACE, NAME})),
    Kind("password", "passcode", 3.0, _password, frozenset({NUMBER})),
    Kind("employer", "firm", 0.5, _employer, frozenset({ORGANISATION, NAME})),
)
KINDS = {kind.name: kind for kind in _ALL_KINDS}
REFERRED = tuple(kind for kind in _ALL_KINDS if kind.sorts)  # what a question may refer to
