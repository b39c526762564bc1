"""What a newcomer types: README's commands, .ci/run, and the lines that tpu/ hands to gcloud."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = (
    "pip install -e . && "
    "python -m collab.main --config=configs/quickstart.py --workdir=runs/quickstart"
)
TESTS = "pip install -e .[test] && python -m pytest"
MIB = 2**20


def commands() -> list[str]:
    """README's indented lines of code."""
    return [line.strip() for line in README.splitlines() if line.startswith("    ")]


# --- README and .ci/run --------------------------------------------------------------------


def test_readme_is_short_and_has_the_two_commands_once_each() -> None:
    assert len(README.splitlines()) <= 150
    assert [line for line in commands() if "&&" in line] == [QUICKSTART, TESTS]


def test_ci_runs_what_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    given = dict(re.findall(r"^(quickstart|tests)='(.*)'$", script, re.MULTILINE))
    assert given == {"quickstart": QUICKSTART, "tests": TESTS}
    assert script.rstrip().splitlines()[-1] == 'eval "$tests"'  # pytest's closing line is the last
    assert '<<<"${quickstart#* && }"' in script  # the run that is stopped and resumed


@pytest.mark.parametrize("path", [".ci/run", "tpu/setup.sh", "tpu/run.sh"])
def test_scripts_are_executable_and_parse(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / path)], check=True)


def test_readme_names_files_and_folders_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    named = re.findall(r"--config=(\S+\.py)|\b(?:python )(tpu/\S+\.py)", README)
    for path in filter(None, (name for pair in named for name in pair)):
        assert (ROOT / path).is_file(), path
    in_map = re.findall(r"(?<![\w/.])(?:collab|configs|tests|tpu|experiments)/[\w./]*", README)
    for path in in_map:
        if "NAME" not in path:
            assert (ROOT / path.rstrip(".")).exists(), path


def test_every_config_key_in_readme_is_in_the_schema() -> None:
    from collab.config import default_config, flatten

    known = flatten(default_config())
    for key in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)+)", README):
        assert key in known or any(name.startswith(f"{key}.") for name in known), key


def test_every_extra_is_named_where_a_user_meets_it() -> None:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    extras = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS"
    )
    assert isinstance(extras, ast.Dict)
    names = {ast.literal_eval(key) for key in extras.keys if key is not None}
    paths = [*ROOT.glob("collab/**/*.py"), *ROOT.glob("experiments/*.py"), *ROOT.glob("tpu/*.sh")]
    texts = [README, *(path.read_text(encoding="utf-8") for path in paths)]
    named = {name for text in texts for name in re.findall(r"-e '?\.\[(\w+)\]", text)}
    assert named - names == set(), "an extra that setup.py lacks"
    assert names - named == set(), "an extra that nobody is told of"


def test_no_file_of_the_repository_is_large() -> None:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.split("\0") if name]
    assert paths
    large = [str(path) for path in paths if path.is_file() and path.stat().st_size > 5 * MIB]
    assert large == []


# --- tpu/ ----------------------------------------------------------------------------------

AT = ["--name=ask-1", "--zone=us-central1-a"]
TRAIN = ["--config=configs/quickstart.py", "--workdir=runs/my run"]
PRINTED = {
    "create": (
        [*AT, "--type=v5litepod-8", "--spot", "--project=my-project"],
        "gcloud compute tpus queued-resources create ask-1 --zone=us-central1-a "
        "--project=my-project --node-id=ask-1 --accelerator-type=v5litepod-8 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot\n",
    ),
    "status": (
        AT,
        "gcloud compute tpus queued-resources describe ask-1 --zone=us-central1-a "
        "'--format=value(state.state)'\n",
    ),
    "run": (
        [*AT, "--", *TRAIN],
        "git archive --format=tar.gz --output=runs/collab.tar.gz HEAD\n"
        "gcloud compute tpus tpu-vm scp runs/collab.tar.gz ask-1:collab.tar.gz "
        "--zone=us-central1-a --worker=all\n"
        "gcloud compute tpus tpu-vm ssh ask-1 --zone=us-central1-a --worker=all "
        "'--command=mkdir -p collab && tar -xzf collab.tar.gz -C collab && cd collab && "
        "bash tpu/setup.sh && { nohup bash tpu/run.sh --config=configs/quickstart.py "
        "'\"'\"'--workdir=runs/my run'\"'\"' >> run.log 2>&1 < /dev/null & }'\n",
    ),
    "logs": (
        [*AT, "--worker=3", "--lines=20", "--follow"],
        "gcloud compute tpus tpu-vm ssh ask-1 --zone=us-central1-a --worker=3 "
        "'--command=tail -n 20 -F collab/run.log'\n",
    ),
    "delete": (
        AT,
        "gcloud compute tpus queued-resources delete ask-1 --zone=us-central1-a --force --quiet\n",
    ),
}


def launch(*arguments: str, path: str = "/nonexistent") -> subprocess.CompletedProcess[str]:
    """tpu/launch.py with `path` as the whole PATH: without a stand-in nothing can be started."""
    return subprocess.run(
        [sys.executable, "-S", str(ROOT / "tpu" / "launch.py"), *arguments],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def stand_ins(folder: pathlib.Path, *, failing: str = "no such word") -> pathlib.Path:
    """gcloud and git that write their arguments to `calls`, one JSON list a line."""
    for name in ("gcloud", "git"):
        program = folder / name
        program.write_text(
            f"#!{sys.executable} -S\nimport json, sys\n"
            f"open({str(folder / 'calls')!r}, 'a').write("
            f"json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
            f"sys.exit(7 if {failing!r} in sys.argv else 0)\n"
        )
        program.chmod(0o755)
    return folder / "calls"


@pytest.mark.parametrize("command", PRINTED)
def test_a_dry_run_prints_the_lines_and_starts_nothing(command: str) -> None:
    arguments, golden = PRINTED[command]
    done = launch(command, "--dry-run", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, golden, "")


@pytest.mark.parametrize("command", PRINTED)
def test_what_runs_is_what_a_dry_run_prints(command: str, tmp_path: pathlib.Path) -> None:
    arguments, golden = PRINTED[command]
    calls = stand_ins(tmp_path)
    done = launch(command, *arguments, path=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, golden)
    called = [json.loads(line) for line in calls.read_text().splitlines()]
    assert called == [shlex.split(line) for line in golden.splitlines()]


def test_the_first_failure_ends_a_launch_with_its_status(tmp_path: pathlib.Path) -> None:
    calls = stand_ins(tmp_path, failing="scp")
    done = launch("run", *PRINTED["run"][0], path=str(tmp_path))
    assert done.returncode == 7
    assert done.stderr == "error: gcloud ended with status 7\n"
    assert [json.loads(line)[-1] for line in calls.read_text().splitlines()] == [
        "HEAD", "--worker=all",
    ]  # fmt: skip


def test_a_missing_gcloud_is_one_clear_line() -> None:
    done = launch("delete", *AT)
    assert done.returncode == 1
    assert done.stderr == "error: gcloud is not on PATH; install it first\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["delete", "--name=Ask_1", "--zone=us-central1-a"], "--name='Ask_1' must match"),
        (["delete", "--name=a; reboot", "--zone=us-central1-a"], "--name='a; reboot' must match"),
        (["delete", "--name=--force", "--zone=us-central1-a"], "--name='--force' must match"),
        (["delete", "--name=", "--zone=us-central1-a"], "--name='' must match"),
        (["delete", "--name=ask-1", "--zone=us-central1"], "--zone='us-central1' must match"),
        (["delete", *AT, "--project=X"], "--project='X' must match"),
        (["create", *AT, "--type=v3-8"], "such as --type=v5litepod-8"),
        (["create", *AT, "--type=v4-8\n"], "must match"),
        (["create", *AT, "--type=v4-8", "--image=a b"], "--image='a b' must match"),
        (["logs", *AT, "--lines=0"], "--lines at least 1"),
        (["run", *AT], "--config=... among them"),
    ],
)
def test_ids_that_google_would_refuse_are_refused_here(
    arguments: list[str], complaint: str
) -> None:
    done = launch(*arguments, "--dry-run") if "run" != arguments[0] else launch(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert complaint in done.stderr


def host(tmp_path: pathlib.Path, statuses: list[int], **settings: str) -> dict[str, str]:
    """An environment in which tpu/run.sh runs a stand-in that exits with each status in turn."""
    (tmp_path / "statuses").write_text("\n".join(map(str, statuses)))
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f"cd {shlex.quote(str(tmp_path))}\n"
        'echo "$*" >> calls\n'
        'status=$(sed -n "$(wc -l < calls)p" statuses)\n'
        'if [[ $status == 999 ]]; then trap "exit 0" TERM; touch waiting; '
        "while :; do sleep 0.05; done; fi\n"
        "exit $status\n"
    )
    python.chmod(0o755)
    return {**os.environ, "PYTHON": str(python), "PAUSE_S": "0", **settings}


@pytest.mark.parametrize(
    ("statuses", "restarts", "runs", "status"),
    [
        ([0], "9", 1, 0),
        ([134, 137, 143, 0], "9", 4, 0),
        ([134, 1, 0], "9", 2, 1),  # an error of the run's own is not repeated
        ([137, 137, 137], "1", 2, 137),
    ],
)
def test_a_host_starts_again_what_was_killed(
    tmp_path: pathlib.Path, statuses: list[int], restarts: str, runs: int, status: int
) -> None:
    done = subprocess.run(
        [str(ROOT / "tpu" / "run.sh"), "--workdir=my run"],
        env=host(tmp_path, statuses, RESTARTS=restarts),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == status
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["-m collab.main --coordinator=auto --workdir=my run"] * runs


def test_a_host_that_is_told_to_stop_lets_the_run_save_and_ends(tmp_path: pathlib.Path) -> None:
    child = subprocess.Popen([str(ROOT / "tpu" / "run.sh")], env=host(tmp_path, [999, 0]))
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "waiting").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_the_notebook_is_small_empty_and_runs_the_main_command() -> None:
    path = ROOT / "tpu" / "colab.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert path.stat().st_size < 10_000
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    text = ["".join(cell["source"]) for cell in cells]
    assert "!" + QUICKSTART.split(" && ")[1] in text
    assert any("jax.devices()" in cell for cell in text)
    for cell in text:  # the rest is Python
        compile("\n".join(x for x in cell.splitlines() if not x.startswith("!")), "cell", "exec")


def test_the_notebook_asks_for_the_repository_first(tmp_path: pathlib.Path) -> None:
    """Where no repository is named, that is said before anything is installed."""
    notebook = json.loads((ROOT / "tpu" / "colab.ipynb").read_text(encoding="utf-8"))
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code = "\n".join(x for x in "".join(first["source"]).splitlines() if not x.startswith("!"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "REPOSITORY is empty" in done.stderr
