"""The golden vectors of SDF-Net: one check for each kind of file, as in `tests.golden.reid`."""

import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from datasets.transforms import jitter_colours
from loss.criterion import Criterion
from loss.terms import batch_hard_triplet, orthogonality, structure_consistency
from model.features import fuse_tokens, gradient_energy, structure_descriptor
from model.reid import ReIDModel
from processor.ranking.retrieval import squared_distances
from tests.golden.compare import FORMULA, NETWORK, Comparison, close, equal
from tests.golden.reid import Vectors, check_surgery, fill, model_of, same_keys, sine_images, tensor


def check_losses(vectors: Vectors) -> Iterator[Comparison]:
    """Energy, descriptor, every term and the total, with the gradients of all that they are made of."""
    labels, camids = tensor(vectors["labels"]), tensor(vectors["camids"])
    grid = tuple(int(size) for size in vectors["grid"])
    names = ("tokens", "shared", "specific", "score")
    inputs = {name: tensor(vectors[name]).requires_grad_() for name in names}
    inputs |= {"energy": gradient_energy(inputs["tokens"], grid)}
    inputs |= {"f_struct": structure_descriptor(inputs["energy"])}
    inputs |= {"fuse": fuse_tokens(inputs["shared"], inputs["specific"], "sum")}
    criterion = Criterion({"identity": 1.0, "triplet": 1.0, "orthogonality": 10.0, "structure": 1.0})
    parts = {"shared": inputs["shared"], "specific": inputs["specific"], "structure": inputs["f_struct"]}
    terms = criterion(inputs["fuse"], inputs["score"], labels, camids, **parts)
    values = {
        "energy": inputs["energy"],
        "struct": structure_consistency(inputs["f_struct"], labels, camids),
        "orth": orthogonality(inputs["shared"], inputs["specific"]),
        "triplet": batch_hard_triplet(inputs["fuse"], labels),
        "identity": functional.cross_entropy(inputs["score"], labels),
        "base": terms["identity"] + terms["triplet"],
        "total_sdf": criterion.total(terms),
    }
    for name, value in values.items():
        yield close(value, vectors[name], FORMULA)
    yield close(inputs["fuse"], vectors["fuse"], FORMULA)
    yield close(inputs["f_struct"], vectors["f_struct"], NETWORK)
    yield close(structure_consistency(inputs["f_struct"], labels, tensor(vectors["camids_apart"])), 0.0, FORMULA)
    flat = torch.ones_like(inputs["tokens"][:1])
    yield close(structure_descriptor(gradient_energy(flat, grid)), vectors["f_struct_flat"], NETWORK)
    values |= {"total": values["total_sdf"]}
    for key in vectors:
        of, _, by = key.partition("_grad_")
        if key == "energy_grad":
            of, by = "energy", "tokens"
        if by:
            gradient = torch.autograd.grad(values[of].sum(), inputs[by], retain_graph=True)[0]
            yield close(gradient, vectors[key], NETWORK)


def check_model(vectors: Vectors) -> Iterator[Comparison]:
    """A whole model: what it tells in evaluation, and one step of training."""
    config = json.loads(str(vectors["config"]))
    model = model_of(config)
    yield from same_keys(model, vectors)
    if "eval_feat" in vectors:
        with torch.no_grad():
            yield from _check_evaluation(vectors, config)
    if "loss_total" in vectors:
        fill(model, config)
        yield from _check_step(model.train(), vectors, config)


def _feature(config: dict, rows: np.ndarray, vectors: Vectors) -> Tensor:
    """Test features of the images `rows`: after the neck where two tokens are fused, else where `config` says."""
    model = model_of(config)
    fill(model, config)
    output = model(*(tensor(vectors[key][rows]) for key in ("x", "camids", "img_wh")))
    return output.neck_feature if config["disentangle"] or config["neck_feat"] == "after" else output.feature


def _check_evaluation(vectors: Vectors, config: dict) -> Iterator[Comparison]:
    model = model_of(config)
    fill(model, config)
    parts = model(*(tensor(vectors[key]) for key in ("x", "camids", "img_wh"))).parts
    ours = {"shared": parts.shared, "feature": parts.shared, "specific": parts.specific, "struct": parts.structure}
    for name in ours.keys() & vectors.keys():
        yield close(ours[name], vectors[name], NETWORK)
    everything = np.ones(len(vectors["x"]), bool)
    feature = _feature(config, everything, vectors)
    yield close(feature, vectors["eval_feat"], NETWORK)
    yield close(_feature(config, vectors["camids"] == 0, vectors), vectors["eval_feat_optical_only"], NETWORK)
    for fusion in ("shared", "specific"):
        if f"eval_feat_{fusion}" in vectors:
            other = _feature({**config, "fusion": fusion}, everything, vectors)
            yield close(other, vectors[f"eval_feat_{fusion}"], NETWORK)
    unit = functional.normalize(feature)
    yield close(squared_distances(unit[:3], unit[3:]), vectors["eval_dist"], NETWORK)


def _check_step(model: ReIDModel, vectors: Vectors, config: dict) -> Iterator[Comparison]:
    energies = []
    block = model.base.blocks[config["struct_layer"] - 1]
    start, grid = model.base.class_tokens, model.base.grid_size
    stop = start + grid[0] * grid[1]
    hook = block.register_forward_hook(lambda _, __, tokens: energies.append(gradient_energy(tokens[:, start:stop], grid)))
    output = model(*(tensor(vectors[key]) for key in ("x", "camids", "img_wh", "labels")))
    hook.remove()
    ours = {"score": output.scores, "fuse": output.feature, "energy": energies[0], "struct": output.parts.structure}
    ours |= {"shared": output.parts.shared, "specific": output.parts.specific}
    for name in ours:
        if f"train_{name}" in vectors:
            yield close(ours[name], vectors[f"train_{name}"], NETWORK)
    weights = {"identity": 1.0, "triplet": config["triplet_weight"], "structure": config["struct_weight"]}
    weights |= {"orthogonality": config["orth_weight"]} if config["disentangle"] else {}
    criterion = Criterion(weights)
    labels, camids = tensor(vectors["labels"]), tensor(vectors["camids"])
    terms = criterion(output.feature, output.scores, labels, camids, **vars(output.parts))
    total = criterion.total(terms)
    base = sum(weights[name] * terms[name] for name in ("identity", "triplet") if name in terms)
    names = {"identity": "identity", "triplet": "triplet", "orth": "orthogonality", "struct": "structure"}
    for name, value in {"total": total, "base": base, **{short: terms.get(name) for short, name in names.items()}}.items():
        if f"loss_{name}" in vectors:
            yield close(value, vectors[f"loss_{name}"], NETWORK)
    total.backward()
    parameters = dict(model.named_parameters())
    idle = sorted(name for name, value in parameters.items() if value.grad is None)
    yield equal(idle, sorted(str(name) for name in vectors["no_grad"] if not str(name).startswith("base.fc.")))
    buffers = model.state_dict()
    for key in vectors:
        kind, _, name = key.partition(".")
        if kind == "grad":
            yield close(parameters[name].grad, vectors[key], NETWORK)
        elif kind == "after":
            yield close(buffers[name], vectors[key], NETWORK)


def check_base(vectors: Vectors) -> Iterator[Comparison]:
    """The released size: every key and shape, which of them TransOSS lacks, and what the network tells."""
    config = json.loads(str(vectors["config"]))
    model, plain = model_of(config), model_of({**config, "disentangle": False})
    yield from same_keys(model, vectors)
    before = {name: value.shape for name, value in plain.state_dict().items()}
    new = [name for name, value in model.state_dict().items() if before.get(name) != value.shape]
    yield equal(sorted(new), sorted(str(name) for name in vectors["new_keys"]))
    fill(model, config)
    output = model(sine_images(vectors, config), tensor(vectors["camids"]), tensor(vectors["img_wh"]))
    yield close(output.parts.shared, vectors["shared"], NETWORK)
    yield close(output.parts.specific, vectors["specific"], NETWORK)
    yield close(output.parts.structure, vectors["struct"], NETWORK)
    yield close(structure_descriptor(tensor(vectors["energy"])), vectors["struct"], NETWORK)
    yield close(output.neck_feature, vectors["eval_feat"], NETWORK)


def check_jitter(vectors: Vectors) -> Iterator[Comparison]:
    """Brightness, contrast and saturation of every picture, exactly."""
    for key in vectors:
        name = key.removeprefix("in")
        if key.startswith("in") and name.isdigit():
            ours = jitter_colours(vectors[key], vectors[f"factors{name}"], vectors[f"order{name}"])
            yield equal(ours, vectors[f"out{name}"])


CHECKS = {
    "sdf_losses": check_losses,
    "sdf_model_": check_model,
    "sdf_base_keys": check_base,
    "sdf_surgery_": check_surgery,
    "sdf_jitter": check_jitter,
}
"""Prefix of a file's name -> its check."""
