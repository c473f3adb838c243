"""ResNet-50 as a baseline: one network for both sensors, which is told neither modality nor size.

Legend: B images, H x W pixels, D = 2048.
"""

from collections.abc import Mapping

from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor

from model.sources import MODEL_PARTS, Source, check_finite
from utils.errors import CheckpointError

LAYERS = (3, 4, 6, 3)
"""Blocks of the four stages."""

STEM = "conv1.weight"


class ResNet50(ResNet):
    """He et al. 2016, with the last stage at full resolution if asked; tensor names are those of torchvision and timm.

    Args:
        last_stride: of the last stage: 2 as in ImageNet networks, 1 keeps twice the rows and columns (Luo et al. 2019, "Bag of
            Tricks", section 3.5). Weights do not depend on it.
    """

    def __init__(self, *, last_stride: int = 1):
        super().__init__(Bottleneck, LAYERS, num_classes=0)
        # Not timm's output_stride 16, which dilates the last stage as well.
        first = self.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (last_stride, last_stride)

    def forward(self, images: Tensor, modalities: Tensor, sizes: Tensor) -> Tensor:
        """The mean over the last feature map, (B, D).

        Args:
            images: (B, 3, H, W).
            modalities, sizes: not used; other backbones need them.
        """
        return super().forward(images)


def find_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """What stands before a ResNet-50's names among `tensors`; None if there is none (a deeper one is found too)."""
    last = f"layer4.{LAYERS[3] - 1}.conv3.weight"
    prefixes = (name.removesuffix(last) for name in tensors if name.endswith(last))
    return next((prefix for prefix in prefixes if f"{prefix}{STEM}" in tensors), None)


def sort_resnet(tensors: Mapping[str, Tensor], backbone: ResNet50) -> Source:
    """Find a ResNet-50's tensors among `tensors`, under any prefix; see `model.sources.sort_tensors`.

    Raises:
        CheckpointError: there is none, or another ResNet; the sentence wants the file's name before it.
    """
    prefix = find_prefix(tensors)
    if prefix is None:
        raise CheckpointError(
            f"holds no ResNet-50 (no {STEM} and layer4.2.conv3.weight under one prefix), which MODEL.NAME resnet50 needs; take "
            "torchvision's or timm's resnet50, or set MODEL.NAME transformer"
        )
    outer = prefix.removesuffix("base.")
    found: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for name, value in tensors.items():
        short = name.removeprefix(outer)
        if name.startswith(outer) and short.startswith(MODEL_PARTS):
            rest[short] = value
        elif not name.startswith(prefix):
            skipped[name] = "not of the backbone"
        elif name.startswith(f"{prefix}fc."):
            skipped[name] = "a classifier head"
        else:
            found[name.removeprefix(prefix)] = value
    unknown = next((name for name in found if name not in backbone.state_dict()), None)
    if unknown:
        raise CheckpointError(f"has {unknown}, which ResNet-50 lacks: it is for another architecture; take a resnet50")
    check_finite(found)
    return Source(found, rest, skipped, frozenset(), prefix, ())
