"""The ask threshold, found again for the helper at hand: to a target ask rate or the best reward.

The learned policy asks where its head prefers to; a bias on the logits of requests makes it ask
more or less without training. A point is a rollout of the whole validation split under one bias.
What is found stands in `calibration.json`; when that counts is decided in `applied`.
Source: our choice, because a shift of one decision boundary needs no new weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from collab.config import default_config
from collab.evaluate import Evaluator
from collab.report import Outcome, bootstrap_interval

FILE = "calibration.json"
AUTO = "auto"  # `evaluate.ask_bias`: what FILE says, where there is one
SPLIT = "validation"
FARTHEST = 32.0  # nats; a head that is further from asking, or from not asking, is left alone
NARROWEST = 0.01  # nats between two biases, below which no other is tried
GRID = tuple(sign * size for size in (0.5, 1.0, 2.0, 4.0, 8.0) for sign in (-1, 1))
HELPER_KEYS = ("backend", "base_url", "model", "helpers", "scripted")
METRICS = ("asks", "em", "reward")


@dataclasses.dataclass(frozen=True)
class Point:
    """Means over a split's questions under one ask bias, with 95 % intervals (low, high)."""

    ask_bias: float
    asks: float
    asks_ci: tuple[float, float]
    em: float
    em_ci: tuple[float, float]
    reward: float
    reward_ci: tuple[float, float]
    episodes: int


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to. points: all that were measured, by ask bias. words: the result."""

    chosen: Point
    points: tuple[Point, ...]
    is_reached: bool
    words: str


def point(ask_bias: float, outcomes: Sequence[Outcome], *, resamples: int, seed: int) -> Point:
    """Summarise one rollout of a split."""
    fields: dict[str, Any] = {}
    for metric in METRICS:
        values = [float(getattr(outcome, metric)) for outcome in outcomes]
        fields[metric] = float(np.mean(values))
        fields[f"{metric}_ci"] = bootstrap_interval(values, resamples=resamples, seed=seed)
    return Point(ask_bias, episodes=len(outcomes), **fields)


def sweep(evaluator: Evaluator, biases: Sequence[float], split: str = SPLIT) -> list[Point]:
    """A point for each bias, in their order: exact match and reward against asks, as a dial.

    Questions, helpers and random numbers are the same in all of them.
    """
    config = evaluator.config
    made = evaluator.sweep(biases, split)
    return [
        point(bias, made[bias], resamples=config.evaluate.bootstrap, seed=config.seed)
        for bias in biases
    ]


def calibrated(evaluator: Evaluator) -> Found:
    """What `config.calibrate` asks for: `reach` where ask_rate is above 0, else `best`."""
    settings = evaluator.config.calibrate
    if settings.ask_rate:
        return reach(
            lambda bias: sweep(evaluator, [bias])[0],
            target=settings.ask_rate,
            tolerance=settings.tolerance,
        )
    return best(lambda biases: sweep(evaluator, biases))


def reach(measure: Callable[[float], Point], *, target: float, tolerance: float) -> Found:
    """Search the bias under which asks per question come within `tolerance` of `target`.

    measure: the point of a bias; its asks need to rise with the bias only by and large. Steps away
    from 0 double until the target lies between two points, then the interval is halved. Where no
    bias gets there (too many asks wanted, or a jump across the target) the nearest is chosen.
    """
    points: dict[float, Point] = {}

    def tried(bias: float) -> Point:
        points[bias] = measure(bias)
        return points[bias]

    def is_near(one: Point) -> bool:
        return abs(one.asks - target) <= tolerance

    last = tried(0.0)
    sign = 1.0 if last.asks < target else -1.0
    inner, outer, size = 0.0, 0.0, 1.0
    while not is_near(last) and (target - last.asks) * sign > 0 and size <= FARTHEST:
        inner, outer, size = outer, sign * size, 2.0 * size
        last = tried(outer)
    is_between = (target - last.asks) * sign <= 0
    while is_between and not is_near(last) and abs(outer - inner) > NARROWEST:
        last = tried((inner + outer) / 2.0)
        if (target - last.asks) * sign > 0:
            inner = last.ask_bias
        else:
            outer = last.ask_bias
    chosen = min(points.values(), key=lambda one: (abs(one.asks - target), abs(one.ask_bias)))
    wanted = f"{target:g} asks a question"
    if is_near(chosen):
        words = f"{wanted} are met by {chosen.asks:.3f}, within {tolerance:g}"
    elif is_between:
        words = (
            f"no ask bias comes within {tolerance:g} of {wanted}: the rate jumps across it; the "
            f"nearest is {chosen.asks:.3f}"
        )
    else:
        end = "more" if sign > 0 else "less"
        words = (
            f"{wanted} are out of reach: at an ask bias of {outer:g} it asks {last.asks:.3f}, and "
            f"no bias makes it ask {end}; the nearest is {chosen.asks:.3f}"
        )
    return Found(chosen, _ordered(points.values()), is_near(chosen), words)


def best(measure: Callable[[Sequence[float]], Sequence[Point]]) -> Found:
    """The bias of best mean reward, of GRID and then of the middles beside the grid's best.

    Of equal rewards the bias nearest to 0 wins. Its reward is the best of some 13 on the same
    questions, so it promises a little too much.
    """

    def by_reward(one: Point) -> tuple[float, float]:
        return one.reward, -abs(one.ask_bias)

    points = list(measure(sorted((0.0, *GRID))))
    at = max(range(len(points)), key=lambda place: by_reward(points[place]))
    middles = [
        (points[at].ask_bias + points[other].ask_bias) / 2.0
        for other in (at - 1, at + 1)
        if 0 <= other < len(points)
    ]
    points += measure(middles)
    chosen = max(points, key=by_reward)
    words = f"reward is best, {chosen.reward:.3f}, at {chosen.asks:.3f} asks a question"
    return Found(chosen, _ordered(points), True, words)


def table(found: Found) -> str:
    """All points as aligned text, the chosen one marked ">"."""
    lines = ["  ask bias                 asks                 EM %                reward"]
    for one in found.points:
        cells = [
            f"{value * scale:.{digits}f} [{low * scale:.{digits}f} {high * scale:.{digits}f}]"
            for value, (low, high), scale, digits in (
                (one.asks, one.asks_ci, 1, 2),
                (one.em, one.em_ci, 100, 0),
                (one.reward, one.reward_ci, 1, 3),
            )
        ]
        mark = ">" if one == found.chosen else " "
        lines.append(f"{mark} {one.ask_bias:8.3f}  {cells[0]:>19}  {cells[1]:>19}  {cells[2]:>20}")
    note = f"{found.points[0].episodes} validation questions; [low high]: 95 % bootstrap interval"
    return "\n".join([*lines, note])


# --- the file --------------------------------------------------------------------------------


def write(path: pathlib.Path, found: Found, about: Mapping[str, Any]) -> None:
    """Write what was found as JSON, whole or not at all. about: how it came about."""
    content = {
        "ask_bias": found.chosen.ask_bias,
        "is_reached": found.is_reached,
        "words": found.words,
        "chosen": dataclasses.asdict(found.chosen),
        "points": [dataclasses.asdict(one) for one in found.points],
        **about,
    }
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def helper_of(config: Any) -> dict[str, Any]:
    """The part of a config that says who helps, as JSON keeps it."""
    plain: dict[str, Any] = json.loads(config.llm.to_json_best_effort())
    return {key: plain[key] for key in HELPER_KEYS}


@dataclasses.dataclass(frozen=True)
class Applied:
    """The ask bias that a mode runs under, where it is from, and what of the file it relies on."""

    ask_bias: float
    source: str
    calibration: Mapping[str, Any] | None = None


AS_TRAINED = Applied(0.0, "as trained")


def given(config: Any) -> Applied | None:
    """What `evaluate.ask_bias` sets by itself; None where that is "auto"."""
    if config.evaluate.ask_bias == AUTO:
        return None
    return Applied(float(config.evaluate.ask_bias), "evaluate.ask_bias")


def applied(config: Any, folder: pathlib.Path, *, step: int) -> Applied:
    """`evaluate.ask_bias`; where that is "auto", what the folder's FILE says, else 0.

    A calibration for another checkpoint or another helper doesn't count; `source` says so.
    Raises: ValueError for a file that can't be read.
    """
    set_by_hand, path = given(config), folder / FILE
    if set_by_hand is not None or not path.is_file():
        return set_by_hand or AS_TRAINED
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ask_bias, of_step, of_helper = (content[key] for key in ("ask_bias", "step", "helper"))
        is_right = math.isfinite(ask_bias)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no calibration; remove it, or calibrate again") from error
    if not is_right:
        raise ValueError(f"{path}: ask_bias={ask_bias} must be finite; calibrate again")
    now, advice = helper_of(config), "calibrate again, or set evaluate.ask_bias"
    newer = default_config().llm.scripted.to_dict()  # keys that the file may not know
    of_helper = {**of_helper, "scripted": {**newer, **of_helper.get("scripted", {})}}
    if of_step != step:
        why = f"{path} is for checkpoint step {of_step}, not {step}, and isn't used; {advice}"
        return Applied(0.0, why)
    changed = [f"llm.{key}" for key in HELPER_KEYS if of_helper.get(key) != now[key]]
    if changed:
        why = f"{path} is for another helper ({', '.join(changed)}) and isn't used; {advice}"
        return Applied(0.0, why)
    return Applied(float(ask_bias), str(path), content)


def _ordered(points: Any) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda one: one.ask_bias))
