import numpy as np
import pytest
import torch

from bbdm.first_stage import Codebook, SingleHeadAttention, make_first_stage
from bbdm.unet import PixelAttention, TimedBlock, make_unet, timestep_embedding

SMALL = {"width": 32, "multipliers": (1, 2), "blocks": 1, "head_width": 16}


def test_time_embedding_has_cosines_then_sines():
    embedding = timestep_embedding(torch.tensor([0, 3]), 8)
    np.testing.assert_allclose(embedding[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(embedding[1, [0, 4]], [np.cos(3), np.sin(3)], rtol=1e-6)


def test_start_values_follow_the_release():
    torch.manual_seed(0)
    network = make_unet(in_channels=6, attention_factors=(2,), **SMALL)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.weight.numel() > 5000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        if isinstance(module, TimedBlock):
            assert not module.out_layers[-1].bias.any()
        if isinstance(module, PixelAttention):
            assert not module.proj_out.weight.any()
            assert module.qkv.weight.any()
    assert network.out[-1].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_condition_counts_as_channels_after_x():
    network = make_unet(in_channels=6, **SMALL).eval()
    x, y, t = torch.randn(2, 3, 8, 16), torch.randn(2, 3, 8, 16), torch.tensor([1, 500])
    with torch.no_grad():
        assert network(x, t, y).shape == x.shape
        torch.testing.assert_close(network(torch.cat([x, y], 1), t), network(x, t, y))


def test_activation_checkpoints_change_no_number():
    torch.manual_seed(0)
    plain = make_unet(in_channels=3, **SMALL)
    saving = make_unet(in_channels=3, activation_checkpoints=True, **SMALL)
    saving.load_state_dict(plain.state_dict())
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([7])
    for network in (plain, saving):
        network(x, t).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="do not divide into attention heads of width 48"):
        make_unet(in_channels=3, width=32, head_width=48)
    with pytest.raises(ValueError, match="first width multiplier must be 1"):
        make_unet(in_channels=3, width=32, multipliers=(2, 4), head_width=32)


def test_first_stage_quantises_to_the_nearest_code():
    torch.manual_seed(0)
    stage = make_first_stage(width=32, blocks=1, codes=50)
    latent = 0.05 * torch.randn(2, 3, 5, 4)
    vectors, numbers = stage.quantise(latent)
    pixels = latent.permute(0, 2, 3, 1).reshape(-1, 3)
    nearest = torch.cdist(pixels, stage.quantize.embedding.weight).argmin(dim=1)
    assert torch.equal(numbers.flatten(), nearest)
    torch.testing.assert_close(vectors[1, :, 2, 3], stage.quantize.embedding.weight[numbers[1, 2, 3]])


def test_first_stage_decodes_by_way_of_the_codes():
    torch.manual_seed(0)
    stage = make_first_stage(width=32, multipliers=(1, 1, 2), blocks=1, codes=16).eval()
    with torch.no_grad():
        latent = stage.encode(torch.randn(1, 3, 16, 32))
        assert latent.shape == (1, 3, 4, 8)
        vectors, _ = stage.quantise(latent)
        assert stage.decode(latent).shape == (1, 3, 16, 32)
        torch.testing.assert_close(stage.decode(latent), stage.decode_codes(vectors))
        torch.testing.assert_close(stage.decode(latent), stage.decode(vectors))


@pytest.mark.parametrize("block", [PixelAttention(64, head_width=32), SingleHeadAttention(32)], ids=["unet", "first stage"])
def test_attention_hands_over_what_fused_kernels_take(block, monkeypatch):
    seen = []

    def attend(query, key, value):
        seen.extend([query, key, value])
        return torch.zeros_like(query)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    block(torch.randn(1, block.norm.num_channels, 4, 4))
    assert len(seen) == 3
    assert all(tensor.stride(-1) == 1 for tensor in seen)


def test_autocast_does_not_change_the_codes():
    torch.manual_seed(0)
    codebook = Codebook(8192, 3)
    latent = torch.randn(1, 3, 16, 16) / 8192
    _, expected = codebook(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = codebook(latent)
    assert torch.equal(found, expected)


def test_defaults_are_the_published_sizes():
    with torch.device("meta"):
        stage, network = make_first_stage(), make_unet(in_channels=6)
    shapes = {name: tuple(tensor.shape) for name, tensor in stage.state_dict().items()}
    assert shapes["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["encoder.conv_out.weight"] == (3, 512, 3, 3)
    assert shapes["decoder.conv_out.weight"] == (3, 128, 3, 3)
    assert shapes["quantize.embedding.weight"] == (8192, 3)
    assert [len(level.block) for level in stage.encoder.down] == [2, 2, 2]
    assert not any(level.attn for level in (*stage.encoder.down, *stage.decoder.up))
    assert stage.factor == 4
    assert tuple(network.input_blocks[0][0].weight.shape) == (128, 6, 3, 3)
    assert tuple(network.out[2].weight.shape) == (3, 128, 3, 3)
    assert [block[0].out_layers[-1].out_channels for block in network.input_blocks[1:]] == [128] * 3 + [512] * 3 + [1024] * 2
    attention = [layer for layer in network.modules() if isinstance(layer, PixelAttention)]
    assert [layer.heads for layer in attention] == [16]
    assert {layer.p for layer in network.modules() if isinstance(layer, torch.nn.Dropout)} == {0.0}
    assert not network.activation_checkpoints


def test_levels_attend_where_they_are_asked_to():
    stage = make_first_stage(width=32, multipliers=(1, 1, 1), blocks=2, codes=4, attention_sizes=(8,), picture_size=16)
    assert [len(level.attn) for level in stage.encoder.down] == [0, 2, 0]
    assert [len(level.attn) for level in stage.decoder.up] == [0, 3, 0]  # from the lowest resolution on
    network = make_unet(in_channels=3, width=32, multipliers=(1, 1, 1), blocks=1, attention_factors=(4,), head_width=16)
    attends = [any(isinstance(layer, PixelAttention) for layer in block) for block in network.input_blocks]
    assert attends == [False, False, False, False, False, True]
    rates = {
        layer.p for layer in make_unet(in_channels=3, dropout=0.25, **SMALL).modules() if isinstance(layer, torch.nn.Dropout)
    }
    assert rates == {0.25}


def test_codes_start_near_0():
    torch.manual_seed(0)
    weight = Codebook(50, 40).embedding.weight
    assert 0.019 < weight.max() <= 0.02
    assert -0.02 <= weight.min() < -0.019


def test_activations_are_computed_again_in_training_alone(monkeypatch):
    calls = []
    monkeypatch.setattr("bbdm.unet.checkpoint", lambda block, x, time, use_reentrant: calls.append(1) or block(x, time))
    x, t = torch.randn(1, 3, 4, 4), torch.tensor([7])
    for saving, training in ((True, True), (True, False), (False, True)):
        network = make_unet(in_channels=3, activation_checkpoints=saving, **SMALL).train(training)
        calls.clear()
        network(x, t)
        assert bool(calls) == (saving and training)
        assert len(calls) in (0, len(network.input_blocks) + 1 + len(network.output_blocks))


def test_blocks_change_the_resolution_by_means_and_by_neighbours():
    x, time = torch.arange(32 * 16.0).view(1, 32, 4, 4), torch.zeros(1, 8)
    for direction, expected in (
        ("down", torch.nn.functional.avg_pool2d(x, 2)),
        ("up", x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    ):
        block = TimedBlock(32, 32, time_width=8, resample=direction)
        for layer in (block.out_layers[-1],):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        assert torch.equal(block(x, time), expected)
