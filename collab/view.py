"""Look at a run's episodes in the browser, with Inspect AI's viewer (pip install -e .[view]).

    python -m collab.view runs/quickstart

shows every boundary with its action probabilities, requests, replies, what left the machine and the
terms of the reward; private units stand in ⟦⟧, masked unless the run had log.private. A log holds
one strategy; its filter takes any score:

    wrong_though_asked            right_without_asking        leaked and not right
    status == "no_answer"         actions ~= "ask_fact"       reward < 0.2 and asks >= 2

The viewer listens on this machine only, sends nothing anywhere and is served from the package.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collab import episode_log

LOGS, SITE = Path("view", "logs"), Path("view", "site")  # in the run's folder


def write_logs(run: Path) -> list[Path]:
    """Turn the run's episodes into Inspect logs, one of each split and strategy; old ones go.

    Raises: ValueError where there are no episodes, or Inspect is not installed.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name in (episode_log.EVALUATION, episode_log.TRAINING):
        for episode in episode_log.read(run / episode_log.FOLDER / name):
            groups.setdefault((episode["split"], episode["strategy"]), []).append(episode)
    if not groups:
        raise ValueError(
            f"{run} has no episodes in {episode_log.FOLDER}/; name the --workdir of a run, or let "
            "python -m collab.main --mode=evaluate write those of its checkpoint"
        )
    try:
        from inspect_ai.log import write_eval_log

        from collab.eval_log import to_log
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the viewer needs the package {error.name}; pip install -e .[view]"
        ) from error
    folder = run / LOGS
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.eval"):
        old.unlink()
    now, paths = datetime.datetime.now(datetime.UTC), []
    for (split, strategy), episodes in groups.items():
        paths.append(folder / f"{split}_{strategy}.eval")
        log = to_log(episodes, run=run.resolve().name, created=now)
        write_eval_log(log, str(paths[-1].resolve()))
    return paths


def write_site(run: Path) -> Path:
    """The logs and the viewer as a folder for any web server of static files; an old one goes."""
    from inspect_ai.log import bundle_log_dir

    # Absolute: Inspect uploads what begins with "hf/".
    folder = (run / SITE).resolve()
    bundle_log_dir(str((run / LOGS).resolve()), str(folder), overwrite=True)
    return folder


def serve(run: Path, port: int) -> int:
    """Run Inspect's viewer on this machine until it is interrupted. Returns its exit status."""
    command = [sys.executable, "-m", "inspect_ai", "view", "start", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-dir", str((run / LOGS).resolve())]
    try:
        return subprocess.run(command, env=own_environment(os.environ), check=False).returncode
    except KeyboardInterrupt:
        return 0


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without Inspect's own settings, among them hooks that would be sent the logs."""
    return {key: value for key, value in environment.items() if not key.startswith("INSPECT_")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the logs, then serve them. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m collab.view",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="the --workdir of a run")
    parser.add_argument("--port", type=int, default=7575, help="of the viewer; default 7575")
    parser.add_argument("--write-only", action="store_true", help=f"only write RUN_DIR/{LOGS}/")
    parser.add_argument(
        "--site", action="store_true", help=f"write a static site to RUN_DIR/{SITE}/ instead"
    )
    flags = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        paths = write_logs(flags.run)
        print(f"{len(paths)} logs in {flags.run / LOGS}")
        if flags.site:
            folder = write_site(flags.run)
            print(f"static site in {folder}; python -m http.server -b 127.0.0.1 -d {folder}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if flags.site or flags.write_only else serve(flags.run, flags.port)


if __name__ == "__main__":
    sys.exit(main())
