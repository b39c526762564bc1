"""What must never be written: the API key anywhere at all, private text outside its own files.

One run over a socket at log level debug: training, evaluation, a server that is down, one that
quotes the key in all it says, a batch that is not finite. Then every byte that is left is searched.
"""

from __future__ import annotations

import base64
import gzip
import http.server
import io
import json
import logging
import re
import socket
import sqlite3
import threading
import traceback
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest
import tensorstore

import runs
from collab import episode_log, run, tasks
from collab.assembly import assemble
from collab.llm.faults import faulty
from collab.llm.scripted import ScriptedBackend
from collab.llm.serve import serving
from collab.types import Problem
from compiling import compiled_once
from fake_llm import passed, request

KEY = "sk-Zq7/+%=uncommon~Secret_42"
VARIABLE = "COLLAB_TEST_KEY"


def forms(secret: str) -> dict[str, bytes]:
    """How a secret may stand in a file, by name."""
    raw = secret.encode()
    found = {
        "plain": raw,
        "reversed": raw[::-1],
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "percent": urllib.parse.quote(secret, safe="").encode(),
        "plus": urllib.parse.quote_plus(secret).encode(),
        "utf-16": secret.encode("utf-16-le"),
        "utf-32": secret.encode("utf-32-le"),  # as numpy keeps text, and as byte tokens
        "json": json.dumps(secret)[1:-1].encode(),
        "json with slashes": json.dumps(secret)[1:-1].replace("/", "\\/").encode(),
        "repr": repr(secret)[1:-1].encode(),
    }
    for shift in range(3):  # base64 of a text that holds it, wherever it begins
        for name, encode in (("base64", base64.b64encode), ("web", base64.urlsafe_b64encode)):
            coded = encode(b"x" * shift + raw + b"x" * (-(shift + len(raw)) % 3))
            found[f"{name} at {shift}"] = coded[4 if shift else 0 : -4]
    return found


def test_the_forms_are_found_in_what_holds_them() -> None:
    """The search is worth something."""
    for before in ("", "a", "Bearer ", "user:"):
        coded = base64.b64encode(f"{before}{KEY}, and more".encode())
        assert any(form in coded for form in forms(KEY).values())
    assert forms(KEY)["percent"] in urllib.parse.urlencode({"key": KEY}).encode()


# --- every byte of a folder ------------------------------------------------------------------


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file, and of all that is packed into one."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            if (path / "manifest.ocdbt").exists():
                yield from _arrays(path)
            continue
        name, data = str(path.relative_to(folder)), path.read_bytes()
        yield f"{name} (name)", name.encode()
        yield name, data
        if data[:2] == b"\x1f\x8b":
            yield f"{name} (unpacked)", gzip.decompress(data)
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member in archive.namelist():
                    yield f"{name}/{member}", archive.read(member)
        if data[:15] == b"SQLite format 3":
            with sqlite3.connect(path) as connection:  # reads the log beside it, too
                yield f"{name} (dump)", "\n".join(connection.iterdump()).encode()


def _arrays(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What an Orbax checkpoint keeps: keys and values of the store, and arrays unpacked."""
    base = {"driver": "ocdbt", "base": f"file://{folder.absolute()}/"}
    store = tensorstore.KvStore.open(base).result()
    for key in store.list().result():
        name = key.decode()
        yield f"{folder.name}/{name} (name)", key
        yield f"{folder.name}/{name}", store.read(key).result().value
        if name.endswith("/.zarray"):
            spec = {"driver": "zarr", "kvstore": {**base, "path": name.removesuffix(".zarray")}}
            array = tensorstore.open(spec).result().read().result()
            yield f"{folder.name}/{name} (array)", np.asarray(array).tobytes()


def test_every_packing_is_opened(tmp_path: Path) -> None:
    """Each is written with the key, and found."""
    (tmp_path / "a.gz").write_bytes(gzip.compress(KEY.encode()))
    np.savez_compressed(tmp_path / "b.npz", text=np.array([KEY]))
    connection = sqlite3.connect(tmp_path / "c.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE said (text)")
    connection.execute("INSERT INTO said VALUES (?)", [KEY])
    connection.commit()
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": f"file://{tmp_path}/d/", "path": "leaf"},
        "metadata": {"compressor": {"id": "zstd", "level": 9}, "shape": [99], "dtype": "|u1"},
    }
    array = tensorstore.open(spec, create=True).result()
    array[: len(KEY)].write(np.frombuffer(KEY.encode(), np.uint8)).result()
    holders = {
        name.split("/")[0].split()[0]
        for name, data in contents(tmp_path)
        if any(form in data for form in forms(KEY).values())
    }
    connection.close()
    assert holders >= {"a.gz", "b.npz", "c.sqlite", "d"}


# --- a server that tells all it knows ----------------------------------------------------------


class Parrot(http.server.BaseHTTPRequestHandler):
    """Quotes the key wherever a reply has room, in another wrong way each time."""

    protocol_version = "HTTP/1.1"
    models: tuple[str, ...] = ()
    turn = 0

    def do_GET(self) -> None:
        names = [*self.models, KEY]
        self.say(200, {"object": "list", "data": [{"id": name} for name in names]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).turn += 1
        wrong = {"message": f"Incorrect API key provided: {KEY}", "code": KEY, "type": KEY}
        message = {"role": "assistant", "content": f"your key is {KEY}"}
        ways: list[tuple[int, Any]] = [
            (500, {"error": wrong}),
            (200, KEY),
            (200, {"choices": [{"message": message}], "usage": {KEY: KEY}}),
            (302, {"error": wrong}),
            (429, {"error": wrong}),
            (200, {"choices": KEY}),
            (404, {"error": wrong}),
            (400, {"error": {**wrong, "message": f"context length of {KEY}"}}),
        ]
        # At last it refuses for good, as a server does whose keys are changed in mid-run.
        status, body = ways[self.turn - 1] if self.turn <= len(ways) else (401, {"error": wrong})
        self.say(status, body)

    def say(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status, KEY)
        self.send_header("Content-Length", str(len(data)))
        for name in ("Location", "WWW-Authenticate", "Set-Cookie", "X-Request-Id", "Retry-After"):
            self.send_header(name, f"https://{KEY}@127.0.0.1/{KEY}")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """It is not part of the run."""


def parrot(models: tuple[str, ...]) -> http.server.ThreadingHTTPServer:
    handler = type("ParrotOf", (Parrot,), {"models": models, "turn": 0})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


# --- the run -------------------------------------------------------------------------------------


class Left:
    """What a run leaves: its folder, and all that it said (output, log, errors)."""

    def __init__(self, workdir: Path, problems: list[Problem]) -> None:
        self.workdir, self.problems = workdir, problems
        self.log = io.StringIO()
        self.output = ""
        self.errors: list[str] = []

    def note(self, error: BaseException) -> None:
        told = traceback.format_exception(error)
        self.errors += [str(error), repr(error), repr(vars(error)), "".join(told)]


def config_of(folder: Path) -> ml_collections.ConfigDict:
    config = runs.small_config()
    config.cold_start.steps, config.rl.iterations = 2, 2
    config.evaluate.strategies = ("learned", "llm_alone")
    config.log.update({"tensorboard": True, "samples_every": 1, "samples": 8})
    config.task.data_dir = str(folder / "data")
    config.llm.update({"backend": "openai", "replay": "replay_or_call", "circuit_failures": 0})
    return config


@pytest.fixture(scope="module")
def left(
    request: pytest.FixtureRequest, compiled: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Left]:
    folder = tmp_path_factory.mktemp("secrets")
    capture = request.getfixturevalue("capfd_of_module")
    config = config_of(folder)
    task = tasks.make_task(config, config.task.data_dir)
    found = Left(
        folder / "run", [*task.problems("train"), *task.problems("validation"),
                         *task.problems("test")],
    )  # fmt: skip
    handler = logging.StreamHandler(found.log)
    root, before = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch, compiled_once(compiled):
            monkeypatch.setenv(VARIABLE, KEY)
            config.llm.api_key_env = VARIABLE
            backend = ScriptedBackend.from_config(config.llm, knowledge=task.knowledge, seed=0)
            key_file = tmp_path_factory.mktemp("mounted") / "key"  # where a user keeps it
            key_file.write_text(f"{KEY}\n")
            _run_it(found, config, backend, key_file)
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    found.output = capture()
    yield found


@pytest.fixture(scope="module")
def capfd_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Collects what is written to stdout and stderr, by C code as well."""
    from _pytest.capture import FDCapture

    captures = [FDCapture(1), FDCapture(2)]
    for capture in captures:
        capture.start()
    try:
        yield lambda: "".join(capture.snap() for capture in captures)
    finally:
        for capture in captures:
            capture.done()


def _run_it(
    found: Left, config: ml_collections.ConfigDict, backend: ScriptedBackend, key_file: Path
) -> None:
    """All that a run does, and all that can go wrong with it."""
    workdir, llm = str(found.workdir), config.llm
    with serving(backend, key=KEY) as url:
        llm.base_url = url
        run.prepare(config, workdir)
        run.train(config, workdir, "")
        # The other way to give a key.
        llm.update({"api_key_env": "", "api_key_file": str(key_file)})
        run.evaluate(config, workdir, "")
        # A batch that blows up: beside the run, with its vocabulary.
        hot = config.copy_and_resolve_references()
        hot.cold_start.update({"learning_rate": 1e30, "steps": 4})
        run.prepare(hot, str(found.workdir / "hot"))
        with pytest.raises(FloatingPointError) as caught:
            run.train(hot, str(found.workdir / "hot"), "")
        found.note(caught.value)
    with pytest.raises(ValueError, match="no reply") as down:
        run.evaluate(config, workdir, "")
    found.note(down.value)
    with faulty(backend) as url:  # one that asks for no key, and breaks every rule
        llm.base_url = url
        assembly = assemble(config, workdir)
        for index in range(60):
            assembly.client.submit(passed(request(f"{index}", "one_hop"))).result()
        found.errors += [repr(assembly), repr(assembly.client), repr(assembly.backend)]
        assembly.close()
    server = parrot(backend.helper_names)
    llm.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    run.evaluate(config, workdir, "")  # what is recorded is replayed
    assembly = assemble(config, workdir)
    said = [
        assembly.client.submit(passed(request(f"new {index}", "one_hop"))).result()
        for index in range(12)
    ]
    found.errors += [repr(reply) for reply in said]
    assert said[-1].failure == "helper_down"
    assembly.close()
    llm.helpers = {"absent": {"hops": 1}}
    with pytest.raises(ValueError, match="no such model") as unknown:
        assemble(config, workdir)
    found.note(unknown.value)
    server.shutdown()
    server.server_close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        llm.base_url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
    with pytest.raises(ValueError) as refused:
        assemble(config, workdir)
    found.note(refused.value)


# --- the search ----------------------------------------------------------------------------------


def test_the_run_has_written_all_there_is_to_search(left: Left) -> None:
    """Else the search says nothing."""
    names = {path.name for path in left.workdir.rglob("*")}
    assert {
        "audit.jsonl", "config.json", "evaluation.json", "metrics.jsonl", "replay.sqlite",
        "samples.txt", "spend.jsonl", "tensorboard", "plots", "hot", "training.jsonl",
        "evaluation.jsonl.gz",
    } <= names  # fmt: skip
    assert any(name.startswith("bad_batch_") for name in names)
    packed = [name for name, _ in contents(left.workdir) if name.endswith("(array)")]
    assert len(packed) > 50
    log = left.log.getvalue()
    assert "POST /v1/chat/completions" in log  # of a library's debug lines
    assert "the helper is down for good" in log
    assert "> learned " in left.output
    assert len(left.errors) > 20


def test_the_key_is_nowhere(left: Left) -> None:
    wanted = forms(KEY)
    searched = [
        *contents(left.workdir.parent),
        ("output", left.output.encode()),
        ("log", left.log.getvalue().encode()),
        *((f"error {index}", text.encode()) for index, text in enumerate(left.errors)),
    ]
    holders = [
        (where, form) for where, data in searched for form, text in wanted.items() if text in data
    ]
    assert holders == []


def test_a_key_that_a_reply_quotes_is_starred_in_the_replay_file(left: Left) -> None:
    with sqlite3.connect(left.workdir / "replay.sqlite") as connection:
        rows = connection.execute("SELECT text FROM exchanges WHERE text LIKE 'your key is%'")
        assert rows.fetchall() == [("your key is ***",)]


# Files that private text belongs into, and why; nothing else may hold any.
EXEMPT = {
    "config.json": "settings, in which a word of the world may be a value",
    "data": "the questions themselves, as TFDS keeps them",
    "tokenizer": "its vocabulary was learned from the task's texts",
    "replay.sqlite": "the requests as they were sent, which is what it is for",
    "checkpoints": "parameters, trained on these very notes; its records hold no text",
    "samples.txt": "looked at by the next test, since one user's unit may be another's question",
    "episodes": "the same, by the test after it",
}


def test_no_private_unit_is_in_logs_metrics_or_output(left: Left) -> None:
    units = {unit.text for problem in left.problems for unit in problem.units}
    assert len(units) > 30
    pattern = re.compile(rb"(?i)\b(?:" + b"|".join(re.escape(u.encode()) for u in units) + rb")\b")
    assert pattern.search(left.problems[0].notes.encode())
    searched = [
        (where, data)
        for where, data in contents(left.workdir)
        if not any(part.split(" ")[0].startswith(tuple(EXEMPT)) for part in where.split("/"))
        and not where.startswith("state/")  # of a checkpoint
    ]
    assert {"audit.jsonl", "metrics.jsonl", "evaluation.json"} <= {where for where, _ in searched}
    searched += [
        ("output", left.output.encode()),
        ("log", left.log.getvalue().encode()),
        *(("error", text.encode()) for text in left.errors),
    ]
    holders = [(where, found[0]) for where, data in searched if (found := pattern.search(data))]
    assert holders == []


def test_samples_show_no_unit_of_their_own_user(left: Left) -> None:
    text = (left.workdir / "samples.txt").read_text()
    blocks = re.split(r"\n\n(?:=== .* ===\n)?", text.strip())
    by_notes = {kind for problem in left.problems for kind in (u.kind for u in problem.units)}
    assert len(blocks) >= 8 and by_notes
    checked = 0
    for block in blocks:
        asked = re.search(r"^question  (.*)$", block, re.MULTILINE)
        assert asked
        for problem in left.problems:
            if problem.question == asked[1]:
                checked += 1
                assert [u.kind for u in problem.units if u.text in block.lower()] == []
        assert re.search(r"^notes +.*\[\w", block, re.MULTILINE)
    assert checked >= 4


def test_episodes_show_no_unit_of_their_own_user(left: Left) -> None:
    by_question = {problem.question: problem for problem in left.problems}
    for name in ("training.jsonl", "evaluation.jsonl.gz"):
        checked = 0
        for episode in episode_log.read(left.workdir / "episodes" / name):
            assert not episode["is_private"] and "[" in episode["notes"]
            if problem := by_question.get(episode["question"]):
                checked += 1
                said = json.dumps(episode).lower()
                assert [unit.kind for unit in problem.units if unit.text in said] == []
        assert checked >= 4, name
