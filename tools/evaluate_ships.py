"""Compare generated with real SAR chips of held-out ships, in the feature space of a re-identification network.

What `bbdm.evaluate` does for places; `rank` and `top1` tell how well a ship is found when generated pictures alone are the
queries.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

from configs.parser import answer_help, config_parser


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = config_parser(
        "python -m tools.evaluate_ships",
        "Compare generated with real SAR chips of held-out ships (BBDM.HOLD_OUT_EVERY) in the feature space of a ReID network.",
        "python -m tools.evaluate_ships --reid_weights logs/demo/reid/best_model_mAP.pth\n"
        "      --weights logs/demo/bridge/bridge_3.pth OUTPUT_DIR out",
        weights="BBDM.WEIGHT",
    )
    parser.add_argument(
        "--reid_config", metavar="FILE", help="the .yml of the re-identification network, if its weights do not tell"
    )
    parser.add_argument("--reid_weights", metavar="FILE", required=True, help="its checkpoint")
    return parser


if __name__ == "__main__":
    answer_help(build_parser)

import torch
from torch import Tensor
from torch.nn import functional

from bbdm.evaluate import NEEDS, build_comparison, build_report, publish
from configs.command import open_command
from configs.described import load_described
from datasets.records import Batch, Modality
from processor.extraction import build_extractor
from utils.cli import run

BATCH = 64


def build_embedding(cfg, weights: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The feature space of a re-identification network: SAR pictures (N, H, W) in 0..1 -> features (N, D) on the CPU.

    Every picture gets the size triple of an average ship (zeros), so that the picture alone speaks. Features are those after
    the neck, which centres them: before it they share a large part, and every cosine is near 1.

    Args:
        cfg: of the network.
        weights: its checkpoint.
        device: where it runs.
    """
    extractor = build_extractor(cfg, device, weights=weights, neck="after", flip=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))

    def read(pictures: Tensor) -> Iterator[Batch]:
        for places in torch.arange(len(pictures)).split(BATCH):
            part = pictures[places, None]
            grey = functional.interpolate(part, size=list(cfg.INPUT.SIZE_TEST), mode="bilinear", antialias=True)
            images = (grey.expand(-1, 3, -1, -1) - mean) / std
            yield Batch(images, torch.zeros(len(places), 3), torch.full_like(places, int(Modality.SAR)), None, places)

    def embed(pictures: Tensor) -> Tensor:
        return extractor.extract(read(pictures), count=len(pictures))

    return embed


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and compare."""
    with open_command(build_parser(), arguments, needs=NEEDS, writes=True) as command:
        args, cfg = command.args, command.cfg
        reid, _ = load_described(args.reid_config, ["TEST.WEIGHT", args.reid_weights], "TEST.WEIGHT")
        embed = build_embedding(reid, args.reid_weights, command.device)
        figures = build_comparison(cfg, command.device, embed=embed)
        publish(build_report(cfg, figures, features=f"the re-identification network {args.reid_weights}"), command.folder)


if __name__ == "__main__":
    run(main)
