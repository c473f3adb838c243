"""Tell what a weights file is, which model it fits and with which lines of a .yml to use it."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.inspect_weights",
        description="Tell what a weights file is, which model it fits and with which lines of a .yml to use it.",
        epilog="example:\n  python -m tools.inspect_weights weights/vit_b512_pre.pth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="a .pth, .safetensors or similar file, or timm:NAME")
    parser.add_argument("--prefix", default="", help="of several sets of weights the one whose names begin so, such as student")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from configs.described import settings_of
from model.build import SIZES
from model.contents import BRIDGE, FIRST_STAGE, LACKING, RESNET, TIMM, TRANSFORMER, Contents, read_contents
from model.pretrained import LEAST_SHARE, backbone_share, fit_backbone, fit_model, guess_grid
from model.reid import ReIDModel
from model.resnet import ResNet50
from model.transoss import PATCH_SIZE, TransOSS
from processor.description import sentence_of
from processor.selection import selection_of
from utils.checkpoint import sha256
from utils.cli import run
from utils.errors import CheckpointError

RELEASED_GRID = (16, 8)
"""Of the released models, 256 x 128 pixels."""

COMMON_SIZES = ((256, 128), (384, 128), (256, 256), (224, 224), (384, 384))
"""Heights and widths of pictures that are tried to explain a grid of overlapping patches."""

HEAD_WIDTH = 64
"""Of a ViT's attention heads, in nearly all published models; no tensor shows it."""

FUSIONS = {
    None: "no",
    "sum": "yes, of which one of the backbone's width is made: sum, shared or specific (no tensor tells which)",
    "concat": "yes, side by side",
}
"""How the two features of an SDF-Net become one, in words."""

GENERATION_KEYS = {BRIDGE: "WEIGHT", FIRST_STAGE: "FIRST_STAGE"}
"""Network of generation -> its key in BBDM."""


def inspect(path: str, prefix: str = "") -> str:
    """Read the file `path` (or timm's model NAME for `timm:NAME`) and say what it is.

    Raises:
        CheckpointError: it cannot be read, wants to run code, or holds no weights that this project knows.
    """
    contents = read_contents(path, prefix)
    if contents.fault or not contents.network:
        raise CheckpointError(f"{path} {contents.fault or LACKING[TRANSFORMER] + ', no ResNet-50 and no network of a bridge'}")
    settings, fits, table = try_it(contents)
    parts = [f"{path} is {kind_of(contents)}."]
    if not path.startswith(TIMM):
        parts.append(f"  {'SHA-256':<14}{sha256(path)}")
    if contents.note:
        parts.append(f"  {'taken':<14}{contents.note}")
    parts += [f"  {name:<14}{value}" for name, value in facts(contents).items()]
    parts.append(f"\nIt fits {fits}.")
    if table:
        parts.append(f"\n{table}")
    parts += [f"\nTo {purpose}:\n\n{lines}" for purpose, lines in list_uses(path, contents, settings).items()]
    return "\n".join(parts)


def kind_of(contents: Contents) -> str:
    """What a file is, in words."""
    if contents.network == BRIDGE:
        kind = "a Brownian bridge's network"
    elif contents.network == FIRST_STAGE:
        kind = "a first stage (VQGAN) of a latent bridge"
    elif contents.network == RESNET:
        kind = "a re-identification model on ResNet-50" if contents.is_whole else "a ResNet-50 for ordinary pictures"
    elif contents.is_disentangled:
        kind = "a re-identification model of SDF-Net" if contents.is_whole else "a backbone of SDF-Net, without its neck"
    elif contents.is_whole:
        kind = "a re-identification model in the released layout (TransOSS and MOS share it)"
    elif contents.is_transoss:
        kind = "a TransOSS backbone, without a neck"
    elif contents.is_transreid:
        branch = ", with JPM: b1 is its last block and norm" if contents.has_branches else ""
        kind = f"a re-identification model with one stem for all pictures, as TransReID's are{branch}"
    else:
        kind = "a Vision Transformer for ordinary pictures"
    return kind if contents.epoch is None else f"a training state after epoch {contents.epoch}, with {kind}"


def facts(contents: Contents) -> dict[str, str]:
    """The sizes of what a file holds, in words."""
    told = _own_words(contents.description)
    if contents.network == TRANSFORMER:
        rows, columns = patch_grid(contents)
        told |= {
            "width": str(contents.width),
            "blocks": str(contents.depth),
            "heads": f"{max(1, contents.width // HEAD_WIDTH)}, if of width {HEAD_WIDTH} as usual (no tensor tells)",
            "patch": " x ".join(map(str, contents.patch)) or "flattened",
            "patches": f"{rows * columns}, {rows} x {columns} most likely",
            "other tokens": str(sum(contents.extra_tokens)),
            "layer scale": _yes(bool(contents.folded)),
            "SAR stem": _yes("patch_embed_SAR.proj.weight" in contents.backbone),
            "MIE": _yes("mie_embed" in contents.backbone),
            "SSE": _yes("wh_embed.linear_layer.weight" in contents.backbone),
            "two features": FUSIONS[contents.fusion],
        }
    if contents.network in LACKING:
        neck = "bottleneck_fuse.weight" if contents.is_disentangled else "bottleneck.weight"
        told["neck"] = _yes(neck in contents.rest)
    if contents.network == TRANSFORMER:
        told["identities"] = "no classifier" if contents.identities is None else str(contents.identities)
    told["values"] = f"{sum(value.numel() for value in contents.tensors.values()):,}"
    told["types"] = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in contents.tensors.values()}))
    return told


def _own_words(description: Mapping[str, Any]) -> dict[str, str]:
    """What a file says of itself, in words."""
    settings, chosen = settings_of(description), selection_of(description)
    told = {"trained": sentence_of(description), "chosen": chosen.sentence() if chosen else ""}
    if settings and description.get("network") in LACKING:
        height, width = settings["INPUT.SIZE_TEST"]
        told |= {"pictures": f"{height} x {width}, height and width", "SAR": f"rendered by {settings['INPUT.SAR_DENOISE']}"}
        told |= {"compared": f"{settings['TEST.NECK_FEAT']} the neck"}
    return {name: words for name, words in told.items() if words}


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def patch_grid(contents: Contents) -> tuple[int, int]:
    """Rows and columns of the file's patches, as far as their number tells."""
    return guess_grid(contents.backbone["pos_embed"].shape[1] - contents.position_prefix(), RELEASED_GRID)


def picture_of(grid: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Height and width of pictures, and the stride, that give a grid: of a common size if one does."""
    for stride in range(PATCH_SIZE, PATCH_SIZE // 4, -1):
        for size in COMMON_SIZES:
            if grid == tuple((length - PATCH_SIZE) // stride + 1 for length in size):
                return size, stride
    return (grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE), PATCH_SIZE


def model_settings(contents: Contents) -> dict[str, dict[str, Any]]:
    """The keys of a .yml that the file decides: all sizes of one of TransOSS's family, the type alone of another."""
    if contents.network == RESNET:
        return {"MODEL": {"NAME": "resnet50", "MIE": False, "SSE": False}}
    if own := settings_of(contents.description):
        model = ("TRANSFORMER_TYPE", "STRIDE_SIZE", "MIE", "SSE", "DISENTANGLE", "ABLATION_MODE")
        sizes = {name: own[f"INPUT.{name}"] for name in ("SIZE_TRAIN", "SIZE_TEST")}
        return {"MODEL": {name: own[f"MODEL.{name}"] for name in model}, "INPUT": sizes}
    if not contents.is_transoss:
        return {"MODEL": {"TRANSFORMER_TYPE": contents.transformer_type}}
    size, stride = picture_of(patch_grid(contents))
    model = {
        "TRANSFORMER_TYPE": contents.transformer_type,
        "STRIDE_SIZE": [stride, stride],
        "MIE": "mie_embed" in contents.backbone,
        "SSE": "wh_embed.linear_layer.weight" in contents.backbone,
    }
    if contents.is_disentangled:
        model |= {"DISENTANGLE": True, "ABLATION_MODE": contents.fusion}
    return {"MODEL": model, "INPUT": {"SIZE_TRAIN": list(size), "SIZE_TEST": list(size)}}


def try_it(contents: Contents) -> tuple[dict[str, dict[str, Any]] | None, str, str]:
    """Load the file into the model that it is for.

    Returns:
        The model's keys in a .yml, None without one; which model it fits, or why none, in words; what became of every tensor.
    """
    if contents.network in GENERATION_KEYS:
        return None, f"the key BBDM.{GENERATION_KEYS[contents.network]}", ""
    settings = model_settings(contents)
    name = "MODEL.NAME resnet50" if contents.network == RESNET else contents.transformer_type
    if name is None:
        return None, f"no MODEL.TRANSFORMER_TYPE: none is of width {contents.width} with {contents.depth} blocks", ""
    base = _build_base(contents, settings)
    try:
        model = ReIDModel(base, fusion=contents.fusion)
        report = fit_model(contents, model, classifier=False) if contents.rest else fit_backbone(contents, base)
    except CheckpointError as error:
        return None, f"no model: it {error}", ""
    share = backbone_share(report, base)
    if share < LEAST_SHARE:
        return None, f"no model: it holds {share:.0%} of the backbone's parameters of {name}", report.table()
    return settings, f"{name} ({100 * share:.1f} % of its backbone's parameters)", report.table()


def _build_base(contents: Contents, settings: Mapping[str, Any]) -> ResNet50 | TransOSS:
    if contents.network == RESNET:
        return ResNet50()
    model = settings["MODEL"]
    return TransOSS(
        **SIZES[model["TRANSFORMER_TYPE"]],
        img_size=tuple(settings.get("INPUT", {"SIZE_TRAIN": (256, 128)})["SIZE_TRAIN"]),
        stride=tuple(model.get("STRIDE_SIZE", (PATCH_SIZE, PATCH_SIZE))),
        modality_embedding=model.get("MIE", True),
        size_embedding=model.get("SSE", True),
        specific_tokens=model.get("DISENTANGLE", False),
    )


def list_uses(path: str, contents: Contents, settings: Mapping[str, Any] | None) -> dict[str, str]:
    """What a file can be used for -> lines of a .yml; `settings` are those of the model that it fits, None without one."""
    if contents.network == BRIDGE and contents.description:
        line = f"python -m bbdm.sample --weights {path} DATASETS.ROOT_DIR <folder that holds HOSS/> OUTPUT_DIR <store>"
        return {"sample with it": line}
    if contents.network in GENERATION_KEYS:
        return {"sample with it": yaml_lines({"BBDM": {GENERATION_KEYS[contents.network]: path}})}
    uses = {}
    if contents.epoch is not None:
        uses["resume its training, with the config.yml beside it"] = yaml_lines({"SOLVER": {"RESUME": path}})
    if settings and contents.is_whole:
        # The released SDF-Net compares features after its neck, whatever its file says.
        test = {"WEIGHT": path, **({"NECK_FEAT": "after"} if contents.is_disentangled else {})}
        line = f"python test.py --weights {path} DATASETS.ROOT_DIR <folder that holds HOSS/>"
        uses["test it"] = line if contents.description else yaml_lines({**settings, "TEST": test})
    if settings:
        whole = contents.rest and not contents.is_transreid  # whose neck is that of another feature
        start = {"PRETRAIN_CHOICE": "clip" if whole else "imagenet", "PRETRAIN_PATH": path}
        uses["start training from it"] = yaml_lines({**settings, "MODEL": {**settings["MODEL"], **start}})
    return uses


def yaml_lines(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings as lines of a .yml."""
    lines = []
    for section, keys in settings.items():
        lines += [f"{section}:", *(f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items())]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments` and say what the file is."""
    args = build_parser().parse_args(arguments)
    path = args.file if args.file.startswith(TIMM) else str(Path(args.file))
    print(inspect(path, args.prefix))


if __name__ == "__main__":
    run(main)
