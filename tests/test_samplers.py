"""Plans of batches: whole identities, nothing shared between ranks, nothing but (seed, epoch) deciding them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.samplers import BatchSampler, draw_identities, shuffle_images, shuffle_pairs, take_in_order, take_pairs_in_order
from utils.errors import DataError, UsageError

LABELS = [0] * 9 + [1] * 4 + [2] * 2 + [3] * 6 + [4] * 1 + [5] * 8


def identity_sampler(labels=LABELS, *, batch_size=8, instances=4, seed=0, rank=0, world_size=1) -> BatchSampler:
    return draw_identities(labels, batch_size=batch_size, instances=instances, seed=seed, rank=rank, world_size=world_size)


def indices_of(sampler) -> list[list[int]]:
    return [[draw.index for draw in batch] for batch in sampler]


@given(
    counts=st.lists(st.integers(1, 12), min_size=4, max_size=15),
    instances=st.integers(1, 5),
    identities=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_every_batch_is_p_identities_of_k_images_and_the_epoch_leaves_fewer_than_p(counts, instances, identities, seed):
    labels = np.repeat(np.arange(len(counts)) * 7, counts)
    batches = indices_of(identity_sampler(labels, batch_size=instances * identities, instances=instances, seed=seed))
    used = Counter()
    for batch in batches:
        groups = labels[batch].reshape(identities, instances)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == identities
        used.update(groups[:, 0].tolist())
    images = Counter(index for batch in batches for index in batch)
    left = 0
    for identity, count in enumerate(counts):
        available = max(1, count // instances)
        assert used[identity * 7] <= available
        left += used[identity * 7] < available
        if count >= instances:
            assert all(images[index] <= 1 for index in np.flatnonzero(labels == identity * 7))
    assert left < identities


def test_an_identity_with_fewer_than_k_images_is_drawn_with_replacement():
    (batch,) = indices_of(identity_sampler([0, 0, 1, 1, 1, 1]))
    assert len(batch) == 8
    assert sorted(index for index in batch if index >= 2) == [2, 3, 4, 5]
    assert sum(index < 2 for index in batch) == 4


@given(world_size=st.sampled_from([2, 4]), seed=st.integers(0, 1000), epoch=st.integers(0, 1000))
def test_ranks_split_the_plan_of_one_process_by_whole_identities(world_size, seed, epoch):
    labels = np.repeat(np.arange(12), 5)
    samplers = [
        identity_sampler(labels, batch_size=16, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    single = identity_sampler(labels, batch_size=16, seed=seed)
    for sampler in (single, *samplers):
        sampler.set_epoch(epoch)
    assert {len(sampler) for sampler in samplers} == {len(single)}
    for whole, *shares in zip(single, *samplers, strict=True):
        assert [draw for share in shares for draw in share] == whole, "keys do not depend on the number of ranks either"
        identities = [set(labels[[draw.index for draw in share]].tolist()) for share in shares]
        assert sum(map(len, identities)) == len(set.union(*identities)) == 4


def images_sampler(**given) -> BatchSampler:
    return shuffle_images(30, **{"batch_size": 8, "seed": 0, **given})


def pairs_sampler(**given) -> BatchSampler:
    return shuffle_pairs(9, **{"pairs": 4, "seed": 0, **given})


@pytest.mark.parametrize("build", [identity_sampler, images_sampler, pairs_sampler])
def test_seed_and_epoch_decide_the_plan(build):
    sampler = build()
    first = list(sampler)
    assert list(sampler) == first == list(build())
    assert indices_of(build(seed=1)) != indices_of(first)
    sampler.set_epoch(1)
    assert indices_of(sampler) != indices_of(first), "another order each epoch, not other keys alone"
    assert len(list(sampler)) == len(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_every_place_of_an_epoch_has_a_key_of_its_own():
    sampler = images_sampler()
    keys = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        keys += [draw.key for batch in sampler for draw in batch]
    assert len(set(keys)) == len(keys) == 2 * 24
    assert keys[:2] == [(0, 0, 0), (0, 0, 1)]


def test_shuffling_gives_every_image_once_and_leaves_out_less_than_a_batch():
    sampler = images_sampler()
    seen = [index for batch in indices_of(sampler) for index in batch]
    assert len(seen) == len(set(seen)) == 24
    left_out = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        left_out |= set(range(30)) - {index for batch in indices_of(sampler) for index in batch}
    assert left_out == set(range(30)), "another rest each epoch"


def test_shuffled_ranks_split_the_plan_of_one_process():
    shares = [list(images_sampler(rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*shares, strict=True)] == list(images_sampler())


def test_ships_come_in_any_order_and_company():
    labels = np.repeat(np.arange(12), 8)
    sampler = identity_sampler(labels, batch_size=16)
    firsts, met, orders = Counter(), set(), set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        for number, batch in enumerate(indices_of(sampler)):
            ships = labels[batch[::4]].tolist()
            met |= {frozenset({one, other}) for one in ships for other in ships if one != other}
            if number == 0:
                firsts.update(ships)
                orders.add(tuple(np.argsort(ships).tolist()))
    assert set(firsts) == set(range(12)), "an epoch does not always begin with the same ships"
    assert max(firsts.values()) <= 25  # of 40; 13 are expected
    assert len(met) == 12 * 11 // 2
    assert len(orders) > 10, "the ships of a batch are in no order"


def test_an_identitys_images_are_grouped_anew_and_another_one_is_left_out():
    """Of eight images in groups of four, each meets each; of nine, another one is left out each epoch."""
    sampler = identity_sampler([0] * 8 + [1] * 9)
    met, left_out = set(), set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        batches = indices_of(sampler)
        used = {index for batch in batches for index in batch}
        assert set(range(8)) <= used
        left_out |= set(range(17)) - used
        for batch in batches:
            own = [index for index in batch if index < 8]
            met |= {(one, other) for one in own for other in own if one < other}
    assert len(met) == 28
    assert left_out == set(range(8, 17))


def test_any_image_of_any_ship_comes_first():
    sampler = identity_sampler(np.repeat([0, 1], 4))
    firsts = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        firsts |= {batch[0] for batch in indices_of(sampler)}
    assert firsts == set(range(8))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("alike", [False, True])
def test_a_batch_of_pairs_holds_optical_images_then_their_sar_images(world_size, alike):
    seen, keys = [], set()
    for rank in range(world_size):
        sampler = shuffle_pairs(10, pairs=4, alike=alike, seed=1, rank=rank, world_size=world_size)
        sampler.set_epoch(3)
        assert len(sampler) == 2
        for batch in sampler:
            optical, sar = batch[: len(batch) // 2], batch[len(batch) // 2 :]
            assert [draw.index % 2 for draw in optical] == [0] * len(optical)
            assert [draw.index for draw in sar] == [draw.index + 1 for draw in optical]
            same = [one.key == other.key for one, other in zip(optical, sar, strict=True)]
            assert same == [alike] * len(optical)
            seen += [draw.index for draw in batch]
            keys |= {draw.key for draw in batch}
    assert len(seen) == len(set(seen)) == 16
    assert len(keys) == (8 if alike else 16)


@pytest.mark.parametrize("alike", [False, True])
def test_the_augmentation_of_a_pair_does_not_depend_on_the_number_of_processes(alike):
    def draws(world_size):
        samplers = [
            shuffle_pairs(10, pairs=4, alike=alike, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        return {draw for sampler in samplers for batch in sampler for draw in batch}

    assert draws(1) == draws(2)


def test_in_order_each_image_or_pair_comes_once():
    batches = [batch for rank in range(2) for batch in take_in_order(7, batch_size=2, rank=rank, world_size=2)]
    assert indices_of(batches) == [[0, 1], [4, 5], [2, 3], [6]]
    batches = [batch for rank in range(2) for batch in take_pairs_in_order(3, pairs=2, rank=rank, world_size=2)]
    assert indices_of(batches) == [[0, 2, 1, 3], [4, 5]]
    assert [[draw.key for draw in batch] for batch in batches] == [[(0,), (1,), (0,), (1,)], [(2,), (2,)]]


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(UsageError, match=r"IMS_PER_BATCH 8 .* DATALOADER\.NUM_INSTANCE 3") as caught:
        identity_sampler(batch_size=8, instances=3)
    assert caught.value.exit_status == 2
    with pytest.raises(UsageError, match="3 processes"):
        shuffle_images(30, batch_size=8, seed=0, world_size=3)
    with pytest.raises(UsageError, match=r"2 ships of a batch .* 4 processes"):
        identity_sampler(batch_size=8, instances=4, world_size=4)
    with pytest.raises(UsageError, match=r"3 pairs a batch, no whole number of pairs for each of 2 processes"):
        shuffle_pairs(10, pairs=3, seed=0, world_size=2)


def test_too_few_ships_or_images_name_the_keys_to_change():
    with pytest.raises(DataError, match=r"6 ships, fewer than the 8 .*SOLVER\.IMS_PER_BATCH.*DATALOADER\.NUM_INSTANCE"):
        identity_sampler(batch_size=32)
    with pytest.raises(DataError, match=r"30 images to train on, fewer than a batch of 64.*SOLVER\.IMS_PER_BATCH") as caught:
        shuffle_images(30, batch_size=64, seed=0)
    assert caught.value.exit_status == 1
    with pytest.raises(DataError, match=r"3 pairs to train on, fewer than a batch of 4; lower SOLVER\.IMS_PER_BATCH"):
        shuffle_pairs(3, pairs=4, seed=0)
