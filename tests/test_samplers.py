"""Plans of batches: whole identities, nothing shared between ranks, nothing but (seed, epoch) deciding them."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.samplers import IdentitySampler, ShuffledSampler
from utils.errors import DataError, UsageError

LABELS = [0] * 9 + [1] * 4 + [2] * 2 + [3] * 6 + [4] * 1 + [5] * 8


def identity_sampler(labels=LABELS, *, batch_size=8, instances=4, seed=0, rank=0, world_size=1) -> IdentitySampler:
    return IdentitySampler(labels, batch_size=batch_size, instances=instances, seed=seed, rank=rank, world_size=world_size)


@given(
    counts=st.lists(st.integers(1, 12), min_size=4, max_size=15),
    instances=st.integers(1, 5),
    identities=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_every_batch_is_p_identities_of_k_images_and_the_epoch_leaves_fewer_than_p(counts, instances, identities, seed):
    labels = np.repeat(np.arange(len(counts)) * 7, counts)
    batches = list(identity_sampler(labels, batch_size=instances * identities, instances=instances, seed=seed))
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
    batches = identity_sampler([0, 0, 1, 1, 1, 1]).batches()
    assert batches.shape == (1, 8)
    assert sorted(index for index in batches[0].tolist() if index >= 2) == [2, 3, 4, 5]
    assert sum(index < 2 for index in batches[0].tolist()) == 4


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
        assert [index for share in shares for index in share] == whole
        identities = [set(labels[share].tolist()) for share in shares]
        assert sum(map(len, identities)) == len(set.union(*identities)) == 4


@pytest.mark.parametrize("build", [identity_sampler, lambda **given: ShuffledSampler(30, batch_size=8, **{"seed": 0, **given})])
def test_seed_and_epoch_decide_the_plan(build):
    sampler = build()
    first = list(sampler)
    assert list(sampler) == first == list(build())
    assert list(build(seed=1)) != first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert len(list(sampler)) == len(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_shuffling_gives_every_image_once_and_leaves_out_less_than_a_batch():
    sampler = ShuffledSampler(30, batch_size=8, seed=0)
    seen = [index for batch in sampler for index in batch]
    assert len(seen) == len(set(seen)) == 24
    left_out = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        left_out |= set(range(30)) - {index for batch in sampler for index in batch}
    assert left_out == set(range(30)), "another rest each epoch"


def test_shuffled_ranks_split_the_plan_of_one_process():
    shares = [list(ShuffledSampler(30, batch_size=8, seed=0, rank=rank, world_size=2)) for rank in range(2)]
    whole = list(ShuffledSampler(30, batch_size=8, seed=0))
    assert [first + second for first, second in zip(*shares, strict=True)] == whole


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(UsageError, match=r"IMS_PER_BATCH 8 .* DATALOADER\.NUM_INSTANCE 3") as caught:
        identity_sampler(batch_size=8, instances=3)
    assert caught.value.exit_status == 2
    with pytest.raises(UsageError, match="3 processes"):
        ShuffledSampler(30, batch_size=8, seed=0, world_size=3)
    with pytest.raises(UsageError, match=r"2 ships of a batch .* 4 processes"):
        identity_sampler(batch_size=8, instances=4, world_size=4)


def test_too_few_ships_or_images_name_the_keys_to_change():
    with pytest.raises(DataError, match=r"6 ships, fewer than the 8 .*SOLVER\.IMS_PER_BATCH.*DATALOADER\.NUM_INSTANCE"):
        identity_sampler(batch_size=32)
    with pytest.raises(DataError, match=r"30 images to train on, fewer than a batch of 64.*SOLVER\.IMS_PER_BATCH") as caught:
        ShuffledSampler(30, batch_size=64, seed=0)
    assert caught.value.exit_status == 1
