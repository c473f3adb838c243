"""What a weights file says of itself, so that it can be used without the configuration of its run."""

from collections.abc import Mapping
from typing import Any

import torch

from utils.log import describe_environment


def build_description(cfg, network: str, **facts: Any) -> dict[str, Any]:
    """What every weights file of a training says: plain values only.

    Args:
        cfg: of the training.
        network: what it trains: 'transformer', 'resnet50', 'bridge' or 'first_stage'.
        facts: more of the training, such as the number of `identities`.

    Returns:
        `network`, `facts`, the `config` as YAML, the `seed`, `command`, `commit` and versions of `packages` that it ran with.
        Each file adds the `epoch` after which it was written, and why it is the best of its run (`selection`).
    """
    environment = describe_environment(seed=cfg.SOLVER.SEED, device=torch.device("cpu"))
    kept = {name: environment[name] for name in ("seed", "command", "commit", "packages")}
    return {"network": network, **facts, "config": cfg.dump(), **kept}


def sentence_of(description: Mapping[str, Any]) -> str:
    """One line on how a file was made; empty for a file that does not say."""
    if not description:
        return ""
    parts = [f"trained for {description['epoch']} epochs"] if "epoch" in description else []
    if "seed" in description:
        parts.append(f"seed {description['seed']}")
    if description.get("identities"):
        parts.append(f"{description['identities']} identities")
    if description.get("commit"):
        parts.append(f"by commit {description['commit'][:12]}")
    return ", ".join(parts)
