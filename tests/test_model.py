"""The network: what a batch may hold, what sizes it takes, what its heads compute, and that all of it learns."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from loss.terms import pair_logits
from model.build import SIZES, build_model
from model.heads import MARGINS, MarginHead, arcface_logits, circle_logits, cosface_logits, linear_head
from model.reid import ReIDModel
from model.transoss import TransOSS
from tests.commands import tiny_cfg
from utils.errors import UsageError


def backbone(*, seed: int = 0, **changes) -> TransOSS:
    torch.manual_seed(seed)
    sizes = {"img_size": (48, 32), "embed_dim": 32, "depth": 2, "num_heads": 4}
    return TransOSS(**sizes | changes).eval()


def pictures(count: int, *, size=(48, 32)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randn(count, 3, *size, generator=generator),
        "modalities": torch.arange(count) % 2,
        "sizes": torch.randn(count, 3, generator=generator),
    }


def rows(batch: dict[str, torch.Tensor], index) -> dict[str, torch.Tensor]:
    return {name: value[index] for name, value in batch.items()}


@pytest.mark.parametrize("modality", [0, 1])
def test_a_batch_may_hold_one_modality_and_its_features_are_those_of_a_mixed_one(modality):
    net, batch = backbone(), pictures(6)
    own = batch["modalities"] == modality
    torch.testing.assert_close(net(**rows(batch, own)), net(**batch)[own], rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_the_rest_of_the_batch():
    net, batch = backbone(), pictures(5)
    alone = torch.cat([net(**rows(batch, slice(i, i + 1))) for i in range(5)])
    torch.testing.assert_close(alone, net(**batch), rtol=1e-5, atol=1e-6)


def test_each_modality_has_a_stem_of_its_own_and_its_own_embedding():
    net, batch = backbone(), pictures(4)
    before = net(**batch)
    with torch.no_grad():
        net.patch_embed_SAR.proj.bias += torch.randn(32)
    after = net(**batch)
    is_sar = batch["modalities"] == 1
    assert torch.equal(before[~is_sar], after[~is_sar])
    assert not torch.isclose(before[is_sar], after[is_sar]).all(1).any()
    with torch.no_grad():
        net.mie_embed[0] += torch.randn(32)
    assert torch.equal(net(**batch)[is_sar], after[is_sar])
    assert not torch.isclose(net(**batch)[~is_sar], after[~is_sar]).all(1).any()


def test_tokens_are_made_of_what_the_method_says():
    """Class token and patches plus positions plus 3 x modality; the size token behind them has neither."""
    net, batch = backbone(), pictures(2)
    tokens = net.embed(**batch)
    assert tokens.shape == (2, 1 + 3 * 2 + 1, 32)
    for row, stem in enumerate((net.patch_embed, net.patch_embed_SAR)):
        modality = 3.0 * net.mie_embed[row, 0]
        torch.testing.assert_close(tokens[row, 0], net.cls_token[0, 0] + net.pos_embed[0, 0] + modality)
        # The second patch of the first row, by hand.
        patch = batch["images"][row, :, 0:16, 16:32]
        embedded = (stem.proj.weight * patch).sum((1, 2, 3)) + stem.proj.bias
        torch.testing.assert_close(tokens[row, 2], embedded + net.pos_embed[0, 2] + modality, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tokens[row, -1], net.wh_embed.linear_layer(batch["sizes"][row]))


def test_without_embeddings_there_is_no_such_tensor_and_sizes_do_not_matter():
    net, batch = backbone(modality_embedding=False, size_embedding=False), pictures(2)
    assert not {name for name in net.state_dict() if name.startswith(("mie_embed", "wh_embed"))}
    assert net.embed(**batch).shape == (2, 1 + 3 * 2, 32)
    assert torch.equal(net(**batch), net(**batch | {"sizes": batch["sizes"] + 1}))


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [((48, 32), (16, 16), (3, 2)), ((48, 32), (12, 8), (3, 3)), ((16, 16), (16, 16), (1, 1)), ((50, 41), (11, 7), (4, 4))],
)
def test_any_image_size_and_stride(size, stride, grid):
    net, batch = backbone(img_size=size, stride=stride), pictures(2, size=size)
    assert net.grid_size == grid
    assert net.pos_embed.shape == (1, 1 + grid[0] * grid[1], 32)
    assert net(**batch).shape == (2, 32)


def test_a_picture_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="15 x 32 pixels holds no patch of 16 x 16"):
        backbone(img_size=(15, 32))


def test_evaluation_is_deterministic_and_training_draws_paths():
    net, batch = backbone(drop_path_rate=0.5), pictures(8)
    assert torch.equal(net(**batch), net(**batch))
    net.train()
    assert not torch.equal(net(**batch), net(**batch))


def test_stochastic_depth_rises_linearly():
    net = backbone(depth=5, drop_path_rate=0.1).train()
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in net.blocks]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])


@pytest.mark.parametrize(("size", "width", "heads"), [("base", 768, 12), ("small", 384, 6), ("tiny", 192, 3)])
def test_sizes(size, width, heads):
    assert SIZES[f"vit_{size}_patch16_224_TransOSS"] == {"embed_dim": width, "depth": 12, "num_heads": heads}
    if size != "base":  # its forward is a golden vector
        model = build_model(tiny_cfg(MODEL__TRANSFORMER_TYPE=f"vit_{size}_patch16_224_TransOSS"), 5).eval()
        output = model(**pictures(2, size=(32, 32)))
        assert (output.feature.shape, output.scores.shape) == ((2, width), (2, 5))


def test_a_model_has_the_released_names_and_every_part_that_trains_gets_a_gradient():
    model = build_model(tiny_cfg(MODEL__DROP_PATH=0.0), 3)
    names = model.state_dict().keys()
    assert {"logit_scale", "classifier.weight", "bottleneck.running_mean", "base.patch_embed_SAR.proj.weight"} <= names
    assert {"base.mie_embed", "base.wh_embed.linear_layer.weight", "base.blocks.11.attn.qkv.bias"} <= names
    output = model.train()(**pictures(4, size=(32, 32)), labels=torch.tensor([0, 1, 2, 0]))
    (functional.cross_entropy(output.scores, torch.tensor([0, 1, 2, 0])) + output.feature.square().mean()).backward()
    without = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    assert without == {"logit_scale", "bottleneck.bias"}
    assert without == {name for name, value in model.named_parameters() if not value.requires_grad}


def test_the_temperature_trains_in_contrastive_pre_training_alone():
    model = build_model(tiny_cfg(MODEL__PAIR=True))
    assert model.logit_scale.requires_grad
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-4)
    assert model.classifier is None


@pytest.mark.parametrize("neck", [True, False])
def test_the_neck_is_what_scores_are_read_from(neck):
    torch.manual_seed(0)
    model = ReIDModel(backbone(), linear_head(32, 3), neck=neck).train()
    output = model(**pictures(6))
    torch.testing.assert_close(output.scores, output.neck_feature @ model.classifier.weight.t())
    if neck:
        torch.testing.assert_close(output.neck_feature.mean(0), torch.zeros(32), rtol=0, atol=1e-5)
        assert not torch.isclose(output.neck_feature, output.feature).any(1).all()
    else:
        assert torch.equal(output.neck_feature, output.feature)
        assert not any("bottleneck" in name for name in model.state_dict())


def test_a_model_without_classifier_has_no_scores():
    assert ReIDModel(backbone()).eval()(**pictures(1)).scores is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MODEL__TRANSFORMER_TYPE": "vit_huge"}, "MODEL.TRANSFORMER_TYPE cannot be 'vit_huge'"),
        ({"INPUT__SIZE_TEST": "[32,16]"}, "INPUT.SIZE_TRAIN and INPUT.SIZE_TEST differ"),
        ({"INPUT__SIZE_TRAIN": "[8,32]", "INPUT__SIZE_TEST": "[8,32]"}, "holds no patch"),
    ],
)
def test_models_that_cannot_be_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        build_model(tiny_cfg(**changes))


COSINES = torch.tensor([[0.9, 0.2, -0.3], [-0.95, 0.1, 0.4]])
LABELS = torch.tensor([0, 0])


def test_arcface_adds_its_margin_to_the_angle_and_keeps_falling_beyond_pi():
    logits = arcface_logits(COSINES, LABELS, scale=2.0, margin=0.5)
    assert logits[0, 0].item() == pytest.approx(2 * math.cos(math.acos(0.9) + 0.5), abs=1e-5)
    assert logits[1, 0].item() == pytest.approx(2 * (-0.95 - 0.5 * math.sin(0.5)), abs=1e-5)
    assert torch.equal(logits[:, 1:], 2 * COSINES[:, 1:])
    falling = arcface_logits(torch.linspace(1, -1, 1001)[:, None], torch.zeros(1001, dtype=torch.int64), scale=1, margin=0.5)
    steps = falling.diff(dim=0)
    assert (steps < 1e-6).all() or steps.clamp(min=0).sum() < 0.2  # one step where the two branches meet


def test_cosface_takes_its_margin_off_the_cosine():
    logits = cosface_logits(COSINES, LABELS, scale=3.0, margin=0.2)
    torch.testing.assert_close(logits, 3 * (COSINES - torch.tensor([0.2, 0.0, 0.0])))


def test_circle_weights_each_cosine_by_its_distance_from_its_optimum():
    cosines = COSINES.clone().requires_grad_()
    logits = circle_logits(cosines, LABELS, scale=1.0, margin=0.25)
    assert logits[0, 0].item() == pytest.approx((1 + 0.25 - 0.9) * (0.9 - 1 + 0.25))
    assert logits[0, 1].item() == pytest.approx((0.2 + 0.25) * (0.2 - 0.25))
    assert logits[0, 2].item() == 0  # below -m a negative has no weight
    logits.sum().backward()
    assert cosines.grad[0, 0].item() == pytest.approx(1 + 0.25 - 0.9)  # the weight is a constant


@pytest.mark.parametrize("kind", MARGINS)
def test_a_margin_makes_the_true_identity_harder_and_nothing_else(kind):
    torch.manual_seed(0)
    head = MarginHead(kind, 8, 5, scale=30, margin=0.5)
    assert head.weight.shape == ((8, 5) if kind == "amsoftmax" else (5, 8))
    features, labels = torch.randn(6, 8), torch.arange(6) % 5
    plain, harder = head(features), head(features, labels)
    assert plain.abs().max() <= 30.001
    torch.testing.assert_close(head(7 * features), plain)  # angles alone count
    target = functional.one_hot(labels, 5).bool()
    assert (harder[target] < plain[target]).all()
    if kind != "circle":
        torch.testing.assert_close(harder[~target], plain[~target])
    harder.sum().backward()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", MARGINS)
def test_a_feature_on_its_own_centre_has_a_finite_gradient(kind):
    head = MarginHead(kind, 4, 2, scale=30, margin=0.5)
    with torch.no_grad():
        head.weight.copy_(torch.eye(4)[:, :2] if kind == "amsoftmax" else torch.eye(4)[:2])
    features = torch.eye(4)[:1].clone().requires_grad_()
    functional.cross_entropy(head(features, torch.tensor([0])), torch.tensor([0])).backward()
    assert features.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["softmax", *MARGINS])
def test_the_head_of_a_configuration(kind):
    model = build_model(tiny_cfg(MODEL__ID_LOSS_TYPE=kind), 4)
    assert isinstance(model.classifier, nn.Linear if kind == "softmax" else MarginHead)
    assert getattr(model.classifier, "scale", 30) == 30
    assert model.classifier(torch.randn(2, 192)).shape == (2, 4)


def test_pair_logits_are_scaled_cosines_with_sar_in_rows():
    sar, optical = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    logits = pair_logits(sar, optical, torch.tensor(math.log(10)))
    torch.testing.assert_close(logits, 10 * torch.tensor([[1.0, 0.5**0.5], [0.0, 0.5**0.5]]))
