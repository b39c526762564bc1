"""The egress gate: modes, placeholders there and back, what is in the talk that goes along."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from collab.privacy import audit
from collab.privacy.audit import AuditLog
from collab.privacy.detector import Detector
from collab.privacy.gate import MODES, Gate, Screened, restored
from collab.types import Exchange, Feedback, FeedbackKind, HelpRequest, PrivateUnit

CLINIC = PrivateUnit("Elm Clinic", "clinic")
DOCTOR = PrivateUnit("Vera Stone", "doctor")
FRIEND = PrivateUnit("Vera Stone Junior", "doctor")
UNITS = (CLINIC, DOCTOR, FRIEND)


def request(text: str, *earlier: tuple[str, str]) -> HelpRequest:
    history = tuple(
        Exchange("ask_fact", sent, Feedback(FeedbackKind.HINT, reply)) for sent, reply in earlier
    )
    return HelpRequest("e", "ask_fact", text, history)


@pytest.mark.parametrize("mode", MODES)
def test_a_clean_request_passes_as_it_is(mode: str) -> None:
    clean = request("who leads the opera ?", ("where is it ?", "in Lyon"))
    screened = Gate(mode).screen(clean, UNITS)
    assert (screened.request, screened.is_blocked) == (clean, False)
    assert screened.sent == clean.text


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_nothing_is_held_back(mode: str) -> None:
    screened = Gate(mode).screen(request("is Vera Stone at Elm Clinic ?"), UNITS)
    assert screened.sent == "is Vera Stone at Elm Clinic ?"


def test_blocked() -> None:
    screened = Gate("block").screen(request("is it elm   CLINIC ?"), UNITS)
    assert screened.is_blocked and screened.sent == ""


def test_masked_there_and_back() -> None:
    screened = Gate("mask").screen(request("is vera  stone, or Vera Stone Junior, there?"), UNITS)
    assert screened.sent == "is [doctor-1], or [doctor-2], there?"
    reply = restored("[doctor-2] leads, [doctor-1]'s [dean-1] does not", screened.placeholders)
    assert reply == "Vera Stone Junior leads, Vera Stone's [dean-1] does not"


def test_a_reply_can_not_call_up_a_unit_whose_placeholder_never_left() -> None:
    gate = Gate("mask")
    first = gate.screen(request("who leads Elm Clinic ?"), UNITS)
    assert restored("[clinic-1] has [doctor-1]", first.placeholders) == "Elm Clinic has [doctor-1]"
    later = gate.screen(request("and ?", (first.sent, "[clinic-1]")), UNITS)
    assert restored("[clinic-1]", later.placeholders) == "Elm Clinic"


@pytest.mark.parametrize(
    "reply", ["x[clinic-1]", "[clinic-1]9", "[clinic-1][clinic-1]", "é[clinic-1]"]
)
def test_a_placeholder_glued_to_something_is_left_alone(reply: str) -> None:
    screened = Gate("mask").screen(request("is it Elm Clinic ?"), UNITS)
    assert restored(reply, screened.placeholders) == reply


@pytest.mark.parametrize("text", ["[clinic-1]", "\\1 \\g<0>", "Elm"])
def test_a_unit_may_be_any_text(text: str) -> None:
    """Not read again for placeholders, nor as a pattern."""
    pairs = (("[doctor-1]", text), ("[clinic-1]", "Elm Clinic"))
    assert restored("at [doctor-1]", pairs) == f"at {text}"


def test_what_can_not_be_masked_is_blocked() -> None:
    assert Gate("mask").screen(request("is it s t o n e , v e r a ?"), [DOCTOR]).is_blocked


@pytest.mark.parametrize("mode", ["mask", "block"])
def test_the_last_piece_of_a_unit_is_held_back(mode: str) -> None:
    screened = Gate(mode).screen(request("and Stone ?", ("who is Vera ?", "no idea")), [DOCTOR])
    assert screened.is_blocked


@pytest.mark.parametrize("mode", ["mask", "block"])
@pytest.mark.parametrize("reply", ["Vera Stone , or Ann Lee ?", "V e r a S t o n e", "[doctor-1]"])
def test_replies_are_repeated_word_for_word(mode: str, reply: str) -> None:
    """Anything that depends on the units would tell a helper that guesses when it is right."""
    talk = request("when ?", ("who ?", reply))
    screened = Gate(mode).screen(talk, [DOCTOR])
    assert (screened.request, screened.is_blocked) == (talk, False)


def test_a_unit_that_the_helper_named_is_held_back_not_masked() -> None:
    talk = request("Vera Stone , or Ann Lee , at Elm Clinic", ("who ?", "Vera Stone or Ann Lee ?"))
    assert Gate("mask").screen(talk, [CLINIC, DOCTOR]).is_blocked
    other = request("Vera Stone at Elm Clinic", ("who ?", "Ann Lee , or Ann Stone ?"))
    assert Gate("mask").screen(other, [CLINIC, DOCTOR]).sent == "[doctor-1] at [clinic-1]"


def test_only_the_gate_makes_screened_requests() -> None:
    screened = Gate("off").screen(request("x"), ())
    with pytest.raises(TypeError, match=r"only collab\.privacy\.gate"):
        Screened(screened.request, False, (), object())
    with pytest.raises((ValueError, TypeError), match="token"):  # TypeError from Python 3.13 on
        dataclasses.replace(screened, is_blocked=False)


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match=r"privacy.gate='maks' must be one of off, observe, mask"):
        Gate("maks")


@given(some.text(max_size=60), some.sampled_from(UNITS), some.text(max_size=60))
def test_no_unit_passes_mask_or_block(before: str, unit: PrivateUnit, after: str) -> None:
    text = f"{before} {unit.text} {after}"
    for mode in ("mask", "block"):
        sent = Gate(mode).screen(request(text), UNITS).sent
        assert not Detector(UNITS).leaked([sent]).any()


# --- the audit log -------------------------------------------------------------------------


def screened_log(path: Path) -> list[dict]:
    for mode, text in (
        ("observe", "is Vera Stone at Elm Clinic ?"),
        ("mask", "is Vera Stone there ?"),
        ("block", "is Vera Stone there ?"),
        ("observe", "who leads it ?"),
    ):
        gate = Gate(mode, AuditLog(path, where="http://host/v1"))
        gate.screen(dataclasses.replace(request(text), helper="big"), (CLINIC, DOCTOR))
        gate.close()
    return audit.read(path)


def test_the_log_says_what_left_and_to_whom_but_no_text(tmp_path: Path) -> None:
    lines = screened_log(tmp_path / "audit.jsonl")
    assert [line["outcome"] for line in lines] == ["sent", "sent", "blocked", "sent"]
    assert [line["units"] for line in lines] == [["clinic", "doctor"], [], ["doctor"], []]
    assert [line["masked"] for line in lines] == [[], ["doctor"], [], []]
    assert {(line["where"], line["helper"]) for line in lines} == {("http://host/v1", "big")}
    text = (tmp_path / "audit.jsonl").read_text()
    assert "Vera" not in text and "leads" not in text
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_the_summary_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screened_log(tmp_path / "audit.jsonl")
    assert audit.main([str(tmp_path / "audit.jsonl")]) == 0
    said = capsys.readouterr().out
    assert "4 requests from" in said
    assert "http://host/v1 big: 3 sent" in said and "1 blocked, 1 episodes" in said
    assert "private units in what was sent: clinic 1, doctor 1" in said
    assert "private units masked before it was sent: doctor 1" in said
    assert "private units in what was blocked: doctor 1" in said


@pytest.mark.parametrize("cut", ['{"ti', '{"time": "20', '{"time": "2026", "where": "a"'])
def test_a_line_that_a_kill_cut_is_left_out_and_said(
    cut: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    count = len(screened_log(path))
    with path.open("a") as file:
        file.write(cut)
    assert len(audit.read(path)) == count
    screened_log(path)  # the run goes on
    caplog.clear()
    assert len(audit.read(path)) == 2 * count
    assert "1 lines that were cut short are left out" in caplog.text


@pytest.mark.parametrize("odd", ["no JSON", "[1]", '{"step": 1}'])
def test_a_line_of_another_file_is_named(odd: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    count = len(screened_log(path))
    with path.open("a") as file:
        file.write(f"{odd}\n")
    with pytest.raises(ValueError, match=rf"line {count + 1} is no line of an audit log"):
        audit.read(path)
    assert audit.main([str(path)]) == 2


def test_nothing_leaves_that_can_not_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"audit log .*: Is a directory; name a --workdir"):
        AuditLog(tmp_path, where="x")
    gate = Gate("observe", AuditLog(tmp_path / "audit.jsonl", where="x"))
    monkeypatch.setattr(audit.os, "write", lambda file, data: len(data) - 1)
    with pytest.raises(OSError, match=r"No space left on device: '.*audit\.jsonl'"):
        gate.screen(request("is Vera Stone there ?"), (DOCTOR,))


def test_an_empty_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", where="x")
    log.close()
    log.close()  # must not close what got its number since
    assert audit.summary(audit.read(tmp_path / "audit.jsonl")) == "nothing left"
