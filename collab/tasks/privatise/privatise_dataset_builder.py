"""TFDS builder of wrapped problems: made from a base task's, array_record for random access.

`prepared` gives every pair of settings and base problems a folder of its own.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from collab.tasks import records
from collab.tasks.privatise.profile import Wrapper
from collab.types import Problem


class Builder(tfds.core.GeneratorBasedBuilder):
    """Writes the wrapped problems of one base task, split by split, in the base's order."""

    VERSION = tfds.core.Version("1.0.0")  # raise it whenever the same settings give other problems
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}

    def __init__(
        self, *, wrapper: Wrapper, splits: Mapping[str, Sequence[Problem]], **kwargs: Any
    ) -> None:
        """Take the builder's own arguments, who wraps, and the base problems by split."""
        self._wrapper, self._base_splits = wrapper, splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # Kept in order: data order is a function of (seed, step) alone.
        return self.dataset_info_from_configs(features=records.features(), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self._base_splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, problem in enumerate(self._base_splits[split]):
            yield index, records.to_record(self._wrapper.problem(split, problem))


def prepared(
    wrapper: Wrapper, splits: Mapping[str, Sequence[Problem]], *, digest: str, data_dir: str
) -> dict[str, records.Problems]:
    """Every split, prepared under `data_dir` on first use. digest: of settings and problems."""
    folder = pathlib.Path(data_dir) / f"privatise-{digest}"
    builder = Builder(
        wrapper=wrapper, splits=splits, data_dir=str(folder), file_format="array_record"
    )
    return records.prepared(builder, list(splits))
