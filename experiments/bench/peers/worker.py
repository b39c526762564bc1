"""The process of one engine: a call a line on stdin, its seconds or its answer a line on stdout."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time


def main() -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, name = sys.argv[1].split(":")
    engine = getattr(importlib.import_module(module), name)()
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            began = time.perf_counter()
            told = getattr(engine, method)(**arguments)
            seconds = time.perf_counter() - began
            answer = {"told": seconds if told is None else told}
        # Whatever an engine can't do is told to the benchmark.
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
