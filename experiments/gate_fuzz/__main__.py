"""Whether a labelled private unit gets past the egress gate, looked for on the wire.

`python -m experiments.gate_fuzz` sends adversarial requests (the detector suite's obfuscations, a
seed of their own, several requests an episode) through gate and client to an HTTP server of this
file, which keeps every body. What arrived is searched for the units by code that shares nothing
with the detector. It writes results.json beside this file; NOTES.md reads the figures.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import http.server
import json
import pathlib
import re
import threading
from typing import Any

from collab.config import default_config
from collab.llm import make_backend
from collab.llm.client import Client
from collab.privacy.gate import Gate
from collab.progress import progress
from collab.report import git_commit
from collab.types import Exchange, HelpRequest, PrivateUnit
from experiments.detector_suite import obfuscations
from experiments.detector_suite.__main__ import Case, cases, processor

HERE = pathlib.Path(__file__).parent
SEED = 2  # 0 and 1 were looked at while the detector was written
KEY = re.compile(r"#(\d+)#")  # a request's number, by which the server knows it again
REPLY = {
    "choices": [{"message": {"role": "assistant", "content": "HINT: go on"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}


class Wire(http.server.ThreadingHTTPServer):
    """Keeps what arrives, by the number of the request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[int, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every POST alike."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        talk = "\n".join(message["content"] for message in json.loads(body)["messages"])
        assert isinstance(self.server, Wire)
        self.server.bodies[int(KEY.findall(talk)[-1])] = talk
        reply = json.dumps(REPLY).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def plain(text: str) -> str:
    """Lower case, every run of blanks one: all that the search on the wire forgives."""
    return " ".join(text.casefold().split())


def episode_of(case: Case, first: int, gate: Gate, client: Client) -> list[bool]:
    """Send a case's requests one after the other; whether each was let out."""
    _, units, texts = case
    labelled = [PrivateUnit(unit.text, unit.kind) for unit in units]
    history: list[Exchange] = []
    out = []
    for place, text in enumerate(texts):
        request = HelpRequest(str(first), "ask_fact", f"{text} #{first + place}#", tuple(history))
        screened = gate.screen(request, labelled)
        feedback = client.submit(screened).result()
        history.append(Exchange("ask_fact", screened.sent, feedback))
        out.append(not screened.is_blocked)
    return out


def fuzz(mode: str, count: int) -> dict[str, Any]:
    """Figures of at least `count` requests under one mode."""
    names = [made.__name__ for made in (*obfuscations.CLAIMED, *obfuscations.BEYOND)]
    claimed = {made.__name__ for made in obfuscations.CLAIMED}
    made = cases(-(-count // len(names)), SEED)
    wire = Wire()
    threading.Thread(target=wire.serve_forever, daemon=True).start()
    llm = default_config().llm
    llm.update({"base_url": wire.url, "model": "wire", "cache": False, "concurrency": 16})
    client = Client(make_backend("openai", llm), llm, {"ask_fact": "State it."})
    gate, firsts, total = Gate(mode), [], 0
    for _, _, texts in made:
        firsts.append(total)
        total += len(texts)
    let_out: dict[str, list[bool]] = collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor(16) as pool, progress(total, f"{mode}") as line:
        runs = [pool.submit(episode_of, case, first, gate, client)
                for case, first in zip(made, firsts, strict=True)]  # fmt: skip
        for case, run in zip(made, runs, strict=True):
            out = run.result()
            let_out[case[0]].append(all(out))
            line.update(len(out))
    client.close()
    wire.shutdown()
    wire.server_close()
    seen = 0
    for (_, units, texts), first in zip(made, firsts, strict=True):
        arrived = [plain(wire.bodies[at]) for at in range(first, first + len(texts))
                   if at in wire.bodies]  # fmt: skip
        seen += any(plain(unit.text) in talk for unit in units for talk in arrived)
    whole = {name: sum(out) for name, out in let_out.items()}
    return {
        "mode": mode,
        "requests": total,
        "episodes": len(made),
        "arrived": len(wire.bodies),
        "episodes_with_a_unit_in_plain_on_the_wire": seen,
        "episodes_of_claimed_forms": sum(len(let_out[name]) for name in claimed),
        "of_those_let_out_whole": sum(whole[name] for name in claimed),
        "let_out_whole_by_form": {name: whole[name] for name in names if whole[name]},
    }


def claims(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """No unit on the wire where the gate holds something back; some where it does not."""
    seen = "episodes_with_a_unit_in_plain_on_the_wire"
    return [
        {
            "claim": f"{run['mode']}: {'some' if run['mode'] == 'observe' else 'no'} unit is in "
            f"plain on the wire, of {run['requests']} requests (episodes)",
            "figure": run[seen],
            # None seen of n: the rule of three.
            "ci": None if run[seen] else [0.0, round(3 / run["episodes"], 6)],
            "seeds": [SEED],
            "holds": (run[seen] > 0) == (run["mode"] == "observe"),
        }
        for run in runs
    ]


def main() -> None:
    """Fuzz both modes that hold something back, and one that does not: there units must arrive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=100_000, help="about, in mode block; a tenth in the others"
    )
    count = parser.parse_args().requests
    counts = {"block": count, "mask": count // 10, "observe": count // 10}
    runs = [fuzz(mode, count) for mode, count in counts.items()]
    result = {
        "commit": git_commit(),
        "device": processor(),
        "seed": SEED,
        "claims": claims(runs),
        "runs": runs,
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for run in result["runs"]:
        print(json.dumps(run))


if __name__ == "__main__":
    main()
