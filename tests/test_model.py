"""The network: what a batch may hold, what sizes it takes, what its heads compute, and that all of it learns."""

import math

import pytest
import torch
from torch.nn import functional

from loss.terms import pair_logits
from model.build import SHORT_SEQUENCE, SIZES, build_model, choose_attention
from model.heads import MARGINS, MarginHead, arcface_logits, circle_logits, cosface_logits, linear_head
from model.reid import ReIDModel
from model.transoss import TransOSS, leading_tokens
from tests.commands import tiny_cfg
from utils.device import Precision
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


def test_the_last_block_makes_the_class_tokens_that_it_would_make_among_all():
    for net in (backbone(drop_path_rate=0.0), backbone(drop_path_rate=0.0, specific_tokens=True)):
        tokens = torch.randn(3, 9, 32)
        whole = net.blocks[-1](tokens)
        torch.testing.assert_close(leading_tokens(net.blocks[-1], tokens, 2), whole[:, :2], rtol=1e-5, atol=1e-6)
        batch = pictures(3)
        every = net.embed(**batch)
        for block in net.blocks:
            every = block(every)
        torch.testing.assert_close(net(**batch).shared, net.norm(every)[:, 0], rtol=1e-5, atol=1e-6)


def rows(batch: dict[str, torch.Tensor], index) -> dict[str, torch.Tensor]:
    return {name: value[index] for name, value in batch.items()}


def test_attention_by_products_is_that_of_the_fused_function_and_of_training_alone():
    model = build_model(tiny_cfg(MODEL__DROP_PATH=0.0), 3).train()
    inputs = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]), torch.rand(4, 3)
    fused = model.base(*inputs).shared
    choose_attention(model, Precision("cpu"))
    assert all(block.attn.fused_attn for block in model.base.blocks)
    choose_attention(model, Precision("cpu", torch.bfloat16))
    assert not any(block.attn.fused_attn for block in model.base.blocks)
    torch.testing.assert_close(model.base(*inputs).shared, fused)
    assert all(block.attn.fused_attn for block in model.eval().base.blocks)


@pytest.mark.parametrize("image", [[272, 272], [288, 288]])
def test_long_sequences_keep_no_matrix_of_scores(image):
    model = build_model(tiny_cfg(INPUT__SIZE_TRAIN=image, INPUT__SIZE_TEST=image), 3).train()
    choose_attention(model, Precision("cpu", torch.bfloat16))
    long = model.base.patch_embed.num_patches > SHORT_SEQUENCE
    assert all(block.attn.fused_attn is long for block in model.base.blocks)


@pytest.mark.parametrize("modality", [0, 1])
def test_a_batch_may_hold_one_modality_and_its_features_are_those_of_a_mixed_one(modality):
    net, batch = backbone(), pictures(6)
    own = batch["modalities"] == modality
    torch.testing.assert_close(net(**rows(batch, own)).shared, net(**batch).shared[own], rtol=1e-5, atol=1e-6)


def test_features_do_not_depend_on_the_rest_of_the_batch():
    net, batch = backbone(), pictures(5)
    alone = torch.cat([net(**rows(batch, slice(i, i + 1))).shared for i in range(5)])
    torch.testing.assert_close(alone, net(**batch).shared, rtol=1e-5, atol=1e-6)


def test_each_modality_has_a_stem_of_its_own_and_its_own_embedding():
    net, batch = backbone(), pictures(4)
    before = net(**batch).shared
    with torch.no_grad():
        net.patch_embed_SAR.proj.bias += torch.randn(32)
    after = net(**batch).shared
    is_sar = batch["modalities"] == 1
    assert torch.equal(before[~is_sar], after[~is_sar])
    assert not torch.isclose(before[is_sar], after[is_sar]).all(1).any()
    with torch.no_grad():
        net.mie_embed[0] += torch.randn(32)
    assert torch.equal(net(**batch).shared[is_sar], after[is_sar])
    assert not torch.isclose(net(**batch).shared[~is_sar], after[~is_sar]).all(1).any()


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
    assert torch.equal(net(**batch).shared, net(**batch | {"sizes": batch["sizes"] + 1}).shared)


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [((48, 32), (16, 16), (3, 2)), ((48, 32), (12, 8), (3, 3)), ((16, 16), (16, 16), (1, 1)), ((50, 41), (11, 7), (4, 4))],
)
def test_any_image_size_and_stride(size, stride, grid):
    net, batch = backbone(img_size=size, stride=stride), pictures(2, size=size)
    assert net.grid_size == grid
    assert net.pos_embed.shape == (1, 1 + grid[0] * grid[1], 32)
    assert net(**batch).shared.shape == (2, 32)


def test_a_picture_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="15 x 32 pixels holds no patch of 16 x 16"):
        backbone(img_size=(15, 32))


def test_evaluation_is_deterministic_and_training_draws_paths():
    net, batch = backbone(drop_path_rate=0.5), pictures(8)
    assert torch.equal(net(**batch).shared, net(**batch).shared)
    net.train()
    assert not torch.equal(net(**batch).shared, net(**batch).shared)


def test_stochastic_depth_rises_linearly():
    net = backbone(depth=5, drop_path_rate=0.1).train()
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in net.blocks]
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads"),
    [("base", 768, 12, 12), ("small", 384, 12, 6), ("tiny", 192, 12, 3), ("mini", 192, 6, 3)],
)
def test_sizes(size, width, depth, heads):
    assert SIZES[f"vit_{size}_patch16_224_TransOSS"] == {"embed_dim": width, "depth": depth, "num_heads": heads}
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
    # The weights are constants, of the true identity and of the others.
    assert cosines.grad[0, 0].item() == pytest.approx(1 + 0.25 - 0.9)
    assert cosines.grad[0, 1].item() == pytest.approx(0.2 + 0.25)


@pytest.mark.parametrize("kind", MARGINS)
def test_a_margin_makes_the_true_identity_harder_and_nothing_else(kind):
    torch.manual_seed(0)
    head = MarginHead(kind, 8, 5, scale=30, margin=0.5)
    assert {name: value.shape for name, value in head.state_dict().items()} == (
        {"W": (8, 5)} if kind == "amsoftmax" else {"weight": (5, 8)}
    )
    features, labels = torch.randn(6, 8), torch.arange(6) % 5
    plain, harder = head(features), head(features, labels)
    assert plain.abs().max() <= 30.001
    torch.testing.assert_close(head(7 * features), plain)  # angles alone count
    target = functional.one_hot(labels, 5).bool()
    assert (harder[target] < plain[target]).all()
    if kind != "circle":
        torch.testing.assert_close(harder[~target], plain[~target])
    harder.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("kind", MARGINS)
def test_a_feature_on_its_own_centre_has_a_finite_gradient(kind):
    head = MarginHead(kind, 4, 2, scale=30, margin=0.5)
    with torch.no_grad():
        head.W.copy_(torch.eye(4)[:, :2]) if kind == "amsoftmax" else head.weight.copy_(torch.eye(4)[:2])
    features = torch.eye(4)[:1].clone().requires_grad_()
    functional.cross_entropy(head(features, torch.tensor([0])), torch.tensor([0])).backward()
    assert features.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("kind", ["softmax", *MARGINS])
def test_the_head_of_a_configuration(kind):
    torch.manual_seed(0)
    classifier = build_model(
        tiny_cfg(MODEL__ID_LOSS_TYPE=kind, SOLVER__COSINE_SCALE=17.0, SOLVER__COSINE_MARGIN=0.3), 4
    ).classifier
    features = torch.randn(2, 192)
    if kind == "softmax":
        torch.testing.assert_close(classifier(features), features @ classifier.weight.t())
        assert classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
        return
    weight = classifier.weight if kind != "amsoftmax" else classifier.W.t()
    deviation = (1 / (3 * 192)) ** 0.5 if kind == "circle" else (2 / (192 + 4)) ** 0.5  # torch's for linear maps; Xavier's
    assert weight.std().item() == pytest.approx(deviation, rel=0.1)
    assert (weight.abs().max() > 2 * deviation) == (kind == "amsoftmax")  # the one that starts normal, not uniform
    cosines, labels = functional.cosine_similarity(features[:, None], weight[None], dim=2), torch.tensor([3, 1])
    torch.testing.assert_close(classifier(features), 17.0 * cosines)
    torch.testing.assert_close(classifier(features, labels), MARGINS[kind](cosines, labels, scale=17.0, margin=0.3))


def test_names_of_margins_are_those_of_their_papers():
    assert {
        "arcface": arcface_logits, "cosface": cosface_logits, "amsoftmax": cosface_logits, "circle": circle_logits
    } == MARGINS  # fmt: skip


def test_a_configuration_reaches_the_network():
    base = build_model(
        tiny_cfg(
            MODEL__DROP_OUT=0.3,
            MODEL__ATT_DROP_RATE=0.2,
            MODEL__DROP_PATH=0.22,
            MODEL__MIE_COE=1.5,
            MODEL__STRIDE_SIZE="[8,16]",
        )
    ).base
    assert base.pos_drop.p == 0.3
    for number, block in enumerate(base.blocks):
        assert (block.attn.proj_drop.p, block.mlp.drop1.p, block.mlp.drop2.p) == (0.3, 0.3, 0.3)
        assert block.attn.attn_drop.p == 0.2
        for path in (block.drop_path1, block.drop_path2):
            assert getattr(path, "drop_prob", 0.0) == pytest.approx(0.22 * number / 11)
    assert base.modality_scale == 1.5
    assert base.grid_size == (3, 2)
    batch = pictures(2, size=(32, 32))
    with torch.no_grad():
        tokens = base.eval().embed(**batch)
        base.mie_embed.zero_()
        torch.testing.assert_close(tokens[:, 0] - base.embed(**batch)[:, 0], tokens[:, 1] - base.embed(**batch)[:, 1])
    assert base.patch_embed.proj.stride == base.patch_embed_SAR.proj.stride == (8, 16)
    for key, name in (("MODEL__MIE", "mie_embed"), ("MODEL__SSE", "wh_embed")):
        assert getattr(base, name) is not None
        assert getattr(build_model(tiny_cfg(**{key: False})).base, name) is None


def test_what_dropout_does_reaches_the_features_in_training_alone():
    for option in ("drop_rate", "attn_drop_rate"):
        net, batch = backbone(drop_path_rate=0.0, **{option: 0.5}), pictures(4)
        assert torch.equal(net(**batch).shared, net(**batch).shared)
        net.train()
        assert not torch.equal(net(**batch).shared, net(**batch).shared)


def test_sincos_positions_tell_rows_from_columns_and_leave_the_class_token():
    normal, sincos = backbone(), backbone(position_init="sincos")
    assert torch.equal(normal.pos_embed[:, 0], sincos.pos_embed[:, 0])
    places = sincos.pos_embed[0, 1:].view(3, 2, 32)
    # Half of the width tells the row and half the column: sums of products depend on differences of places alone.
    torch.testing.assert_close(places.square().sum(2), torch.full((3, 2), 16.0))
    torch.testing.assert_close((places[0] * places[1]).sum(1), (places[1] * places[2]).sum(1))
    torch.testing.assert_close((places[:, 0] * places[:, 1]).sum(1)[:2], (places[:, 0] * places[:, 1]).sum(1)[1:])
    assert ((places[0] - places[1]).abs() > 0.1).any() and ((places[:, 0] - places[:, 1]).abs() > 0.1).any()
    assert normal.pos_embed.std() < 0.03


def test_embeddings_start_small_and_the_size_token_without_bias():
    net = backbone(embed_dim=64)
    assert net.mie_embed.std().item() == pytest.approx(0.02, rel=0.3)
    assert net.wh_embed.linear_layer.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not net.wh_embed.linear_layer.bias.any()
    assert (net.norm.eps, net.blocks[0].norm1.eps) == (1e-6, 1e-6)


def test_stems_and_class_token_of_the_released_size_start_as_released():
    torch.manual_seed(0)
    net = TransOSS(img_size=(16, 16), depth=1)
    for stem in (net.patch_embed, net.patch_embed_SAR):
        assert stem.proj.weight.std().item() == pytest.approx(0.0032, rel=0.02)
        assert stem.proj.weight.abs().max() > 4 * 0.0032  # normal, not uniform
    assert net.cls_token.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(net.patch_embed.proj.weight, net.patch_embed_SAR.proj.weight)


def test_dropout_takes_every_token_of_the_first_block_the_size_token_too():
    net, batch = backbone(drop_rate=0.5).train(), pictures(4)
    dropped = (net.embed(**batch) == 0).float().mean((0, 2))
    assert dropped.shape == (1 + 3 * 2 + 1,)
    assert ((dropped > 0.3) & (dropped < 0.7)).all()


def test_defaults_of_a_backbone_are_those_of_vit_base():
    net = TransOSS(img_size=(16, 16)).eval()
    assert (net.num_features, len(net.blocks), net.blocks[0].attn.num_heads) == (768, 12, 12)
    assert (net.modality_scale, net.patch_embed.proj.stride, net.blocks[0].mlp.fc1.out_features) == (3.0, (16, 16), 3072)
    assert (net.pos_drop.p, net.blocks[0].attn.attn_drop.p) == (0.0, 0.0)
    assert net.blocks[-1].drop_path2.drop_prob == pytest.approx(0.1)


def test_what_the_objective_does_not_use_is_frozen():
    def trained(**changes) -> set[str]:
        model = build_model(tiny_cfg(**changes), 3)
        return {name for name, value in model.named_parameters() if value.requires_grad and not name.startswith("base.")}

    assert trained() == {"bottleneck.weight", "classifier.weight"}
    assert trained(MODEL__ID_LOSS_WEIGHT=0.0) == set()
    assert trained(MODEL__PAIR=True) == {"logit_scale"}
    assert trained(MODEL__NECK="no") == {"classifier.weight"}


def test_pair_logits_are_scaled_cosines_with_sar_in_rows():
    sar, optical = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    logits = pair_logits(sar, optical, torch.tensor(math.log(10)))
    torch.testing.assert_close(logits, 10 * torch.tensor([[1.0, 0.5**0.5], [0.0, 0.5**0.5]]))
