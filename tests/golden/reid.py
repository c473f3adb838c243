"""The golden vectors of re-identification: one check for each kind of file.

A check takes the arrays of a file and yields a comparison for each thing that it pins.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from yacs.config import CfgNode

from configs.defaults import default_cfg
from datasets.catalogue import read_hoss
from datasets.chips import size_triple
from datasets.loaders import build_test_loader
from datasets.records import Modality
from datasets.sar import build_sar_rendering
from loss.criterion import Criterion
from loss.terms import (
    batch_hard_triplet,
    center_loss,
    classwise_alignment,
    global_alignment,
    pair_logits,
    symmetric_contrastive,
)
from model.contents import contents_of
from model.features import fused_width
from model.heads import MarginHead, linear_head
from model.pretrained import fit_backbone, resize_position_embedding
from model.reid import ReIDModel
from model.transoss import TransOSS
from processor.fusion import fuse_images
from processor.ranking.reranking import rerank
from processor.ranking.retrieval import rank_distances, rank_features, squared_distances
from solver.optimizer import group_parameters
from solver.schedule import cosine_schedule
from tests.formula_weights import fill_formula, fill_seeded
from tests.golden.compare import FORMULA, NETWORK, Comparison, Skip, close, equal, tensor

Vectors = Mapping[str, np.ndarray]

RERANKING = 5e-3
"""The released program keeps neighbour weights in float16."""


def cmc_of(result, length: int) -> list[float]:
    """The cumulative matching characteristic: `rank(1)`, `rank(2)`, ..."""
    return [result.rank(k) for k in range(1, length + 1)]


def is_normalisation(key: str) -> bool:
    """Whether the weight rules add 1 to this key of a re-identification model."""
    necks = ("bottleneck.weight", "bottleneck_fuse.weight")
    return key in necks or key.endswith(("norm1.weight", "norm2.weight", "norm.weight", "running_var"))


def backbone_of(config: dict) -> TransOSS:
    """The backbone that a file's `config` describes, in evaluation mode."""
    backbone = TransOSS(
        img_size=tuple(config["img_size"]),
        stride=tuple(config["stride"]),
        embed_dim=config["width"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=config["mlp_ratio"],
        norm_eps=config["layernorm_eps"],
        modality_embedding=config["modalities"] > 0,
        modality_scale=config["mie_coe"],
        size_embedding=config["sse"],
        drop_path_rate=0.0,
        specific_tokens=config.get("disentangle", False),
        structure_block=config.get("struct_layer", 0),
    )
    return backbone.eval()


def model_of(config: dict) -> ReIDModel:
    """The whole model of `config`."""
    backbone, fusion = backbone_of(config), config["fusion"] if config.get("disentangle") else None
    classifier = linear_head(fused_width(backbone.num_features, fusion), config["identities"])
    return ReIDModel(backbone, classifier, fusion=fusion).eval()


def check_sar_to_rgb(vectors: Vectors) -> Iterator[Comparison]:
    """Both renderings of every chip."""
    renderings = {
        "mos": build_sar_rendering("percentile", low=5.0, high=100.0),
        "transoss": build_sar_rendering("max", low=5.0, high=100.0),
    }
    for key in vectors:
        name = key.lstrip("abcdefghijklmnopqrstuvwxyz")
        for kind, render in renderings.items():
            if key == f"{kind}{name}":
                yield equal(render(vectors[f"in{name}"]), vectors[key])


def check_ship_size(vectors: Vectors) -> Iterator[Comparison]:
    """Size triples of optical and SAR chips."""
    for key, modality in (("optical", Modality.OPTICAL), ("sar", Modality.SAR)):
        yield close([size_triple(int(w), int(h), modality) for w, h in vectors["wh"]], vectors[key], FORMULA)


def check_losses(vectors: Vectors) -> Iterator[Comparison]:
    """Every loss term, its gradient where the file has it, the margin heads and MOS's total."""
    labels, camids, score = (tensor(vectors[key]) for key in ("labels", "camids", "score"))
    terms: dict[str, Callable[[Tensor], Tensor]] = {
        "cmal": lambda feature: classwise_alignment(feature, labels, camids),
        "global_ma": lambda feature: global_alignment(feature, camids),
        "triplet_soft": lambda feature: batch_hard_triplet(feature, labels),
        "triplet_m03": lambda feature: batch_hard_triplet(feature, labels, margin=0.3),
    }
    for name, term in terms.items():
        feature = tensor(vectors["feat"]).requires_grad_()
        value = term(feature)
        yield close(value, vectors[name], FORMULA)
        yield close(torch.autograd.grad(value, feature)[0], vectors[f"{name}_grad"], NETWORK)
    feature = tensor(vectors["feat"])
    yield close(functional.cross_entropy(score, labels), vectors["xent"], FORMULA)
    yield close(functional.cross_entropy(score, labels, label_smoothing=0.1), vectors["xent_smooth"], FORMULA)
    yield close(
        center_loss(feature, labels, tensor(vectors["centers"])), vectors["center"], FORMULA * max(1, vectors["center"])
    )
    yield close(symmetric_contrastive(tensor(vectors["clip_sim"])), vectors["clip"], FORMULA)
    criterion = Criterion({"identity": 1.0, "triplet": 1.0, "alignment": 2.0})
    yield close(criterion.total(criterion(feature, score, labels, camids)), vectors["total_mos"], FORMULA)
    for kind in ("arcface", "cosface", "amsoftmax", "circle"):
        head = MarginHead(kind, feature.shape[1], score.shape[1], scale=30.0, margin=0.5)
        name = "W" if kind == "amsoftmax" else "weight"
        head.load_state_dict({name: tensor(vectors[f"{kind}_w"])})
        yield close(head(feature, labels), vectors[kind], NETWORK)


def check_vit(vectors: Vectors) -> Iterator[Comparison]:
    """Features of a small backbone with given weights, of a mixed batch and of its optical images alone."""
    backbone = backbone_of(json.loads(str(vectors["config"])))
    weights = {key.removeprefix("w."): tensor(vectors[key]) for key in vectors if key.startswith("w.")}
    own = backbone.state_dict()
    yield equal(sorted(key for key in weights if not key.startswith("fc.")), sorted(own))
    backbone.load_state_dict({key: value for key, value in weights.items() if key in own})
    x, camids, sizes = (tensor(vectors[key]) for key in ("x", "camids", "img_wh"))
    yield close(backbone(x, camids, sizes).shared, vectors["feat"], NETWORK)
    optical = camids == 0
    yield close(backbone(x[optical], camids[optical], sizes[optical]).shared, vectors["feat_optical_only"], NETWORK)


def check_vit_base_formula(vectors: Vectors) -> Iterator[Comparison]:
    """The released size: every key and shape, and features with formula weights."""
    config = json.loads(str(vectors["config"]))
    model = model_of(config)
    yield from same_keys(model, vectors)
    fill_formula(model, is_normalisation)
    output = model(sine_images(vectors, config), tensor(vectors["camids"]), tensor(vectors["img_wh"]))
    yield close(output.feature, vectors["feat"], NETWORK)


def sine_images(vectors: Vectors, config: dict) -> Tensor:
    """The pictures that a file of the released size stands for."""
    shape = (len(vectors["camids"]), 3, *config["img_size"])
    return torch.sin(0.01 * torch.arange(math.prod(shape), dtype=torch.float64) + int(vectors["seed"])).float().view(shape)


def same_keys(model: ReIDModel, vectors: Vectors) -> Iterator[Comparison]:
    """Names and shapes of the state dict."""
    theirs = {key: shape for key, shape in zip(vectors["keys"], vectors["key_shapes"]) if not key.startswith("base.fc.")}
    ours = {key: str(list(value.shape)) for key, value in model.state_dict().items()}
    yield equal(sorted(ours.items()), sorted((str(key), str(shape)) for key, shape in theirs.items()))


def check_pos_embed_resize(vectors: Vectors) -> Iterator[Comparison]:
    """A square grid resampled to another one."""
    rows, columns = (int(size) for size in vectors["grid"])
    yield close(resize_position_embedding(tensor(vectors["old"]), (rows, columns)), vectors["new"], FORMULA)


def fill(module: torch.nn.Module, config: dict) -> None:
    """Fill a network by the rule that `config` names, the formula if none."""
    if config.get("weights") == "seeded":
        fill_seeded(module, config["weights_seed"], is_normalisation)
    else:
        fill_formula(module, is_normalisation)


def check_surgery(vectors: Vectors) -> Iterator[Comparison]:
    """A checkpoint, such as an ImageNet-style one, loaded into a filled backbone."""
    config = json.loads(str(vectors["config"]))
    backbone = backbone_of(config)
    fill(backbone, config)
    source = {key.removeprefix("src."): tensor(vectors[key]) for key in vectors if key.startswith("src.")}
    fit_backbone(contents_of(source), backbone)
    theirs = {
        key.removeprefix("out."): vectors[key] for key in vectors if key.startswith("out.") and not key.startswith("out.fc.")
    }
    ours = backbone.state_dict()
    yield equal(sorted(theirs), sorted(ours))
    for key, value in theirs.items():
        yield close(ours[key], value, FORMULA)


def check_reid_model(vectors: Vectors) -> Iterator[Comparison]:
    """A whole model with formula weights: test feature, then training outputs, then pair logits."""
    config = json.loads(str(vectors["config"]))
    model = model_of(config)
    yield from same_keys(model, vectors)
    fill_formula(model, is_normalisation)
    arguments = [tensor(vectors[key]) for key in ("x", "camids", "img_wh")]
    output = model(*arguments)
    yield close(output.feature if config["neck_feat"] == "before" else output.neck_feature, vectors["eval_feat"], NETWORK)
    output = model.train()(*arguments)
    yield close(output.scores, vectors["train_score"], NETWORK)
    yield close(output.feature, vectors["train_feat"], NETWORK)
    optical, sar = output.feature.chunk(2)
    yield close(pair_logits(sar, optical, model.logit_scale), vectors["pair_logits"], NETWORK)


def check_lr(vectors: Vectors) -> Iterator[Comparison]:
    """Learning rates of two groups over all epochs."""
    base_lr = float(vectors["base_lr"])
    names = [("weight", torch.nn.Parameter(torch.zeros(1))), ("bias", torch.nn.Parameter(torch.zeros(1)))]
    optimizer = torch.optim.SGD(group_parameters(names, lr=base_lr, weight_decay=0.0, bias_lr_factor=2.0), lr=base_lr)
    schedule = cosine_schedule(optimizer, base_lr=base_lr, epochs=len(vectors["lr"]))
    rates = []
    for epoch in range(1, len(vectors["lr"]) + 1):
        schedule.step(epoch)
        rates.append([group["lr"] for group in optimizer.param_groups])
    yield close(rates, vectors["lr"], FORMULA * base_lr)


def check_metrics(vectors: Vectors) -> Iterator[Comparison]:
    """Distances, CMC and mAP, plain and re-ranked."""
    query, gallery = tensor(vectors["qf"]), tensor(vectors["gf"])
    ids = {"query_ids": tensor(vectors["q_pids"]), "gallery_ids": tensor(vectors["g_pids"])}
    yield close(squared_distances(query, gallery), vectors["dist"], FORMULA)
    for result in (rank_features(query, gallery, **ids), rank_distances(tensor(vectors["dist"]), **ids)):
        yield close(cmc_of(result, len(vectors["cmc"])), vectors["cmc"], FORMULA)
        yield close(result.mean_average_precision, vectors["mAP"], FORMULA)
    for key in vectors:
        if key.startswith("rerank_") and key.split("_")[1].isdigit():
            k1, k2 = (int(part) for part in key.split("_")[1:])
            distances = rerank(query, gallery, k1=k1, k2=k2, lambda_value=0.3)
            yield close(distances, vectors[key], RERANKING)
            if (k1, k2) == (20, 6) and "rerank_mAP" in vectors:
                result = rank_distances(torch.as_tensor(distances), **ids)
                yield close(cmc_of(result, len(vectors["rerank_cmc"])), vectors["rerank_cmc"], 1.001 / result.queries_counted)
                yield close(result.mean_average_precision, vectors["rerank_mAP"], RERANKING)


def check_fusion(vectors: Vectors) -> Iterator[Comparison]:
    """Fused distances, CMC and mAP."""
    sides = [side for side in "qg" if np.sum(vectors[f"{side}_mod"] == 0) * int(vectors["k"]) == len(vectors["gen"])]
    # Which side `gen` belongs to is only in the file's name, which a check does not see; where the counts fit both, either may.
    outcomes = [list(_check_fused_side(vectors, side)) for side in sides]
    yield from min(outcomes, key=lambda comparisons: max(comparison.error for comparison in comparisons))


def _check_fused_side(vectors: Vectors, side: str) -> Iterator[Comparison]:
    features = {name: tensor(vectors[f"{name}f"]) for name in "qg"}
    samples = tensor(vectors["gen"]).unflatten(0, (-1, int(vectors["k"])))
    sources = np.flatnonzero(vectors[f"{side}_mod"] == 0).tolist()
    other = "g" if side == "q" else "q"
    fused = {
        side: fuse_images(features[side], samples, sources, tau=float(vectors["tau"])),
        other: functional.normalize(features[other]),
    }
    yield close(squared_distances(fused["q"], fused["g"]), vectors["dist"], FORMULA)
    ids = {"query_ids": tensor(vectors["q_pids"]), "gallery_ids": tensor(vectors["g_pids"])}
    result = rank_features(fused["q"], fused["g"], **ids)
    yield close(cmc_of(result, len(vectors["cmc"])), vectors["cmc"], FORMULA)
    yield close(result.mean_average_precision, vectors["mAP"], FORMULA)


def check_e2e(vectors: Vectors) -> Iterator[Comparison]:
    """Evaluation on real chips with seeded weights; they are found through MOS_DATA_ROOT."""
    root = os.environ.get("MOS_DATA_ROOT")
    if not root or not (Path(root) / "HOSS").is_dir():
        raise Skip("MOS_DATA_ROOT names no folder with HOSS/")
    data = read_hoss(root, train=False)
    yield equal([record.path.name for record in data.images], vectors["names"].tolist())
    yield equal([record.ship for record in data.images], vectors["pids"].tolist())
    config = json.loads(str(vectors["config"]))
    loader = build_test_loader(_reading(config), data.images)
    model = model_of(config)
    fill_seeded(model, int(vectors["seed"]), is_normalisation)
    features, means, sizes = [], [], []
    for batch in loader:
        output = model(batch.images, batch.modalities, batch.sizes)
        features.append(output.feature if config["neck_feat"] == "before" else output.neck_feature)
        means.append(batch.images.mean((2, 3)))
        sizes.append(batch.sizes)
    features, means = torch.cat(features), torch.cat(means)
    yield close(torch.cat(sizes), vectors["size_triple"], FORMULA)
    yield close(means, vectors["pixel_mean"], FORMULA)
    yield close(features, vectors["feats"], NETWORK)
    exact = float((means - tensor(vectors["pixel_mean"])).abs().max()) <= 1e-6
    features = functional.normalize(features)
    for name, protocol in data.protocols.items():
        query, gallery = list(protocol.query), list(protocol.gallery)
        ids = {"query_ids": tensor(vectors["pids"])[query], "gallery_ids": tensor(vectors["pids"])[gallery]}
        result = rank_features(features[query], features[gallery], **ids)
        # Another decoder or resizer may move two queries.
        tolerance = FORMULA if exact else 2.001 / result.queries_counted
        yield close(cmc_of(result, len(vectors[f"{name.lower()}_cmc"])), vectors[f"{name.lower()}_cmc"], tolerance)
        yield close(result.mean_average_precision, vectors[f"{name.lower()}_mAP"], tolerance)


def _reading(config: dict) -> CfgNode:
    """What `build_test_loader` reads, at the released values."""
    cfg = default_cfg()
    cfg.INPUT.SIZE_TEST = list(config["img_size"])
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    cfg.INPUT.SAR_DENOISE, cfg.INPUT.SAR_LOW_PERCENT, cfg.INPUT.SAR_HIGH_PERCENT = "percentile", 5.0, 100.0
    cfg.DATALOADER.NUM_WORKERS, cfg.TEST.IMS_PER_BATCH, cfg.SOLVER.SEED = 0, 16, 0
    return cfg


CHECKS = {
    "sar_to_rgb": check_sar_to_rgb,
    "ship_size": check_ship_size,
    "losses": check_losses,
    "vit_": check_vit,
    "vit_base_formula": check_vit_base_formula,
    "pos_embed_resize": check_pos_embed_resize,
    "pretrained_surgery": check_surgery,
    "reid_model_": check_reid_model,
    "lr_": check_lr,
    "metrics": check_metrics,
    "fusion_": check_fusion,
    "e2e_hoss_sample": check_e2e,
}
"""Prefix of a file's name -> its check."""
