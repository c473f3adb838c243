"""Convert weights files: to and from the released layout, out of a training state, between .pth and .safetensors."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert_weights",
        description="Write the weights of a file in another layout or format; every tensor keeps its bits.",
        epilog="examples:\n"
        "  for the released programs:  python -m tools.convert_weights logs/best_model_mAP.pth mos.pth --layout released\n"
        "  a training state's weights: python -m tools.convert_weights logs/last.pth weights.pth\n"
        "  another format:             python -m tools.convert_weights weights.pth weights.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FILE", type=Path, help="weights or training state, .pth or .safetensors")
    parser.add_argument("target", metavar="NEW_FILE", type=Path, help="file to write; its suffix chooses the format")
    parser.add_argument(
        "--layout",
        choices=("own", "released"),
        default="own",
        help="own (default): what this project writes; released: with the unused layer base.fc that released programs expect",
    )
    parser.add_argument("--prefix", default="", help="of several sets of weights the one whose names begin so, such as student")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import torch
from torch import Tensor

from model.contents import SPECIFIC_TOKENS
from model.naming import choose_set, sets_of
from utils.checkpoint import description_of, load, require_tensors, save
from utils.cli import run
from utils.errors import CheckpointError, UsageError, some

UNUSED_CLASSES = 1000
"""Outputs of `base.fc`, a layer that the released programs create, save and expect, and that nothing uses."""


def to_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in this project's layout: the released names without `base.fc`."""
    return {name: value for name, value in tensors.items() if not name.startswith("base.fc.")}


def to_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the released layout: every name that the released programs read, `base.fc` included (zeros if absent).

    TransOSS, MOS and SDF-Net share it; their own tensors tell which of them a file is.

    Raises:
        CheckpointError: no re-identification model, or an SDF-Net without a tensor that its released loader would leave at a
            random start; the sentence wants the file's name before it.
    """
    if "base.cls_token" not in tensors:
        raise CheckpointError("holds no re-identification model (base.*), which the released layout is for; use --layout own")
    if f"base.{SPECIFIC_TOKENS[0]}" in tensors:
        wanted = (f"base.{SPECIFIC_TOKENS[1]}", "bottleneck.weight", "bottleneck_fuse.weight")
        if missing := [name for name in wanted if name not in tensors]:
            raise CheckpointError(
                f"is of SDF-Net and lacks {some(missing)}, which its released program reads; use --layout own"
            )
    token = tensors["base.cls_token"]  # (1, 1, D)
    unused = {
        "base.fc.weight": torch.zeros(UNUSED_CLASSES, token.shape[-1], dtype=token.dtype),
        "base.fc.bias": torch.zeros(UNUSED_CLASSES, dtype=token.dtype),
    }
    return {**unused, **tensors}


LAYOUTS = {"own": to_own, "released": to_released}


def convert(source: Path, target: Path, layout: str, prefix: str = "") -> int:
    """Write the weights of `source` as `target`; every tensor keeps its bits.

    Args:
        source: a weights file or a training state, in either format.
        target: a new file; its suffix, .pth or .safetensors, chooses the format.
        layout: 'own', which keeps what the file says of itself, or 'released', bare tensors.
        prefix: of several sets of tensors the one to take, whose names begin so; '' for all.

    Returns:
        The number of tensors written.

    Raises:
        CheckpointError: `source` cannot be read, or does not fit the layout.
        UsageError: `target` exists, or its suffix is neither.
    """
    if target.suffix not in (".pth", ".pt", ".safetensors"):
        raise UsageError(f"the suffix of {target} names no format; end it in .pth or .safetensors")
    if target.exists():
        raise UsageError(f"{target} exists; give another name, or delete it first")
    content = load(source)
    tensors = require_tensors(content, source)
    try:
        if prefix:
            tensors, _ = choose_set(sets_of(content), prefix)
        converted = LAYOUTS[layout](tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{source} {error}") from error
    save(target, converted, description_of(content) if layout == "own" else None)
    return len(converted)


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments` and convert."""
    args = build_parser().parse_args(arguments)
    count = convert(args.source, args.target, args.layout, args.prefix)
    print(f"{args.target}: {count} tensors in the {args.layout} layout")


if __name__ == "__main__":
    run(main)
