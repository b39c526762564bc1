"""A step of GRPO on 512 tokens a row: ours beside tunix's and one in torch.

`taskset -c 0 python -m experiments.bench.update` prints a table and writes results/update.json and
update.png. The network has SmolLM2-135M's shape, f32, random weights; of each row's 512 tokens the
policy wrote all but 64. Every step is a clipped ratio to the sampler, a KL to a reference, a
clipped norm and Adam. It is timed with the reference's forward pass, as an iteration needs it once,
and without, as an engine takes it that was given its log-probabilities. Ours has the help head and
its losses besides. The engines take turns; each row is a median of repeats after a round that
compiles. A process's peak is over all its steps so far, compilation included. What is not installed
is left out: pip install google-tunix torch==2.13.0 transformers
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from experiments.bench import peers, records

RESULTS = pathlib.Path(__file__).parent / "results" / "update.json"
STEP, GIVEN = "seconds of a step", "seconds of a step, reference given"
RATE, PEAK = "tokens a second", "GB of the process at its peak"
TEMPORARY = "GB of temporaries, as XLA plans"
ENGINES = (peers.OURS, "tunix", "transformers")


def figures(worker: peers.Worker, batch: int, length: int) -> dict[str, float]:
    """Of one step with the reference's forward pass and one without."""
    size = {"batch": batch, "length": length}
    step_s, given_s = (
        worker.call("update", **size, has_reference=has_reference)
        for has_reference in (True, False)
    )
    found = {STEP: step_s, GIVEN: given_s, RATE: batch * length / step_s, PEAK: worker.peak_gb()}
    if worker.name == peers.OURS:
        found[TEMPORARY] = worker.call("temporary_gb", **size, has_reference=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8], help="even")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with peers.workers(flags.engines) as workers:
        for batch in flags.batches:
            found = records.repeated(
                lambda n=batch: {one.name: figures(one, n, flags.length) for one in workers},
                flags.repeats,
            )
            more = records.rows_of(found, ours=peers.OURS, batch=batch)
            records.show(more)
            rows += more
    records.write(RESULTS, rows, repeats=flags.repeats, tokens_a_row=flags.length)
    records.bars(RESULTS.with_suffix(".png"), rows, (RATE, PEAK))


if __name__ == "__main__":
    main()
