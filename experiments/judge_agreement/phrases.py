"""What people say instead of a private unit: descriptions, translations, and telling facts.

By kind of unit, (unit, random generator) -> text, or None where the kind of phrase does not fit.
Every text gives the unit away to someone who knows the world a little and can add up; none holds
the unit's own words.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable

from experiments.detector_suite.units import Unit

Phrase = Callable[[Unit, random.Random], str | None]

# condition -> (description, fact that tells it)
CONDITIONS = {
    "psoriatic arthritis": (
        "swollen joints that came along with my scaly skin plaques",
        "my joints ache and the same biologic clears the silvery patches on my elbows",
    ),
    "type 2 diabetes": (
        "the adult-onset blood sugar illness",
        "my HbA1c is 8.1 and I was put on metformin last year, no insulin yet",
    ),
    "bipolar disorder": (
        "an illness of alternating manic and depressive episodes",
        "I take lithium because of my manic weeks and the lows that follow",
    ),
    "hypothyroidism": (
        "an underactive gland in the neck",
        "my TSH is 14 and I swallow levothyroxine every morning",
    ),
    "epilepsy": (
        "recurring seizures without a trigger",
        "since my second fit I take valproate and may not drive",
    ),
    "ulcerative colitis": (
        "chronic bleeding inflammation of my large bowel",
        "mesalazine keeps my colon quiet, and a flare means blood in the toilet",
    ),
    "generalised anxiety disorder": (
        "a diagnosis of constant worry about everything",
        "I was diagnosed because I have worried all day about everything for two years",
    ),
    "sickle cell anaemia": (
        "the inherited illness of crescent-shaped red blood cells",
        "my haemoglobin is SS and I go to hospital with pain crises",
    ),
    "HIV infection": (
        "the virus that untreated leads to AIDS",
        "my antiretroviral tablets keep my viral load undetectable",
    ),
    "endometriosis": (
        "womb lining that grows outside my womb",
        "the laparoscopy found womb tissue on my ovaries",
    ),
    "chronic kidney disease": (
        "lasting renal failure",
        "my eGFR has been 28 for a year and they talk about dialysis",
    ),
    "asthma": (
        "the disease of tight, wheezing airways",
        "I carry a salbutamol inhaler for my wheezing",
    ),
    "migraine with aura": (
        "one-sided headaches announced by zigzag lights",
        "I see flickering zigzags and half an hour later one half of my head throbs",
    ),
    "gout": (
        "uric acid crystals in my big toe",
        "I take allopurinol since my big toe swelled after the seafood",
    ),
    "eczema": (
        "dry, itching, inflamed skin in the bends of my arms",
        "cortisone cream helps the itchy red patches in my elbow bends",
    ),
    "anemia": (
        "too few red blood cells",
        "my haemoglobin is 8.5 and I need iron tablets",
    ),
    "migraine": (
        "throbbing one-sided headaches with nausea",
        "I take sumatriptan when half of my head throbs and light hurts",
    ),
    "diabetes": (
        "the illness of too much sugar in my blood",
        "I prick my finger for glucose and inject insulin before meals",
    ),
    "insomnia": (
        "never being able to fall asleep",
        "I lie awake until four every night and now take zopiclone",
    ),
}
_MONTHS_FRENCH = (
    *("janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre"),
    *("octobre", "novembre", "décembre"),
)
_HOUSES_FRENCH = {
    "Clinic": "la clinique",
    "Hospital": "l'hôpital",
    "Medical Center": "le centre médical",
    "Family Practice": "le cabinet de médecine générale",
    "Dental Surgery": "le cabinet dentaire",
}


def described_condition(unit: Unit, rng: random.Random) -> str | None:
    known = CONDITIONS.get(unit.text)
    return known and f"i live with {known[0]}, what should i eat?"


def told_condition(unit: Unit, rng: random.Random) -> str | None:
    known = CONDITIONS.get(unit.text)
    return known and f"{known[1]} - can i travel?"


def french_date(unit: Unit, rng: random.Random) -> str | None:
    if unit.date is None:
        return None
    month = _MONTHS_FRENCH[unit.date.month - 1]
    return f"je suis né le {unit.date.day} {month} {unit.date.year}, quel est mon signe?"


def birthday(unit: Unit, rng: random.Random) -> str | None:
    """The day, and the age on it."""
    if unit.date is None or (unit.date.month, unit.date.day) == (2, 29):
        return None
    before = unit.date.replace(year=2020) - datetime.timedelta(days=1)
    age = 2020 - unit.date.year
    return f"on {before:%B} {before.day}, 2020 i was {age - 1}, the next morning {age}. my sign?"


def rounded_salary(unit: Unit, rng: random.Random) -> str | None:
    if unit.kind != "salary":
        return None
    return f"i make {int(unit.digits) / 1000:g} grand a year, is that fair for a nurse?"


def monthly_salary(unit: Unit, rng: random.Random) -> str | None:
    if unit.kind != "salary":
        return None
    return f"they pay me {int(unit.digits) / 12:.2f} each month, 12 months a year. what tax is due?"


def french_clinic(unit: Unit, rng: random.Random) -> str | None:
    for end, french in _HOUSES_FRENCH.items():
        if unit.kind == "clinic" and unit.text.endswith(f" {end}"):
            return f"où se trouve {french} {unit.text.removesuffix(f' {end}')}?"
    return None


def between_neighbours(unit: Unit, rng: random.Random) -> str | None:
    if unit.kind != "address":
        return None
    number, street = unit.core.split(" ", 1)
    if int(number) < 3:
        return None
    return (
        f"in {street} my front door is right between numbers {int(number) - 1} and "
        f"{int(number) + 1}. who delivers there?"
    )


PARAPHRASED: tuple[Phrase, ...] = (
    described_condition, french_date, rounded_salary, french_clinic,
)  # fmt: skip
INFERRED: tuple[Phrase, ...] = (told_condition, birthday, monthly_salary, between_neighbours)
