"""Who is asked about which episodes, what becomes of the verdicts, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from collab.privacy.judge import Verdict
from collab.privacy.panel import Panel, leaked_units
from collab.types import Episode, PrivateUnit
from episodes import answer, ask, make_episode, make_problem

UNITS = (PrivateUnit("Elm Clinic", "clinic"), PrivateUnit("Vera Stone", "doctor"))
NONE = frozenset[int]()


class Scripted:
    """A judge whose verdicts are looked up by the request's text; those not there are none."""

    def __init__(self, says: dict[str, Verdict]) -> None:
        self.says, self.asked = says, list[Episode]()

    def verdicts(
        self, episodes: Sequence[Episode], on_done: Callable[[int], None] = lambda count: None
    ) -> list[tuple[Verdict, ...]]:
        self.asked += episodes
        for episode in episodes:
            on_done(len(episode.outgoing))
        return [tuple(self.says.get(text) for text in episode.outgoing) for episode in episodes]

    def counters(self) -> dict[str, float]:
        return {"usd": 0.5, "failures": 1.0, "unreadable": 2.0}

    def spend_state(self) -> dict[str, Any]:
        return {"says": sorted(self.says)}

    def restore_spend(self, state: dict[str, Any]) -> None:
        self.restored = state


def episode(*requests: str, uid: str = "p", sample: int = 0) -> Episode:
    problem = make_problem(UNITS, uid=uid)
    return make_episode(*map(ask, requests), answer(), problem=problem)


JUDGE = {"the tree place": frozenset({0}), "hi": NONE, "Elm Clinic": NONE, "boss": frozenset({1})}
AUDIT = {"the tree place": frozenset({0}), "hi": frozenset({0}), "Elm Clinic": NONE, "boss": NONE}


def test_no_panel_changes_nothing() -> None:
    made = [episode("hi")]
    assert Panel().judged(made, draw="1") == (made, {})


@pytest.mark.parametrize("counts", [True, False])
def test_verdicts_are_attached_only_where_they_count(counts: bool) -> None:
    made = [episode("hi", "the tree place"), episode("unheard"), episode()]
    out, _ = Panel(Scripted(JUDGE), counts=counts).judged(made)
    wanted = [(NONE, {0}), (None,), None] if counts else [None] * 3
    assert [each.judged for each in out] == wanted
    assert [each.segments for each in out] == [each.segments for each in made]


def test_figures_of_judge_and_detector() -> None:
    """Over units of episodes: tree 1 judge only; Elm 1 detector only; hi 2 and the rest neither.

    Of the episode without a verdict nothing is known.
    """
    made = [episode("hi", "the tree place"), episode("Elm Clinic"), episode("hi"), episode("?")]
    _, figures = Panel(Scripted(JUDGE)).judged(made)
    assert figures["judge/requests"] == 5
    assert figures["judge/no_verdict"] == 1
    assert figures["judge/units"] == 6
    assert (figures["judge/both"], figures["judge/judge_only"]) == (0, 1)
    assert figures["judge/detector_only"] == 1
    assert figures["judge/detector_agreement"] == pytest.approx(4 / 6)
    assert figures["judge/detector_kappa"] == pytest.approx(-0.2)  # by chance 1/36 + 25/36
    assert (figures["judge/usd"], figures["judge/failures"]) == (0.5, 1.0)
    assert figures["judge/unreadable"] == 2.0
    assert not any("audit" in name for name in figures)
    assert all(isinstance(figure, float) for figure in figures.values())


def test_figures_of_the_audit_judge() -> None:
    """Tree both, hi audit only, boss judge only."""
    made = [episode(text) for text in ("the tree place", "hi", "boss", "Elm Clinic")]
    audit = Scripted(AUDIT)
    out, figures = Panel(Scripted(JUDGE), audit, counts=True).judged(made)
    assert [each.judged for each in out] == [({0},), (NONE,), ({1},), (NONE,)]  # the judge's
    assert figures["judge/audit_requests"] == 4
    assert (figures["judge/audit_units"], figures["judge/audit_both"]) == (8, 1)
    assert (figures["judge/audit_only"], figures["judge/unaudited_only"]) == (1, 1)
    assert figures["judge/audit_agreement"] == pytest.approx(6 / 8)
    assert figures["judge/audit_kappa"] == pytest.approx(1 / 3)  # by chance 2/8*2/8 + 6/8*6/8
    assert figures["judge/audit_usd"] == 0.5


def test_what_can_not_be_said_is_left_out() -> None:
    _, figures = Panel(Scripted({"hi": NONE})).judged([episode("hi")])
    assert figures["judge/detector_agreement"] == 1.0
    assert "judge/detector_kappa" not in figures
    _, figures = Panel(Scripted({})).judged([episode("hi")])
    assert (figures["judge/units"], "judge/detector_agreement" in figures) == (0, False)


def test_a_share_of_questions_all_samples_of_each() -> None:
    made = [episode("hi", uid=f"p{n}") for n in range(400) for _ in range(2)]
    judge, audit = Scripted(JUDGE), Scripted(AUDIT)
    panel = Panel(judge, audit, judged_share=0.5, audited_share=0.25)
    panel.judged(made, draw="iteration 3")
    asked = [each.problem.uid for each in judge.asked]
    assert asked[::2] == asked[1::2]
    assert 150 < len(asked[::2]) < 250
    assert {each.problem.uid for each in audit.asked} < set(asked)
    assert 0.1 * len(asked) < len(audit.asked) < 0.4 * len(asked)
    before = list(judge.asked)
    judge.asked.clear()
    panel.judged(made, draw="iteration 3")
    assert judge.asked == before  # resumed, it asks the same
    judge.asked.clear()
    panel.judged(made, draw="iteration 4")
    assert judge.asked != before
    judge.asked.clear()
    panel.judged(made)
    assert judge.asked == made


def test_a_long_stage_has_a_progress_line(capsys: pytest.CaptureFixture[str]) -> None:
    Panel(Scripted(JUDGE), Scripted(AUDIT)).judged([episode("hi", "boss")], label="judge test")
    lines = capsys.readouterr().err
    assert "judge test: 2/2" in lines
    assert "judge test, audit: 2/2" in lines


def test_spend_by_judge() -> None:
    judge, audit = Scripted(JUDGE), Scripted(AUDIT)
    state = Panel(judge, audit).spend_state()
    Panel(judge, audit).restore_spend({"judge": state["judge"]})
    assert judge.restored == {"says": sorted(JUDGE)}
    assert not hasattr(audit, "restored")


@pytest.mark.parametrize(
    ("said", "leaked"),
    [
        ((), [False, False]),
        ((NONE, frozenset({1})), [False, True]),
        ((None, frozenset({1})), [None, True]),
        ((None,), [None, None]),
    ],
)
def test_a_missing_verdict_is_never_a_clean_one(
    said: tuple[Verdict, ...], leaked: list[bool | None]
) -> None:
    assert leaked_units(said, 2) == leaked
