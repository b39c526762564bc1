"""Every fault that the faulty server injects, through a real socket; and all of them at once."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import urllib3

import runs
from collab.config import default_config
from collab.llm import Completion, Message, errors
from collab.llm.client import Client
from collab.llm.fault_table import FAULTS, UNDETECTABLE
from collab.llm.faults import MIX, FaultyServer, faulty, main
from collab.llm.openai import OpenAIBackend
from collab.llm.scripted import ScriptedBackend
from collab.types import FeedbackKind, HelpRequest, Resolution, Step
from commands import interrupted, refusal, started
from experiments.fault_campaign import reading
from fake_llm import passed

DEADLINE_S = 1.0
HUNG_S = 5.0  # past the deadline: the machine may be busy, but this is no waiting for the server
CALLS, AT_ONCE = 400, 32
FAR_S = 20.0


class Capitals:
    """A fact about any word."""

    def resolve(self, text: str) -> Resolution | None:
        return Resolution((Step(f"capital of {text}", text.upper()),))

    def wrong_answer(self, step: Step, rng: np.random.Generator) -> str:
        raise AssertionError("this expert never errs")


def expert() -> ScriptedBackend:
    return ScriptedBackend.from_config(default_config().llm, knowledge=Capitals(), seed=0)


def backend_at(base_url: str, concurrency: int = 4) -> OpenAIBackend:
    return OpenAIBackend(
        base_url=base_url,
        model="scripted",
        key="",
        key_env="",
        temperature=0.0,
        concurrency=concurrency,
    )


def ask(backend: OpenAIBackend, word: str, deadline_s: float = DEADLINE_S) -> Completion:
    talk = [Message("user", f"[ask_fact] State it.\n{word}")]
    return backend.complete(talk, reply_tokens=8, deadline_s=deadline_s, helper="")


def reply_to(word: str) -> str:
    return f'{{"kind": "answer", "text": "capital of {word} = {word.upper()}"}}'


def counts(base_url: str) -> dict[str, int]:
    with requests.Session() as session:  # the port may be closed for a moment
        retry = urllib3.Retry(connect=9, backoff_factor=0.05)
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
        counted = session.get(f"{base_url}/faults", timeout=FAR_S).json()
    return {"asked": counted["asked"], **counted["injected"]}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_the_typed_error_that_it_should_be(name: str) -> None:
    expected = FAULTS[name].expected
    # Only what must time out gets a short deadline: a busy machine is slow elsewhere.
    deadline_s = DEADLINE_S if expected is errors.TimedOut else FAR_S
    with faulty(expert(), fault=name) as base_url, contextlib.closing(backend_at(base_url)) as far:
        started_s = time.monotonic()
        if expected is None:
            text = ask(far, "norway", deadline_s).text
            assert (text == reply_to("norway")) == (name not in UNDETECTABLE)
        else:
            with pytest.raises(errors.HelpError) as caught:
                ask(far, "norway", deadline_s)
            assert type(caught.value) is expected
        assert time.monotonic() - started_s < deadline_s + HUNG_S
        if name != "refused":  # whose port is closed now
            assert counts(base_url) == {"asked": 1, name: 1}
            assert requests.get(f"{base_url}/models", timeout=FAR_S).status_code == 200


@pytest.mark.parametrize("name", ["stray_reply", "other_reply", "closed_after"])
def test_no_reply_reaches_another_request(name: str) -> None:
    """All on one connection, as far as the client keeps it."""
    with faulty(expert(), fault=name) as base_url, contextlib.closing(backend_at(base_url)) as far:
        for word in ("norway", "peru", "chad", "mali"):
            # The connection may turn out to be closed only once the request is on its way.
            with contextlib.suppress(errors.Malformed, errors.ConnectionFailed):
                assert ask(far, word, FAR_S).text == reply_to(word)


def test_an_id_of_the_servers_own_is_no_mix_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collab.llm.faults._Handler.request_id", "req_of_the_server")
    with faulty(expert(), rate=0.0) as base_url, contextlib.closing(backend_at(base_url)) as far:
        assert ask(far, "peru", FAR_S).text == reply_to("peru")


def test_what_a_server_sent_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with (
        faulty(expert(), fault="half_head") as base_url,
        contextlib.closing(backend_at(base_url)) as far,
        pytest.raises(errors.Malformed),
    ):
        ask(far, "norway", FAR_S)
    assert not caplog.records


def test_a_closed_port_refuses_and_opens_again() -> None:
    def is_open() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=FAR_S).close()
        except ConnectionError:
            return False
        return True

    with faulty(expert(), fault="refused") as base_url:
        host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")
        assert is_open()
        with contextlib.closing(backend_at(base_url)) as far:
            with pytest.raises(errors.ConnectionFailed):
                ask(far, "norway", FAR_S)
            seen = []
            until_s = time.monotonic() + FAR_S
            while seen[-2:] != [False, True] and time.monotonic() < until_s:
                seen.append(is_open())
            assert seen[-2:] == [False, True]


@pytest.mark.parametrize("name", ["clock_ahead", "clock_behind"])
def test_the_pause_is_right_by_a_clock_that_is_wrong(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.cycle([0.0, 7200.0, -7200.0])
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + next(jumps))  # ours jumps besides
    with (
        faulty(expert(), fault=name) as base_url,
        contextlib.closing(backend_at(base_url)) as far,
        pytest.raises(errors.RateLimited) as caught,
    ):
        ask(far, "norway", FAR_S)
    assert caught.value.retry_after_s == 1.0


def test_deadlines_do_not_mind_a_clock_that_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, 7200.0, -7200.0])
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + next(jumps))
    with (
        faulty(expert(), fault="drip") as base_url,
        contextlib.closing(backend_at(base_url)) as far,
    ):
        started_s = time.monotonic()
        with pytest.raises(errors.TimedOut):
            ask(far, "norway", 0.5)
        assert 0.4 < time.monotonic() - started_s < HUNG_S


def test_a_server_that_does_not_read_is_a_time_out() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        contextlib.closing(backend_at(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")) as far,
        pytest.raises(errors.TimedOut),
    ):
        ask(far, "x" * 2**25, 0.5)  # far more than the sockets' buffers hold


def test_what_is_drawn_follows_from_seed_body_and_attempt() -> None:
    def drawn(seed: int, order: int = 1) -> list[str | None]:
        server = FaultyServer(expert(), host="127.0.0.1", port=0, fault=MIX, rate=0.5, seed=seed)
        with contextlib.closing(server.socket):
            bodies = [{"messages": str(index)} for index in range(30)][::order]
            attempts = [[server.draw(body) for body in bodies][::order] for _ in range(2)]
        return attempts[0] + attempts[1]

    assert drawn(0) == drawn(0) == drawn(0, order=-1)
    assert drawn(0) != drawn(1)
    assert drawn(0)[:30] != drawn(0)[30:]  # the second try is another draw
    assert 15 < sum(name is not None for name in drawn(0)) < 45


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux does")
def test_many_calls_under_all_faults_are_all_resolved_and_leave_nothing_open() -> None:
    gc.collect()
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    llm = default_config().llm
    llm.update({"cache": False, "backoff_s": 0.1, "deadline_s": DEADLINE_S})
    # Else a port that is closed for a moment may fail most calls at once, which tests little.
    llm.update({"concurrency": AT_ONCE, "circuit_failures": 0, "retry_budget": 0})
    with faulty(expert(), rate=0.2) as base_url:
        client = Client(backend_at(base_url, AT_ONCE), llm, {"ask_fact": "State it."})
        words = [f"land{index}" for index in range(CALLS)]
        futures = [client.submit(passed(HelpRequest("e", "ask_fact", word))) for word in words]
        replies = [future.result(timeout=60.0) for future in futures]
        counted, meters = counts(base_url), client.counters()
        client.close()
    answered = [
        (word, reply.text)
        for word, reply in zip(words, replies, strict=True)
        if reply.kind is not FeedbackKind.UNAVAILABLE
    ]
    assert all(text == f"capital of {word} = {word.upper()}" for word, text in answered)
    assert len(answered) + meters["failures"] == CALLS
    assert len(answered) > CALLS / 2  # most faults pass with a retry
    asked = counted.pop("asked")
    assert 0.1 * asked < sum(counted.values()) < 0.3 * asked
    assert len(counted) > len(FAULTS) / 2
    assert set(threading.enumerate()) <= threads
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fault=rest"], "error: --fault='rest' must be 'mix' or the name of a fault; did you "),
        (["--rate=2"], "error: --rate=2.0 must be a share in [0, 1]"),
        (["--config=no/such.py"], "error: --config=no/such.py: there is no such file"),
    ],
)
def test_mistakes_at_start_up_end_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("collab.llm.serve.task_backend", lambda *_: expert())
    assert refusal(main, [*arguments, "--port=0"], capsys).startswith(message)


def test_help_lists_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out.splitlines()
    for name, fault in FAULTS.items():
        assert sum(line.split() == [name, *fault.does.split()] for line in told) == 1


def test_the_campaign_tells_an_error_of_ours_from_a_servers() -> None:
    run = {
        "exit_status": 0,
        "statuses": {"ANSWERED": reading.EPISODES},
        "miscredited": 0,
        "client": {"failures/malformed": 3.0},
        "wall_s": 1.0,
        "waited_s": 0.0,
        "ended_s": 0.0,
        "peak_rss_mb": 100,
    }
    bug = {**run, "client": {"failures/internal_error": 1.0}}
    parts = {"free": [run], "training": {"html": run, "reset": bug}}
    assert reading.verdict("html", parts) == []
    assert reading.verdict("reset", parts) == ["ours"]
    (row,) = [row for row in reading.claims(parts) if "error of our own" in row["claim"]]
    assert (row["figure"], row["holds"]) == ("1 of 2: not reset", False)


def test_the_command_serves_until_interrupted_and_tells_what_it_did(tmp_path: Path) -> None:
    path, config = tmp_path / "mine.py", default_config()
    config.task.update({"train": 8, "validation": 2, "test": 2})
    runs.write_config(path, config)
    flags = ["--fault=status_500", "--rate=1", f"--data_dir={tmp_path}"]
    with started("collab.llm.faults", path, *flags) as server:
        assert server.said.startswith("serving status_500 at ")
        far = backend_at(server.base_url)
        with contextlib.closing(far), pytest.raises(errors.ServerFailed):
            ask(far, "norway", FAR_S)
        assert interrupted(server.child) == 'injected: {"status_500": 1}\n'


@pytest.mark.parametrize("fault", ["status_500", "retry_after", "clock_ahead", "drip"])
def test_a_wall_clock_that_jumps_moves_no_deadline_and_loses_no_reply(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By up to a day, at each look, and for the libraries below us too."""
    right, rng, looks = time.time, random.Random(0), []

    def jumping() -> float:
        looks.append(1)
        return right() + rng.uniform(-86_400.0, 86_400.0)

    monkeypatch.setattr(time, "time", jumping)
    deadline_s, slack_s = 1.5, 1.0  # a busy machine is slow; a jump would be hours
    llm = default_config().llm
    llm.update({"concurrency": 8, "cache": False, "deadline_s": deadline_s, "backoff_s": 0.01})
    llm.update({"requests_per_minute": 60_000, "circuit_failures": 0})
    with faulty(expert(), fault=fault, rate=0.2) as base_url:
        client = Client(backend_at(base_url, 8), llm, {"ask_fact": "State it."})
        started_s = time.monotonic()
        words = [f"land{index}" for index in range(24)]
        futures = [client.submit(passed(HelpRequest("e", "ask_fact", word))) for word in words]
        replies = [future.result(timeout=60.0) for future in futures]
        taken_s = time.monotonic() - started_s
        client.close()
    for word, reply in zip(words, replies, strict=True):
        assert reply.failure or reply.text == f"capital of {word} = {word.upper()}"
        assert 0.0 <= reply.latency_s < deadline_s + slack_s
    assert sum(reply.failure is None for reply in replies) >= 12
    assert taken_s < 24 / 8 * deadline_s + slack_s
    assert looks
