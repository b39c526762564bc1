"""Episodes as logs of Inspect AI, whose viewer shows, sorts and filters them.

A boundary is a message that opens with the probabilities of its actions; a request is a tool call
with what left the machine, its reply the tool's answer. What can be filtered by stands as scores.
Private units are set in ⟦⟧. Needs the extra `view`; what an episode's record holds is
`collab.episode_log`'s business.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    EvalStats,
    HeadlineMetric,
)
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
)
from inspect_ai.scorer import Score
from inspect_ai.tool import ToolCall
from inspect_ai.viewer import TaskSamplesColumn, TaskSamplesView, ViewerConfig

from collab.samples import WITHHELD

Record = Mapping[str, Any]
Values = dict[str, bool | int | float | str]
FIRST_COLUMNS = (
    "right", "reward", "asked", "leaked", "wrong_though_asked", "right_without_asking", "status",
    "actions",
)  # fmt: skip
MEANS = ("reward", "em", "asks", "leaked_units")  # of a log, as its list shows them


def to_log(episodes: Sequence[Record], *, run: str, created: datetime.datetime) -> EvalLog:
    """The episodes of one strategy on one split, at least one. run: name of the run's folder."""
    first, when = episodes[0], created.isoformat()
    values = [_values(episode) for episode in episodes]
    samples = [_sample(episode, of_one) for episode, of_one in zip(episodes, values, strict=True)]
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=f"{run}-{first['split']}-{first['strategy']}",
            task_id=f"{run}-{first['split']}-{first['strategy']}",
            created=when,
            task=f"{run} {first['split']}",
            model=f"strategy/{first['strategy']}",
            dataset=EvalDataset(name=first["split"], samples=len(samples)),
            config=EvalConfig(),
            viewer=_viewer(list(values[0])),
        ),
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=len(samples),
            scores=[_mean(name, values) for name in MEANS],
            headline=HeadlineMetric(scorer="reward"),
        ),
        stats=EvalStats(started_at=when, completed_at=when),
        samples=samples,
    )


def _sample(episode: Record, values: Values) -> EvalSample:
    mark = marker(episode)
    when = "" if episode["iteration"] is None else f"{episode['iteration']:05d} "
    return EvalSample(
        id=f"{when}{episode['place']:04d} {episode['uid']}",
        epoch=1,
        input=mark(episode["question"]),
        target=[mark(accepted) for accepted in episode["answers"]],
        messages=_messages(episode, mark),
        scores=_scores(episode, values, mark),
        metadata={
            **{key: episode[key] for key in ("split", "iteration", "strategy", "helper")},
            "private_units": [
                f"⟦{unit['kind']}⟧ sensitivity {unit['sensitivity']:g}"
                + (", needed for the answer" if unit["is_needed"] else "")
                for unit in episode["units"]
            ],
        },
    )


def marker(episode: Record) -> Callable[[str], str]:
    """Sets private units in ⟦⟧: "[doctor]" where the record is masked, else the unit itself."""
    units = episode["units"]
    if episode["is_private"]:
        shown = {unit["text"]: f"{unit['kind']}: " for unit in units}
    else:
        shown = {f"[{kind}]": "" for kind in (*(unit["kind"] for unit in units), WITHHELD)}
    longest_first = sorted(filter(None, shown), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)", re.IGNORECASE)
    heads = {text.casefold(): head for text, head in shown.items()}

    def show(match: re.Match[str]) -> str:
        text = match[0] if episode["is_private"] else match[0][1:-1]
        return f"⟦{heads.get(match[0].casefold(), '')}{text}⟧"

    def mark(text: str) -> str:
        # Half a surrogate pair, which a reply may hold, can't be written to a log.
        return pattern.sub(show, text.encode("utf-8", "backslashreplace").decode("utf-8"))

    return mark


def _messages(episode: Record, mark: Callable[[str], str]) -> list[ChatMessage]:
    """Notes, question, then a message for each segment and one for each reply."""
    messages: list[ChatMessage] = [ChatMessageUser(content=mark(episode["question"]))]
    if episode["notes"]:
        said = f"Private notes, which the SLM alone reads:\n{mark(episode['notes'])}"
        messages.insert(0, ChatMessageSystem(content=said))
    for index, segment in enumerate(episode["segments"]):
        cut = " [cut]" if segment["is_cut"] else ""
        content = f"{_boundary(segment)}\n\n{mark(segment['text'])}{cut}"
        reply = segment["feedback"]
        if reply is None:
            messages.append(ChatMessageAssistant(content=content))
            continue
        call = ToolCall(
            id=str(index),
            function=segment["action"],
            arguments={
                "left the machine": mark(segment["sent"]) or "nothing",
                "private units in it": ", ".join(segment["leaked"]) or "none new",
            },
        )
        why = f" ({reply['failure']})" if reply["failure"] else ""
        messages += [
            ChatMessageAssistant(content=content, tool_calls=[call]),
            ChatMessageTool(
                content=f"{reply['kind'].upper()}{why} {mark(reply['text'])}",
                tool_call_id=call.id,
                function=segment["action"],
            ),
        ]
    return messages


def _boundary(segment: Record) -> str:
    """The chosen action, and how probable each legal one was where the rollout decided."""
    said = f"▶ {segment['action']}"
    odds = segment["probabilities"]
    if odds is None:
        return f"{said}   (written for the SLM, or decided by no head)"
    ranked = sorted(odds.items(), key=lambda item: -item[1])
    return f"{said}   P: " + "  ".join(f"{action} {share:.3f}" for action, share in ranked)


def _values(episode: Record) -> Values:
    """Everything to filter by: claims as booleans, words as text, reward terms as numbers."""
    terms = episode["terms"]
    is_right, is_asked = terms["em"] >= 1.0, terms["asks"] > 0
    values: Values = {
        "right": is_right,
        "asked": is_asked,
        "leaked": terms["leaked_units"] > 0,
        "wrong_though_asked": is_asked and not is_right,
        "right_without_asking": is_right and not is_asked,
        "status": episode["status"],
        "actions": " ".join(segment["action"] for segment in episode["segments"]),
        **{name: terms[name] for name in terms if name not in ("leak_by_exchange", "tokens")},
        "llm_tokens": terms["tokens"],  # `tokens` is the viewer's own word
    }
    if episode["iteration"] is not None:
        values["iteration"] = episode["iteration"]
    return values


def _scores(episode: Record, values: Values, mark: Callable[[str], str]) -> dict[str, Score]:
    terms, answer = episode["terms"], mark(episode["answer"])
    price = terms["task"] - terms["reward"]
    said = {
        "right": f"accepted: {mark(' or '.join(episode['answers']))}",
        "reward": f"{terms['quality']:.2f} x {terms['efficiency']:.2f} - {price:.2f} "
        "= quality x efficiency - (leak and format)",
    }
    return {
        name: Score(value=value, answer=answer, explanation=said.get(name))
        for name, value in values.items()
    }


def _mean(name: str, values: Sequence[Values]) -> EvalScore:
    mean = sum(float(of_one[name]) for of_one in values) / len(values)
    metric = EvalMetric(name="mean", value=mean)
    return EvalScore(name=name, scorer=name, metrics={"mean": metric})


def _viewer(scores: Sequence[str]) -> ViewerConfig:
    """Columns as people want them first. Texts are shown plain: an LLM wrote some of them."""
    rest = [name for name in scores if name not in FIRST_COLUMNS]
    columns = [
        *(TaskSamplesColumn(id=name) for name in ("sampleId", "input", "target", "answer")),
        *(TaskSamplesColumn.score(name) for name in FIRST_COLUMNS),
        *(TaskSamplesColumn.score(name, visible=False) for name in rest),
    ]
    return ViewerConfig(
        trust_content=False, task_samples_view=TaskSamplesView(name="episodes", columns=columns)
    )
