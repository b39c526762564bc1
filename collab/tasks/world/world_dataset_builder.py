"""TFDS builder of the world task: generated, no download, array_record for random access.

`prepared` gives every `Settings` a folder of its own, named by their digest, so that data sets of
several settings stand side by side.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from collab.config import default_config
from collab.tasks import records
from collab.tasks.splits import SPLITS
from collab.tasks.world.entities import World
from collab.tasks.world.generate import Generator
from collab.tasks.world.schema import Settings


class Builder(tfds.core.GeneratorBasedBuilder):
    """Writes the three splits of one world."""

    VERSION = tfds.core.Version("1.3.0")  # raise it whenever the same settings give other problems
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.3.0": "Units say whether the question needs them.",
        "1.2.0": "The notes tell of one other person.",
        "1.1.0": "In the notes, values follow what they are the value of.",
        "1.0.0": "First release.",
    }

    def __init__(self, *, settings: Settings | None = None, **kwargs: Any) -> None:
        """Take the builder's own arguments and `settings`; None is the default config's."""
        self._settings = settings or Settings.of(default_config())
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # Kept in order: data order is a function of (seed, step) alone.
        return self.dataset_info_from_configs(features=records.features(), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        generator = Generator(World(self._settings))
        return {
            split: self._generate_examples(generator, split, getattr(self._settings, split))
            for split in SPLITS
        }

    def _generate_examples(
        self, generator: Generator, split: str, count: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(count):
            yield index, records.to_record(generator.problem(split, index))


def prepared(settings: Settings, data_dir: str) -> dict[str, records.Problems]:
    """Every split, prepared under `data_dir` on first use."""
    folder = pathlib.Path(data_dir) / f"world-{settings.digest}"
    builder = Builder(settings=settings, data_dir=str(folder), file_format="array_record")
    return records.prepared(builder, SPLITS)
