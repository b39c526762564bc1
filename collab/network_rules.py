"""What a config may ask of the network: rules that span its keys, for `collab.rules`."""

from __future__ import annotations

from typing import Any

from collab import naming
from collab.types import FEATURES, PROJECTIONS


def require(holds: bool, message: str) -> None:
    """Raise ValueError with the message unless it holds."""
    if not holds:
        raise ValueError(message)


def check_network(config: Any) -> None:
    """Check what spans keys of the network. Raises: ValueError naming the fix."""
    _check_lora(config.model.lora)
    _check_head(config)


def _check_lora(lora: Any) -> None:
    for name in lora.targets:
        naming.check("model.lora.targets: ", name, PROJECTIONS)
    require(
        lora.rank == 0 or len(lora.targets) > 0,
        f"model.lora.targets=() with model.lora.rank={lora.rank} adapts no matrix; try "
        "model.lora.targets=\"('query', 'value')\", or model.lora.rank=0",
    )


def _check_head(config: Any) -> None:
    """Features have names; control tokens can't be fitted alone, and read none."""
    model, cold = config.model, config.cold_start
    for name in model.features:
        naming.check("model.features: ", name, FEATURES)
    if model.head != "tokens":
        return
    require(
        cold.label_steps == 0,
        f"cold_start.label_steps={cold.label_steps} fit a head of its own to the labels, and "
        "model.head='tokens' has none; set cold_start.label_steps=0, or model.head='head'",
    )
    require(
        len(model.helper_features) == 0,
        f"model.helper_features={tuple(model.helper_features)} are told to a head of its own, and "
        "model.head='tokens' has none; set model.helper_features=(), or model.head='head'",
    )
    require(
        tuple(model.features) == FEATURES,
        f"model.features={tuple(model.features)} are told to a head of its own, and "
        "model.head='tokens' has none; leave them at the default, or set model.head='head'",
    )
