"""Rank pictures without labels: for each query, the gallery pictures that most likely show the same ship.

Writes ranking.csv with distances, prediction.json ({query file name: [gallery file names, nearest first]}) and, if asked, a
sheet of pictures for each query.
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.rank",
        "Rank pictures without labels: for each query, the gallery pictures that most likely show the same ship.",
        "python -m tools.rank --weights logs/hoss_transoss/best_model_mAP.pth \\\n"
        "      --query chips/today --gallery chips/last_week --top-k 10 --output logs/ranking --sheets",
        weights="TEST.WEIGHT",
    )
    modality = {"choices": ("auto", "optical", "sar"), "default": "auto"}
    parser.add_argument(
        "--query",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of pictures to look for, searched below, or one picture",
    )
    parser.add_argument("--gallery", type=Path, required=True, metavar="DIR", help="the same to look among")
    parser.add_argument("--query-modality", **modality, help="what took the queries (auto: from the name, else the pixels)")
    parser.add_argument("--gallery-modality", **modality, help="what took the gallery (auto)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="length of each list; 0 for the whole gallery (0)")
    parser.add_argument("--output", type=Path, default=Path("ranking"), metavar="DIR", help="folder of the results (ranking)")
    parser.add_argument("--skip-bad", action="store_true", help="go on without files that cannot be read (exit status 1)")
    parser.add_argument(
        "--both-ends", action="store_true", help="ask with each query turned by 180 degrees too; the nearer counts"
    )
    parser.add_argument("--upright", action="store_true", help="turn ships that lie askew in their chips upright")
    parser.add_argument("--sheets", action="store_true", help="draw the best 10 of each list as sheets/<query>.png")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from configs.command import open_command
from datasets.chips import ChipReading
from datasets.folders import count_broken, gather_chips, refuse_broken, warn_of_askew
from datasets.loaders import build_chip_reading
from datasets.records import Chip, Split
from model.load import build_reid
from processor.ranking.evaluation import Ranking, build_ranking, expand, warn_of_ties
from processor.ranking.reranking import rerank_apart
from processor.ranking.retrieval import mostly_tied, squared_distances
from utils.cli import run
from utils.errors import UsageError
from utils.files import replacing, write_json, write_text
from utils.lock import own_folder
from utils.log import fold, progress
from utils.tables import csv_text

Names = Mapping[Path, str]
"""Path of a picture -> what it is called, see `datasets.folders.Gathered`."""

BLOCK_QUERIES = 256
CELL = (96, 224)
"""Width and height of a picture on a sheet, in pixels."""

LINE, LETTERS = 14, 15
"""Height in pixels and length of a line of the caption of a picture on a sheet."""


@dataclass(frozen=True)
class RankedList:
    """What a query found.

    Attributes:
        query: the query.
        found: gallery pictures, nearest first.
        distances: of each of them; squared Euclidean, or re-ranked where TEST.RE_RANKING asks for it.
    """

    query: Chip
    found: tuple[Chip, ...]
    distances: tuple[float, ...]


def rank_records(
    query: Sequence[Chip],
    gallery: Sequence[Chip],
    features: Tensor,
    ranking: Ranking,
    *,
    top_k: int,
    turned: Tensor | None = None,
) -> list[RankedList]:
    """Rank the gallery for each query; of two pictures at one distance the one that comes first in the gallery ranks first.

    Args:
        query: (Q,) pictures.
        gallery: (G,) pictures.
        features: (Q + G, D) of the queries and then the gallery, not normalised.
        ranking: how; `same_modality` False leaves out what the query's own sensor took.
        top_k: length of a list at most; 0 for all.
        turned: (Q, D) features of the queries turned by 180 degrees; of a query's two distances the smaller counts.
    """
    features = functional.normalize(features) if ranking.normalise else features
    query_features, gallery_features = features[: len(query)], features[len(query) :]
    query_modalities = torch.tensor([record.modality for record in query])
    modalities = torch.tensor([record.modality for record in gallery])
    both = [query_features]
    if turned is not None:
        both.append(functional.normalize(turned) if ranking.normalise else turned)
    asked = [expand(own, gallery_features, query_modalities, modalities, ranking) for own in both]
    blocks = zip(*(_blocks_of_distances(own, gallery_features, query_modalities, ranking) for own in asked))
    lists, tied = [], 0
    for distances in (torch.stack(block).amin(dim=0) for block in blocks):
        tied += int(mostly_tied(distances).sum())
        nearest = distances.sort(dim=1, stable=True)
        for values, order in zip(nearest.values, nearest.indices):
            asking = query[len(lists)]
            if not ranking.same_modality:
                kept = modalities[order] != asking.modality
                values, order = values[kept], order[kept]
            places = order[: top_k or None].tolist()
            lists.append(RankedList(asking, tuple(gallery[i] for i in places), tuple(values[: len(places)].tolist())))
    warn_of_ties("", tied, len(query))
    return lists


def _blocks_of_distances(query: Tensor, gallery: Tensor, query_modalities: Tensor, ranking: Ranking) -> Iterator[Tensor]:
    """Distances in blocks of rows (B, G), on the CPU."""
    if ranking.reranking is not None:
        yield from rerank_apart(query, gallery, query_modalities, **ranking.reranking_options)
        return
    gallery = gallery.to(ranking.device)
    for block in query.split(BLOCK_QUERIES):
        yield squared_distances(block.to(ranking.device), gallery).cpu()


def format_lists(lists: Sequence[RankedList], asking: Names, asked: Names) -> str:
    """The lists as a CSV, one line for each query and rank; `asking` and `asked` are the names of queries and gallery."""
    rows = []
    for ranked in lists:
        for rank, (record, distance) in enumerate(zip(ranked.found, ranked.distances), start=1):
            kinds = [ranked.query.modality.name.lower(), record.modality.name.lower()]
            rows.append([asking[ranked.query.path], rank, asked[record.path], f"{distance:.6g}", *kinds])
    return csv_text(["query", "rank", "gallery", "distance", "query_modality", "gallery_modality"], rows)


def prediction(lists: Sequence[RankedList], asking: Names, asked: Names) -> dict[str, list[str]]:
    """The lists as in prediction.json: name of a query -> names of what it found, nearest first."""
    return {asking[ranked.query.path]: [asked[record.path] for record in ranked.found] for ranked in lists}


def draw_sheet(ranked: RankedList, read: ChipReading) -> Image.Image:
    """The query and what it found, side by side in frames, each as the network sees it before resizing, with its whole name."""
    width, height = CELL
    records = (ranked.query, *ranked.found)
    captions = ["query", *(f"{rank}: {distance:.2g}" for rank, distance in enumerate(ranked.distances, start=1))]
    # The built-in font has Latin letters only.
    texts = [
        "\n".join([caption, *textwrap.wrap(record.path.name.encode("ascii", "replace").decode(), LETTERS)])
        for record, caption in zip(records, captions)
    ]
    lines = max(text.count("\n") + 1 for text in texts)
    sheet = Image.new("RGB", ((width + 8) * len(records) + 16, height + LINE * lines + 20), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (record, text) in enumerate(zip(records, texts)):
        left = 8 + column * (width + 8) + (8 if column else 0)
        picture = Image.fromarray(read(record))
        scale = min(width / picture.width, height / picture.height)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        place = (left + (width - picture.width) // 2, 8 + (height - picture.height) // 2)
        sheet.paste(picture, place)
        frame = (place[0] - 2, place[1] - 2, place[0] + picture.width + 1, place[1] + picture.height + 1)
        draw.rectangle(frame, outline="black" if column else "red", width=1 if column else 2)
        draw.text((left, height + 12), text, fill="black", font_size=10)
    return sheet


def write_sheets(folder: Path, lists: Sequence[RankedList], read: ChipReading, names: tuple[Names, Names]) -> None:
    """Write `<folder>/<name of the query>.png` for each query; `names` is of queries and gallery."""
    with progress(len(lists), "drawing sheets", unit="sheet") as bar:
        for ranked in lists:
            with replacing(folder / f"{names[0][ranked.query.path]}.png") as temporary:
                draw_sheet(ranked, read).save(temporary, format="PNG")
            bar.update()


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, rank and write."""
    with open_command(build_parser(), arguments, needs={"TEST.WEIGHT": "the checkpoint, as --weights FILE"}) as command:
        args, cfg, device = command.args, command.cfg, command.device
        if args.top_k < 0:
            raise UsageError(f"--top-k is {args.top_k}; take a length, or 0 for the whole gallery")
        read = build_chip_reading(cfg)
        asking = gather_chips(args.query, Split.QUERY, args.query_modality, read, upright=args.upright)
        asked = gather_chips(args.gallery, Split.GALLERY, args.gallery_modality, read, upright=args.upright)
        for side in (asking, asked):
            refuse_broken(side, skip=args.skip_bad)
            warn_of_askew(side, upright=args.upright)
        query, gallery, names = asking.chips, asked.chips, (asking.names, asked.names)
        chips = [*query, *gallery, *(replace(chip, turned=True) for chip in query if args.both_ends)]
        features = build_reid(cfg, device).features(chips, description="features")
        count = len(query) + len(gallery)
        turned = features[count:] if args.both_ends else None
        lists = rank_records(query, gallery, features[:count], build_ranking(cfg, device), top_k=args.top_k, turned=turned)
        with own_folder(args.output):
            write_text(args.output / "ranking.csv", format_lists(lists, *names))
            write_json(args.output / "prediction.json", prediction(lists, *names))
            if args.sheets:
                best = [RankedList(ranked.query, ranked.found[:10], ranked.distances[:10]) for ranked in lists]
                write_sheets(args.output / "sheets", best, read, names)
        print(fold(f"{len(query)} queries ranked against {len(gallery)} gallery pictures: {args.output}", sys.stdout))
        count_broken(asking, asked)


if __name__ == "__main__":
    run(main)
