"""The objective: its terms by hand, against plain loops, and where batches are awkward."""

import math

import pytest
import torch
from torch.nn import functional

from loss.criterion import Criterion, build_criterion
from loss.terms import (
    _groups_by_first_image,
    batch_hard_triplet,
    center_loss,
    classwise_alignment,
    euclidean_distances,
    global_alignment,
    pair_logits,
    structure_consistency,
    symmetric_contrastive,
)
from tests.commands import tiny_cfg


def random_batch(count: int = 24, width: int = 6, identities: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(identities, (count,), generator=generator)
    modalities = torch.randint(2, (count,), generator=generator)
    return features, labels, modalities


def looped_alignment(features, labels, modalities, *, squared=False):
    """The class-wise alignment as the method writes it, one identity after the other."""
    features = features / features.norm(dim=1, keepdim=True)
    distances = []
    for label in labels.unique():
        optical = features[(labels == label) & (modalities == 0)]
        sar = features[(labels == label) & (modalities == 1)]
        if len(optical) and len(sar):
            gaps = (optical.mean(0) - sar.mean(0), optical.var(0, correction=0) - sar.var(0, correction=0))
            distances.append(sum(gap.norm() ** (2 if squared else 1) for gap in gaps))
    return torch.stack(distances).mean() if distances else torch.zeros((), dtype=features.dtype)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("squared", [False, True])
def test_alignment_equals_a_loop_over_identities(seed, squared):
    features, labels, modalities = random_batch(seed=seed, identities=3 + 2 * seed)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss = classwise_alignment(ours, labels, modalities, squared=squared)
    expected = looped_alignment(theirs, labels, modalities, squared=squared)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    several = {int(label): min((modalities[labels == label] == m).sum() for m in (0, 1)) > 1 for label in labels.unique()}
    rows = torch.tensor([several[int(label)] for label in labels])  # a loop's norm has no slope at a variance gap of 0
    expected.backward()
    torch.testing.assert_close(ours.grad[rows], theirs.grad[rows])


@pytest.mark.parametrize("term", [classwise_alignment, structure_consistency])
def test_counting_identities_or_not_makes_no_difference(term, monkeypatch):
    """Away from a CPU an identity goes by its first image, so that the host need not know how many there are."""
    batch = random_batch(identities=9)
    counted = term(*batch)
    monkeypatch.setattr("loss.terms._groups", lambda labels: _groups_by_first_image(labels))
    torch.testing.assert_close(term(*batch), counted)


def test_alignment_by_hand():
    """Means (1, 0) and (0.6, 0.8): a gap of sqrt(0.16 + 0.64); one chip of each sensor has no variance."""
    features, labels = torch.tensor([[2.0, 0.0], [3.0, 4.0]]), torch.tensor([7, 7])
    assert classwise_alignment(features, labels, torch.tensor([0, 1])).item() == pytest.approx(math.sqrt(0.8))
    assert classwise_alignment(features, labels, torch.tensor([0, 1]), squared=True).item() == pytest.approx(0.8)


def test_alignment_by_hand_with_variance():
    """Optical (1, 0), (0, 1): mean (.5, .5), variance (.25, .25); SAR (0, 1) twice: mean (0, 1), variance 0."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    loss = classwise_alignment(features, torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.sqrt(0.5) + math.sqrt(0.125))


@pytest.mark.parametrize("squared", [False, True])
def test_alignment_is_zero_for_equal_means_and_variances_and_its_gradient_is_too(squared):
    half = functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    features = torch.cat([half, half]).requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1, 2] * 2)
    loss = classwise_alignment(features, labels, torch.tensor([0] * 6 + [1] * 6), squared=squared)
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


@pytest.mark.parametrize("squared", [False, True])
def test_one_chip_of_each_sensor_has_a_finite_gradient(squared):
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels, modalities = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    classwise_alignment(features, labels, modalities, squared=squared).backward()
    assert features.grad.isfinite().all()
    assert features.grad.any(1).all()


def test_one_chip_of_each_sensor_is_the_gap_of_its_means_alone():
    """In float32 a mean square less a squared mean is rounding, whose square root would have a slope of its own."""
    ours = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    classwise_alignment(ours, torch.tensor([0, 0]), torch.tensor([0, 1])).backward()
    functional.normalize(theirs).diff(dim=0).norm().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_features_that_are_all_equal_have_finite_gradients(value):
    """A network that has collapsed, or has not begun: every distance is 0."""
    features = torch.full((8, 4), value).requires_grad_()
    labels, modalities = torch.arange(8) // 4, torch.arange(8) % 2
    for loss in (
        classwise_alignment(features, labels, modalities),
        global_alignment(features, modalities),
        batch_hard_triplet(features, labels),
        batch_hard_triplet(features, labels, margin=0.3),
    ):
        features.grad = None
        loss.backward()
        assert loss.isfinite()
        assert features.grad.isfinite().all()


@pytest.mark.parametrize("modalities", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
def test_no_identity_in_both_modalities_is_no_misalignment(modalities):
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = classwise_alignment(features, torch.tensor([0, 0, 1, 1]), torch.tensor(modalities))
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


def test_alignment_depends_neither_on_order_nor_length_nor_names_of_identities():
    features, labels, modalities = random_batch()
    loss = classwise_alignment(features, labels, modalities)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    lengths = torch.linspace(0.5, 2, len(labels), dtype=torch.float64)[:, None]
    torch.testing.assert_close(classwise_alignment(features[order], labels[order] * 17 + 3, modalities[order]), loss)
    torch.testing.assert_close(classwise_alignment(features * lengths, labels, modalities), loss)
    torch.testing.assert_close(classwise_alignment(features, labels, 1 - modalities), loss)


def test_global_alignment_by_hand():
    """Means (1, 2) and (3, 2), variances (1, 0) and (0, 0): MSE 4 / 2 plus 1 / 2."""
    features = torch.tensor([[0.0, 2.0], [2.0, 2.0], [3.0, 2.0]])
    assert global_alignment(features, torch.tensor([0, 0, 1])).item() == pytest.approx(2.5)
    assert global_alignment(features, torch.tensor([1, 1, 0])).item() == pytest.approx(2.5)


@pytest.mark.parametrize("modality", [0, 1])
def test_global_alignment_of_one_modality_is_zero(modality):
    features = torch.randn(3, 4).requires_grad_()
    loss = global_alignment(features, torch.full((3,), modality))
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
"""Identities 0, 0, 1, 1 on a line: farthest positives 1, 1, 4, 4; nearest negatives 3, 2, 2, 6."""


def test_triplet_by_hand():
    labels, differences = torch.tensor([0, 0, 1, 1]), (-2.0, -1.0, 2.0, -2.0)
    soft = sum(math.log1p(math.exp(difference)) for difference in differences) / 4
    hinge = sum(max(0.0, difference + 1.5) for difference in differences) / 4
    assert batch_hard_triplet(LINE, labels).item() == pytest.approx(soft, abs=1e-6)
    assert batch_hard_triplet(LINE, labels, margin=1.5).item() == pytest.approx(hinge, abs=1e-6)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_and_its_gradient_equal_those_through_all_distances(margin):
    features, labels, _ = random_batch(identities=6)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    same = labels[:, None] == labels
    distances = (theirs[:, None] - theirs).square().sum(2).clamp(min=1e-12).sqrt()
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    difference = distances.masked_fill(~same, -torch.inf).amax(1) - nearest
    expected = functional.softplus(difference) if margin is None else functional.relu(difference + margin)
    loss = batch_hard_triplet(ours, labels, margin=margin)
    torch.testing.assert_close(loss, expected.mean())
    loss.backward()
    expected.mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_triplet_without_negative_is_zero_and_without_positive_finite():
    for margin in (None, 0.3):
        features = LINE.clone().requires_grad_()
        loss = batch_hard_triplet(features, torch.zeros(4, dtype=torch.int64), margin=margin)
        loss.backward()
        assert loss.item() == 0
        assert features.grad.isfinite().all()
        assert batch_hard_triplet(LINE, torch.arange(4), margin=margin).isfinite()


def test_distances_are_euclidean():
    features, *_ = random_batch()
    torch.testing.assert_close(euclidean_distances(features[:5], features[5:9]), torch.cdist(features[:5], features[5:9]))


def test_center_loss_by_hand():
    centers = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    features = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    assert center_loss(features, torch.tensor([0, 1]), centers).item() == pytest.approx((25 + 1) / 2)


def test_contrastive_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    rows = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-2))) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2
    assert symmetric_contrastive(logits).item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def criterion_of(**changes) -> Criterion:
    return build_criterion(tiny_cfg(**changes), num_identities=5, num_features=6)


def terms_of(criterion: Criterion) -> dict[str, torch.Tensor]:
    features, labels, modalities = random_batch()
    scores = torch.randn(24, 5, generator=torch.Generator().manual_seed(3))
    return criterion(features, scores, labels, modalities)


def test_the_total_is_the_weighted_sum_of_the_named_terms():
    criterion = criterion_of(MODEL__ID_LOSS_WEIGHT=0.5, MODEL__TRIPLET_LOSS_WEIGHT=3)
    terms = terms_of(criterion)
    assert list(terms) == list(criterion.weights) == ["identity", "triplet", "alignment"]
    expected = 0.5 * terms["identity"] + 3 * terms["triplet"] + 2 * terms["alignment"]
    torch.testing.assert_close(criterion.total(terms), expected)


def test_label_smoothing_changes_the_identity_term_and_keeps_the_alignment():
    plain, smooth = terms_of(criterion_of()), terms_of(criterion_of(MODEL__IF_LABELSMOOTH="on"))
    assert smooth.keys() == plain.keys()
    assert smooth["alignment"] == plain["alignment"] > 0
    scores = torch.randn(24, 5, generator=torch.Generator().manual_seed(3))
    _, labels, _ = random_batch()
    log_shares = scores.log_softmax(1)
    expected = -(0.9 * log_shares[torch.arange(24), labels] + 0.1 * log_shares.mean(1)).mean()
    torch.testing.assert_close(smooth["identity"], expected)


def test_a_criterion_alone_smooths_no_label_has_no_margin_and_squares_nothing():
    """Scores 0 and ln 3 are shares of 1/4 and 3/4; the features are those of the alignment by hand."""
    criterion = Criterion({"identity": 1.0, "triplet": 1.0, "alignment": 1.0})
    features, modalities = torch.tensor([[2.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1])
    scores = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    terms = criterion(features, scores, torch.tensor([0, 0]), modalities)
    assert terms["identity"].item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    assert terms["alignment"].item() == pytest.approx(math.sqrt(0.8))
    terms = criterion(features, scores, torch.tensor([0, 1]), modalities)
    assert terms["triplet"].item() == pytest.approx(math.log(1 + math.exp(-math.sqrt(17))), abs=1e-6)
    assert terms_of(criterion_of(MODEL__IF_LABELSMOOTH="off"))["identity"] == terms_of(criterion)["identity"]


def test_pair_logits_are_cosines_times_the_exponential_of_the_scale():
    sar, optical = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    logits = pair_logits(sar, optical, torch.tensor(math.log(10)))
    torch.testing.assert_close(logits, torch.tensor([[6.0, 8.0], [0.0, 10.0]]))


def test_weights_of_zero_leave_a_term_out():
    assert list(terms_of(criterion_of(MODEL__MODALITY_LOSS_WEIGHT=0))) == ["identity", "triplet"]


def test_batches_without_identities_train_on_identity_alone():
    assert list(terms_of(criterion_of(DATALOADER__SAMPLER="softmax"))) == ["identity"]


@pytest.mark.parametrize(
    ("changes", "term", "function"),
    [
        ({"MODEL__MODALITY_LOSS_SQUARED": True}, "alignment", lambda f, y, m: classwise_alignment(f, y, m, squared=True)),
        ({"MODEL__MODALITY_LOSS_TYPE": "global"}, "alignment", lambda f, y, m: global_alignment(f, m)),
        ({"MODEL__NO_MARGIN": True}, "triplet", lambda f, y, m: batch_hard_triplet(f, y)),
        (
            {"MODEL__NO_MARGIN": False, "SOLVER__MARGIN": 0.7},
            "triplet",
            lambda f, y, m: batch_hard_triplet(f, y, margin=0.7),
        ),
    ],
)
def test_switches_choose_the_form_of_a_term(changes, term, function):
    features, labels, modalities = random_batch()
    torch.testing.assert_close(terms_of(criterion_of(**changes))[term], function(features.float(), labels, modalities))


def test_centres_are_learned_where_they_are_asked_for():
    assert not list(criterion_of().parameters())
    criterion = criterion_of(MODEL__IF_WITH_CENTER="yes")
    assert criterion.centers.shape == (5, 6)
    assert criterion.weights["center"] == 0.0005
    terms_of(criterion)["center"].backward()
    assert criterion.centers.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_terms_are_float32_whatever_the_network_computed_in(dtype):
    features, labels, modalities = random_batch()
    scores = torch.randn(24, 5).to(dtype)
    terms = criterion_of()(300 * features.to(dtype), scores, labels, modalities)  # squares would overflow float16
    assert all(value.dtype is torch.float32 and value.isfinite() for value in terms.values())
