import torch
from scipy import stats

from bbdm.noise import sample_seed, seeded_normal

SEEDS = torch.tensor([sample_seed(1, "0001_RGB.tif", k) for k in range(4)])


def test_noise_of_a_sample_depends_on_its_seed_and_step_alone():
    batch = seeded_normal(SEEDS, 3, (3, 8, 6))
    assert batch.shape == (4, 3, 8, 6)
    assert batch.dtype == torch.float32
    for i in (2, 0):
        assert torch.equal(seeded_normal(SEEDS[i : i + 1], 3, (3, 8, 6))[0], batch[i])
    assert not torch.equal(seeded_normal(SEEDS, 4, (3, 8, 6)), batch)


def test_seeds_differ_by_global_seed_name_and_k():
    seeds = {sample_seed(seed, name, k) for seed in (0, 1) for name in ("a", "a1", "b") for k in (0, 1, 10, 11)}
    assert len(seeds) == 24
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert sample_seed(1234, "0001_RGB.tif", 0) == sample_seed(1234, "0001_RGB.tif", 0)


def test_noise_is_standard_normal_and_uncorrelated():
    noise = torch.stack([seeded_normal(SEEDS, step, (3, 64, 64)) for step in range(4)]).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    count = noise.numel()
    for a, b in [
        (noise[1:], noise[:-1]),  # steps
        (noise[:, 1:], noise[:, :-1]),  # samples
        (noise[:, :, 1:], noise[:, :, :-1]),  # bands
        (noise[..., 1:, :], noise[..., :-1, :]),
        (noise[..., 1:], noise[..., :-1]),
    ]:
        assert abs((a * b).mean().item()) < 5 / count**0.5
    assert abs((noise**2).mean().item() - 1) < 5 * (2 / count) ** 0.5
