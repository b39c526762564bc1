"""The page of all studies: it holds every claim and figure, and needs nothing from elsewhere."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments.report import HERE, collect, page, summary

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CLAIM = {"claim": "a < b | c", "figure": 0.123456, "ci": [0.1, 0.2], "seeds": [0, 1], "holds": True}


VOID = ("meta", "img", "br", "hr")


class Reader(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def study(root: Path, name: str, notes: str, results: Any = None, figures: int = 0) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "NOTES.md").write_text(notes)
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    for at in range(figures):
        (folder / f"figure{at}.png").write_bytes(PNG)
    return folder


def read(root: Path) -> Reader:
    reader = Reader(page(collect(root), commit="abc", configs={"configs/x.py": "x < 1"}))
    assert reader.open == []
    return reader


def assets(reader: Reader) -> list[str]:
    """All that a browser would fetch: anything but where a link leads."""
    return [
        value or ""
        for tag, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "data", "poster", "background")
        or (name == "href" and tag != "a")
        or tag in ("script", "iframe", "object", "link")
    ]


# --- of the repository ---------------------------------------------------------------------


def test_every_study_claim_and_figure_of_the_repository_is_there() -> None:
    studies = collect(HERE)
    assert {one.name for one in studies} == {path.parent.name for path in HERE.glob("*/NOTES.md")}
    reader = read(HERE)
    for path in HERE.glob("*/results.json"):
        found = json.loads(path.read_text())
        for claim in found.get("claims", []) if isinstance(found, dict) else []:
            assert claim["claim"] in reader.text
            assert claim["claim"].replace("|", "\\|") in summary(studies)
    figures = list(HERE.glob("*/*.png"))
    assert figures
    sources = assets(reader)
    assert len(sources) == len(figures)
    for path in figures:
        assert f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" in sources


# --- one study -----------------------------------------------------------------------------


def test_a_study_is_shown_with_claims_figures_notes_commit_and_device(tmp_path: Path) -> None:
    notes = "# Does it?\n\nYes, **much**.\n\n## Limits\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    study(tmp_path, "one", notes, {"commit": "c0", "device": "cpu", "claims": [CLAIM]}, 2)
    reader = read(tmp_path)
    for text in ("Does it?", "much", "a < b | c", "0.1235", "[0.1, 0.2]", "0, 1", "yes", "1 of 1",
                 "experiments/one, commit c0, cpu", "commit abc", "figure1.png"):  # fmt: skip
        assert text in reader.text
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("h1") == 1 and tags.count("strong") == 1
    assert tags.count("h3") == 1  # "Limits", below the study's own
    assert tags.count("img") == 2
    assert all(source.startswith("data:image/png;base64,") for source in assets(reader))
    assert summary(collect(tmp_path)).splitlines()[-1] == (
        "| [one](one/NOTES.md) | a < b \\| c | 0.1235 | [0.1, 0.2] | 0, 1 | yes |"
    )


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"figure": None, "ci": None}, ("–",)),
        ({"figure": "52 of 52", "ci": None, "seeds": 3}, ("52 of 52", "3 in all")),
        ({"holds": False}, ("no",)),
        ({"holds": "under one hop"}, ("under one hop", "0 of 1")),
        ({"figure": {"usual_s": 1.5, "opened": 1}}, ("usual_s 1.5, opened 1",)),
        ({"figure": [3, -0.0]}, ("3, 0",)),
    ],
)
def test_shapes_of_a_claim(changes: dict[str, Any], texts: tuple[str, ...], tmp_path: Path) -> None:
    study(tmp_path, "one", "# Q\n", {"claims": [CLAIM | changes]})
    reader = read(tmp_path)
    for text in texts:
        assert text in reader.text


@pytest.mark.parametrize(
    ("results", "commit"),
    [
        (None, ""),
        ({"commit": "c1", "rows": []}, "commit c1"),
        ([{"commit": "c2"}, {"commit": "c1"}, {}], "commit c1, c2"),
    ],
)
def test_a_study_without_claims_shows_its_notes(results: Any, commit: str, tmp_path: Path) -> None:
    study(tmp_path, "old", "no heading, only words\n", results)
    reader = read(tmp_path)
    assert "no heading, only words" in reader.text and commit in reader.text
    assert summary(collect(tmp_path)).endswith("|---|---|---|---|---|---|\n")


def test_nothing_is_fetched_and_no_html_of_the_notes_gets_through(tmp_path: Path) -> None:
    notes = (
        "# Q <b>bold</b>\n\n![curve](own.png) ![far](https://example.org/x.png)\n\n"
        "<script src='https://example.org/x.js'></script>\n\n[a link](https://example.org)\n"
    )
    folder = study(tmp_path, "one", notes)
    (folder / "own.png").write_bytes(PNG)
    reader = read(tmp_path)
    assert not any("http" in source for source in assets(reader))
    tags = [tag for tag, _ in reader.tags]
    assert "script" not in tags and "b" not in tags
    assert "far" in reader.text
    assert ("a", {"href": "https://example.org"}) in reader.tags
    assert tags.count("img") == 2  # in the text, and with the figures
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"results\.json is not JSON"),
        ('{"claims": [{"claim": "x"}]}', r"results\.json: every row of claims must be like .*'ci'"),
        ('{"claims": ["x"]}', r"results\.json: every row of claims must be like"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(text: str, message: str, tmp_path: Path) -> None:
    (study(tmp_path, "one", "# Q\n") / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        collect(tmp_path)


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    study(tmp_path / "studies", "one", "# Q\n", {"claims": [CLAIM, CLAIM | {"holds": False}]})
    out = tmp_path / "new" / "report.html"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", f"--out={out}",
         f"--studies={tmp_path / 'studies'}"],
        cwd=HERE.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"1 studies, 1 of 2 claims hold: {out}\n"
    assert out.read_text().startswith("<!doctype html>")
    assert (tmp_path / "studies" / "SUMMARY.md").is_file()
