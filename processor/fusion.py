"""Cross-modal data generation and fusion, CDGF (MOS, section 3.3): generated pseudo-SAR features join the optical ones.

Legend: I images, K samples of an image, D feature width.
"""

from torch import Tensor
from torch.nn import functional


def fuse(features: Tensor, sample_features: Tensor, *, tau: float) -> Tensor:
    """normalise((1 - tau) f + tau * mean_k f_k), every feature L2-normalised first.

    Args:
        features: (I, D) of optical images.
        sample_features: (I, K, D) of the pictures generated from them.
        tau: weight of the generated ones, 0..1 (TEST.FUSION_TAU); 0 leaves the direction of `features` as it is.

    Returns:
        (I, D), of norm 1.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau is {tau}; it must be between 0 and 1")
    features = functional.normalize(features)
    if tau == 0:
        return features  # exactly: normalising twice would change the last digit
    generated = functional.normalize(sample_features, dim=-1).mean(1)
    return functional.normalize((1 - tau) * features + tau * generated)


def fuse_images(features: Tensor, sample_features: Tensor, sources: Tensor, *, tau: float) -> Tensor:
    """Features of all images, those with samples fused and the rest (SAR images) as they are.

    Args:
        features: (I, D), of norm 1.
        sample_features: (S, K, D) of S source images.
        sources: (S,) int64 index of each source among the I images.
        tau: see `fuse`.

    Returns:
        (I, D).
    """
    fused = features.clone()
    fused[sources] = fuse(features[sources], sample_features, tau=tau)
    return fused
