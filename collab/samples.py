"""Episodes as people read them: question, actions with their probabilities, requests, replies."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from collab.privacy.detector import Detector
from collab.rewards import Terms
from collab.types import Episode, Problem

WITHHELD = "private"  # stands for a whole text


def masked(text: str, problem: Problem) -> str:
    """`text` with the problem's private units replaced by their kind, as "[doctor]".

    A text that holds one in another form (spacing, order, number format) is withheld as a whole.
    """
    for unit in sorted(problem.units, key=lambda unit: -len(unit.text)):
        text = re.sub(re.escape(unit.text), f"[{unit.kind}]", text, flags=re.IGNORECASE)
    return f"[{WITHHELD}]" if Detector(problem.units).leaked([text]).any() else text


def printable(text: str) -> str:
    """`text` on one line, what a terminal would obey or not show spelled out: "\\n", "\\x1b".

    A reply could else forge lines of a sample, or hide some.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def describe(episode: Episode, terms: Terms, *, show_private: bool, is_graded: bool = True) -> str:
    """A few lines of text. Private units are masked unless `show_private`.

    is_graded: the right answer is known, so that it and the reward are shown.
    """
    problem = episode.problem

    def shown(text: str) -> str:
        return printable(text if show_private else masked(text, problem))

    lines = [f"question  {shown(problem.question)}"]
    if is_graded:
        lines.append(f"gold      {shown(problem.answers[0])}")
    if problem.notes:
        lines.append(f"notes     {shown(problem.notes)}")
    for segment in episode.segments:
        cut = " [cut]" if segment.is_cut else ""
        lines.append(f"{segment.action:<9} {segment.probability:4.2f}  {shown(segment.text)}{cut}")
        if segment.sent is not None and segment.sent.strip() != segment.text:
            lines.append(f"  sent          {shown(segment.sent) or 'nothing'}")
        if segment.feedback is not None:
            reply = segment.feedback
            why = f" ({reply.failure})" if reply.failure else ""
            lines.append(f"  {reply.kind.value:<8}     {shown(reply.text)}{why}")
    end = [f"status {episode.status.name}", f"asks {terms.asks}", f"leaked {terms.leaked_units}"]
    if is_graded:
        end.insert(1, f"em {terms.em:.0f}")
        is_gated = terms.task == terms.quality * terms.efficiency
        efficiency = f"x {terms.efficiency:.2f}" if is_gated else f"- {1.0 - terms.efficiency:.2f}"
        end.append(
            f"reward {terms.reward:.3f} = {terms.quality:.2f} {efficiency} - "
            f"{terms.task - terms.reward:.2f} (leak {terms.leak:.2f}, cut {terms.cut})"
        )
    if episode.helper:
        end.append(f"helper {episode.helper}")
    lines.append("  ".join(end))
    return "\n".join(lines)


def write_samples(
    path: pathlib.Path,
    title: str,
    episodes: Sequence[Episode],
    terms: Sequence[Terms],
    *,
    show_private: bool,
) -> None:
    """Append the episodes to a text file."""
    blocks = [
        describe(episode, term, show_private=show_private)
        for episode, term in zip(episodes, terms, strict=False)
    ]
    with path.open("a", encoding="utf-8") as file:
        file.write(f"=== {title} ===\n" + "\n\n".join(blocks) + "\n\n")
