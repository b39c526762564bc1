"""One page of all that the studies found, to be read without the repository or a network.

`pip install -e .[report]`, then `python -m experiments.report` reads results.json, NOTES.md and the
figures of every folder here and writes runs/report.html, and the claims alone as SUMMARY.md beside
this file. A results.json without claims, of an older study, adds its commit and device only.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from collab.report import git_commit, write_whole

HERE = pathlib.Path(__file__).parent
NONE = "–"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim as it is read: every part is text."""

    text: str
    figure: str
    interval: str
    seeds: str
    holds: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure and its bytes as a data URI."""

    name: str
    uri: str


@dataclasses.dataclass(frozen=True)
class Study:
    """A folder of experiments/. question: the title of its notes. notes: the rest, as HTML."""

    name: str
    question: str
    notes: Markup
    claims: tuple[Claim, ...]
    figures: tuple[Picture, ...]
    commit: str
    device: str

    @property
    def tally(self) -> str:
        """How many of the claims hold."""
        held = sum(claim.holds == "yes" for claim in self.claims)
        return f"{held} of {len(self.claims)}" if self.claims else NONE


def collect(folder: pathlib.Path) -> list[Study]:
    """Every study below a folder, by name. Raises: ValueError for a file that can't be read."""
    return [_study(path.parent) for path in sorted(folder.glob("*/NOTES.md"))]


def page(studies: Sequence[Study], *, commit: str, configs: Mapping[str, str]) -> str:
    """The HTML. configs: texts of the shipped configs by name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("report.html")
    return template.render(studies=studies, commit=commit, configs=configs) + "\n"


def summary(studies: Sequence[Study]) -> str:
    """The claims of all studies as one Markdown table."""
    lines = [
        "# Claims of all studies",
        "",
        "Written by `python -m experiments.report` from every `results.json`; intervals are 95 %.",
        "",
        "| study | claim | figure | interval | seeds | holds |",
        "|---|---|---|---|---|---|",
    ]
    for study in studies:
        link = f"[{study.name}]({study.name}/NOTES.md)"
        for claim in study.claims:
            cells = [link, *(part.replace("|", "\\|") for part in dataclasses.astuple(claim))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# --- one study -----------------------------------------------------------------------------------


def _study(folder: pathlib.Path) -> Study:
    question, notes = _notes(folder)
    found = _results(folder / "results.json")
    rows = found if isinstance(found, list) else [found]
    claims = found.get("claims", []) if isinstance(found, dict) else []
    try:
        read = tuple(_claim(row) for row in claims)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / 'results.json'}: every row of claims must be like "
            f'{{"claim", "figure", "ci", "seeds", "holds"}} ({type(error).__name__}: {error})'
        ) from error
    return Study(
        name=folder.name,
        question=question,
        notes=Markup(notes),  # by our renderer, which escapes what is HTML
        claims=read,
        figures=tuple(Picture(path.name, _uri(path)) for path in sorted(folder.glob("*.png"))),
        commit=_joined(rows, "commit"),
        device=_joined(rows, "device"),
    )


def _results(path: pathlib.Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); run its study again") from error


def _joined(rows: Sequence[Any], key: str) -> str:
    return ", ".join(sorted({str(row[key]) for row in rows if row.get(key)}))


def _claim(row: Mapping[str, Any]) -> Claim:
    ci, seeds, holds = row["ci"], row["seeds"], row["holds"]
    low_high = [] if ci is None else [_figure(end) for end in ci]
    return Claim(
        text=str(row["claim"]),
        figure=_figure(row["figure"]),
        interval=f"[{', '.join(low_high)}]" if low_high else NONE,
        seeds=", ".join(map(str, seeds)) if isinstance(seeds, list) else f"{seeds} in all",
        holds={True: "yes", False: "no"}.get(holds, str(holds)),  # or under what it holds
    )


def _figure(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, dict):
        return ", ".join(f"{key} {_figure(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_figure, value))
    return f"{value + 0.0:.4g}" if isinstance(value, float) else str(value)  # 0, never -0


def _uri(path: pathlib.Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


# --- notes -----------------------------------------------------------------------------------


def _notes(folder: pathlib.Path) -> tuple[str, str]:
    """Title and body of NOTES.md; its other headings come to stand below the title."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse((folder / "NOTES.md").read_text(encoding="utf-8"))
    title = folder.name
    if [token.type for token in tokens[:1]] == ["heading_open"]:
        title, tokens = tokens[1].content, tokens[3:]
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        for child in token.children or []:
            if child.type == "image":
                _inline(child, folder)
    return title, markdown.renderer.render(tokens, markdown.options, {})


def _inline(image: Token, folder: pathlib.Path) -> None:
    """Put a picture of the folder into the page, and its description in place of any other."""
    path = folder / str(image.attrs["src"])
    if path.is_file():
        image.attrs["src"] = _uri(path)
    else:
        image.type, image.children = "text", None


def main() -> None:
    """Read all studies, write the page and the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/report.html"))
    parser.add_argument("--studies", type=pathlib.Path, default=HERE, help="folder of the studies")
    arguments = parser.parse_args()
    studies = collect(arguments.studies)
    configs = {
        f"configs/{path.name}": path.read_text(encoding="utf-8")
        for path in sorted((HERE.parent / "configs").glob("*.py"))
    }
    write_whole(arguments.out, page(studies, commit=git_commit(), configs=configs).encode())
    write_whole(arguments.studies / "SUMMARY.md", summary(studies).encode())
    claims = [claim for study in studies for claim in study.claims]
    held = sum(claim.holds == "yes" for claim in claims)
    print(f"{len(studies)} studies, {held} of {len(claims)} claims hold: {arguments.out}")


if __name__ == "__main__":
    main()
