"""Client CPU with 256 requests in flight: ours, and the same load through openai-python's client.

`python -m experiments.bench.client_cpu` (about two minutes; `pip install -e .[bench]`) prints a
table and writes client_cpu.json. A server in another process replies after 0.5 to 1.5 s, one second
on average. Each measurement has a client process of its own; the two clients take turns. Counted is
the CPU time of that process, after a first round that opens connections and starts threads. Ours
is the whole client: prompts, limits, budgets, parsing; theirs is the call alone, without retries.
NOTES.md reads the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import random
import subprocess
import sys
import time
from typing import Any

from collab.config import default_config
from collab.llm import prompts
from collab.llm.client import Client
from collab.llm.openai import OpenAIBackend
from collab.privacy.gate import Gate
from collab.report import git_commit
from collab.types import HelpRequest
from experiments.bench import records

RESULTS = pathlib.Path(__file__).with_suffix(".json")
IN_FLIGHT, ROUNDS, REPEATS = 256, 12, 5
LATENCY_S, SPREAD = 1.0, 0.5
REQUEST_CHARACTERS, REPLY_CHARACTERS = 1000, 200
INSTRUCTION = "State the one fact that is asked for, nothing else."
KEY = "sk-bench"
OURS, THEIRS = "collab", "openai-python"


# --- the server ----------------------------------------------------------------------------


class Replies(asyncio.Protocol):
    """Says the same to every request, after its latency; parses no more than it must."""

    reply = b""
    rng = random.Random(0)

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            whole = end + 4 + int(length or 0)
            if len(self.buffer) < whole:
                return
            self.buffer = self.buffer[whole:]
            latency_s = LATENCY_S * self.rng.uniform(1 - SPREAD, 1 + SPREAD)
            asyncio.get_running_loop().call_later(latency_s, self.say)

    def say(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.reply)


async def serve() -> None:
    content = json.dumps({"kind": "answer", "text": "r" * REPLY_CHARACTERS})
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 500, "completion_tokens": 50, "total_tokens": 550}
    shared = {"id": "x", "object": "chat.completion", "created": 1, "model": "big"}
    body = json.dumps({**shared, "choices": [choice], "usage": usage}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    Replies.reply = f"{head}\r\n\r\n".encode() + body
    server = await asyncio.get_running_loop().create_server(
        Replies, "127.0.0.1", 0, backlog=4 * IN_FLIGHT
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- the clients ---------------------------------------------------------------------------


def request(index: int) -> HelpRequest:
    return HelpRequest(f"e{index}", "ask_fact", "u" * REQUEST_CHARACTERS + str(index), helper="big")


def load_ours(base_url: str) -> dict[str, float]:
    llm = default_config().llm
    llm.update({"cache": False, "concurrency": IN_FLIGHT, "model": "big", "base_url": base_url})
    backend = OpenAIBackend(
        base_url=base_url,
        model="big",
        key=KEY,
        key_env="",
        temperature=0.0,
        concurrency=IN_FLIGHT,
    )
    client, gate = Client(backend, llm, {"ask_fact": INSTRUCTION}), Gate("off")

    def ask(count: int) -> None:
        futures = [client.submit(gate.screen(request(index), ())) for index in range(count)]
        if any(future.result().failure for future in futures):
            raise RuntimeError("a request failed")

    ask(IN_FLIGHT)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    ask(IN_FLIGHT * ROUNDS)
    found = figures(time.perf_counter() - started_s, time.process_time() - cpu_s)
    client.close()
    return found


def load_theirs(base_url: str) -> dict[str, float]:
    import openai

    async def ask(client: Any, first: int, count: int) -> None:
        for index in range(first, first + count):
            talk = prompts.messages(request(index), INSTRUCTION)
            reply = await client.chat.completions.create(
                model="big",
                messages=[{"role": m.role, "content": m.content} for m in talk],
                max_tokens=64,
                temperature=0.0,
            )
            prompts.parse_feedback(reply.choices[0].message.content)

    async def load() -> dict[str, float]:
        client = openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=30.0)
        await asyncio.gather(*(ask(client, i, 1) for i in range(IN_FLIGHT)))
        started_s, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.gather(*(ask(client, i * ROUNDS, ROUNDS) for i in range(IN_FLIGHT)))
        found = figures(time.perf_counter() - started_s, time.process_time() - cpu_s)
        await client.close()
        return found

    return asyncio.run(load())


def figures(wall_s: float, cpu_s: float) -> dict[str, float]:
    count = IN_FLIGHT * ROUNDS
    return {
        "cpu_cores": cpu_s / wall_s,
        "cpu_ms_per_request": cpu_s / count * 1e3,
        "requests_per_s": count / wall_s,
    }


CLIENTS = {OURS: load_ours, THEIRS: load_theirs}


# --- turns ---------------------------------------------------------------------------------


def measured(system: str, base_url: str) -> dict[str, float]:
    """One measurement, in a fresh process."""
    command = [sys.executable, "-m", "experiments.bench.client_cpu", "--load", system, base_url]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.client_cpu")
    parser.add_argument("--load", nargs=2, metavar=("SYSTEM", "URL"), help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        asyncio.run(serve())
        return
    if flags.load:
        system, base_url = flags.load
        print(json.dumps(CLIENTS[system](base_url)))
        return
    systems = list(CLIENTS)
    if importlib.util.find_spec("openai") is None:
        systems.remove(THEIRS)
        print("openai is not installed (pip install -e .[bench]): ours alone is measured")
    command = [sys.executable, "-m", "experiments.bench.client_cpu", "--serve"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        base_url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        repeats = [{name: measured(name, base_url) for name in systems} for _ in range(REPEATS)]
    finally:
        server.terminate()
        server.wait()
    rows = records.rows_of(repeats, ours=OURS, batch=IN_FLIGHT)
    records.show(rows)
    versions = {THEIRS: importlib.metadata.version("openai")} if THEIRS in systems else {}
    content = {
        "rows": rows,
        "rounds": ROUNDS,
        "repeats": REPEATS,
        "latency_s": [LATENCY_S * (1 - SPREAD), LATENCY_S * (1 + SPREAD)],
        "characters": [REQUEST_CHARACTERS, REPLY_CHARACTERS],
        "versions": versions,
        "python": platform.python_version(),
        "device": f"{platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "commit": git_commit(),
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
