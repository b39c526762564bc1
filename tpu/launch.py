"""Ask for a TPU slice, run there, read the log, give the slice back; all through `gcloud`.

    python tpu/launch.py create --name=ask-1 --zone=us-central1-a --type=v5litepod-8 --spot
    python tpu/launch.py status --name=ask-1 --zone=us-central1-a
    python tpu/launch.py run --name=ask-1 --zone=us-central1-a -- \\
        --config=configs/quickstart.py --workdir=runs/quickstart --config.mesh.data=8
    python tpu/launch.py logs --name=ask-1 --zone=us-central1-a --follow
    python tpu/launch.py delete --name=ask-1 --zone=us-central1-a

--dry-run prints the exact command lines and runs none. `run` ships the last commit, not what is
uncommitted. What happens on a host is in setup.sh and run.sh. Standard library only.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARCHIVE = "runs/collab.tar.gz"  # git ignores runs/
ON_HOST = "collab"  # folder under the host's home
LOG = "run.log"

# Runtime image of each generation. Source: Google's table of TPU software versions.
IMAGES = {
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
PATTERNS = {
    "name": (r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "ask-1"),
    "zone": (r"[a-z]+-[a-z]+[0-9]+-[a-z]", "us-central1-a"),
    "project": (r"[a-z][-a-z0-9]{4,28}[a-z0-9]", "my-project"),
    "type": (rf"({'|'.join(IMAGES)})-[1-9][0-9]{{0,4}}", "v5litepod-8"),
    "image": (r"[a-z0-9]([-.a-z0-9]{0,62}[a-z0-9])?", "v2-alpha-tpuv5-lite"),
}


def create(flags: argparse.Namespace) -> list[list[str]]:
    """Queue a request for a slice; it is granted when there is one."""
    image = flags.image or IMAGES[flags.type.split("-")[0]]
    wanted = [f"--node-id={flags.name}", f"--accelerator-type={flags.type}"]
    wanted += [f"--runtime-version={image}", *(["--spot"] if flags.spot else [])]
    return [_gcloud("queued-resources", "create", flags, *wanted)]


def status(flags: argparse.Namespace) -> list[list[str]]:
    """The state of the request: ACTIVE when the slice can be used."""
    return [_gcloud("queued-resources", "describe", flags, "--format=value(state.state)")]


def run(flags: argparse.Namespace) -> list[list[str]]:
    """Copy the last commit to every host, install it, and start the run in the background."""
    given = shlex.join(flags.arguments)
    start = " && ".join(
        [
            f"mkdir -p {ON_HOST}",
            f"tar -xzf collab.tar.gz -C {ON_HOST}",
            f"cd {ON_HOST}",
            "bash tpu/setup.sh",
            f"{{ nohup bash tpu/run.sh {given} >> {LOG} 2>&1 < /dev/null & }}",
        ]
    )
    return [
        ["git", "archive", "--format=tar.gz", f"--output={ARCHIVE}", "HEAD"],
        _gcloud("tpu-vm", "scp", flags, "--worker=all", before=[ARCHIVE], to=":collab.tar.gz"),
        _gcloud("tpu-vm", "ssh", flags, "--worker=all", f"--command={start}"),
    ]


def logs(flags: argparse.Namespace) -> list[list[str]]:
    """The last lines of a host's log."""
    follow = " -F" if flags.follow else ""
    show = f"tail -n {flags.lines}{follow} {ON_HOST}/{LOG}"
    return [_gcloud("tpu-vm", "ssh", flags, f"--worker={flags.worker}", f"--command={show}")]


def delete(flags: argparse.Namespace) -> list[list[str]]:
    """Give the slice and the request back. What stands on its disks is gone."""
    return [_gcloud("queued-resources", "delete", flags, "--force", "--quiet")]


COMMANDS = {"create": create, "status": status, "run": run, "logs": logs, "delete": delete}


def _gcloud(
    group: str,
    verb: str,
    flags: argparse.Namespace,
    *options: str,
    before: Sequence[str] = (),
    to: str = "",
) -> list[str]:
    project = [f"--project={flags.project}"] if flags.project else []
    target = [*before, flags.name + to, f"--zone={flags.zone}", *project]
    return ["gcloud", "compute", "tpus", group, verb, *target, *options]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Flags of one command. Exits with status 2 and one line for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="launch.py"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, build in COMMANDS.items():
        sub = commands.add_parser(name, help=build.__doc__)
        sub.add_argument("--name", required=True, help="of the slice, yours to choose")
        sub.add_argument("--zone", required=True)
        sub.add_argument("--project", default="", help="default: gcloud's own setting")
        sub.add_argument("--dry-run", action="store_true", help="print the commands, run none")
        if name == "create":
            sub.add_argument("--type", required=True, help=f"GENERATION-SIZE; {', '.join(IMAGES)}")
            sub.add_argument("--image", default="", help="runtime version; default: by generation")
            sub.add_argument("--spot", action="store_true", help="cheaper, may be taken away")
        if name == "logs":
            sub.add_argument("--worker", type=int, default=0, help="which host; 0 prints the table")
            sub.add_argument("--lines", type=int, default=100)
            sub.add_argument("--follow", action="store_true")
        if name == "run":
            sub.add_argument("arguments", nargs="*", help="after --: flags of collab.main")
    flags = parser.parse_args(arguments)
    for key, (pattern, example) in PATTERNS.items():
        value = getattr(flags, key, None)  # not every command has every flag
        is_left_out = value is None or (value == "" and key in ("project", "image"))
        if not is_left_out and not re.fullmatch(pattern, value):
            parser.error(f"--{key}={value!r} must match {pattern}; such as --{key}={example}")
    if flags.command == "logs" and (flags.worker < 0 or flags.lines < 1):
        parser.error("--worker must be 0 or more and --lines at least 1")
    if flags.command == "run" and not any(a.startswith("--config=") for a in flags.arguments):
        parser.error("run needs the flags of collab.main after --, --config=... among them")
    return flags


def main(arguments: Sequence[str]) -> int:
    """Print or run the commands in order; the status of the first that fails."""
    flags = parse(arguments)
    commands = COMMANDS[flags.command](flags)
    for command in commands:
        print(shlex.join(command), flush=True)
        if flags.dry_run:
            continue
        (ROOT / ARCHIVE).parent.mkdir(exist_ok=True)
        try:
            result = subprocess.run(command, cwd=ROOT, check=False).returncode
        except FileNotFoundError:
            print(f"error: {command[0]} is not on PATH; install it first", file=sys.stderr)
            return 1
        if result:
            print(f"error: {command[0]} ended with status {result}", file=sys.stderr)
            return result
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
