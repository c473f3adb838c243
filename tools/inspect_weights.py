"""Tell what a weights file is, which model it fits and with which lines of a .yml to use it."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.build import SIZES
from model.pretrained import LEAST_SHARE, backbone_share, fit_backbone, fit_model, guess_grid, transformer_type
from model.reid import ReIDModel
from model.resnet import ResNet50, find_prefix, sort_resnet
from model.sources import TIMM, Source, position_prefix, read_weights, sort_tensors
from model.transoss import PATCH_SIZE, TransOSS
from utils.checkpoint import find_state_dict, load, sha256
from utils.cli import run
from utils.errors import CheckpointError

RELEASED_GRID = (16, 8)
"""Of the released models, 256 x 128 pixels."""

COMMON_SIZES = ((256, 128), (384, 128), (256, 256), (224, 224), (384, 384))
"""Heights and widths of pictures that are tried to explain a grid of overlapping patches."""

HEAD_WIDTH = 64
"""Of a ViT's attention heads, in nearly all published models; no tensor shows it."""

BRIDGES = {
    "input_blocks.": ("a Brownian bridge's network", "WEIGHT"),
    "quantize.": ("a first stage (VQGAN) of a latent bridge", "FIRST_STAGE"),
}
"""Part of a tensor's name -> what the file is, and its key in BBDM."""


@dataclass(frozen=True)
class Finding:
    """What a weights file is.

    Attributes:
        kind: in words.
        sizes: (name, value) in words.
        fits: which model it fits, or why none.
        uses: (what for, lines of a .yml).
        table: what would become of its tensors; empty where no model fits.
    """

    kind: str
    sizes: tuple[tuple[str, str], ...]
    fits: str
    uses: tuple[tuple[str, str], ...]
    table: str = ""


def inspect(path: str) -> Finding:
    """Read the file `path` (or timm's model NAME for `timm:NAME`) and find out what it is.

    Raises:
        CheckpointError: it cannot be read, wants to run code, or holds no weights that this project knows.
    """
    content = read_weights(path) if path.startswith(TIMM) else load(path)
    tensors = find_state_dict(content)
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors by name; a checkpoint is a state dict, bare or under 'state_dict' or 'model'"
        )
    for part, (kind, key) in BRIDGES.items():
        if any(part in name for name in tensors):
            lines = yaml_lines({"BBDM": {key: path}})
            return Finding(kind, number_facts(tensors), f"the key BBDM.{key}", (("sample with it", lines),))
    try:
        if find_prefix(tensors) is not None:
            return describe_resnet(path, content, tensors)
        return describe(path, content, tensors, sort_tensors(tensors))
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error


def describe(path: str, content: Any, tensors: Mapping[str, Tensor], source: Source) -> Finding:
    """The finding on a Vision Transformer's file; arguments as read by `inspect`."""
    grid = patch_grid(source)
    name = transformer_type(source)
    settings = model_settings(source, grid, name)
    fits, table = try_it(tensors, source, settings, name)
    uses = list_uses(path, content, source, None if fits.startswith("no ") else settings, testable=has_whole_model(source))
    return Finding(kind_of(content, source), (*size_facts(source, grid), *number_facts(tensors)), fits, uses, table)


def describe_resnet(path: str, content: Any, tensors: Mapping[str, Tensor]) -> Finding:
    """The finding on a ResNet-50's file; arguments as read by `inspect`."""
    base = ResNet50()
    source = sort_resnet(tensors, base)
    report = fit_model(tensors, ReIDModel(base), classifier=False) if source.rest else fit_backbone(tensors, base)
    has_neck = "bottleneck.weight" in source.rest
    kind = "a re-identification model on ResNet-50" if has_neck else "a ResNet-50 for ordinary pictures"
    if is_training_state(content):
        kind = f"a training state after epoch {content['epoch']}, with {kind}"
    settings = {"MODEL": {"NAME": "resnet50", "MIE": False, "SSE": False}}
    uses = list_uses(path, content, source, settings, testable=has_neck)
    return Finding(kind, (("neck", _yes(has_neck)), *number_facts(tensors)), "MODEL.NAME resnet50", uses, report.table())


def list_uses(
    path: str, content: Any, source: Source, settings: Mapping[str, Any] | None, *, testable: bool
) -> tuple[tuple[str, str], ...]:
    """What a file can be used for, with lines of a .yml; `settings` are those of the model that it fits, None without one."""
    uses = []
    if is_training_state(content):
        uses.append(("resume its training, with the config.yml beside it", yaml_lines({"SOLVER": {"RESUME": path}})))
    if settings and testable:
        uses.append(("test it", yaml_lines({**settings, "TEST": {"WEIGHT": path}})))
    if settings:
        start = {"PRETRAIN_CHOICE": "clip" if source.rest else "imagenet", "PRETRAIN_PATH": path}
        uses.append(("start training from it", yaml_lines({**settings, "MODEL": {**settings["MODEL"], **start}})))
    return tuple(uses)


def is_training_state(content: Any) -> bool:
    """Whether a file is a `last.pth` of this project."""
    return isinstance(content, Mapping) and {"model", "optimizers", "epoch"} <= content.keys()


def has_whole_model(source: Source) -> bool:
    """Whether features after the neck can be computed: both stems and a neck are there."""
    return "bottleneck.weight" in source.rest and "patch_embed_SAR.proj.weight" in source.backbone


def kind_of(content: Any, source: Source) -> str:
    """What the file is, in words."""
    if has_whole_model(source):
        kind = "a re-identification model in the released layout (TransOSS and MOS share it)"
    elif source.is_transoss:
        kind = "a TransOSS backbone, without a neck"
    else:
        kind = "a Vision Transformer for ordinary pictures"
    if is_training_state(content):
        return f"a training state after epoch {content['epoch']}, with {kind}"
    return kind


def patch_grid(source: Source) -> tuple[int, int]:
    """Rows and columns of the file's patches, as far as their number tells."""
    count = source.backbone["pos_embed"].shape[1] - position_prefix(source)
    return guess_grid(count, RELEASED_GRID)


def picture_of(grid: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Height and width of pictures, and the stride, that give a grid: of a common size if one does."""
    for stride in range(PATCH_SIZE, PATCH_SIZE // 4, -1):
        for size in COMMON_SIZES:
            if grid == tuple((length - PATCH_SIZE) // stride + 1 for length in size):
                return size, stride
    return (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE), PATCH_SIZE


def model_settings(source: Source, grid: tuple[int, int], name: str | None) -> dict[str, dict[str, Any]]:
    """The keys of a .yml that the file decides: all sizes of one of TransOSS's family, the type alone of another."""
    if not source.is_transoss:
        return {"MODEL": {"TRANSFORMER_TYPE": name}}
    size, stride = picture_of(grid)
    model = {
        "TRANSFORMER_TYPE": name,
        "STRIDE_SIZE": [stride, stride],
        "MIE": "mie_embed" in source.backbone,
        "SSE": "wh_embed.linear_layer.weight" in source.backbone,
    }
    return {"MODEL": model, "INPUT": {"SIZE_TRAIN": list(size), "SIZE_TEST": list(size)}}


def yaml_lines(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings as lines of a .yml."""
    lines = []
    for section, keys in settings.items():
        lines += [f"{section}:", *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items())]
    return "\n".join(lines)


def try_it(tensors: Mapping[str, Tensor], source: Source, settings: Mapping, name: str | None) -> tuple[str, str]:
    """Load the file into the model of `settings`: which model it fits, and what became of every tensor."""
    if name is None:
        return f"no MODEL.TRANSFORMER_TYPE: none is of width {source.width} with {source.depth} blocks", ""
    image = settings.get("INPUT", {"SIZE_TRAIN": [256, 128]})["SIZE_TRAIN"]
    model = settings["MODEL"]
    stride = tuple(model.get("STRIDE_SIZE", (PATCH_SIZE, PATCH_SIZE)))
    tokens = {"modality_embedding": model.get("MIE", True), "size_embedding": model.get("SSE", True)}
    base = TransOSS(**SIZES[name], img_size=tuple(image), stride=stride, **tokens)
    try:
        report = fit_model(tensors, ReIDModel(base), classifier=False) if source.rest else fit_backbone(tensors, base)
    except CheckpointError as error:
        return f"no model: it {error}", ""
    share = backbone_share(report, base)
    if share < LEAST_SHARE:
        return f"no model: it holds {share:.0%} of the backbone's parameters of {name}", report.table()
    return f"{name} ({100 * share:.1f} % of its backbone's parameters)", report.table()


def size_facts(source: Source, grid: tuple[int, int]) -> tuple[tuple[str, str], ...]:
    """The sizes of a Vision Transformer, in words."""
    backbone = source.backbone
    facts = {
        "width": str(source.width),
        "blocks": str(source.depth),
        "heads": f"{max(1, source.width // HEAD_WIDTH)}, if of width {HEAD_WIDTH} as usual (no tensor tells)",
        "patch": " x ".join(map(str, source.patch)) or "flattened",
        "patches": f"{grid[0] * grid[1]}, {grid[0]} x {grid[1]} most likely",
        "other tokens": str(sum(source.extra_tokens)),
        "layer scale": _yes(bool(source.folded)),
        "SAR stem": _yes("patch_embed_SAR.proj.weight" in backbone),
        "MIE": _yes("mie_embed" in backbone),
        "SSE": _yes("wh_embed.linear_layer.weight" in backbone),
        "neck": _yes("bottleneck.weight" in source.rest),
        "identities": "no classifier" if source.identities is None else str(source.identities),
    }
    return tuple(facts.items())


def number_facts(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, str], ...]:
    """How many numbers of which type."""
    types = sorted({str(value.dtype).removeprefix("torch.") for value in tensors.values()})
    return (("values", f"{sum(value.numel() for value in tensors.values()):,}"), ("types", ", ".join(types)))


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def render(path: str, finding: Finding) -> str:
    """A finding as text."""
    parts = [f"{path} is {finding.kind}."]
    if not path.startswith(TIMM):
        parts.append(f"  {'SHA-256':<14}{sha256(path)}")
    parts += [f"  {name:<14}{value}" for name, value in finding.sizes]
    parts.append(f"\nIt fits {finding.fits}.")
    if finding.table:
        parts.append(f"\n{finding.table}")
    for purpose, lines in finding.uses:
        parts.append(f"\nTo {purpose}:\n\n{lines}")
    return "\n".join(parts)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.inspect_weights",
        description="Tell what a weights file is, which model it fits and with which lines of a .yml to use it.",
        epilog="example:\n  python -m tools.inspect_weights weights/vit_b512_pre.pth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a .pth, .safetensors or similar file, or timm:NAME")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments` and print the finding."""
    path = build_parser().parse_args(arguments).file
    path = path if path.startswith(TIMM) else str(Path(path))
    print(render(path, inspect(path)))


if __name__ == "__main__":
    run(main)
