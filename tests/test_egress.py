"""Every path to a helper leads through the gate: by syntax trees, in the engine, on the wire."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from collab import tasks
from collab.assembly import assemble
from collab.evaluate import Candidate, Evaluator
from collab.llm import Completion
from collab.llm.scripted import ScriptedBackend
from collab.llm.serve import serving
from collab.privacy import audit
from collab.privacy.detector import Detector
from collab.rewards import score
from collab.rollout.episodes import Job
from collab.run import prepare
from collab.strategies import Setting
from collab.types import FIRST_REQUEST_ID, Episode, FeedbackKind, PrivateUnit, Problem, Status
from fake_llm import JudgeBackend

pytestmark = pytest.mark.usefixtures("quick")

ROOT = Path(__file__).parents[1]
UNIT = PrivateUnit("elm", "clinic")
PROBLEM = Problem("p", "who leads elm ?", ("x",), notes="elm", units=(UNIT,))
CLEAN = Problem("q", "who leads it ?", ("x",), notes="elm", units=(UNIT,))


def calls(name: str) -> set[str]:
    """Modules of ours that call something of that name, or a method so called."""
    found = set()
    for path in (ROOT / "collab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func
                title = called.attr if isinstance(called, ast.Attribute) else ""
                title = called.id if isinstance(called, ast.Name) else title
                if title == name:
                    found.add(path.relative_to(ROOT / "collab").as_posix())
    return found


# --- architecture --------------------------------------------------------------------------


def test_only_the_sender_and_what_wraps_a_backend_ask_one() -> None:
    """serve, faults and injection are helpers; two ask at start-up, with words of their own."""
    assert calls("complete") <= {
        "llm/sender.py", "llm/replay.py", "llm/openai.py", "llm/serve.py", "llm/faults.py",
        "llm/injection.py", "llm/local.py",
    }  # fmt: skip
    assert "llm/sender.py" in calls("complete")


def test_only_the_client_makes_a_sender_and_only_the_gate_a_screened_request() -> None:
    assert calls("Sender") == {"llm/client.py"}
    assert calls("Screened") == {"privacy/gate.py"}


def test_what_passes_an_open_gate_stays_or_is_for_the_judge() -> None:
    """Two clients stand behind gates that let everything pass.

    The teacher of the cold start is in this process. A judge is asked whether a text gives private
    units away, and can't be without being shown them. So its address must be on this machine unless
    `may_leave_machine` is set (test_config.py), and no proxy may lie between (test_judge.py). It
    asks for nothing but verdicts, of episodes that are over.
    """
    assert calls("Client") == {"assembly.py", "privacy/judge.py"}
    assert calls("Gate") == {"assembly.py", "rollout/engine.py", "privacy/judge.py"}
    assert calls("screen") == {
        "assembly.py", "evaluate.py", "llm/probe.py", "rollout/flight.py", "privacy/judge.py",
    }  # fmt: skip
    assert calls("verdicts") == {"privacy/panel.py"}
    assert calls("judged") == {"train.py", "solve_rate.py", "evaluate.py"}


def test_only_the_transport_opens_connections() -> None:
    """Servers listen; nothing else of ours may reach out."""
    users = set()
    for path in (ROOT / "collab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & {"requests", "urllib3", "http", "socket"}:
                users.add(path.relative_to(ROOT / "collab").as_posix())
    assert users <= {
        "llm/clocked.py", "llm/transport.py", "llm/serve.py", "llm/faults.py",
        "llm/fault_table.py",
    }  # fmt: skip
    assert calls("pool_to") == calls("urlopen") == {"llm/transport.py"}


# --- engine and evaluation, to a server that keeps what it gets ------------------------------


class Listening(ScriptedBackend):
    """Keeps every text that arrives, replies with the last word of the request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard: list[str] = []

    def complete(self, messages: Any, **kwargs: Any) -> Completion:
        self.heard.append("\n".join(message.content for message in messages))
        return Completion(f"HINT: at {messages[-1].content.split()[-2]}", 1, 1)


def episodes_of(config: Any, folder: Path, mode: str) -> tuple[list[Episode], list[str], list[str]]:
    """ask_first of a question that names the unit, and of one that doesn't, then the whole notes.

    Returns them with what the helper heard, and what the judge did.
    """
    judge = JudgeBackend(lambda unit, request: False)
    task = tasks.make_task(config, str(folder / "data"))
    backend = Listening.from_config(config.llm, knowledge=task.knowledge, seed=0)
    with serving(backend) as url, serving(judge) as judge_url:
        config.llm.update({"backend": "openai", "base_url": url, "model": "scripted"})
        config.privacy.judge.update(
            {"mode": "log", "backend": "openai", "base_url": judge_url, "model": "judge"}
        )
        config.privacy.gate = mode
        assembled = assemble(config, str(folder))
        jobs = [
            Job(problem, (0, index, 0), "ask_first", Setting(FIRST_REQUEST_ID))
            for index, problem in enumerate((PROBLEM, CLEAN))
        ]
        made = assembled.engine.run(assembled.initial_params(), jobs, temperature=1.0)
        evaluator = Evaluator(assembled, assembled.initial_params())
        candidate = Candidate("llm_alone", Setting(FIRST_REQUEST_ID))
        alone = evaluator._llm_alone([PROBLEM], [("",)], candidate, lambda count: None)
        assembled.panel.judged([*made, *alone])
        assembled.close()
    told = [message.content for talk in judge.talks for message in talk]
    return [*made, *alone], backend.heard, told


@pytest.mark.parametrize(
    ("mode", "sent", "told", "leaks"),
    [
        ("observe", "who leads elm ?", "at elm", 1.0),
        ("mask", "who leads [clinic-1] ?", "at elm", 0.0),
        ("block", "", "", 0.0),
    ],
)
def test_what_the_gate_lets_out_comes_back_and_is_scored(
    tiny_config: Any, tmp_path: Path, mode: str, sent: str, told: str, leaks: float
) -> None:
    (first, clean, alone), heard, told_judge = episodes_of(tiny_config, tmp_path, mode)
    opening = first.segments[0]
    assert opening.feedback is not None
    assert (first.outgoing[0], opening.feedback.text) == (sent, told)
    assert score(first, tiny_config.reward).leak == leaks
    assert clean.outgoing[0] == "who leads it ?"
    wire = "\n".join(heard)
    assert Detector([UNIT]).leaked([wire]).any() == (mode == "observe")
    if mode == "block":
        assert opening.feedback.failure == "blocked"
        assert (alone.outgoing, alone.status) == ([""], Status.NO_ANSWER)
    else:
        assert alone.segments[0].feedback.kind is FeedbackKind.HINT
    outcomes = [line["outcome"] for line in audit.read(tmp_path / "audit.jsonl")]
    assert ("blocked" in outcomes) == (mode == "block")
    assert len(heard) == outcomes.count("sent")
    # The judge is no helper: it is shown the units, and on this machine no audit log says so.
    assert Detector([UNIT]).leaked(["\n".join(told_judge)]).any()


def test_a_judge_elsewhere_is_refused_before_anything_compiles(
    tiny_config: Any, tmp_path: Path
) -> None:
    tiny_config.privacy.judge.update(
        {"mode": "log", "backend": "openai", "base_url": "http://192.0.2.1/v1", "model": "judge"}
    )
    with pytest.raises(ValueError, match="is not on this machine, and a judge is sent the private"):
        prepare(tiny_config, str(tmp_path))


def test_an_open_gate_leaves_no_log(tiny_config: Any, tmp_path: Path) -> None:
    episodes_of(tiny_config, tmp_path, "off")
    assert not (tmp_path / "audit.jsonl").exists()


def test_nothing_leaves_where_the_helper_is_in_this_process(
    tiny_config: Any, tmp_path: Path
) -> None:
    assemble(tiny_config, str(tmp_path))
    assert not (tmp_path / "audit.jsonl").exists()
