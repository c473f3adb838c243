"""From chips to features: the network of a configuration sees every picture once.

Legend: I images, S of them with samples, K samples of each, D feature width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.loaders import build_test_loader
from datasets.records import Batch, Chip
from model.build import build_model
from model.pretrained import load_weights
from processor.feature_store import build_origin, chip_contents, hash_files, sample_contents, stored
from processor.fusion import SampleSet
from utils import distributed
from utils.checkpoint import sha256, without_start_values
from utils.device import Precision, build_compilation, build_test_precision
from utils.log import progress
from utils.memory import fitting

CPU_BATCH = 16
"""Images that go through a network at a time on a CPU: what larger batches hold leaves its caches. Against 128, ViT-B takes
14 % less time in float32 and 30 % less in bfloat16 (AVX-512, one core); features are the same."""


@torch.inference_mode()
def extract_features(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    count: int,
    device: torch.device,
    precision: Precision,
    neck: str = "before",
    flip: bool = False,
    description: str = "",
) -> Tensor:
    """Features of `count` images, in the order of `Batch.indices`; all ranks share the work and each gets all of them.

    Args:
        model: a `ReIDModel`; it is left in evaluation mode.
        batches: this rank's images, each once.
        count: number of images over all ranks, I.
        device: where the model is.
        precision: in which the network computes; features are float32.
        neck: 'before' or 'after' the neck (TEST.NECK_FEAT).
        flip: whether each image's feature is the mean of its own and its mirror's (left and right).
        description: of the progress bar; empty for none.

    Returns:
        (I, D) float32 on the CPU, not normalised.
    """
    see = partial(_see, model, precision=precision, neck=neck, flip=flip)
    model.eval()
    features, indices = [], []
    bar = progress(count, description, unit="image", visible=bool(description))
    for batch in batches:
        indices.append(batch.indices)
        batch = batch.to(device)
        with fitting("TEST.IMS_PER_BATCH", len(batch.indices), lambda size, batch=batch: see(batch.first(size))):
            features += [see(part) for part in batch.split(CPU_BATCH if device.type == "cpu" else len(batch.indices))]
        bar.update(len(indices[-1]) * distributed.world_size())
    bar.close()
    # Features stay on the device until the end, so that no batch waits for a copy.
    return _in_order(torch.cat(indices) if indices else None, torch.cat(features).cpu() if features else None, count)


def _see(model: nn.Module, batch: Batch, *, precision: Precision, neck: str, flip: bool) -> Tensor:
    """Features (B, D) of a batch on the model's device."""
    views = [batch.images, batch.images.flip(-1)] if flip else [batch.images]
    with precision.autocast():
        outputs = [model(images, batch.modalities, batch.sizes) for images in views]
    found = [(output.feature if neck == "before" else output.neck_feature).float() for output in outputs]
    return torch.stack(found).mean(0) if flip else found[0]


def _in_order(places: Tensor | None, values: Tensor | None, count: int) -> Tensor:
    """The features of all ranks, sorted by the places of their images."""
    shares = [share for share in distributed.gather((places, values)) if share[0] is not None]
    places, values = (torch.cat(parts) for parts in zip(*shares, strict=True))
    if not torch.equal(places.sort().values, torch.arange(count)):
        raise RuntimeError(f"{len(places)} features came of {count} images; each should come once")
    ordered = torch.empty_like(values)
    ordered[places] = values
    return ordered


@dataclass(frozen=True)
class Extractor:
    """A network, how its features are taken, and where they are kept.

    Attributes:
        extract: batches, `count` and perhaps `description` -> (I, D): `extract_features` of the network.
        read: chips -> batches of them, this rank's share.
        weights_sha256: of the checkpoint; empty for a network in memory.
        folder: of the feature store; None keeps nothing.
        origin: what decides features beside the images (`processor.feature_store.build_origin`).
        width: of a feature, D; None where it is not known.
    """

    extract: Callable[..., Tensor]
    read: Callable[[Sequence[Chip]], Iterable[Batch]]
    weights_sha256: str = ""
    folder: Path | None = None
    origin: Mapping[str, Any] | None = None
    width: int | None = None

    def features(self, chips: Sequence[Chip], hashes: Sequence[str] = (), *, description: str = "") -> Tensor:
        """(I, D) float32 on the CPU, not normalised. All ranks call it; with a store, chips that it holds need no network.

        Args:
            chips: (I,) real chips.
            hashes: (I,) SHA-256 of their files, where they are known; only a store needs them.
            description: of the progress bar; empty for none.
        """
        contents = chip_contents(chips, hashes or _hashes(chips)) if self.folder else []
        return self._stored(contents, chips, description)[0]

    def samples(self, samples: SampleSet, hashes: Sequence[str] = (), *, description: str = "") -> tuple[Tensor, float]:
        """Features (S, K, D) of generated pictures, and the seconds that the network took for them, now or once.

        Args:
            samples: see `processor.fusion.find_samples`.
            hashes: (I,) SHA-256 of the files of `samples.images`, where they are known; only a store needs them.
            description: of the progress bar; empty for none.
        """
        chips, contents = [chip for own in samples.chips for chip in own], []
        if self.folder:
            hashes = hashes or _hashes(samples.images)
            contents = sample_contents(chips, [hashes[index] for index in samples.sources for _ in range(samples.per_image)])
        values, seconds = self._stored(contents, chips, description)
        return values.unflatten(0, (-1, samples.per_image)), seconds

    def _stored(self, contents: Sequence[str], chips: Sequence[Chip], description: str) -> tuple[Tensor, float]:
        def see() -> Tensor:
            return self.extract(self.read(chips), count=len(chips), description=description)

        return stored(self.folder, self.origin, contents, see, self.width)


def _hashes(chips: Sequence[Chip]) -> list[str]:
    return hash_files([chip.path for chip in chips])


def build_extractor(
    cfg, device: torch.device, *, weights: str = "", model: nn.Module | None = None, store: str = "", **changes: Any
) -> Extractor:
    """The extractor of TEST.*; by default in float32, since small distances decide. Processes share the chips.

    Args:
        cfg: the configuration of the network.
        device: where it runs.
        weights: the checkpoint of the network that `cfg` describes.
        model: a network on its device, such as one that is being trained, in place of weights.
        store: folder of the feature store; it needs weights.
        changes: of how features are taken (`neck`, `flip`).

    Raises:
        CheckpointError: see `model.pretrained.load_weights`.
    """
    digest, origin, precision = "", None, build_test_precision(cfg, device)
    if model is None:
        model = without_start_values(partial(build_model, cfg))
        load_weights(weights, model)
        precision.cast(model.to(device))
        build_compilation(cfg, model)
        digest = sha256(weights)
        origin = build_origin(cfg, weights_sha256=digest, device=device) if store else None
    options = {"neck": cfg.TEST.NECK_FEAT, "flip": cfg.TEST.FLIP, **changes}
    extract = partial(extract_features, model, device=device, precision=precision, **options)
    share = {"device_type": device.type, "rank": distributed.rank(), "world_size": distributed.world_size()}
    read = partial(build_test_loader, cfg, **share)
    return Extractor(extract, read, digest, Path(store) if origin else None, origin, model.num_features)
