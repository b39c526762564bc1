"""Tokens a second that are read and written: ours beside tunix, transformers and llama.cpp.

`taskset -c 0 python -m experiments.bench.decode` prints a table and writes results/decode.json and
decode.png. The network has SmolLM2-135M's shape, f32, and one core is a fair comparison, since
every engine uses it whole. A prompt of 128 tokens is continued by 1 and by 128 tokens, drawn at
temperature 1; the difference is decoding, the former reading. Ours returns log-probabilities and
runs the help head and its features besides, tunix returns log-probabilities, the others tokens
only. The engines take turns; each row is a median of repeats. An engine that is not installed is
left out: pip install -e .[smollm2] google-tunix torch==2.13.0 transformers
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import Any

from experiments.bench import peers, records

RESULTS = pathlib.Path(__file__).parent / "results" / "decode.json"
PROMPT, NEW = 128, 128
WRITTEN, READ = "tokens written a second", "tokens read a second"
GREEDY = f"{peers.OURS}, greedy"


def rates(worker: peers.Worker, batch: int, *, greedy: bool = False) -> dict[str, float]:
    """Tokens a second of all rows together, written and read."""
    one_s, all_s = (
        worker.call("generate", batch=batch, prompt=PROMPT, new=new, greedy=greedy)
        for new in (1, NEW)
    )
    return {WRITTEN: batch * (NEW - 1) / (all_s - one_s), READ: batch * PROMPT / one_s}


def measured(workers: list[peers.Worker], batch: int) -> dict[str, dict[str, float]]:
    """By system; ours is measured greedy, too."""
    taken = {}
    for worker in workers:
        taken[worker.name] = rates(worker, batch)
        if worker.name == peers.OURS:
            taken[GREEDY] = rates(worker, batch, greedy=True)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=peers.PEERS, default=list(peers.PEERS))
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with peers.workers(flags.engines) as workers:
        for batch in flags.batches:
            found = records.repeated(functools.partial(measured, workers, batch), flags.repeats)
            more = records.rows_of(found, ours=peers.OURS, batch=batch)
            records.show(more)
            rows += more
    records.write(RESULTS, rows, repeats=flags.repeats)
    records.bars(RESULTS.with_suffix(".png"), rows, (WRITTEN, READ))


if __name__ == "__main__":
    main()
