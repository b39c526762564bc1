"""Pictures of an evaluation's rows and of a training run, as PNG files.

Rows are those of `collab.report.summarise`. Figures are drawn without pyplot, so nothing global
changes and no display is needed. A strategy has the same colour and marker in every picture.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from collab.report import LEARNED, groups_of, title_of

# name -> label and colour; Okabe-Ito and its neighbours, apart for colour-blind eyes
_STYLES = {
    LEARNED: ("learned policy", "#d62728"),
    "slm_cot": ("SLM alone", "#7f7f7f"),
    "llm_alone": ("LLM alone", "#000000"),
    "ask_first": ("ask question first", "#56b4e9"),
    "ask_every_hop": ("ask every hop", "#0072b2"),
    "ask_chain": ("ask for the chain", "#009e73"),
    "cascade": ("cascade, per question", "#e69f00"),
    "step_cascade": ("cascade, per step", "#b8860b"),
    "random_rate": ("random, learned rate", "#cc79a7"),
    "best_constant": ("best constant action", "#8c564b"),
    "oracle": ("oracle", "#6a51a3"),
}
_MARKERS = "osD^vPXd<>phH8"
_OTHER_COLOURS = ("#17becf", "#bcbd22", "#1b9e77", "#e7298a", "#66a61e", "#666666")
_CURVES = {
    "reward": "reward per episode",
    "em": "exact match, share",
    "asks": "asks per episode",
    "leak": "leak, share of private weight",
    "head_entropy": "head entropy, nats per decision",
    "kl": "KL to the cold start, nats",
}
_SMOOTH_SHARE = 0.1  # of the iterations, the window of the running mean
_DPI = 140


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Label, colour and marker by strategy; ones we don't know follow in alphabetical order."""
    known = list(_STYLES)
    others = sorted(set(names) - _STYLES.keys())
    styles = {}
    for place, name in enumerate([*known, *others]):
        label, colour = _STYLES.get(
            name, (name.replace("_", " "), _OTHER_COLOURS[place % len(_OTHER_COLOURS)])
        )
        styles[name] = (label, colour, "*" if name == LEARNED else _MARKERS[place % len(_MARKERS)])
    return styles


def _errors(row: Mapping[str, Any], metric: str, factor: float = 1.0) -> list[list[float]]:
    """Distances to the interval's ends as matplotlib wants them, never negative."""
    low, high = row[f"{metric}_ci"]
    value = row[metric]
    return [[factor * max(value - low, 0.0)], [factor * max(high - value, 0.0)]]


def _root(values: np.ndarray) -> np.ndarray:
    """Square root; matplotlib also asks about places left of 0."""
    return np.sqrt(np.maximum(values, 0.0))


def _root_ticks(limit: float) -> list[float]:
    """Round numbers from 0 to `limit`, well apart on a square-root axis."""
    ticks = [0.0]
    for power in range(-2, 4):
        for digit in (1, 2, 5):
            tick = digit * 10.0**power
            if tick <= limit and math.sqrt(tick) - math.sqrt(ticks[-1]) > 0.06 * math.sqrt(limit):
                ticks.append(tick)
    return ticks


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    FigureCanvasAgg(figure).print_png(str(path))
    return path


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def _reward_figure(group: Sequence[Mapping[str, Any]]) -> Figure:
    """Reward of each strategy, best on top, with its interval; a band marks the learned one's."""
    styles = _styles([row["strategy"] for row in group])
    figure = Figure(figsize=(8.0, 1.7 + 0.36 * len(group)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(group)):
        _, colour, marker = styles[row["strategy"]]
        is_learned = row["strategy"] == LEARNED
        if is_learned:
            axes.axvspan(*row["reward_ci"], color=colour, alpha=0.10, linewidth=0)
        axes.errorbar(
            row["reward"],
            place,
            xerr=_errors(row, "reward"),
            fmt=marker,
            color=colour,
            markersize=13 if is_learned else 7,
            capsize=4,
            linewidth=2,
        )
        # Its own column at the right edge, where no marker can cross it.
        axes.text(
            1.02,
            place,
            f"{row['reward']:.3f}",
            transform=axes.get_yaxis_transform(),
            va="center",
            color=colour,
            fontweight="bold" if is_learned else "normal",
        )
    axes.set_yticks(range(len(group)), [styles[row["strategy"]][0] for row in reversed(group)])
    for tick, row in zip(axes.get_yticklabels(), reversed(group), strict=True):
        tick.set_fontweight("bold" if row["strategy"] == LEARNED else "normal")
    axes.set_ylim(-0.6, len(group) - 0.4)
    axes.set_xlabel("reward per episode (mean, 95 % interval over questions)")
    figure.suptitle(f"Reward by strategy\n{title_of(group)}", fontsize=11)
    _clean(axes)
    return figure


def _scatter_figure(
    group: Sequence[Mapping[str, Any]], metric: str, *, label: str, is_root: bool
) -> Figure:
    """Exact match against what it costs; names stand in a legend, since points coincide.

    is_root: square-root axis, which spreads values near 0 and still shows 0 itself.
    """
    styles = _styles([row["strategy"] for row in group])
    figure = Figure(figsize=(8.6, 4.8), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    markers = {}  # without error bars, which would clutter the legend
    # The learned policy last: on top of whatever it coincides with.
    for row in sorted(group, key=lambda row: row["strategy"] == LEARNED):
        _, colour, marker = styles[row["strategy"]]
        is_learned = row["strategy"] == LEARNED
        bars = axes.errorbar(
            row[metric],
            100.0 * row["em"],
            xerr=_errors(row, metric),
            yerr=_errors(row, "em", 100.0),
            fmt=marker,
            color=colour,
            markersize=15 if is_learned else 8,
            markeredgecolor="white",
            markeredgewidth=0.8,
            capsize=3,
            linewidth=1.3,
            alpha=1.0 if is_learned else 0.9,
            zorder=4 if is_learned else 3,
            clip_on=False,
        )
        markers[row["strategy"]] = bars.lines[0]
    limit = 1.1 * max(0.1, *(row[f"{metric}_ci"][1] for row in group))
    if is_root:
        axes.set_xscale("function", functions=(_root, np.square))
        ticks = _root_ticks(limit)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(0.0, limit)
    axes.set_ylim(max(0.0, 100.0 * min(row["em_ci"][0] for row in group) - 5.0), 103.0)
    note = "; square-root axis" if is_root else ""
    axes.set_xlabel(f"{label} (mean, 95 % interval{note})")
    axes.set_ylabel("exact match, % of questions")
    figure.legend(
        [markers[row["strategy"]] for row in group],
        [styles[row["strategy"]][0] for row in group],
        loc="outside right center",
        title="by reward, best first",
        frameon=False,
        fontsize=9,
        labelspacing=0.9,
    )
    figure.suptitle(f"Exact match against {label}\n{title_of(group)}", fontsize=11)
    _clean(axes)
    return figure


def plot(rows: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Draw reward by strategy, and exact match against asks and against leaked units.

    Returns the files written: reward.png, em_asks.png, em_leaks.png; where rows are of several
    tasks, splits or helpers, one such set for each, its names in the file name.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    groups = groups_of(rows)
    paths = []
    for group in groups:
        row = group[0]
        where = f"_{row['task']}_{row['split']}_{row['helper']}" if len(groups) > 1 else ""
        where = re.sub(r"[^\w.-]+", "-", where)
        figures = {
            "reward": _reward_figure(group),
            "em_asks": _scatter_figure(group, "asks", label="asks per episode", is_root=False),
            "em_leaks": _scatter_figure(
                group, "leaked_units", label="private units leaked per episode", is_root=True
            ),
        }
        paths += [_save(fig, folder / f"{name}{where}.png") for name, fig in figures.items()]
    return paths


def calibration_curves(
    points: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Any],
    *,
    target: float,
    folder: str | os.PathLike[str],
) -> pathlib.Path:
    """Draw asks against the ask bias, and exact match and reward against asks: calibration.png.

    points: `collab.calibrate.Point` as mappings. target: asks per question that were wanted, 0 =
    none. The chosen point is a star.
    """
    figure = Figure(figsize=(9.0, 3.6), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    colour = _STYLES[LEARNED][1]
    biases = [point["ask_bias"] for point in points]
    left.plot(biases, [point["asks"] for point in points], "o-", color=colour)
    left.plot(chosen["ask_bias"], chosen["asks"], "*", color=colour, markersize=15)
    if target:
        left.axhline(target, color="#7f7f7f", linestyle=":", label=f"wanted: {target:g}")
        left.legend(frameon=False)
    left.set_xlabel("ask bias, nats on the logits of requests (0: as trained)")
    left.set_ylabel("asks per question")
    by_asks = sorted(points, key=lambda point: point["asks"])
    asks = [point["asks"] for point in by_asks]
    for metric, shade, label in (("em", "#0072b2", "exact match"), ("reward", colour, "reward")):
        low, high = zip(*(point[f"{metric}_ci"] for point in by_asks), strict=True)
        right.fill_between(asks, low, high, color=shade, alpha=0.15, linewidth=0)
        values = [point[metric] for point in by_asks]
        right.plot(asks, values, "o-", color=shade, label=label, markersize=4)
        right.plot(chosen["asks"], chosen[metric], "*", color=shade, markersize=15)
    right.set_xlabel("asks per question")
    right.set_ylabel("mean per question, 95 % interval")
    right.legend(frameon=False)
    for axes in (left, right):
        _clean(axes)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return _save(figure, folder / "calibration.png")


# --- training ----------------------------------------------------------------------------------


def read_curves(metrics_jsonl: str | os.PathLike[str]) -> dict[str, dict[int, float]]:
    """Metric -> iteration -> value from a metrics file; absent or null values are left out.

    Of an iteration that was run twice (before and after a restart) the later line counts. A last
    line that a kill cut short is passed over; any other broken line is an error.
    """
    path = pathlib.Path(metrics_jsonl)
    if not path.is_file():
        raise ValueError(f"metrics file {str(path)!r} is not there; train first, or fix the path")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    curves: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == len(lines) and not line.endswith("\n")):
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON; remove the line") from error
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            continue
        for key in _CURVES:
            value = record.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, {})[record["iteration"]] = float(value)
    return curves


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the values at most window / 2 places away, fewer at the ends."""
    reach = window // 2
    parts = (values[max(0, at - reach) : at + reach + 1] for at in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def training_curves(
    metrics_jsonl: str | os.PathLike[str], folder: str | os.PathLike[str]
) -> list[pathlib.Path]:
    """Draw what the metrics file holds over iterations; returns [training.png], [] without any."""
    curves = read_curves(metrics_jsonl)
    shown = [key for key in _CURVES if key in curves]
    if not shown:
        return []
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.0 * columns, 0.6 + 2.7 * lines), dpi=_DPI, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        iterations, values = zip(*sorted(curves[shown[place]].items()), strict=True)
        window = max(1, round(_SMOOTH_SHARE * len(values)))
        colour = _STYLES[LEARNED][1]
        axes.plot(iterations, values, color=colour, alpha=0.3, linewidth=1)
        axes.plot(iterations, _running_mean(values, window), color=colour, linewidth=2)
        axes.set_title(_CURVES[shown[place]], fontsize=10)
        # With shared axes only the lowest of each column would carry numbers.
        is_lowest = place + columns >= len(shown)
        axes.tick_params(labelbottom=is_lowest)
        if is_lowest:
            axes.set_xlabel("iteration")
        _clean(axes)
    figure.suptitle("Training: each iteration's batch (thin) and running mean (bold)", fontsize=11)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [_save(figure, folder / "training.png")]
