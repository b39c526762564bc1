"""Units that nobody labelled, where the package is installed; the error where it is missing."""

from __future__ import annotations

import sys

import pytest

from collab import run
from collab.config import default_config
from collab.privacy import presidio
from collab.privacy.detector import Detector

NOTES = (
    "write to kano.bel@example.com or call (212) 555-0123 . card 4111 1111 1111 1111 . "
    "account GB82WEST12345698765432 . again kano.bel@example.com ."
)


@pytest.fixture
def installed() -> None:
    pytest.importorskip("presidio_analyzer", reason="pip install -e '.[presidio]' to run this")


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)  # any import of it fails
    presidio._analyzer.cache_clear()


@pytest.mark.usefixtures("installed")
def test_units_of_several_kinds_each_once_and_in_order() -> None:
    """No network: the guard of the tests would refuse it, and the log would tell."""
    found = [(unit.kind, unit.text) for unit in presidio.find_units(NOTES)]
    assert found == [
        ("email address", "kano.bel@example.com"),  # and no URL within it
        ("phone number", "(212) 555-0123"),
        ("credit card", "4111 1111 1111 1111"),
        ("iban code", "GB82WEST12345698765432"),
    ]


@pytest.mark.usefixtures("installed")
def test_no_network_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    presidio._analyzer.cache_clear()
    presidio.find_units("a.new.address@mail.example.org")
    assert "Suffix" not in caplog.text


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "notes", ["", "my doctor is Vera Stone . i have gout", "In 1066 , 17 + 3 people", "£ \ud83d 中"]
)
def test_no_units_where_no_pattern_fits(notes: str) -> None:
    assert presidio.find_units(notes) == ()


@pytest.mark.usefixtures("installed")
def test_what_is_found_the_detector_looks_for() -> None:
    units = run._units(NOTES, "presidio")
    assert [unit.kind for unit in units][-4:] == [
        "email address", "phone number", "credit card", "iban code",
    ]  # fmt: skip
    found = Detector(units).leaked(["is 4111-1111-1111-1111 a valid number?"])
    assert [units[at].kind for at in found.nonzero()[0]] == ["note", "credit card"]


def test_without_recognisers_sentences_alone_are_units() -> None:
    units = run._units(" i have gout . pay $3.50 to a.b@c.org.\tBye.", "")
    assert {unit.kind for unit in units} == {"note"}
    assert [unit.text for unit in units] == ["i have gout", "pay $3.50 to a.b@c.org", "Bye"]


@pytest.mark.usefixtures("missing")
def test_a_missing_package_is_named_before_anything_is_restored() -> None:
    config = default_config()
    config.privacy.recognisers = "presidio"
    with pytest.raises(ValueError, match=r"missing \(\w+\); pip install -e '\.\[presidio\]'"):
        run.ask(config, "no/such/folder", "")
