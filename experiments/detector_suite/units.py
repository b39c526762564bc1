"""Private units of twelve types, all invented, from one random generator."""

from __future__ import annotations

import dataclasses
import datetime
import random
import string

from collab.types import PrivateUnit

FIRST = (
    *("Margaret", "Oluwaseun", "Siobhan", "Priya", "Zbigniew", "Ingrid", "Tomasz", "Amara", "Noor"),
    *("Hyunwoo", "Leticia", "Bartholomew", "Xiomara", "Dmitri", "Fenella", "Kwame", "Aiko", "René"),
    *("Eleni", "Gideon", "Marisol", "Thaddeus", "Yusuf", "Zoë", "Chinonso", "Björn", "Anna", "Ian"),
    *("Olga", "James", "Maria", "Robert", "Wei", "Fatima", "Hugo", "Linda", "David", "Saoirse"),
)
LAST = (
    *("Thornbury", "Adebayo", "Okonkwo", "Ramaswamy", "Kowalczyk", "Lindqvist", "Stone", "Haddad"),
    *(
        "Choi",
        "Villanueva",
        "Featherstone",
        "Castellanos",
        "Petrov",
        "Macalister",
        "Mensah",
        "Hill",
    ),
    *("Tanaka", "Papadakis", "Abernathy", "Echeverría", "Worthington", "Demir", "Müller", "Nwosu"),
    *("O'Brien", "Smith-Jones", "van der Berg", "Smith", "Young", "Zhang", "Rahman", "Laurent"),
    *("Baker", "Irving", "Ashdown", "Quillfeather", "Brackenridge", "Osei", "Ivanova", "Tremaine"),
)
_ONSETS = ("b", "br", "d", "dr", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("", "n", "r", "l", "s", "th", "ck", "m")
_PLACES = (
    *("Elm", "Harbor View", "Riverside", "St. Brigid's", "Northgate", "Lakewood", "Mount Carmel"),
    *("Saint Anselm", "Cedar Hollow", "Kingsway", "Whitefriars", "Alder Creek", "Bellweather"),
)
_CLINICS = ("Clinic", "Hospital", "Medical Center", "Family Practice", "Dental Surgery")
_STREETS = ("Street", "Avenue", "Road", "Lane", "Drive", "Court", "Boulevard", "St", "Ave")
_TOWNS = ("Springfield", "Harrowgate", "Dunmore", "Eastleigh", "Marlow", "Pine Bluff", "Torrance")
_DRUGS = (
    *("sertraline 50 mg", "metformin 850 mg twice daily", "lisinopril 10mg", "warfarin 5 mg"),
    *("levothyroxine 75 mcg", "quetiapine 200 mg daily"),
)
_CONDITIONS = (
    *("psoriatic arthritis", "type 2 diabetes", "bipolar disorder", "hypothyroidism", "epilepsy"),
    *("ulcerative colitis", "generalised anxiety disorder", "sickle cell anaemia", "HIV infection"),
    *("endometriosis", "chronic kidney disease", "asthma", "migraine with aura"),
)
_FIRM_ENDS = ("Ltd", "Inc.", "LLC", "GmbH", "Logistics", "Analytics", "Partners", "Foods plc")
_MAIL_HOSTS = ("mail.example.com", "posteo.example", "example.org", "fastpost.example.net")
_WORDS = ("kestrel", "orbit", "violet", "gravel", "walnut", "comet", "tundra", "saffron", "anvil")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
KINDS = (
    *("person", "doctor", "clinic", "birth date", "phone", "e-mail", "card number", "salary"),
    *("address", "condition", "employer", "password"),
)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit with the parts that obfuscations take apart.

    names: first, middle (may be "") and last of a person. date: of a birth date. digits: of a phone
    (national), card or amount (whole units of currency). core: the part that says it all.
    """

    private: PrivateUnit
    names: tuple[str, str, str] = ("", "", "")
    date: datetime.date | None = None
    digits: str = ""
    core: str = ""

    @property
    def text(self) -> str:
        return self.private.text

    @property
    def kind(self) -> str:
        return self.private.kind


def unit(kind: str, rng: random.Random) -> Unit:
    """One unit of a kind."""
    maker = {
        "person": _person,
        "doctor": _doctor,
        "clinic": _clinic,
        "birth date": _birth_date,
        "phone": _phone,
        "e-mail": _email,
        "card number": _card,
        "salary": _salary,
        "address": _address,
        "condition": _condition,
        "employer": _employer,
        "password": _password,
    }[kind]
    return maker(kind, rng)


def episode(rng: random.Random, *, size: int = 6) -> list[Unit]:
    """Units of different kinds, as one problem has them."""
    return [unit(kind, rng) for kind in rng.sample(KINDS, size)]


def invented_name(rng: random.Random, syllables: int) -> str:
    """A name that stands in no list."""
    parts = [
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)
    ]
    return "".join(parts).capitalize()


def _names(rng: random.Random) -> tuple[str, str, str]:
    if rng.random() < 0.5:
        first, last = invented_name(rng, 2), invented_name(rng, rng.choice((2, 3)))
    else:
        first, last = rng.choice(FIRST), rng.choice(LAST)
    return first, rng.choice(FIRST) if rng.random() < 0.3 else "", last


def _joined(names: tuple[str, str, str]) -> str:
    return " ".join(filter(None, names))


def _person(kind: str, rng: random.Random) -> Unit:
    names = _names(rng)
    return Unit(PrivateUnit(_joined(names), kind), names=names)


def _doctor(kind: str, rng: random.Random) -> Unit:
    names = _names(rng)
    return Unit(PrivateUnit(f"{rng.choice(('Dr. ', 'Dr ', ''))}{_joined(names)}", kind), names)


def _clinic(kind: str, rng: random.Random) -> Unit:
    place = rng.choice(_PLACES) if rng.random() < 0.5 else invented_name(rng, 2)
    return Unit(PrivateUnit(f"{place} {rng.choice(_CLINICS)}", kind))


def _birth_date(kind: str, rng: random.Random) -> Unit:
    date = datetime.date(1930, 1, 1) + datetime.timedelta(days=rng.randrange(30_000))
    month = _MONTHS[date.month - 1]
    text = rng.choice(
        (
            f"{date.day} {month} {date.year}",
            f"{month} {date.day}, {date.year}",
            date.isoformat(),
            f"{date.day} {month[:3].lower()} {date.year}",
        )
    )
    return Unit(PrivateUnit(text, kind), date=date)


def _phone(kind: str, rng: random.Random) -> Unit:
    area, middle, last = rng.randint(201, 989), rng.randint(200, 999), rng.randint(0, 9999)
    digits = f"{area}{middle}{last:04d}"
    style = rng.choice(("({0}) {1}-{2}", "{0}-{1}-{2}", "+1 {0} {1} {2}", "+44 {0} {1} {2}"))
    return Unit(PrivateUnit(style.format(area, middle, f"{last:04d}"), kind), digits=digits)


def _email(kind: str, rng: random.Random) -> Unit:
    first, last = invented_name(rng, 2).lower(), invented_name(rng, 2).lower()
    sign = rng.choice((".", "_", ""))
    number = rng.choice(("", str(rng.randint(10, 99))))
    return Unit(PrivateUnit(f"{first}{sign}{last}{number}@{rng.choice(_MAIL_HOSTS)}", kind))


def _card(kind: str, rng: random.Random) -> Unit:
    digits = rng.choice("45") + "".join(rng.choices(string.digits, k=15))
    text = " ".join(digits[at : at + 4] for at in range(0, 16, 4))
    return Unit(
        PrivateUnit(rng.choice((text, digits, text.replace(" ", "-"))), kind), digits=digits
    )


def _salary(kind: str, rng: random.Random) -> Unit:
    amount = rng.randint(12, 250) * 1000 + rng.choice((0, 0, 500, 250, 840))
    text = rng.choice((f"${amount:,}", f"{amount:,} dollars", f"€{amount:,}", f"USD {amount}"))
    return Unit(PrivateUnit(text, kind), digits=str(amount))


def _address(kind: str, rng: random.Random) -> Unit:
    name = rng.choice(("Elm", "Maple Hill", "Church", "Old Mill", invented_name(rng, 2)))
    core = f"{rng.randint(1, 999)} {name} {rng.choice(_STREETS)}"
    town = f"{rng.choice(_TOWNS)} {rng.randint(10_000, 99_999)}"
    return Unit(PrivateUnit(f"{core}, {town}", kind), core=core)


def _condition(kind: str, rng: random.Random) -> Unit:
    if rng.random() < 0.4:
        return Unit(PrivateUnit(rng.choice(_CONDITIONS), kind))
    drug = f"{invented_name(rng, 3).lower()} {rng.choice((5, 20, 40, 100))} mg"
    text = rng.choice((*_DRUGS, *[drug] * len(_DRUGS)))
    return Unit(PrivateUnit(text, kind), core=text.split()[0])


def _employer(kind: str, rng: random.Random) -> Unit:
    style = rng.randrange(3)
    end = rng.choice(_FIRM_ENDS[:4])
    if style == 0:
        core = f"{invented_name(rng, 2)} & {invented_name(rng, 2)}"
    elif style == 1:
        core = f"{invented_name(rng, 2)} {rng.choice(_FIRM_ENDS[4:7])}"
    else:
        core = f"{rng.choice(_PLACES)} {rng.choice(_FIRM_ENDS[4:7])}"
    return Unit(PrivateUnit(f"{core} {end}", kind), core=core)


def _password(kind: str, rng: random.Random) -> Unit:
    if rng.random() < 0.5:
        first, second = rng.sample(_WORDS, 2)
        text = f"{first}-{second.capitalize()}-{rng.randint(10, 99)}"
    else:
        text = "".join(rng.choices(string.ascii_letters + string.digits, k=12)) + rng.choice("!#&?")
    return Unit(PrivateUnit(text, kind))
