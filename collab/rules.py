"""What a config may hold: ranges, and every rule that spans keys.

`validate` runs before anything compiles and raises `ValueError` with the key, its value, the rule
and a fix. The keys themselves are in `collab.config`, rules of the network in
`collab.network_rules`.
"""

from __future__ import annotations

import ipaddress
import math
import urllib.parse
from collections.abc import Mapping
from typing import Any

import ml_collections

from collab import naming
from collab.config import check_keys, flatten
from collab.network_rules import check_network, require


def validate(config: Any) -> None:
    """Check keys, ranges and every rule that spans keys. Raises: ValueError naming the fix."""
    check_keys(config)
    _check_ranges(config)
    _check_rollout(config)
    _check_weights(config)
    _check_staleness(config)
    _check_help(config)
    _check_judges(config.privacy)
    _check_learning(config)
    check_network(config)
    require(
        config.task.privatise.distractors <= MOST_DISTRACTORS,
        f"task.privatise.distractors={config.task.privatise.distractors} must be at most "
        f"{MOST_DISTRACTORS}: there are twelve kinds of units, some of which the base task's notes "
        f"or the question take up; try task.privatise.distractors={MOST_DISTRACTORS}",
    )
    _check_ask_rate(config)


def _check_ranges(config: Any) -> None:
    leaves = flatten(config)
    for path, value in leaves.items():
        if isinstance(value, int | float):
            require(0 <= value < math.inf, f"{path}={value} must be 0 or more; try {path}=0")
        if path.endswith("_share") or path in SHARES:
            require(value <= 1, f"{path}={value} must be a share in [0, 1]; try {path}=0.5")
    for path in AT_LEAST_ONE:
        require(leaves[path] >= 1, f"{path}={leaves[path]} must be at least 1; try {path}=1")
    for path in POSITIVE:
        require(leaves[path] > 0, f"{path}={leaves[path]} must be above 0; try {path}=1.0")
    require(config.seed < 2**31, f"seed={config.seed} must be below 2**31; try seed=0")
    for path, allowed in ONE_OF.items():
        naming.check(f"{path}=", leaves[path], allowed)


# No key of the schema can be negative or infinite; these are held tighter.
AT_LEAST_ONE = (
    "rollout.rows", "rollout.max_segments", "rollout.max_asks", "rollout.steps_per_call",
    "rollout.live_lengths", "rollout.prompts_per_call", "rl.problems", "rl.updates",
    "rl.episode_tokens", "cold_start.batch", "cold_start.label_problems",
    "cold_start.label_samples", "checkpoint.every", "checkpoint.imitation_every",
    "checkpoint.keep", "evaluate.bootstrap", "log.every", "log.samples_every",
    "llm.concurrency", "llm.reply_tokens",
    "task.train", "task.validation", "task.test", "mesh.data", "mesh.fsdp", "mesh.model",
    "reward.token_reference", "llm.local.context_tokens", "llm.local.rows",
    "llm.local.prompts_per_call", "llm.local.steps_per_call",
    *(f"privacy.{judge}.{key}" for judge in ("judge", "audit_judge")
      for key in ("concurrency", "reply_tokens")),
)  # fmt: skip
MOST_DISTRACTORS = 8
POSITIVE = (
    "reward.usd_reference", "llm.deadline_s", "rl.clip_norm", "rl.value_weight", "rl.dual_rate",
    "rl.importance_limit", "calibrate.tolerance", "model.lora.alpha",
    "privacy.judge.deadline_s", "privacy.audit_judge.deadline_s",
)  # fmt: skip
SHARES = (  # and *_share
    "cold_start.ask_lean", "cold_start.overshare", "cold_start.vague", "llm.scripted.error_rate",
    *(f"llm.scripted.{fate}_rate" for fate in ("timeout", "refuse", "injection")),
    "llm.retry_refill", "llm.weaken.drop", "llm.weaken.shorten", "llm.weaken.wrong",
    "rl.gae_lambda",
)  # fmt: skip
ONE_OF = {
    "reward.quality": ("em", "f1"),
    "llm.share": ("request", "question", "all"),
    "llm.draw": ("episode", "request"),
    "cold_start.judge": ("steps", "answer"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("", "layers", "dots"),
    "model.head": ("head", "tokens"),
    "llm.local.dtype": ("float32", "bfloat16"),
    "llm.structured": ("auto", "on", "off"),
    "llm.replay": ("off", "record", "replay", "replay_or_call"),
    "privacy.gate": ("off", "observe", "mask", "block"),
    "privacy.recognisers": ("", "presidio"),
    "privacy.judge.mode": ("off", "log", "reward"),
    "privacy.audit_judge.mode": ("off", "log"),  # reward it, and it audits no more
    "rollout.weights": ("", "bfloat16", "int8"),
    "rl.credit": ("episode", "branch", "value"),
    "checkpoint.best_metric": ("", "reward", "task", "em", "f1"),
}


def _check_rollout(config: Any) -> None:
    rollout, mesh = config.rollout, config.mesh
    parts = mesh.data * mesh.fsdp
    require(
        rollout.rows % parts == 0,
        f"rollout.rows={rollout.rows} must divide by mesh.data*mesh.fsdp={parts}; "
        f"try rollout.rows={-(-rollout.rows // parts) * parts}",
    )
    for key in ("think_tokens", "request_tokens", "answer_tokens", "reply_tokens"):
        require(
            rollout[key] >= 2,
            f"rollout.{key}={rollout[key]} must be at least 2: a token and the end token",
        )
    least = 2 + rollout.think_tokens + rollout.answer_tokens
    require(
        rollout.capacity > least,
        f"rollout.capacity={rollout.capacity} leaves no room for a prompt beside one thought and "
        f"an answer ({least} tokens); try rollout.capacity={4 * least}",
    )
    require(
        rollout.max_segments >= 2 or not rollout.draft_first,
        f"rollout.max_segments={rollout.max_segments} must be at least 2 with "
        "rollout.draft_first: a draft and the answer",
    )


def _check_weights(config: Any) -> None:
    updates, rollout = config.rl.updates, config.rollout
    require(
        not rollout.weights or rollout.unstack_layers,
        f"rollout.weights={rollout.weights!r} with rollout.unstack_layers=False: there is no copy "
        "to hold them; set rollout.unstack_layers=True, or rollout.weights=''",
    )
    require(
        not rollout.weights or updates == 1,
        f"rl.updates={updates} with rollout.weights={rollout.weights!r} would leave a batch that "
        "is off-policy already without a clip; use rl.updates=1 or rollout.weights=''",
    )


def _check_staleness(config: Any) -> None:
    rl, most = config.rl, config.rollout.max_staleness
    require(most <= 1, f"rollout.max_staleness={most} must be 0 or 1; try rollout.max_staleness=1")
    require(
        most == 0 or rl.updates == 1,
        f"rl.updates={rl.updates} with rollout.max_staleness=1 would leave a batch that is "
        "off-policy already without a clip; use rl.updates=1 or rollout.max_staleness=0",
    )
    require(
        most == 0 or rl.credit != "branch",
        "rl.credit='branch' with rollout.max_staleness=1 would compare turns of unlike weights; "
        "use rl.credit='episode' or rollout.max_staleness=0",
    )
    require(
        most == 0 or config.checkpoint.every >= 2,
        "checkpoint.every=1 with rollout.max_staleness=1: nothing is in flight at a save, so no "
        "batch would begin early; try checkpoint.every=20",
    )


def _check_help(config: Any) -> None:
    llm = config.llm
    require(
        len(config.requests) >= 1, "requests is empty; name at least one kind, such as ask_fact"
    )
    require(
        config.chain_request in config.requests,
        f"chain_request={config.chain_request!r} must be one of requests; "
        f"try chain_request={list(config.requests)[-1]!r}",
    )
    for name, instruction in config.requests.items():
        require(
            isinstance(instruction, str) and bool(instruction.strip()),
            f"requests.{name}={instruction!r} must be an instruction to the LLM; try "
            f"requests.{name}='Give a hint, not the solution.'",
        )
    for name, row in llm.helpers.items():
        require(
            isinstance(row, Mapping | ml_collections.ConfigDict),
            f"llm.helpers.{name}={row!r} must be a table of settings, such as {{'hops': 1}}",
        )
        for key, value in row.items():
            default = llm.scripted.get(key, value)
            wanted = (int, float) if type(default) is float else type(default)
            require(
                isinstance(value, wanted) and isinstance(value, bool) == isinstance(default, bool),
                f"llm.helpers.{name}.{key}={value!r} must be of type {type(default).__name__}, as "
                f"in llm.scripted; try {default!r}",
            )
    require(
        llm.backend != "openai" or bool(llm.model or llm.helpers),
        "llm.model is empty; name a model that the server at llm.base_url serves",
    )
    weights = [row.get("weight", llm.scripted.weight) for row in llm.helpers.values()]
    for name, weight in zip(llm.helpers, weights, strict=True):
        require(
            0 <= weight < math.inf,
            f"llm.helpers.{name}.weight={weight} must be 0 or more; try 1.0",
        )
    require(
        not weights or sum(weights) > 0,
        "every row of llm.helpers has weight 0, so none can be drawn; try weight=1.0",
    )
    require(
        llm.hedge_after_s == 0 or llm.hedge_after_s < llm.deadline_s,
        f"llm.hedge_after_s={llm.hedge_after_s} must be below llm.deadline_s={llm.deadline_s}; "
        f"try llm.hedge_after_s={llm.deadline_s / 4:g}, or 0 for no second request",
    )
    weaken = llm.weaken
    spoiled = weaken.drop + weaken.shorten + weaken.wrong
    require(
        spoiled <= 1,
        f"llm.weaken: drop+shorten+wrong={spoiled:g} must be at most 1; lower one",
    )
    require(
        "strength" not in config.model.helper_features or llm.probe.requests > 0,
        "model.helper_features: strength is measured by the probe; try llm.probe.requests=36",
    )
    parts = config.mesh.data * config.mesh.fsdp
    require(
        llm.backend != "local" or llm.local.rows % parts == 0,
        f"llm.local.rows={llm.local.rows} must divide by mesh.data*mesh.fsdp={parts}; "
        f"try llm.local.rows={-(-llm.local.rows // parts) * parts}",
    )
    _check_prices(llm.prices)
    require(  # the config is written to disk
        "@" not in llm.base_url,
        "llm.base_url must hold no user or password; put the key into the variable that "
        "llm.api_key_env names",
    )


def _check_prices(prices: Any) -> None:
    is_right = all(
        isinstance(row, tuple | list)
        and len(row) == 4
        and isinstance(row[0], str)
        and all(type(price) in (int, float) and 0 <= price < math.inf for price in row[1:])
        for row in prices
    )
    names = [row[0] for row in prices] if is_right else []
    require(
        is_right and "" in names and len(set(names)) == len(names),
        f"llm.prices={tuple(prices)} must hold rows (model or helper, prompt, cached prompt, "
        "completion) in dollars per million tokens, each name once, '' among them; try "
        "llm.prices=\"(('', 0.25, 0.25, 2.0),)\"",
    )


def _check_judges(privacy: Any) -> None:
    judge, audit = privacy.judge, privacy.audit_judge
    for name in ("judge", "audit_judge"):
        if privacy[name].mode != "off":
            _check_judge(f"privacy.{name}", privacy[name])
    if audit.mode == "off":
        return
    require(
        judge.mode != "off",
        "privacy.audit_judge.mode='log' has no judge to audit; try privacy.judge.mode='log'",
    )
    require(
        any(audit[key] != judge[key] for key in ("backend", "model"))
        or (judge.backend == "openai" and audit.base_url != judge.base_url),
        f"privacy.audit_judge.model={audit.model!r} is the judge itself; name another model, "
        "base_url or backend",
    )


def _check_judge(path: str, judge: Any) -> None:
    """Whether a judge that is asked can judge, and stays on this machine unless it may leave."""
    require(
        judge.backend != "scripted",
        f"{path}.backend='scripted' can't judge, it knows facts only; try {path}.backend='local'",
    )
    if judge.backend != "openai":
        return
    require(bool(judge.model), f"{path}.model is empty; name a model that {path}.base_url serves")
    require(
        "@" not in judge.base_url,
        f"{path}.base_url must hold no user or password; put the key into the variable that "
        f"{path}.api_key_env names",
    )
    require(
        judge.may_leave_machine or is_on_this_machine(judge.base_url),
        f"{path}.base_url={judge.base_url!r} is not on this machine, and a judge is sent the "
        "private units themselves; use a loopback address such as http://127.0.0.1:8001/v1, or "
        f"allow it by {path}.may_leave_machine=True",
    )


def is_on_this_machine(base_url: str) -> bool:
    """Whether a URL names a loopback address, or localhost; no other name is looked up."""
    try:
        host = urllib.parse.urlsplit(base_url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_curriculum(curriculum: Any) -> None:
    is_right = all(
        isinstance(stage, tuple | list)
        and len(stage) == 2
        and all(type(number) is int and number > 0 for number in stage)
        for stage in curriculum
    )
    require(
        is_right,
        f"cold_start.curriculum={tuple(curriculum)} must hold pairs (steps, tokens) above 0; try "
        "cold_start.curriculum='((150, 64), (250, 128))', or '()' for none",
    )


def _check_learning(config: Any) -> None:
    _check_curriculum(config.cold_start.curriculum)
    require(
        not config.cold_start.from_run or config.cold_start.steps > 0,
        f"cold_start.from_run={config.cold_start.from_run!r} with cold_start.steps=0 takes over "
        "nothing; set the steps of that run, or cold_start.from_run=''",
    )
    rl, parts = config.rl, config.mesh.data * config.mesh.fsdp
    require(rl.samples >= 2, f"rl.samples={rl.samples} must be at least 2: samples are compared")
    rows = rl.problems * rl.samples
    require(
        rows % parts == 0,
        f"rl.problems*rl.samples={rows} must divide by mesh.data*mesh.fsdp={parts}; "
        f"try rl.problems={rl.problems * parts}",
    )
    require(
        config.cold_start.batch % parts == 0,
        f"cold_start.batch={config.cold_start.batch} must divide by mesh.data*mesh.fsdp={parts}; "
        f"try cold_start.batch={config.cold_start.batch * parts}",
    )
    require(
        config.rollout.temperature > 0,
        "rollout.temperature=0 makes the samples of a problem equal, so there is nothing to "
        "compare; try rollout.temperature=1.0",
    )
    world = config.task.world
    require(
        world.known_share + world.faint_share <= 1,
        f"task.world.known_share+faint_share={world.known_share + world.faint_share} must be at "
        "most 1; lower one",
    )
    require(
        rl.iterations == 0 or rl.updates == 1 or rl.objective != "reinforce",
        f"rl.updates={rl.updates} with rl.objective='reinforce' would go off-policy without a "
        "clip; use rl.objective='grpo' or rl.updates=1",
    )
    require(
        not (rl.standardise and rl.objective == "dr_grpo"),
        "rl.standardise=True with rl.objective='dr_grpo', which is GRPO without the group's "
        "deviation; set rl.standardise=False, or rl.objective='grpo'",
    )
    require(
        rl.objective != "ppo" or rl.credit == "value",
        f"rl.credit={rl.credit!r} must be 'value' with rl.objective='ppo', whose critic the value "
        "head is; set rl.credit='value', or rl.objective='grpo'",
    )


def _check_ask_rate(config: Any) -> None:
    bias, most = config.evaluate.ask_bias, config.rollout.max_asks
    try:
        is_right = bias == "auto" or math.isfinite(float(bias))
    except ValueError:
        is_right = False
    require(is_right, f"evaluate.ask_bias={bias!r} must be auto or a number of nats; try '-0.5'")
    rates = {
        "calibrate.ask_rate": config.calibrate.ask_rate,
        "rl.target_ask_rate": config.rl.target_ask_rate,
    }
    for path, rate in rates.items():
        require(
            rate <= most,
            f"{path}={rate} must be at most rollout.max_asks={most}; try {path}={most / 2:g}",
        )
