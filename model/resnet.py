"""ResNet-50 as a baseline: one network for both sensors, which is told neither modality nor size.

Legend: B images, H x W pixels, D = 2048.
"""

from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor

from model.features import Features

LAYERS = (3, 4, 6, 3)
"""Blocks of the four stages."""


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

    def forward(self, images: Tensor, modalities: Tensor, sizes: Tensor) -> Features:
        """The mean over the last feature map, (B, D), as the shared feature.

        Args:
            images: (B, 3, H, W).
            modalities, sizes: not used; other backbones need them.
        """
        return Features(shared=super().forward(images))
