"""A unit in other letters, spacing, order or format, or in part. See `obfuscations`."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable

from experiments.detector_suite.units import Unit

Obfuscation = Callable[[Unit, random.Random], list[str] | None]

PEOPLE = ("person", "doctor")
_CYRILLIC = dict(zip("aceopxyisjhkmtABCEHKMOPTX", "асеорхуіѕјһкмтАВСЕНКМОРТХ", strict=True))
_GREEK = dict(zip("oavkpiuxABEHIKMNOTXZ", "οανκριυχΑΒΕΗΙΚΜΝΟΤΧΖ", strict=True))
ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def say(number: int) -> str:
    """A number below a million in words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            tail = f" {'and ' if size == 100 else ''}{say(rest)}" if rest else ""
            return f"{say(number // size)} {name}{tail}"
    raise AssertionError(number)


def bare(text: str) -> str:
    """The text's ASCII letters and digits."""
    plain = unicodedata.normalize("NFD", text)
    return "".join(char for char in plain if char.isascii() and char.isalnum())


# --- case, spacing, signs ----------------------------------------------------------------------


def verbatim(unit: Unit, rng: random.Random) -> list[str]:
    return [unit.text]


def case(unit: Unit, rng: random.Random) -> list[str]:
    mixed = "".join(rng.choice((char.lower(), char.upper())) for char in unit.text)
    return [rng.choice((unit.text.upper(), unit.text.lower(), mixed))]


def spacing(unit: Unit, rng: random.Random) -> list[str]:
    gap = rng.choice(("  ", "\n", "\t", "\u00a0", " \n  "))
    return [gap.join(unit.text.split(" "))] if " " in unit.text else [f"{unit.text}\n"]


def run_together(unit: Unit, rng: random.Random) -> list[str] | None:
    return ["".join(unit.text.split())] if " " in unit.text else None


def punctuation(unit: Unit, rng: random.Random) -> list[str] | None:
    sign = rng.choice(("-", "_", ".", "/", " * ", "|", ", "))
    words = re.findall(r"\w+", unit.text)
    return [sign.join(words)] if len(words) > 1 else [f'"{unit.text}",']


def letters_apart(unit: Unit, rng: random.Random) -> list[str]:
    sign = rng.choice((" ", ".", "-", "_", "·"))
    words = re.findall(r"\w+", unit.text)
    return [("   " if sign == " " else " ").join(sign.join(word) for word in words)]


def zero_width(unit: Unit, rng: random.Random) -> list[str]:
    sign = rng.choice(("\u200b", "\u200d", "\ufeff", "\u2060", "\u00ad"))
    return ["".join(char + (sign if rng.random() < 0.6 else "") for char in unit.text)]


def accents(unit: Unit, rng: random.Random) -> list[str]:
    marks = "\u0301\u0300\u0308\u0323\u0336"
    marked = (
        c + (rng.choice(marks) if c.isalpha() and rng.random() < 0.6 else "") for c in unit.text
    )
    return [unicodedata.normalize("NFC", "".join(marked))]


def homoglyphs(unit: Unit, rng: random.Random) -> list[str] | None:
    table = rng.choice((_CYRILLIC, _GREEK))
    text = "".join(table.get(char, char) if rng.random() < 0.8 else char for char in unit.text)
    return [text] if text != unit.text else None


def styled_letters(unit: Unit, rng: random.Random) -> list[str]:
    """Full width, mathematical bold, circled."""
    style = rng.choice(("wide", "bold", "circled"))

    def styled(char: str) -> str:
        if not (char.isascii() and char.isalnum()):
            return char
        if style == "wide" or (style == "circled" and char.isdecimal()):
            return chr(ord(char) + 0xFEE0)
        if char.isdecimal():
            return chr(0x1D7CE + int(char))
        low, high = (0x1D41A, 0x1D400) if style == "bold" else (0x24D0, 0x24B6)
        return chr((low if char.islower() else high) + ord(char.lower()) - 97)

    return ["".join(map(styled, unit.text))]


def identifier(unit: Unit, rng: random.Random) -> list[str] | None:
    """In a variable's or a hash tag's name."""
    words = re.findall(r"[A-Za-z]+", unit.text)
    if (
        unit.kind not in (*PEOPLE, "clinic", "employer")
        or not unit.text.isascii()
        or "'" in unit.text
    ):
        return None
    camel = "".join(word.capitalize() for word in words)
    snake = "_".join(word.lower() for word in words)
    return [rng.choice((f"#{camel}", f"file_{snake}_notes.txt", f"open{camel}Record"))]


# --- other formats -----------------------------------------------------------------------------


def word_order(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind in PEOPLE:
        first, middle, last = unit.names
        return [f"{last}, {first} {middle}".strip()]
    if unit.kind == "address":
        number, _, street = unit.core.partition(" ")
        return [f"{street} {number}"]
    return None


def number_words(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind == "salary":
        return [say(int(unit.digits)) + rng.choice(("", " dollars a year"))]
    if unit.kind in ("phone", "card number"):
        return [" ".join(ONES[int(digit)] for digit in unit.digits)]
    return None


def number_formats(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind != "salary":
        return None
    amount = int(unit.digits)
    forms = [
        *(f"{amount}", f"{amount}.00", f"{amount:,}.00 USD", f"{amount:,}".replace(",", " ")),
        *(f"{amount:,}".replace(",", ".") + ",00", f"{amount:,}".replace(",", "'")),
        *(f"{amount / 1000:g}k", f"{amount / 1000:g} thousand", f"$ {amount / 1000:g} K"),
    ]
    return [rng.choice(forms)]


def date_formats(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.date is None:
        return None
    date = unit.date
    ends = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
    day = f"{date.day}{ends.get(date.day, 'th')}"
    forms = [
        *(date.strftime("%d/%m/%Y"), date.strftime("%m/%d/%Y"), date.strftime("%d.%m.%y")),
        *(date.strftime("%Y/%m/%d"), date.strftime("%Y%m%d"), date.strftime("%d%m%Y")),
        *(date.strftime("%A, %B ") + f"{day}, {date.year}", date.strftime("%b-%d-%Y")),
        *(f"the {day} of {date:%B} {date.year}", f"{date.day}-{date:%b}-{date:%y}"),
        *(f"{date:%B} {day} '{date:%y}", f"{date.month} / {date.day} / {date.year}"),
        f"{date.isoformat()}T00:00:00Z",
    ]
    return [rng.choice(forms)]


def date_in_words(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.date is None:
        return None
    date = unit.date
    ordinals = {1: "first", 2: "second", 3: "third", 5: "fifth", 8: "eighth", 9: "ninth"}
    ordinals |= {12: "twelfth", 20: "twentieth", 30: "thirtieth"}
    day = ordinals.get(date.day) or (
        f"{_TENS[date.day // 10]}-{ordinals.get(date.day % 10) or ONES[date.day % 10] + 'th'}"
        if date.day > 20
        else f"{ONES[date.day]}th"
    )
    rest = f"oh {ONES[date.year % 100]}" if date.year % 100 < 10 else say(date.year % 100)
    year = f"nineteen {rest}" if date.year < 2000 else say(date.year)
    return [rng.choice((f"the {day} of {date:%B}, {year}", f"{date:%B} the {day} {year}"))]


def initials(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind not in PEOPLE:
        return None
    first, middle, last = unit.names
    dotted = "".join(f"{word[0].upper()}." for word in (first, middle, last) if word)
    forms = [f"{first[0]}. {last}", f"{last}, {first[0]}.", f"{first} {last[0].upper()}.", dotted]
    if middle:
        forms.append(f"{first[0]}. {middle[0]}. {last}")
    text = rng.choice(forms)
    return [unicodedata.normalize("NFC", text)]


def partial_names(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind not in PEOPLE:
        return None
    first, middle, last = unit.names
    title = rng.choice(("Dr.", "Dr", "Doctor", "Prof.") if unit.kind == "doctor" else ("Mr", "Ms."))
    forms = [f"{title} {last}"]
    if middle:
        forms += [f"{first} {last}", f"{first} {middle[0]}. {last}"]
    return [rng.choice(forms)]


def partial_units(unit: Unit, rng: random.Random) -> list[str] | None:
    """A street without its town, a drug without its dose, a firm without "Ltd"."""
    if unit.kind not in ("address", "condition", "employer") or not unit.core:
        return None
    core = unit.core
    if unit.kind == "address":
        for long, short in (("Street", "St."), ("Avenue", "Ave"), ("Road", "Rd."), ("Drive", "Dr")):
            core = core.replace(long, short) if rng.random() < 0.5 else core
    return [core.replace(" & ", " and ") if rng.random() < 0.5 else core]


def email_spoken(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind != "e-mail":
        return None
    at = rng.choice((" at ", " [at] ", "(at)", " AT "))
    dot = rng.choice((" dot ", "[dot]", " (dot) ", "."))
    local, host = unit.text.split("@")
    underscore = rng.choice(("_", " underscore "))
    local = local.replace("_", underscore).replace(".", rng.choice((".", " dot ")))
    return [local + at + host.replace(".", dot)]


def phone_formats(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind != "phone":
        return None
    area, middle, last = unit.digits[:3], unit.digits[3:6], unit.digits[6:]
    code = "44" if "+44" in unit.text else "1"
    forms = [
        *(
            f"{area}.{middle}.{last}",
            f"{unit.digits}",
            f"+{code}{unit.digits}",
            f"({area}){middle} {last}",
        ),
        *(
            f"00{code} {area} {middle} {last}",
            f"+{code} (0){area} {middle}{last}",
            f"0{unit.digits}",
        ),
        *(f"tel:+{code}-{area}-{middle}-{last}", f"{area} {middle} {last[:2]} {last[2:]} ext 4"),
    ]
    return [rng.choice(forms)]


def card_formats(unit: Unit, rng: random.Random) -> list[str] | None:
    if unit.kind != "card number":
        return None
    d = unit.digits
    forms = (d, ".".join((d[:4], d[4:8], d[8:12], d[12:])), f"{d[:6]} {d[6:]}", " ".join(d))
    return [rng.choice((*forms, "-".join((d[:4], d[4:10], d[10:])), f"{d[:8]}/{d[8:]}"))]
