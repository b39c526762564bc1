"""Requests that give nothing away, many of which look as if they did.

Other people's names, dates and numbers, near misses of the episode's own units, encoded text about
other things, and single words of a unit: at most one of each unit in an episode, because two words
of a unit spread over requests count as the unit.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import uuid

from experiments.detector_suite.units import Unit, invented_name

# Nobody in `units` is made of these.
_FIRST = ("Charlotte", "Ahmed", "Lucas", "Emily", "Sanjay", "Isabel", "Peter", "Grace", "Mikhail")
_LAST = ("Harrison", "Patel", "Fernandez", "Novak", "Bennett", "Yamamoto", "Dubois", "Carter")
_TOPICS = (
    *("photosynthesis", "the French Revolution", "compound interest", "tidal locking", "sourdough"),
    *("monetary policy", "graph colouring", "plate tectonics", "vaccine trials", "jazz harmony"),
    *("medieval trade", "binary search", "soil chemistry", "the water cycle", "patent law"),
)
_PLACES = ("Lisbon", "Nairobi", "Osaka", "Toronto", "Bogotá", "Aarhus", "Tbilisi", "Perth")
_NOUNS = ("river", "clinic", "bridge", "doctor", "street", "garden", "company", "letter", "card")
_MONTHS = ("January", "March", "May", "June", "August", "October", "December")
CARRIERS = (
    *("What can you tell me about {}?", "My question concerns {}, please advise."),
    *("I need help with {} before tomorrow, what should I do first?", "Is {} known to you at all?"),
    *("The record in front of me says {} and I wonder what that means for the claim.",),
    *("Please draft a polite letter which mentions {} in the second line.", "note: {} (urgent)"),
    *("Someone asked me to look up {} and report back.", "Compare {} with the usual case."),
    *("they wrote {} on the form - does it matter for the deadline?", "First clue: {} . Go on."),
)
_PROSE = (
    *("Can you explain {topic} to a ten-year-old in a few short sentences?",),
    *("Who was the mayor of {place} in {year}, and how long did they hold the office?",),
    *("What is the capital gain if I bought at ${small} and sold at ${large:,}?",),
    *("{first} {last} moved from {place} to {place2} on {day} {month} {year}. How far is that?",),
    *("Is it true that Dr. {last} discovered {topic} before {year}?",),
    *("My flight leaves {place} at 10:45 on 2025-{m:02d}-{day:02d}; is {small} minutes enough?",),
    *("Write a haiku about a {noun} and a {noun2} in {month}.",),
    *("What may happen to a {noun} when the {noun2} is closed for {small} days in {year}?",),
    *("In the U.S. and the U.K., how is {topic} taught? E.g. at age {small}, i.e. early on.",),
    *("Did J. K. Rowling or A. A. Milne ever write about {topic}?",),
    *("Solve {small}x + {large} = {large2} for x, then check the result.",),
    *("Call the office at ({area}) {mid}-{last4} and ask for {first}. What should I say?",),
    *("Reply to {low}.{low2}@example.edu that the {noun} arrives on {month} {day}.",),
    *("Order {uuid} was shipped, tracking 1Z{large}{large2}, what does the prefix mean?",),
    *("The file's md5 is {md5}; how do I verify it on Linux?",),
    *("sha1 {sha1} and commit {short}, are these the same object?",),
    *("Decode this for me: {b64} and say what it is about.",),
    *("What does {hexed} spell in ASCII?", "Spell {first} in the NATO alphabet: {nato}."),
    *("Is p4ssw0rd or {leet} a weak passphrase, and why?",),
    *("{first} ({area}, {large}, {last4}) scored {small}/100. Rank the group of {mid} people.",),
    *("A {noun} costs €{large:,}.50 plus {small} % tax; round to the nearest euro.",),
    *("I take 200 mg of ibuprofen and 20 mg of something else, is {small} hours apart fine?",),
    *("Between {small} and {large} people visited the {noun} on {street} Street in {place}.",),
    *("Who won the {year} match: {first} {initial}. {last} or {last2}, {initial2}.?",),
    *("What is the IBAN check digit rule, and does 'GB{small}TEST{large}{large2}' pass?",),
    *("Translate 'the {noun} by the {noun2}' into German, French and Polish.",),
    *("Use camelCase or snake_case: my{invented}Parser, read{last}File or load_{low}_table?",),
    *("In {year}, {large:,} tonnes were sold; by {year2} it was {large2:,}. What growth is that?",),
)
_SHARED = (
    *("What does the word {} mean in everyday speech?", "Is {} in the crossword dictionary?"),
    *("Give me three rhymes for {}.", "How do you pronounce {} in English?"),
    *("I saw {} in a headline, is that a common term?", "Use {} in a sentence about the weather."),
)
_NATO_OTHER = "golf romeo alpha charlie echo"


def carried(text: str, rng: random.Random) -> str:
    """A text in the midst of a sentence."""
    return rng.choice(CARRIERS).replace("{}", text)


def prose(rng: random.Random) -> str:
    """A question about other people and things."""
    other = f"the minutes of {rng.choice(_PLACES)} are attached, {rng.randrange(10**6)}"
    template = rng.choice(_PROSE)
    return template.format(
        topic=rng.choice(_TOPICS),
        place=rng.choice(_PLACES),
        place2=rng.choice(_PLACES),
        year=rng.randint(1850, 2025),
        year2=rng.randint(1850, 2025),
        month=rng.choice(_MONTHS),
        m=rng.randint(1, 12),
        day=rng.randint(1, 28),
        small=rng.randint(2, 99),
        large=rng.randint(1000, 99_999),
        large2=rng.randint(1000, 999_999),
        first=rng.choice(_FIRST),
        last=rng.choice(_LAST),
        last2=rng.choice(_LAST),
        initial=rng.choice("ABCDEFGHJKLMNPRST"),
        initial2=rng.choice("ABCDEFGHJKLMNPRST"),
        noun=rng.choice(_NOUNS),
        noun2=rng.choice(_NOUNS),
        area=rng.randint(201, 989),
        mid=rng.randint(200, 999),
        last4=f"{rng.randrange(10_000):04d}",
        low=rng.choice(_FIRST).lower(),
        low2=rng.choice(_LAST).lower(),
        invented=invented_name(rng, 2),
        street=invented_name(rng, 2),
        uuid=uuid.UUID(int=rng.getrandbits(128)),
        md5=hashlib.md5(other.encode()).hexdigest(),
        sha1=hashlib.sha1(other.encode()).hexdigest(),
        short=hashlib.sha1(other.encode()).hexdigest()[:7],
        b64=base64.b64encode(other.encode()).decode(),
        hexed=other[:20].encode().hex(" "),
        nato=_NATO_OTHER,
        leet=rng.choice(("dr4g0n", "l3tm31n", "tr0ub4dor", "c0rr3ct", "h0rs3b4tt3ry")),
    )


def near_miss(unit: Unit, rng: random.Random) -> str | None:
    """Something like the unit that is not it."""
    first, _, last = unit.names
    if first:
        same_last = f"{rng.choice([name for name in _FIRST if name[0] != first[0]])} {last}"
        other_last = rng.choice([name for name in _LAST if name[0] != last[0].upper()])
        text = rng.choice((same_last, f"{first} {other_last}"))
    elif unit.date is not None:
        other = unit.date.replace(year=unit.date.year - rng.randint(1, 9), day=15)
        text = rng.choice((f"{other:%d %B %Y}", f"{other:%Y-%m-%d}", f"{unit.date:%B %Y}"))
    elif unit.digits:
        left = len(unit.digits) - 3
        text = f"{unit.digits[:3]}{rng.randrange(10**left):0{left}d}"
        if text == unit.digits:
            return None
        text = f"{int(text):,}" if unit.kind == "salary" else text
    elif unit.kind == "address":
        text = f"{int(unit.core.split()[0]) + 7} {' '.join(unit.core.split()[1:])}"
    elif unit.kind in ("clinic", "employer"):
        text = f"{invented_name(rng, 2)} {unit.text.split()[-1]}"
    else:
        return None
    return carried(text, rng)


def shared_word(unit: Unit, rng: random.Random) -> str | None:
    """A sentence about one word of the unit."""
    words = re.findall(r"[^\W_]+", unit.text)
    if len(words) < 2 or unit.kind in ("condition", "salary"):
        return None  # one word may be all of it: a drug without its dose
    return rng.choice(_SHARED).format(rng.choice(words))


def requests(units: list[Unit], rng: random.Random, *, size: int = 4) -> list[str]:
    """The requests of one episode: half prose, half about its units, one for each unit at most."""
    about = iter(rng.sample(units, len(units)))
    made: list[str] = []
    while len(made) < size:
        text: str | None = None
        if rng.random() < 0.5:
            unit = next(about)
            text = near_miss(unit, rng) if rng.random() < 0.5 else shared_word(unit, rng)
        made.append(text or prose(rng))
    return made
