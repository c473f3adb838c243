import hashlib
import math

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


def splitmix64(seed, step, place):
    """In Python's whole numbers; of Steele et al. (2014), with an own stream for each step."""
    word = 2**64 - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        return z ^ (z >> 31)

    stream = mix((seed + 0xD1342543DE82EF95 * (step + 1)) & word)
    return mix((stream + place * 0x9E3779B97F4A7C15) & word)


def test_numbers_are_those_of_splitmix64_made_normal_by_box_and_muller():
    for seed, step in ((SEEDS[0].item(), 0), (7, 1), (-5, 3), (2**62 + 1, 199)):
        uniform = [((splitmix64(seed, step, place) >> 11) + 0.5) / 2**53 for place in range(24)]
        pairs = zip(uniform[:12], uniform[12:], strict=True)
        expected = [math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * angle) for radius, angle in pairs]
        found = seeded_normal(torch.tensor([seed]), step, (3, 2, 2))
        torch.testing.assert_close(found, torch.tensor(expected).view(1, 3, 2, 2), atol=1e-6, rtol=1e-6)


def test_the_seed_of_a_sample_is_the_start_of_a_hash():
    digest = hashlib.sha256(b"1234/0001_RGB.tif/2").digest()
    assert sample_seed(1234, "0001_RGB.tif", 2) == int.from_bytes(digest[:8], "little", signed=True) == -8015097896292249384
