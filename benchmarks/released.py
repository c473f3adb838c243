"""The released way of each job, restated plainly: what our figures are compared with.

What the released programs do and ours do not: attention as two products and a softmax of whole matrices; all tokens through the
last block; one optimiser group a parameter, none of them fused; a wait for the device at each step; float16 with a scaler for
re-identification, float32 for the bridge (convolutions in TF32, torch's default); channels first; the frozen first stage at
every step; every protocol extracts every feature again, holds all distances and sorts them whole.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbdm.model import BridgeModel
from loss.terms import euclidean_distances


def plain_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, **_: object) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with the matrix of scores in memory."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return functional.dropout(scores.softmax(dim=-1), dropout_p) @ value


@contextmanager
def released_networks() -> Iterator[None]:
    """Within the block, attention is `plain_attention`, a ViT's last block makes all tokens, convolutions may use TF32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    with (
        mock.patch.object(functional, "scaled_dot_product_attention", plain_attention),
        mock.patch("model.transoss.leading_tokens", lambda block, tokens, count: block(tokens)),
    ):
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = allowed


def alignment_by_loop(features: Tensor, labels: Tensor, modalities: Tensor) -> Tensor:
    """CMAL, identity by identity."""
    features, terms = functional.normalize(features), []
    for identity in labels.unique():
        optical, sar = (features[(labels == identity) & (modalities == kind)] for kind in (0, 1))
        if len(optical) and len(sar):
            means = torch.norm(optical.mean(0) - sar.mean(0))
            terms.append(means + torch.norm(optical.var(0, unbiased=False) - sar.var(0, unbiased=False)))
    return torch.stack(terms).mean() if terms else features.sum() * 0


def triplet_by_masks(features: Tensor, labels: Tensor) -> Tensor:
    """Batch-hard triplet loss with a soft margin, positives and negatives picked out by masks."""
    distances, count = euclidean_distances(features, features), len(labels)
    same = labels.expand(count, count).eq(labels.expand(count, count).t())
    positive = distances[same].contiguous().view(count, -1).max(1).values
    negative = distances[~same].contiguous().view(count, -1).min(1).values
    return functional.soft_margin_loss(negative - positive, torch.ones_like(positive))


def reid_step(model: nn.Module, device: torch.device) -> Callable[..., None]:
    """A training step (images, modalities, sizes, labels): a group a parameter, float16 on a GPU, two numbers brought home."""
    groups = [{"params": [parameter], "lr": 5e-4} for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(groups, lr=5e-4, momentum=0.9, weight_decay=1e-4)
    on_gpu = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)

    def step(images: Tensor, modalities: Tensor, sizes: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=on_gpu):
            output = model(images, modalities, sizes, labels)
            loss = functional.cross_entropy(output.scores, labels) + triplet_by_masks(output.feature, labels)
            loss = loss + 2.0 * alignment_by_loop(output.feature, labels, modalities)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        (output.scores.max(1)[1] == labels).float().mean().item()
        loss.item()
        if on_gpu:
            torch.cuda.synchronize()

    return step


def bridge_step(model: BridgeModel, *, accumulation: int) -> Callable[[Tensor, Tensor], None]:
    """A training step (optical, SAR) in float32: both pictures encoded, Adam a parameter at a time, the loss brought home."""
    optimizer = torch.optim.Adam(model.network.parameters(), lr=1e-4, foreach=False)
    done = 0

    def step(optical: Tensor, sar: Tensor) -> None:
        nonlocal done
        loss = model.random_loss(optical, sar)
        loss.backward()
        loss.item()
        done += 1
        if done % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()

    return step


def rank_whole(query: Tensor, gallery: Tensor, query_ids: np.ndarray, gallery_ids: np.ndarray) -> float:
    """mAP by all distances at once, sorted whole on the host, query by query."""
    squares = query.square().sum(1, keepdim=True) + gallery.square().sum(1)
    order = np.argsort((squares - 2 * query @ gallery.t()).cpu().numpy(), axis=1)
    precisions = []
    for row, ship in zip(order, query_ids, strict=True):
        hits = gallery_ids[row] == ship
        if hits.any():
            precision = hits.cumsum() / np.arange(1, len(hits) + 1)
            precisions.append((precision * hits).sum() / hits.sum())
    return float(np.mean(precisions))


@torch.no_grad()
def test_protocols(model: nn.Module, loaders: Sequence[tuple], device: torch.device) -> list[float]:
    """mAP of each protocol, which extracts its own features.

    Args:
        model: on its device.
        loaders: of each protocol its loader of queries, then gallery, the number of queries, and the ships of all (I,).
        device: of the model.
    """
    model.eval()
    scores = []
    for loader, queries, ships in loaders:
        features = []
        for batch in loader:
            images, modalities, sizes = (value.to(device) for value in (batch.images, batch.modalities, batch.sizes))
            features.append(model(images, modalities, sizes).feature.cpu())
        features = functional.normalize(torch.cat(features))
        scores.append(rank_whole(features[:queries], features[queries:], ships[:queries], ships[queries:]))
    return scores


def main(arguments: Sequence[str]) -> None:
    """Test a checkpoint as released; takes what test.py takes, and prints the mAP of each protocol."""
    from configs.command import open_command
    from configs.parser import config_parser
    from datasets.catalogue import read_hoss
    from datasets.loaders import build_test_loader
    from model.build import build_model
    from model.pretrained import load_weights

    parser = config_parser("python -m benchmarks.released", "Test as released.", "")
    with open_command(parser, arguments) as command, released_networks():
        cfg, data = command.cfg, read_hoss(command.cfg.DATASETS.ROOT_DIR, train=False)
        model = build_model(cfg)
        load_weights(cfg.TEST.WEIGHT, model)
        loaders = []
        for protocol in data.protocols.values():
            chips = [data.images[index] for index in (*protocol.query, *protocol.gallery)]
            ships = np.array([chip.ship for chip in chips])
            loaders.append((build_test_loader(cfg, chips), len(protocol.query), ships))
        scores = test_protocols(model.to(command.device), loaders, command.device)
        print("\n".join(f"{name} {100 * score:.1f}" for name, score in zip(data.protocols, scores, strict=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
