"""What each query found, against sorting by hand and against the ranking that figures come from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from datasets.records import DISTRACTOR, Chip, Modality, Protocol, Split
from model.attention import attention_rollout
from model.transoss import TransOSS
from processor.ranking.evaluation import Ranking, rank_protocol
from processor.ranking.lists import BINS, NO_IMAGE, list_nearest

QUERIES, GALLERY = 7, 40
PROTOCOL = Protocol("ALL", tuple(range(QUERIES)), tuple(range(QUERIES, QUERIES + GALLERY)))


@pytest.fixture
def images() -> list[Chip]:
    """Seven queries, the last one of a ship that the gallery lacks, and distractors in the gallery."""
    ships = [*range(1, QUERIES), 99, *(DISTRACTOR if number % 5 == 0 else number % 6 + 1 for number in range(GALLERY))]
    kinds = [Modality(number % 2) for number in range(QUERIES + GALLERY)]
    return [Chip(Path(f"{place}.tif"), *facts, Split.QUERY) for place, facts in enumerate(zip(ships, kinds, strict=True))]


@pytest.fixture
def features() -> torch.Tensor:
    """Coarse numbers, so that distances tie, and one feature that many images share."""
    values = torch.randint(0, 3, (QUERIES + GALLERY, 4), generator=torch.Generator().manual_seed(1)).float() + 0.5
    values[20:30] = values[20]
    return functional.normalize(values)


def by_hand(images, features, query: int, *, same_modality: bool) -> list[tuple[float, int]]:
    """(distance, image) of the query's gallery, nearest first, of ties the first."""
    kept = [i for i in PROTOCOL.gallery if same_modality or images[i].modality != images[query].modality]
    exact = features.double()
    return sorted((round((exact[query] - exact[i]).square().sum().item(), 6), i) for i in kept)


@pytest.mark.parametrize("same_modality", [True, False])
def test_lists_hold_the_nearest_images_and_where_the_ship_stood(images, features, same_modality):
    ranking = Ranking(same_modality=same_modality, memory_bytes=2000)
    lists = list_nearest(PROTOCOL, features, images, ranking, length=6)
    result = rank_protocol(PROTOCOL, features, images, ranking)
    for row, query in enumerate(PROTOCOL.query):
        expected = by_hand(images, features, query, same_modality=same_modality)
        assert lists.nearest[row].tolist() == [image for _, image in expected[:6]]
        assert lists.distances[row] == pytest.approx([distance for distance, _ in expected[:6]], abs=1e-5)
        order = [image for _, image in expected]
        found = [place for place, image in enumerate(order, 1) if images[image].ship == images[query].ship]
        assert (int(lists.match[row]), int(result.first_match[row])) == (
            (order[found[0] - 1], found[0]) if found else (NO_IMAGE, 0)
        )
    assert np.isnan(lists.match_distance[-1])


def test_histograms_count_every_pair_once(images, features):
    features = features.clone()
    features[:3] *= torch.tensor([[0.1], [1.0], [9.0]])  # the range grows twice
    lists = list_nearest(PROTOCOL, features, images, Ranking(normalise=False))
    own = sum(images[q].ship == images[g].ship for q in PROTOCOL.query for g in PROTOCOL.gallery)
    assert (lists.matches.sum(), lists.others.sum()) == (own, QUERIES * GALLERY - own)
    distances = torch.cdist(features[:QUERIES].double(), features[QUERIES:].double()).square()
    expected = np.histogram(distances.numpy(), lists.edges.astype(float))[0]
    assert np.abs(lists.matches + lists.others - expected).sum() <= 4  # of rounding at the edges
    assert len(lists.matches) == BINS


def test_a_short_gallery_ends_in_no_image(images, features):
    protocol = replace(PROTOCOL, gallery=PROTOCOL.gallery[:3])
    lists = list_nearest(protocol, features, images, Ranking(), length=5)
    assert (lists.nearest[:, 3:] == NO_IMAGE).all()
    assert (lists.nearest[:, :3] != NO_IMAGE).all()


def test_reranked_lists_agree_with_reranked_figures(images, features):
    ranking = Ranking(reranking={"k1": 5, "k2": 2, "lambda_value": 0.3})
    lists, result = (of(PROTOCOL, features, images, ranking) for of in (list_nearest, rank_protocol))
    for row in range(QUERIES):
        if 0 < result.first_match[row] <= 10:
            assert images[lists.nearest[row][result.first_match[row] - 1]].ship == images[row].ship


# Attention


@pytest.fixture
def backbone() -> TransOSS:
    torch.manual_seed(0)
    return TransOSS(img_size=(48, 32), embed_dim=24, depth=2, num_heads=3).eval()


def rollout(backbone: TransOSS) -> torch.Tensor:
    images = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(2))
    return attention_rollout(backbone, images, torch.tensor([0, 1]), torch.ones(2, 3))


def test_rollout_multiplies_what_each_block_attends_to(backbone):
    """By loops over blocks and heads, of the tokens that each block sees."""
    seen: dict[int, torch.Tensor] = {}
    for number, block in enumerate(backbone.blocks):
        block.norm1.register_forward_hook(lambda _, __, out, number=number: seen.setdefault(number, out.detach()))
    found = rollout(backbone)
    joint = torch.eye(8)
    for block, tokens in zip(backbone.blocks, [each.clone() for each in seen.values()], strict=True):
        total = torch.zeros(8, 8)
        query, key = (
            tokens[1] @ block.attn.qkv.weight[part].T + block.attn.qkv.bias[part] for part in (slice(24), slice(24, 48))
        )
        for head in range(3):
            own = slice(8 * head, 8 * head + 8)
            total += torch.softmax(query[:, own] @ key[:, own].T / 8**0.5, dim=1) / 3
        joint = (total + torch.eye(8)) / 2 @ joint
    expected = joint[0, 1:7].detach()  # without class and size token
    assert found.shape == (2, 3, 2)
    torch.testing.assert_close(found[1].flatten(), expected / expected.max())


def test_rollout_of_blocks_that_attend_to_all_alike_is_flat(backbone):
    for block in backbone.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
        torch.nn.init.zeros_(block.attn.qkv.bias)
    torch.testing.assert_close(rollout(backbone), torch.ones(2, 3, 2))
