"""Whether downloads are what they should be: right, damaged, or something else, by what is in them."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from configs.parser import answer_help


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_downloads",
        description="Tell right from damaged and other downloads: data sets by their counts, and every chip of HOSS by reading "
        "it; weights by their checksums, tensors and sizes. Exit status 1 if one is not right.",
        epilog="example:\n  python -m tools.check_downloads --hoss data --transoss weights/vit_b512_pre.pth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hoss", type=Path, metavar="DIR", help="folder that holds HOSS/: HOSS ReID")
    parser.add_argument("--qxs", type=Path, metavar="DIR", help="folder of QXS-SAROPT's two folders")
    parser.add_argument("--transoss", type=Path, metavar="FILE", help="TransOSS's pre-trained backbone, vit_b512_pre.pth")
    parser.add_argument("--mos", type=Path, metavar="FILE", help="a trained model of MOS or TransOSS on HOSS ReID")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

from datasets.catalogue import read_hoss
from datasets.chips import read_chip
from datasets.pairs import read_registered_pairs
from datasets.records import DISTRACTOR, Chip, Modality
from datasets.sar import render_max
from model.contents import TRANSFORMER, read_contents
from utils.checkpoint import sha256
from utils.cli import run
from utils.errors import CheckpointError, DataError
from utils.log import progress, setup_logging

Facts = Mapping[str, int | str | bool]

HOSS: Facts = {
    "images": 1832,
    "ships": 449,
    "distractors": 163,
    "training images": 1063,
    "optical of them": 574,
    "queries": 176,
}
QXS: Facts = {"pairs": 20_000, "width": 256, "height": 256}
BACKBONE: Facts = {"network": TRANSFORMER, "width": 768, "blocks": 12, "SAR stem": True}
MODEL: Facts = {**BACKBONE, "identities": 361}
"""What the papers and the released programs say of each."""


def facts_of_hoss(root: Path) -> Facts:
    """Counts of a data set in HOSS layout, every chip of which was read.

    Raises:
        DataError: a folder is missing, or chips are damaged.
    """
    data = read_hoss(root)
    chips = [*data.train, *data.images]
    _read_all(chips)
    return {
        "images": len(chips),
        "ships": len({chip.ship for chip in chips} - {DISTRACTOR}),
        "distractors": sum(chip.ship == DISTRACTOR for chip in chips),
        "training images": len(data.train),
        "optical of them": sum(chip.modality is Modality.OPTICAL for chip in data.train),
        "queries": len(data.protocols["ALL"].query),
    }


def _read_all(chips: Sequence[Chip]) -> None:
    faults = []
    with progress(len(chips), "reading chips", unit="chip") as bar:
        for chip in chips:
            try:
                read_chip(chip, render_max)
            except DataError as error:
                faults.append(str(error))
            bar.update()
    if faults:
        raise DataError(f"{len(faults)} of {len(chips)} chips are damaged; the first: {faults[0]}")


def facts_of_qxs(folder: Path) -> Facts:
    """Number and size of registered pairs."""
    pairs = read_registered_pairs(folder).train
    width, height = read_chip(pairs[0].optical, render_max).shape[1::-1]
    return {"pairs": len(pairs), "width": width, "height": height}


def facts_of_weights(path: Path) -> Facts:
    """Network and sizes of a weights file.

    Raises:
        CheckpointError: it is damaged, or no weights.
    """
    contents = read_contents(str(path))
    if contents.network != TRANSFORMER:
        return {"network": contents.network or "none that is known"}
    facts = {"network": contents.network, "width": contents.width, "blocks": contents.depth}
    facts["SAR stem"] = any(name.startswith("patch_embed_SAR") for name in contents.backbone)
    classifier = contents.rest.get("classifier.weight")
    return facts | ({} if classifier is None else {"identities": classifier.shape[0]})


def judge(name: str, path: Path, read: Callable[[Path], Facts], expected: Facts) -> tuple[bool, str]:
    """Whether a download is right, and a sentence that says so or what is wrong."""
    try:
        found = read(path)
    except (DataError, CheckpointError) as error:
        return False, f"{name}: damaged or missing: {error}"
    other = [f"{key} {found.get(key, 'none')} instead of {value}" for key, value in expected.items() if found.get(key) != value]
    told = f", {path.stat().st_size:,} bytes, SHA-256 {sha256(path)}" if path.is_file() else ""
    if other:
        return False, f"{name}: another one: {', '.join(other)}{told}"
    return True, f"{name}: right: {', '.join(f'{key} {value}' for key, value in found.items())}{told}"


def main(arguments: Sequence[str]) -> None:
    """Check what is named, and print a sentence for each.

    Raises:
        DataError: one is not right.
    """
    parser = build_parser()
    args = parser.parse_args(arguments)
    setup_logging()
    kinds = {
        "HOSS ReID": (args.hoss, facts_of_hoss, HOSS),
        "QXS-SAROPT": (args.qxs, facts_of_qxs, QXS),
        "TransOSS's backbone": (args.transoss, facts_of_weights, BACKBONE),
        "the trained model": (args.mos, facts_of_weights, MODEL),
    }
    named = {name: kind for name, kind in kinds.items() if kind[0] is not None}
    if not named:
        parser.error("name a download: --hoss, --qxs, --transoss or --mos")
    judged = [judge(name, *kind) for name, kind in named.items()]
    print("\n".join(sentence for _, sentence in judged))
    if wrong := [name for name, (right, _) in zip(named, judged) if not right]:
        raise DataError(f"{' and '.join(wrong)} should not be used as it is; see above")


if __name__ == "__main__":
    run(main)
