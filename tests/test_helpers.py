"""The table of fingerprints, and what is said where nothing can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from collab import helpers
from collab.assembly import Assembly, assemble
from collab.llm.fingerprint import Fingerprint, Reply, load


@pytest.fixture
def assembly(tiny_config: Any, tmp_path: Path) -> Assembly:
    return assemble(tiny_config, str(tmp_path))


def test_without_requests_nothing_is_asked(assembly: Assembly, tmp_path: Path) -> None:
    same, told = helpers.probed(assembly, tmp_path, requests=0, keeps=True)
    assert same is assembly and told == {} and assembly.fingerprints == {}
    assert assembly.client.counters()["requests"] == 0
    assert not (tmp_path / helpers.FILE).exists()


def test_every_helper_of_the_pool_has_a_fingerprint(assembly: Assembly, tmp_path: Path) -> None:
    probed, told = helpers.probed(assembly, tmp_path, requests=12, keeps=True)
    assert probed.fingerprints.keys() == assembly.pool.weights.keys() == told["fingerprints"].keys()
    assert probed.engine.pool.strength == {n: f.strength for n, f in probed.fingerprints.items()}
    strengths = {name: one.strength for name, one in probed.fingerprints.items()}
    assert strengths["one_hop"] < strengths["two_hops"] < strengths["three_hops"] == 1.0
    assert load(tmp_path / helpers.FILE) == probed.fingerprints
    assert told["changes"] is None
    assert helpers.probed(assembly, tmp_path, requests=12)[1]["changes"] == {}


def test_a_replay_file_can_hide_a_change_and_that_is_said(
    tiny_config: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_config.llm.replay = "replay_or_call"
    helpers.probed(assemble(tiny_config, str(tmp_path)), tmp_path, requests=4)
    assert any(
        text.startswith("llm.replay=replay_or_call: what is in the file")
        for text in caplog.messages
    )


def test_no_text_of_a_request_or_reply_is_kept(assembly: Assembly, tmp_path: Path) -> None:
    helpers.probed(assembly, tmp_path, requests=12, keeps=True)
    text = (tmp_path / helpers.FILE).read_text()
    names = [name for problem in assembly.task.problems("train") for name in problem.answers]
    assert len(names) > 10 and not [name for name in names if name in text]


def test_the_table_by_hand() -> None:
    asked = Reply("x", 1, "mayor", "answer", True, True, 12, 0.5, 2e-5)
    lost = Reply("y", 2, "home", "unavailable", False, False, 0, 30.0, 0.0, "timed_out")
    found = {"": Fingerprint("", (asked, lost)), "b": Fingerprint("b", (lost,))}
    cells = [
        ("", "(the helper)", "b"),
        ("strength", "1.00", "0.00"),
        ("right, hops 1", "1/1", "-"),
        ("right, mayor", "1/1", "-"),
        ("asks back", "-", "-"),
        ("refuses", "0/1", "-"),
        ('writes "query = answer"', "1/1", "-"),
        ("tokens, median", "12", "-"),
        ("seconds, median", "0.5", "-"),
        ("seconds, 90 %", "0.5", "-"),
        ("dollars a request", "2e-05", "-"),
        ("failed", "1", "1"),
    ]
    wanted = [f"{title:23}  {first:>12}  {second:>4}" for title, first, second in cells]
    assert helpers.table(found).splitlines() == wanted
