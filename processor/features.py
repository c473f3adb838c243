"""From images to features: every image through the network once.

Legend: I images, D feature width.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from datasets.records import Batch
from utils import distributed
from utils.device import Precision
from utils.log import progress


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
    model.eval()
    features, indices = [], []
    bar = progress(count, description, unit="image", visible=bool(description))
    for batch in batches:
        indices.append(batch.indices)
        batch = batch.to(device)
        views = [batch.images, batch.images.flip(-1)] if flip else [batch.images]
        with precision.autocast():
            outputs = [model(images, batch.modalities, batch.sizes) for images in views]
        found = [(output.feature if neck == "before" else output.neck_feature).float() for output in outputs]
        features.append(torch.stack(found).mean(0) if flip else found[0])
        bar.update(len(indices[-1]) * distributed.world_size())
    bar.close()
    # Features stay on the device until the end, so that no batch waits for a copy.
    own = (torch.cat(indices), torch.cat(features).cpu()) if indices else (torch.empty(0, dtype=torch.int64), None)
    shares = [(places, values) for places, values in distributed.gather(own) if values is not None]
    places = torch.cat([places for places, _ in shares])
    if not torch.equal(places.sort().values, torch.arange(count)):
        raise RuntimeError(f"{len(places)} features came of {count} images; each should come once")
    values = torch.cat([values for _, values in shares])
    ordered = torch.empty_like(values)
    ordered[places] = values
    return ordered
