"""What else might close the gap between the sensors: rivals of fusion and of the common space, one change at a time.

    python -m benchmarks.gap --store logs/samples --config_file configs/demo_reid.yml \
        DATASETS.ROOT_DIR data/many TEST.WEIGHT <weights>

The gap is that of `tools.oracle`: each query is scored by the setting that queries of other ships choose, against plain
features and against those of a spare SAR view. Prints Markdown tables; `--json` writes all of it.

Legend: I images, S of them with pictures, K pictures of each, N training chips, D feature width.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.kernel_approximation import Nystroem
from torch import Tensor
from torch.nn import functional

from benchmarks.feature_bridge import pairs_of_ships, sample_features, train_feature_bridge
from configs.command import open_command
from configs.parser import config_parser
from datasets.catalogue import HossData, read_hoss
from datasets.chips import read_header
from datasets.records import Chip, Modality
from processor.common_space import CommonSpace, build_space_chips, fit_chips, fit_space
from processor.extraction import Extractor, build_extractor
from processor.fusion import SampleSet, find_samples
from processor.ranking.evaluation import build_ranking
from processor.stand_ins import find_spare_views, write_stand_ins
from tools.oracle import FUSED, ORACLE, PLAIN, Candidate, format_rows, report_rows, settle_rows, try_rows
from utils.cli import run
from utils.files import write_json

TAUS = (0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHRINKAGES, DIMENSIONS = (0.001, 0.003, 0.01, 0.03, 0.1), (32, 64, 128)
KERNEL_WIDTHS, LANDMARKS = (0.5, 1.0, 2.0), 400
BRIDGE_SAMPLES = 8

Rows = dict[str, list[Candidate]]


@dataclass(frozen=True)
class Material:
    """What the rivals are made of.

    Attributes:
        features: (I, D) of the test images, of norm 1.
        modalities: (I,) of them.
        known: (N, D) of the chips that spaces are fitted to, of norm 1.
        chips: (N,) these.
        samples: the generated pictures, and `generated` (S, K, D) their features, of norm 1.
    """

    features: Tensor
    modalities: tuple[Modality, ...]
    known: Tensor
    chips: tuple[Chip, ...]
    samples: SampleSet
    generated: Tensor

    @property
    def sources(self) -> tuple[int, ...]:
        """Indices of the images with pictures."""
        return self.samples.sources

    def space(self, kind: str, shrinkage: float = 0.003, dimensions: int = 64) -> CommonSpace:
        """A common space."""
        return fit_chips(kind, self.known, self.chips, shrinkage=shrinkage, dimensions=dimensions)


def side_by_side(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Features whose squared distances are (1 - share) of the first's and share of the second's: fusion of scores."""
    return torch.cat([(1 - share) ** 0.5 * first, share**0.5 * second], dim=1)


def ways_of_fusion(of: Material) -> Rows:
    """Other ways to join the features of the same pictures."""
    spread = 1 - of.generated.mean(1).norm(dim=1)  # 0 where all K agree
    trust = (spread.median() / (spread + spread.median()) * 2).clamp(max=1)[:, None]
    index, rows = torch.tensor(of.sources), {"scores fused, not features": [], "tau by the spread over K": []}
    mean = of.features.clone()
    mean[index] = functional.normalize(of.generated.mean(1))
    for tau in TAUS:
        setting = {"weight": tau}
        rows["scores fused, not features"].append(Candidate(side_by_side(of.features, mean, tau), setting=setting))
        weighted = of.features.clone()
        target = functional.normalize(of.generated.mean(1))
        weighted[index] = functional.normalize((1 - tau * trust) * of.features[index] + tau * trust * target)
        rows["tau by the spread over K"].append(Candidate(weighted, setting=setting))
    rows["one picture, K = 1"] = [Candidate(of.features, of.sources, of.generated[:, :1])]
    return rows


def mean_picture(of: Material, extractor: Extractor) -> Rows:
    """The mean of the K pictures seen once, instead of the mean of K features."""
    files = {of.samples.images[index].path: own for index, own in zip(of.sources, of.samples.chips)}

    def draw(chip: Chip) -> Image.Image:
        size = chip.size or read_header(chip.path)[0]
        pictures = [np.asarray(Image.open(own.path).convert("L").resize(size), np.float32) for own in files[chip.path]]
        return Image.fromarray(np.mean(pictures, axis=0).round().astype(np.uint8))

    with tempfile.TemporaryDirectory() as folder:
        made = write_stand_ins(Path(folder), of.samples, draw)
        return {"the mean of the K pictures": [Candidate(of.features, of.sources, extractor.samples(made)[0])]}


def spaces(of: Material) -> Rows:
    """Common spaces, two at once, behind a kernel, and fused with pictures."""
    rows: Rows = {"space lda": [], "space cca": [], "both spaces": [], "space lda of a kernel": []}
    for share in SHRINKAGES:
        for count in DIMENSIONS:
            setting = {"shrinkage": share, "dimensions": count}
            mapped = [of.space(kind, share, count).map_images(of.features, of.modalities) for kind in ("lda", "cca")]
            rows["space lda"].append(Candidate(mapped[0], setting=setting))
            rows["space cca"].append(Candidate(mapped[1], setting=setting))
            rows["both spaces"].append(Candidate(side_by_side(*mapped, 0.5), setting=setting))
    for width in KERNEL_WIDTHS:
        kernel = Nystroem(gamma=width, n_components=min(LANDMARKS, len(of.known)), random_state=0).fit(of.known.numpy())
        known, test = (torch.from_numpy(kernel.transform(own.numpy())).float() for own in (of.known, of.features))
        who = [chip.modality for chip in of.chips], [chip.ship for chip in of.chips]
        for share in SHRINKAGES:
            space = fit_space("lda", known, *who, shrinkage=share, dimensions=64)
            setting = {"gamma": width, "shrinkage": share}
            rows["space lda of a kernel"].append(Candidate(space.map_images(test, of.modalities), setting=setting))
    space = of.space("lda")
    mapped, generated = space.map_images(of.features, of.modalities), space.map_samples(of.generated)
    rows["space lda, pictures fused"] = [Candidate(mapped, of.sources, generated)]
    return rows


def feature_bridges(of: Material) -> Rows:
    """The Brownian bridge between features of the space lda: the mean of K samples at every tau, and by their spread."""
    space = of.space("lda")
    known = space.map_images(of.known, [chip.modality for chip in of.chips])
    mapped = space.map_images(of.features, of.modalities)
    scale = known.shape[1] ** 0.5
    pairs = pairs_of_ships([chip.modality for chip in of.chips], [chip.ship for chip in of.chips])
    bridge, network = train_feature_bridge(known * scale, pairs, seed=0)
    optical = [index for index, modality in enumerate(of.modalities) if modality is Modality.OPTICAL]
    found = sample_features(bridge, network, mapped[optical] * scale, count=BRIDGE_SAMPLES, seed=0)
    return {
        f"space lda, bridge between features, K = {BRIDGE_SAMPLES}": [Candidate(mapped, optical, found)],
        "space lda, the same, K = 1": [Candidate(mapped, optical, found[:, :1])],
    }


def neck(cfg, device: torch.device, data: HossData) -> Rows:
    """Features behind the neck, which training classified by."""
    other = "before" if cfg.TEST.NECK_FEAT == "after" else "after"
    extractor = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT, neck=other)
    return {f"features {other} the neck": [Candidate(extractor.features(data.images, description=f"{other} the neck"))]}


def build_material(cfg, extractor: Extractor, data: HossData, store: str) -> Material:
    """Read and extract."""
    samples = find_samples(data.images, query_dir=store, gallery_dir=store, measured=cfg.TEST.GENERATED_SIZE == "file")
    chips = build_space_chips(cfg)
    features = [
        extractor.features(data.images, description="features"),
        extractor.features(chips, description="features of training ships"),
        extractor.samples(samples, description="features of samples")[0],
    ]
    own, known, generated = (functional.normalize(values, dim=-1) for values in features)
    return Material(own, tuple(chip.modality for chip in data.images), known, chips, samples, generated)


def main(arguments: Sequence[str]) -> None:
    """Extract, try, print."""
    parser = config_parser("python -m benchmarks.gap", "Rivals of fusion and of the common space.", "", weights="TEST.WEIGHT")
    parser.add_argument("--store", required=True, metavar="DIR", help="generated samples of the test images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    with open_command(parser, arguments, needs={"TEST.WEIGHT": "the checkpoint to measure"}) as command:
        cfg, device, args = command.cfg, command.device, command.args
        ranking = build_ranking(cfg, device)
        extractor = build_extractor(cfg, device, weights=cfg.TEST.WEIGHT, store=cfg.TEST.FEATURE_STORE)
        data = read_hoss(cfg.DATASETS.ROOT_DIR, train=False)
        of = build_material(cfg, extractor, data, args.store)
        views = find_spare_views(Path(cfg.DATASETS.ROOT_DIR, "spare", "test"), data)
        oracle = extractor.samples(views, description="features of spare views")[0][:, :1]
        rows = {PLAIN: [Candidate(of.features)], FUSED: [Candidate(of.features, of.sources, of.generated)]}
        rows |= ways_of_fusion(of) | mean_picture(of, extractor) | neck(cfg, device, data) | spaces(of) | feature_bridges(of)
        rows[ORACLE] = [Candidate(of.features, views.sources, oracle)]
        trials = try_rows(data, rows, ranking, TAUS)
        report = {name: report_rows(settle_rows(trials, None, name, "mAP"), "mAP") for name in data.protocols}
        for name, found in report.items():
            print(f"\n{format_rows(found, name, 'mAP')}")
        if args.json:
            write_json(args.json, report)


if __name__ == "__main__":
    run(main)
