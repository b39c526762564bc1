"""Every rule of the schema, by the key and the fix that its message names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_collections
import pytest

from collab.config import (
    check_keys,
    default_config,
    flatten,
    load_config,
    near_matches,
    request_names,
)
from collab.overrides import read_overrides
from collab.rules import AT_LEAST_ONE, POSITIVE, validate

DEFAULTS = flatten(default_config())
NUMBERS = [path for path, value in DEFAULTS.items() if type(value) in (int, float)]
SHARES = [path for path in NUMBERS if path.endswith("_share")] + [
    "cold_start.overshare",
    "cold_start.vague",
    "llm.scripted.error_rate",
    "llm.retry_refill",
    "rl.gae_lambda",
]

CALLED = {
    "privacy.judge.mode": "reward",
    "privacy.judge.backend": "openai",
    "privacy.judge.model": "judge",
}


def changed(**changes: Any) -> ml_collections.ConfigDict:
    """Defaults with changes by path; "__" stands for the dot."""
    config = default_config()
    config.update_from_flattened_dict(
        {path.replace("__", "."): value for path, value in changes.items()}
    )
    return config


def refused(config: ml_collections.ConfigDict) -> str:
    with pytest.raises(ValueError) as caught:
        validate(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_defaults_and_every_shipped_config_are_valid() -> None:
    validate(default_config())
    shipped = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
    assert shipped
    for path in shipped:
        validate(load_config(str(path)))


def test_shares_are_really_shares() -> None:
    """The list above holds no number of another kind."""
    assert all(0 <= DEFAULTS[path] <= 1 for path in SHARES)


@pytest.mark.parametrize("path", NUMBERS)
def test_no_number_may_be_negative(path: str) -> None:
    assert refused(changed(**{path: -1})).startswith(f"{path}=-1")


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_number_may_be_infinite_or_no_number(value: float) -> None:
    message = refused(changed(rl__learning_rate=value))
    assert message == f"rl.learning_rate={value} must be 0 or more; try rl.learning_rate=0"


@pytest.mark.parametrize("path", AT_LEAST_ONE)
def test_counts_are_at_least_one(path: str) -> None:
    assert refused(changed(**{path: 0})) == f"{path}=0 must be at least 1; try {path}=1"


@pytest.mark.parametrize("path", POSITIVE)
def test_divisors_and_limits_are_above_zero(path: str) -> None:
    assert refused(changed(**{path: 0.0})) == f"{path}=0.0 must be above 0; try {path}=1.0"


@pytest.mark.parametrize("path", SHARES)
def test_shares_are_at_most_one(path: str) -> None:
    assert refused(changed(**{path: 1.5})) == (
        f"{path}=1.5 must be a share in [0, 1]; try {path}=0.5"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward.quality": "emm"}, "reward.quality='emm' must be one of em, f1; did you mean em?"),
        ({"llm.share": "al"}, "llm.share='al' must be one of request, question, all; did you mean"),
        ({"llm.structured": "yes"}, "llm.structured='yes' must be one of auto, on, off"),
        ({"cold_start.judge": "x"}, "cold_start.judge='x' must be one of steps, answer"),
        (
            {"model.remat": "layer"},
            "model.remat='layer' must be one of , layers, dots; did you mean layers?",
        ),
        (
            {"model.lora.targets": ("query", "valu")},
            "model.lora.targets: 'valu' must be one of query, key, value, out, gate, up, down; did "
            "you mean value?",
        ),
        (
            {"model.lora.rank": 4, "model.lora.targets": ()},
            "model.lora.targets=() with model.lora.rank=4 adapts no matrix; try model.lora.targets",
        ),
        ({"model.dtype": "float16"}, "model.dtype='float16' must be one of float32, bfloat16"),
        (
            {"rollout.rows": 10, "mesh.data": 2, "mesh.fsdp": 2},
            "rollout.rows=10 must divide by mesh.data*mesh.fsdp=4; try rollout.rows=12",
        ),
        (
            {"mesh.data": 3, "rollout.rows": 96},
            "rl.problems*rl.samples=128 must divide by mesh.data*mesh.fsdp=3; try rl.problems=48",
        ),
        (
            {"mesh.data": 4, "cold_start.batch": 6},
            "cold_start.batch=6 must divide by mesh.data*mesh.fsdp=4; try cold_start.batch=24",
        ),
        ({"rollout.think_tokens": 1}, "rollout.think_tokens=1 must be at least 2"),
        ({"rollout.max_staleness": 2}, "rollout.max_staleness=2 must be 0 or 1; try"),
        (
            {"rollout.max_staleness": 1, "rl.updates": 2},
            "rl.updates=2 with rollout.max_staleness=1 would leave a batch that is off-policy",
        ),
        (
            {"rollout.max_staleness": 1, "rl.credit": "branch"},
            "rl.credit='branch' with rollout.max_staleness=1 would compare turns of unlike weights",
        ),
        (
            {"rollout.max_staleness": 1, "checkpoint.every": 1},
            "checkpoint.every=1 with rollout.max_staleness=1: nothing is in flight at a save",
        ),
        (
            {"rollout.weights": "int4"},
            "rollout.weights='int4' must be one of , bfloat16, int8; did you mean int8?",
        ),
        (
            {"rollout.weights": "int8", "rollout.unstack_layers": False},
            "rollout.weights='int8' with rollout.unstack_layers=False: there is no copy to hold",
        ),
        (
            {"rollout.weights": "bfloat16", "rl.updates": 2},
            "rl.updates=2 with rollout.weights='bfloat16' would leave a batch that is off-policy",
        ),
        ({"rollout.request_tokens": 1}, "rollout.request_tokens=1 must be at least 2"),
        ({"rollout.answer_tokens": 0}, "rollout.answer_tokens=0 must be at least 2"),
        ({"rollout.reply_tokens": 1}, "rollout.reply_tokens=1 must be at least 2"),
        (
            {"rollout.capacity": 38, "rollout.think_tokens": 24, "rollout.answer_tokens": 12},
            "rollout.capacity=38 leaves no room for a prompt beside one thought and an answer "
            "(38 tokens); try rollout.capacity=152",
        ),
        ({"rollout.max_segments": 1}, "rollout.max_segments=1 must be at least 2 with"),
        *(
            ({"cold_start.curriculum": wrong}, "must hold pairs (steps, tokens) above 0; try")
            for wrong in (("150", "64"), (150, 64), ((150,),), ((0, 64),), ((1, 2.5),))
        ),
        ({"rl.samples": 1}, "rl.samples=1 must be at least 2: samples are compared"),
        ({"rollout.temperature": 0.0}, "try rollout.temperature=1.0"),
        (
            {"rl.updates": 2, "rl.objective": "reinforce"},
            "rl.updates=2 with rl.objective='reinforce' would go off-policy without a clip; use "
            "rl.objective='grpo' or rl.updates=1",
        ),
        (
            {"rl.objective": "dr_grpo"},
            "rl.standardise=True with rl.objective='dr_grpo', which is GRPO without the group's "
            "deviation; set rl.standardise=False",
        ),
        (
            {"rl.credit": "vlue"},
            "rl.credit='vlue' must be one of episode, branch, value; did you mean value",
        ),
        (
            {"model.head": "token"},
            "model.head='token' must be one of head, tokens; did you mean tok",
        ),
        (
            {"model.head": "tokens"},
            "cold_start.label_steps=300 fit a head of its own to the labels, and model.head="
            "'tokens' has none; set cold_start.label_steps=0",
        ),
        (
            {
                "model.head": "tokens",
                "cold_start.label_steps": 0,
                "model.helper_features": ("price",),
            },
            "model.helper_features=('price',) are told to a head of its own, and model.head="
            "'tokens' has none; set model.helper_features=()",
        ),
        (
            {"model.features": ("max_nll", "mean_nl")},
            "model.features: 'mean_nl' must be one of max_nll, mean_nll, max_entropy, mean_entropy,"
            " repeats, asks_used, segments_used; did you mean mean_nll?",
        ),
        (
            {"model.head": "tokens", "cold_start.label_steps": 0, "model.features": ("max_nll",)},
            "model.features=('max_nll',) are told to a head of its own, and model.head='tokens' has"
            " none; leave them at the default, or set model.head='head'",
        ),
        (
            {"rl.objective": "ppo"},
            "rl.credit='episode' must be 'value' with rl.objective='ppo', whose critic the value "
            "head is; set rl.credit='value'",
        ),
        (
            {"task.world.known_share": 0.75, "task.world.faint_share": 0.5},
            "task.world.known_share+faint_share=1.25 must be at most 1; lower one",
        ),
        ({"seed": 2**31}, "seed=2147483648 must be below 2**31; try seed=0"),
        ({"checkpoint.best_metric": "rewrd"}, "must be one of , reward, task, em, f1; did you"),
        ({"chain_request": "ask_all"}, "must be one of requests; try chain_request='ask_solve'"),
        (
            {"llm.helpers": {"a": {"hops": "two"}}},
            "llm.helpers.a.hops='two' must be of type int, as in llm.scripted; try 3",
        ),
        ({"llm.helpers": {"a": {"weight": -1.0}}}, "llm.helpers.a.weight=-1.0 must be 0 or more"),
        ({"llm.helpers": {"a": {"weight": "2"}}}, "llm.helpers.a.weight='2' must be of type float"),
        (
            {"model.helper_features": ("strength",)},
            "model.helper_features: strength is measured by the probe; try llm.probe.requests=36",
        ),
        ({"llm.weaken.drop": 0.6, "llm.weaken.wrong": 0.6}, "drop+shorten+wrong=1.2 must be at mo"),
        ({"llm.helpers": {"a": {"hops": True}}}, "llm.helpers.a.hops=True must be of type int"),
        (
            {"llm.backend": "openai", "llm.helpers": {}},
            "llm.model is empty; name a model that the server at llm.base_url serves",
        ),
        (
            {"llm.hedge_after_s": 30.0},
            "llm.hedge_after_s=30.0 must be below llm.deadline_s=30.0; try llm.hedge_after_s=7.5",
        ),
        *(
            (
                {"evaluate.ask_bias": wrong},
                f"evaluate.ask_bias={wrong!r} must be auto or a number of nats; try '-0.5'",
            )
            for wrong in ("", "off", "nan", "inf")
        ),
        (
            {"calibrate.ask_rate": 7.0},
            "calibrate.ask_rate=7.0 must be at most rollout.max_asks=6; try calibrate.ask_rate=3",
        ),
        (
            {"rl.target_ask_rate": 7.0},
            "rl.target_ask_rate=7.0 must be at most rollout.max_asks=6; try rl.target_ask_rate=3",
        ),
        ({"llm.prices": ()}, "llm.prices=() must hold rows (model or helper, prompt, cached"),
        *(
            ({"llm.prices": wrong}, "'' among them; try llm.prices=\"(('', 0.25, 0.25, 2.0),)\"")
            for wrong in (
                (("m", 1.0, 1.0, 1.0),),
                (("", 1.0, 1.0),),
                (("", 1.0, 1.0, -1.0),),
                (("", 1.0, 1.0, "2"),),
                (("", 1.0, 1.0, 1.0), ("", 2.0, 2.0, 2.0)),
                ("", 1.0, 1.0, 1.0),
            )
        ),
        ({"privacy.recognisers": "presidoi"}, "must be one of , presidio; did you mean presidio?"),
        ({"privacy.audit_judge.mode": "reward"}, "must be one of off, log"),
        (
            {"privacy.judge.mode": "log", "privacy.judge.backend": "scripted"},
            "privacy.judge.backend='scripted' can't judge, it knows facts only; try privacy.judge",
        ),
        (
            {"privacy.judge.mode": "log", "privacy.judge.backend": "openai"},
            "privacy.judge.model is empty; name a model that privacy.judge.base_url serves",
        ),
        *(
            (
                {**CALLED, "privacy.judge.base_url": url},
                f"privacy.judge.base_url={url!r} is not on this machine, and a judge is sent the "
                "private units themselves; use a loopback address such as",
            )
            for url in (
                "https://api.example.com/v1",
                "http://192.168.0.7:8000/v1",
                "http://localhost.example.com/v1",
                "http://0.0.0.0:8000/v1",
                "http://[::2]:8000/v1",
                "http://[::1:8000/v1",
                "127.0.0.1:8000",
                "",
            )
        ),
        (
            {**CALLED, "privacy.judge.base_url": "http://me:secret@127.0.0.1/v1"},
            "privacy.judge.base_url must hold no user or password; put the key into the variable",
        ),
        (
            {"privacy.audit_judge.mode": "log"},
            "privacy.audit_judge.mode='log' has no judge to audit; try privacy.judge.mode='log'",
        ),
        (
            {"privacy.audit_judge.mode": "log", "privacy.judge.mode": "reward"},
            "privacy.audit_judge.model='' is the judge itself; name another model, base_url or",
        ),
        (
            {
                "privacy.audit_judge.mode": "log",
                "privacy.judge.mode": "log",
                "privacy.judge.base_url": "http://127.0.0.1:9/v1",  # in process it has none
            },
            "privacy.audit_judge.model='' is the judge itself; name another model, base_url or",
        ),
        (
            {"cold_start.from_run": "runs/a", "cold_start.steps": 0},
            "cold_start.from_run='runs/a' with cold_start.steps=0 takes over nothing",
        ),
        (
            {"llm.base_url": "http://me:secret@host/v1"},
            "llm.base_url must hold no user or password; put the key into the variable",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_rule_names_key_value_and_fix(changes: dict[str, Any], message: str) -> None:
    said = refused(changed(**changes))
    assert message in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout.max_segments": 1, "rollout.draft_first": False},
        {"evaluate.ask_bias": "-1.5"},
        {"rl.updates": 2},  # grpo clips
        {"rl.updates": 2, "rl.objective": "reinforce", "rl.iterations": 0},
        {"rl.objective": "dr_grpo", "rl.standardise": False},
        {"rl.objective": "dapo", "rl.updates": 2},
        {"model.head": "tokens", "cold_start.label_steps": 0},
        {"rl.objective": "ppo", "rl.credit": "value", "rl.updates": 4},
        {"cold_start.steps": 0},
        {"rollout.rows": 96, "mesh.data": 2, "mesh.fsdp": 2, "mesh.model": 2},
        {"llm.prices": (("", 0, 0, 0), ("gpt-9.1", 2.0, 0.5, 8.0))},
        CALLED,
        {**CALLED, "privacy.judge.base_url": "http://localhost:8000/v1"},
        {**CALLED, "privacy.judge.base_url": "https://[::1]:8000/v1"},
        {**CALLED, "privacy.judge.base_url": "http://127.8.0.1/v1"},
        {
            **CALLED,
            "privacy.judge.base_url": "https://api.example.com/v1",
            "privacy.judge.may_leave_machine": True,
        },
        {**CALLED, "privacy.judge.mode": "off", "privacy.judge.base_url": "https://x.example/v1"},
        {**CALLED, "privacy.audit_judge.mode": "log"},
    ],
    ids=str,
)
def test_what_only_looks_impossible_is_allowed(changes: dict[str, Any]) -> None:
    validate(changed(**changes))


def test_the_open_tables_have_rules_of_their_own() -> None:
    config = default_config()
    config.requests = ml_collections.ConfigDict({"ask_hint": "Give a hint."})
    config.chain_request = "ask_hint"
    config.llm.helpers = ml_collections.ConfigDict({"big": {"hops": 9}})
    validate(config)
    config.requests.ask_hint = " "
    assert "requests.ask_hint=' ' must be an instruction to the LLM; try" in refused(config)
    config.requests = ml_collections.ConfigDict()
    assert refused(config).startswith("requests is empty; name at least one kind")
    config = changed(**{"llm.helpers": {"big": {"weight": 0.0}, "small": {"weight": 0.0}}})
    assert refused(config).endswith("none can be drawn; try weight=1.0")
    config = default_config()
    config.llm.helpers = ml_collections.ConfigDict({"big": 3})
    assert refused(config).startswith("llm.helpers.big=3 must be a table of settings, such as")


# --- keys and types ------------------------------------------------------------------------


def test_an_unknown_key_is_named_with_near_ones() -> None:
    config = default_config()
    config.rl.iteration = 3
    assert refused(config).startswith(
        "config key 'rl.iteration' is unknown; did you mean rl.iterations"
    )


def test_a_missing_key_is_named() -> None:
    config = default_config()
    del config.rl.iterations
    assert refused(config) == ("config key 'rl.iterations' is missing; start from default_config()")


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("rl.iterations", 3.0, "int"),
        ("rl.iterations", True, "int"),
        ("rl.learning_rate", "1e-3", "float"),
        ("rl.standardise", 1, "bool"),
        ("model.weights", None, "str"),
        ("evaluate.strategies", "learned", "tuple"),
    ],
)
def test_a_wrong_type_is_named(path: str, value: Any, kind: str) -> None:
    config = default_config().to_dict()
    section, key = path.split(".")
    config[section][key] = value
    with pytest.raises(ValueError) as caught:
        check_keys(config)
    assert str(caught.value) == f"{path}={value!r} must be of type {kind}"


def test_an_int_stands_for_a_float_and_a_list_for_a_tuple() -> None:
    config = default_config().to_dict()
    config["rl"]["learning_rate"] = 1
    config["evaluate"]["strategies"] = ["learned"]
    check_keys(config)


def test_near_matches_put_the_same_leaf_first() -> None:
    assert near_matches("iterations", list(DEFAULTS)).startswith("; did you mean rl.iterations")
    assert near_matches("zzz", list(DEFAULTS)) == ""


# --- the command line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.rl.iteration=3", "config key 'rl.iteration' is unknown; did you mean rl.iter"),
        ("-config.rl.iteration=3", "config key 'rl.iteration' is unknown"),
        ("--noconfig.log.bogus", "config key 'log.bogus' is unknown"),
        ("--config.rl=3", "config key 'rl' is unknown"),
        (
            "--config.requests.ask_hint=x",
            "config key 'requests.ask_hint' is unknown; did you mean requests.ask_fact or "
            "requests.ask_solve or llm.requests_per_minute?; a config file may add rows to "
            "requests",
        ),
        ("--config.rl.iterations=abc", "rl.iterations='abc' must be of type int, such as its"),
        ("--config.rl.iterations=1e3", "rl.iterations='1e3' must be of type int"),
        ("--config.rl.learning_rate=x", "rl.learning_rate='x' must be of type float"),
        ("--config.log.tensorboard=maybe", "log.tensorboard='maybe' must be of type bool"),
    ],
)
def test_a_wrong_override_is_named(argument: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_overrides(["--workdir=x", argument], DEFAULTS)
    assert message in str(caught.value)


def test_right_overrides_and_other_flags_pass() -> None:
    arguments = [
        "--workdir=x",
        "--config=config.rl.py",
        "stray",
        "--config.rl.iterations=3",
        "--config.rl.iterations",  # its value is the next argument
        "--config.rl.learning_rate=1e-3",
        "--noconfig.log.tensorboard",
        "--config.log.tensorboard=False",
        "--config.llm.model=a=b",
        "--config.evaluate.strategies=('learned','slm_cot')",
    ]
    assert read_overrides(arguments, DEFAULTS) == arguments
    assert read_overrides(["-config.evaluate.strategies=learned,slm_cot"], DEFAULTS) == [
        "--config.evaluate.strategies=('learned', 'slm_cot')"
    ]


# --- config files --------------------------------------------------------------------------

HEAD = "from collab.config import default_config\n\n\n"


def test_a_config_file_sets_deltas(tmp_path: Path) -> None:
    path = tmp_path / "deltas.py"
    path.write_text(
        HEAD + "def get_config():\n    c = default_config()\n    c.seed = 7\n    return c"
    )
    assert load_config(str(path)).seed == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = 1 / 0\n", ", line 2: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", ", line 1: SyntaxError: invalid syntax"),
        (
            "def f():\n    return 1 / 0\n\n\ndef get_config():\n    return f()\n",
            ", line 2: ZeroDivisionError: division by zero",
        ),
        ("\nimport no_such_package\n", ", line 2: ModuleNotFoundError: No module named"),
        (
            HEAD
            + "def get_config():\n    c = default_config()\n    c.seed = 'a\\nb'\n    return c",
            ", line 6: TypeError: Could not override field 'seed'",
        ),
        ("x = 1\n", " must define get_config(), which changes and returns default_config()"),
        ("def get_config():\n    return 3\n", " must define get_config(), which changes and"),
    ],
)
def test_a_broken_config_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"--config={path}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["no/such/file.py", "", "configs"])
def test_a_config_file_that_is_not_there_is_named(path: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(path)
    assert str(caught.value) == f"--config={path}: there is no such file; configs/ holds some"


def test_requests_stand_by_name_and_the_chain_request_last() -> None:
    config = default_config()
    config.requests = ml_collections.ConfigDict(dict.fromkeys(("b", "c", "a"), "Help."))
    config.chain_request = "b"
    assert request_names(config) == ("a", "c", "b")
