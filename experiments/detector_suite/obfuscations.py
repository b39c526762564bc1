"""Ways to write a private unit so that it is not seen.

Each takes a unit and a random generator and returns the texts to send, one a request, or None
where it makes no sense for the unit. Nothing here comes from the detector, so that a mistake there
is not made here too. `CLAIMED` are those that the detector says it finds, `BEYOND` those it leaves
to a judge.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from experiments.detector_suite.encoded import (
    backwards,
    base32_of,
    base64_of,
    base64_of_sentence,
    base64_spread,
    base64_twice,
    caesar,
    character_codes,
    digits_spread,
    hex_of,
    last_digits,
    leetspeak,
    letters_for_digits,
    morse,
    no_vowels,
    pig_latin,
    rot13_of,
    spelled_as_in,
    spelled_with_words,
    spelling_alphabet,
    starred,
    two_at_once,
    typing_error,
    web_escapes,
    words_backwards,
    words_spread,
)
from experiments.detector_suite.formats import (
    accents,
    card_formats,
    case,
    date_formats,
    date_in_words,
    email_spoken,
    homoglyphs,
    identifier,
    initials,
    letters_apart,
    number_formats,
    number_words,
    partial_names,
    partial_units,
    phone_formats,
    punctuation,
    run_together,
    spacing,
    styled_letters,
    verbatim,
    word_order,
    zero_width,
)
from experiments.detector_suite.units import Unit

Obfuscation = Callable[[Unit, random.Random], list[str] | None]

CLAIMED: tuple[Obfuscation, ...] = (
    *(verbatim, case, spacing, run_together, punctuation, letters_apart, zero_width, accents),
    *(homoglyphs, styled_letters, identifier, word_order, number_words, number_formats),
    *(date_formats, date_in_words, initials, partial_names, partial_units, email_spoken),
    *(phone_formats, card_formats, base64_of, base64_of_sentence, base64_twice, hex_of),
    *(web_escapes, character_codes, rot13_of, backwards, words_backwards, leetspeak),
    *(letters_for_digits, spelling_alphabet, spelled_as_in, spelled_with_words, words_spread),
    *(digits_spread, base64_spread, two_at_once),
)
BEYOND: tuple[Obfuscation, ...] = (
    *(caesar, no_vowels, typing_error, starred, morse, pig_latin, base32_of, last_digits),
)
