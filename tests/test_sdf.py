"""SDF-Net: its parts by hand, what its released program does wrong and this one does not, and its weights files."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tools.inspect_weights as inspection
import train
import train_pair
from configs import load_cfg
from datasets.records import Batch
from datasets.transforms import augment, jitter_colours
from loss.criterion import build_criterion
from loss.terms import orthogonality, structure_consistency
from model.build import SIZES, build_model
from model.contents import contents_of
from model.features import fuse_tokens, gradient_energy, structure_descriptor
from model.heads import linear_head
from model.pretrained import fit_backbone, load_pretrained, load_weights, resize_position_embedding
from model.reid import ReIDModel
from model.transoss import TransOSS
from processor.extraction import extract_features
from tests.chip_files import optical_pixels, write_hoss
from tests.commands import call, settings, tiny_cfg
from tests.golden import FOLDER
from tools import fuse_results, rank
from tools.convert_weights import convert, to_released
from utils.checkpoint import load_state_dict, save
from utils.device import Precision
from utils.errors import CheckpointError, UsageError

TINY = {"embed_dim": 192, "depth": 2, "num_heads": 3}
TWO_TOKENS = {"MODEL__DISENTANGLE": True}


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make vit_tiny two blocks deep, to keep the tests short."""
    monkeypatch.setitem(SIZES, "vit_tiny_patch16_224_TransOSS", TINY)


def make_model(*, seed: int = 0, img_size=(64, 32), fusion: str | None = "sum", identities: int = 5) -> ReIDModel:
    torch.manual_seed(seed)
    base = TransOSS(img_size=img_size, **TINY, specific_tokens=fusion is not None, structure_block=1)
    model = ReIDModel(base, fusion=fusion)
    model.classifier = linear_head(model.num_features, identities) if identities else None
    return model.eval()


def pictures(count: int = 6, size=(64, 32)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images, sizes = torch.randn(count, 3, *size, generator=generator), torch.randn(count, 3, generator=generator)
    return {"images": images, "modalities": torch.arange(count) % 2, "sizes": sizes}


# Formulas


def test_energy_by_hand():
    """Rows (1, 4), (3, 0): 2 and 4 from row to row, 3 and 3 from column to column."""
    patches = torch.tensor([1.0, 4.0, 3.0, 0.0]).view(1, 4, 1)
    assert gradient_energy(patches, (2, 2)).item() == (2 + 4) / 2 + (3 + 3) / 2


@pytest.mark.parametrize("grid", [(1, 5), (5, 1), (1, 1)])
def test_one_row_or_column_has_no_difference_and_no_nan(grid):
    patches = torch.randn(2, grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    energy = gradient_energy(patches, grid)
    expected = patches.diff(dim=1).abs().mean(1) if max(grid) > 1 else torch.zeros(2, 6)
    torch.testing.assert_close(energy, expected)
    structure_descriptor(energy).square().sum().backward()
    assert patches.grad.isfinite().all()


def test_a_grid_that_the_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="9 patches are no grid of 4 x 2"):
        gradient_energy(torch.zeros(1, 9, 4), (4, 2))


def test_a_descriptor_is_standardised_over_the_width_and_alone_in_its_batch():
    energy = torch.rand(3, 64, generator=torch.Generator().manual_seed(0)) + 1
    structure = structure_descriptor(energy)
    torch.testing.assert_close(structure.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        structure, (energy - energy.mean(1, True)) / (energy.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    )
    torch.testing.assert_close(structure_descriptor(energy[1:2]), structure[1:2])
    assert not structure_descriptor(torch.zeros(1, 64)).any()


def test_orthogonality_by_hand():
    """Cosines 0.6, -1 and 0 (of a zero feature)."""
    shared, specific = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [-5.0, 0.0], [1.0, 1.0]])
    assert orthogonality(shared, specific).item() == pytest.approx((0.6 + 1 + 0) / 3)


@pytest.mark.parametrize("seed", range(4))
def test_consistency_of_structure_equals_a_loop_over_identities(seed):
    generator = torch.Generator().manual_seed(seed)
    structure = torch.randn(24, 6, generator=generator, dtype=torch.float64)
    labels, modalities = torch.randint(3 + 2 * seed, (24,), generator=generator), torch.randint(2, (24,), generator=generator)
    gaps = []
    for label in labels.unique():
        optical, sar = (structure[(labels == label) & (modalities == modality)] for modality in (0, 1))
        if len(optical) and len(sar):
            gaps.append((optical.mean(0) - sar.mean(0)).square().mean())
    torch.testing.assert_close(structure_consistency(structure, labels, modalities), torch.stack(gaps).mean())
    structure.requires_grad_()
    apart = structure_consistency(structure, labels + 100 * modalities, modalities)
    apart.backward()
    assert apart.item() == 0
    assert not structure.grad.any()


def test_two_features_become_one():
    shared, specific = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])
    made = {fusion: fuse_tokens(shared, specific, fusion).tolist() for fusion in ("sum", "shared", "specific", "concat")}
    assert made == {"sum": [[11, 22]], "shared": [[1, 2]], "specific": [[10, 20]], "concat": [[1, 2, 10, 20]]}


# The network


def test_each_modality_has_a_class_token_of_its_own():
    model, batch = make_model(), pictures()
    before, is_sar = model(**batch), batch["modalities"] == 1
    with torch.no_grad():
        model.base.cls_token_spe_sar += torch.randn(192)
    after = model(**batch)
    for name in ("shared", "specific"):  # the class tokens attend to each other
        one, other = getattr(before.parts, name), getattr(after.parts, name)
        assert torch.equal(one[~is_sar], other[~is_sar])
        assert not torch.isclose(one[is_sar], other[is_sar]).all(1).any()


@pytest.mark.parametrize("modality", [0, 1])
def test_a_batch_may_hold_one_modality(modality):
    model, batch = make_model(fusion="concat"), pictures()
    own = batch["modalities"] == modality
    alone = model(**{name: value[own] for name, value in batch.items()})
    torch.testing.assert_close(alone.neck_feature, model(**batch).neck_feature[own], rtol=1e-4, atol=1e-5)


def test_tokens_stand_in_the_order_of_their_positions():
    """Shared, specific, patches, all with position and 3 x modality; the size token with neither."""
    base, batch = make_model().base, pictures(2)
    tokens = base.embed(**batch)
    assert tokens.shape == (2, 2 + 4 * 2 + 1, 192)
    for row, (stem, token) in enumerate(
        [(base.patch_embed, base.cls_token_spe_rgb), (base.patch_embed_SAR, base.cls_token_spe_sar)]
    ):
        modality, places = 3.0 * base.mie_embed[row, 0], base.pos_embed[0]
        torch.testing.assert_close(tokens[row, 0], base.cls_token[0, 0] + places[0] + modality)
        torch.testing.assert_close(tokens[row, 1], token[0, 0] + places[1] + modality)
        patches = stem(batch["images"][row : row + 1])[0]
        torch.testing.assert_close(tokens[row, 2:10], patches + places[2:] + modality)


def test_structure_is_that_of_the_patches_behind_the_named_block():
    batch, seen = pictures(), []
    for block in (1, 2):
        model = make_model(fusion=None)
        model.base.structure_block = block
        hook = model.base.blocks[block - 1].register_forward_hook(lambda _, __, tokens: seen.append(tokens))
        structure = model(**batch).parts.structure
        hook.remove()
        torch.testing.assert_close(structure, structure_descriptor(gradient_energy(seen[-1][:, 1:9], (4, 2))))
    assert not torch.equal(seen[0], seen[1])


def test_new_tensors_start_as_released():
    base = make_model().base
    for value in (base.cls_token_spe_rgb, base.cls_token_spe_sar, base.pos_embed[:, :2], base.pos_embed[:, 2:]):
        assert value.std().item() == pytest.approx(0.02, rel=0.2)
    assert not torch.equal(base.cls_token_spe_rgb, base.cls_token_spe_sar)


def test_all_that_trains_has_a_gradient_and_what_is_unused_is_frozen():
    """Or processes that train together would wait for each other."""
    changes = TWO_TOKENS | {"MODEL__STRUCT_LOSS_WEIGHT": 1.0, "MODEL__STRUCT_LAYER_INDEX": 1}
    for fusion in ("sum", "shared", "specific", "concat"):
        cfg = tiny_cfg(**changes, MODEL__ABLATION_MODE=fusion)
        model = build_model(cfg, 4)
        criterion = build_criterion(cfg, num_identities=4, num_features=model.num_features)
        batch, labels = pictures(8, size=(32, 32)), torch.arange(8) // 2
        output = model.train()(**batch, labels=labels)
        terms = criterion(output.feature, output.scores, labels, batch["modalities"], **vars(output.parts))
        assert terms.keys() == {"identity", "triplet", "alignment", "orthogonality", "structure"}
        criterion.total(terms).backward()
        idle = {name for name, value in model.named_parameters() if value.grad is None}
        assert idle == {"logit_scale", "bottleneck.weight", "bottleneck.bias", "bottleneck_fuse.bias"}
        assert not any(value.requires_grad for name, value in model.named_parameters() if name in idle)


# Faults of the released program that are not repeated


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_the_switch_between_before_and_after_the_neck_works(fusion):
    model = make_model(fusion=fusion)
    with torch.no_grad():
        model.neck.running_mean += torch.randn(model.num_features)
    output = model(**pictures())
    found = {}
    for neck in ("before", "after"):
        own = pictures()
        batch = Batch(own["images"], own["sizes"], own["modalities"], None, torch.arange(6))
        found[neck] = extract_features(
            model, [batch], count=6, device=torch.device("cpu"), precision=Precision("cpu"), neck=neck
        )
    torch.testing.assert_close(found["before"], output.feature)
    torch.testing.assert_close(found["after"], output.neck_feature)
    assert not torch.isclose(found["before"], found["after"]).all()


def test_a_plain_run_has_no_term_of_sdf_net(caplog):
    cfg = tiny_cfg()
    assert build_criterion(cfg, num_identities=4, num_features=8).weights.keys() == {"identity", "triplet", "alignment"}
    model = build_model(cfg, 4)
    assert (model.base.structure_block, model.base.class_tokens, model.fusion) == (0, 1, None)
    assert not any("spe_" in name or "fuse" in name for name in model.state_dict())


def test_weights_of_the_terms_come_from_the_configuration():
    changes = {"MODEL__ORTH_LOSS_WEIGHT": 7.0, "MODEL__STRUCT_LOSS_WEIGHT": 3.0, "MODEL__STRUCT_LAYER_INDEX": 2}
    with_tokens = build_criterion(tiny_cfg(**TWO_TOKENS, **changes), num_identities=4, num_features=8).weights
    assert (with_tokens["orthogonality"], with_tokens["structure"]) == (7.0, 3.0)
    without = build_criterion(tiny_cfg(**changes), num_identities=4, num_features=8).weights
    assert "orthogonality" not in without and without["structure"] == 3.0
    model = build_model(tiny_cfg(**TWO_TOKENS, **changes), 4)
    assert (model.base.structure_block, model.base.class_tokens, model.fusion) == (2, 2, "sum")


def test_a_block_that_is_not_there_is_refused_at_the_start():
    with pytest.raises(UsageError, match=r"MODEL\.STRUCT_LAYER_INDEX is 3, and vit_tiny_.* has 2 blocks; name one of 1 to 2"):
        build_model(tiny_cfg(MODEL__STRUCT_LOSS_WEIGHT=1.0, MODEL__STRUCT_LAYER_INDEX=3))
    build_model(tiny_cfg(MODEL__STRUCT_LAYER_INDEX=3))  # nothing asks for it


@pytest.mark.parametrize("change", [TWO_TOKENS, {"MODEL__STRUCT_LOSS_WEIGHT": 1.0}])
def test_networks_and_programs_that_know_no_such_tokens_say_so(change, tmp_path):
    resnet = {"MODEL__NAME": "resnet50", "MODEL__MIE": False, "MODEL__SSE": False}
    with pytest.raises(UsageError, match=r"MODEL\.NAME resnet50 has no tokens"):
        build_model(tiny_cfg(**resnet, **change))
    ended = call(train_pair.main, *settings(**change, MODEL__PAIR=True, DATASETS__ROOT_DIR=tmp_path, OUTPUT_DIR=tmp_path))
    assert ended.status == 2
    assert ended.sentence.startswith("MODEL.PAIR pre-trains the backbone of TransOSS, which SDF-Net starts from too")


def test_positions_of_another_grid_with_as_many_places_are_not_taken_as_they_are():
    """3 x 3 patches and a class token are ten places, as are 4 x 2 patches and two class tokens."""
    source, target = make_model(img_size=(48, 48), fusion=None), make_model(seed=1)
    before = source.base.pos_embed.detach()
    assert before.shape == target.base.pos_embed.shape
    report = fit_backbone(contents_of(source.state_dict()), target.base)
    resized = resize_position_embedding(before, (4, 2), (3, 3))
    assert torch.equal(target.base.pos_embed, torch.cat([resized[:, :1], resized], dim=1))
    assert "pos_embed" in report.names("resized")
    assert "3 x 3 patches -> 4 x 2, bilinear, the class token's twice" in report.table()


def test_positions_of_two_class_tokens_and_another_grid_keep_both():
    source, target = make_model(img_size=(96, 48)), make_model(seed=1)
    before = source.base.pos_embed.detach()
    fit_backbone(contents_of(source.state_dict()), target.base)
    assert torch.equal(target.base.pos_embed[:, :2], before[:, :2])
    resized = resize_position_embedding(before[:, 1:], (4, 2), (6, 3))
    assert torch.equal(target.base.pos_embed[:, 2:], resized[:, 1:])
    torch.testing.assert_close(target.base.cls_token_spe_sar, source.base.cls_token_spe_sar)


def test_a_backbone_of_transoss_starts_sdf_net_and_the_reverse():
    plain, disentangled = make_model(fusion=None), make_model(seed=1)
    token = disentangled.base.cls_token_spe_rgb.clone()
    fit_backbone(contents_of(plain.base.state_dict()), disentangled.base)
    places = plain.base.pos_embed
    assert torch.equal(disentangled.base.pos_embed, torch.cat([places[:, :1], places], dim=1))
    assert torch.equal(disentangled.base.cls_token_spe_rgb, token)  # not set from the file's class token
    with torch.no_grad():
        disentangled.base.pos_embed[:, 1] += 1
    other = make_model(seed=2, fusion=None)
    report = fit_backbone(contents_of(disentangled.state_dict()), other.base)
    assert torch.equal(other.base.pos_embed, places)
    assert {"cls_token_spe_rgb", "cls_token_spe_sar"} <= set(report.names("skipped"))
    assert "without the specific class token's" in report.table()


@pytest.mark.parametrize(
    ("file", "model", "told"),
    [
        ("sum", None, "it is a model of SDF-Net, not of TransOSS or MOS; set MODEL.DISENTANGLE True"),
        ("concat", None, "set MODEL.DISENTANGLE True and MODEL.ABLATION_MODE concat"),
        (
            None,
            "sum",
            "lacks base.cls_token_spe_rgb: it is a model of TransOSS or MOS, not of SDF-Net; set MODEL.DISENTANGLE False",
        ),
        ("concat", "sum", "a bottleneck_fuse of twice the backbone's width; set MODEL.ABLATION_MODE concat"),
        ("sum", "concat", "a bottleneck_fuse of the backbone's width; set MODEL.ABLATION_MODE sum, shared or specific"),
    ],
)
def test_weights_of_the_other_kind_are_not_tested_and_called_what_they_are(tmp_path, file, model, told):
    save(tmp_path / "best.pth", make_model(fusion=file).state_dict())
    with pytest.raises(CheckpointError) as raised:
        load_weights(tmp_path / "best.pth", make_model(fusion=model))
    assert told in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'best.pth'} ")


# Weights files


@pytest.mark.parametrize("fusion", ["sum", "shared", "specific", "concat"])
def test_a_released_file_is_tested_whole_and_what_is_unused_may_lack(tmp_path, fusion):
    source = make_model(fusion=fusion)
    released = to_released(source.state_dict())
    bare = {name: value for name, value in released.items() if not name.startswith(("bottleneck.", "classifier."))}
    for content in (released, bare, {f"module.{name}": value for name, value in released.items()}):
        save(tmp_path / "best.pth", content)
        model = make_model(seed=1, fusion=fusion, identities=0)
        load_weights(tmp_path / "best.pth", model)
        torch.testing.assert_close(model(**pictures()).neck_feature, source(**pictures()).neck_feature)
    save(tmp_path / "less.pth", {name: value for name, value in released.items() if name != "base.cls_token_spe_sar"})
    with pytest.raises(CheckpointError, match=r"less\.pth lacks cls_token_spe_sar"):
        load_weights(tmp_path / "less.pth", make_model(fusion=fusion, identities=0))


def test_a_model_of_mos_starts_all_of_sdf_net_that_they_share(tmp_path):
    save(tmp_path / "mos.pth", make_model(fusion=None).state_dict())
    report = load_pretrained(tmp_path / "mos.pth", make_model(seed=1), choice="clip")
    assert {name.split(".")[0] for name in report.names("missing")} == {
        "cls_token_spe_rgb", "cls_token_spe_sar", "bottleneck_fuse", "classifier",
    }  # fmt: skip


def test_conversion_gives_the_released_program_every_name_and_back_every_bit(tmp_path):
    tensors = make_model().state_dict()
    save(tmp_path / "own.pth", tensors)
    convert(tmp_path / "own.pth", tmp_path / "released.pth", "released")
    convert(tmp_path / "released.pth", tmp_path / "back.pth", "own")
    back = load_state_dict(tmp_path / "back.pth")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], value) for name, value in tensors.items())
    vectors = np.load(FOLDER / "sdf_base_keys.npz", allow_pickle=False)
    base = TransOSS(img_size=(256, 128), specific_tokens=True)
    released = to_released(ReIDModel(base, linear_head(768, 361), fusion="sum").state_dict())
    theirs = dict(zip(vectors["keys"].tolist(), vectors["key_shapes"].tolist(), strict=True))
    assert {name: str(list(value.shape)) for name, value in released.items()} == theirs


def test_a_file_that_the_released_program_would_complete_at_random_is_not_called_released():
    tensors = {name: value for name, value in make_model().state_dict().items() if name != "bottleneck.weight"}
    with pytest.raises(CheckpointError, match=r"is of SDF-Net and lacks bottleneck\.weight"):
        to_released(tensors)


@pytest.mark.parametrize(("fusion", "named"), [("sum", "sum"), ("specific", "sum"), ("concat", "concat")])
def test_inspection_knows_it_and_gives_lines_that_rebuild_it(tmp_path, fusion, named):
    path = tmp_path / "best.pth"
    tensors = make_model(fusion=fusion, img_size=(256, 128), identities=9).state_dict()
    save(path, to_released(tensors))
    text = inspection.inspect(str(path))
    assert text.startswith(f"{path} is a re-identification model of SDF-Net.")
    assert "128, 16 x 8 most likely" in text
    contents = inspection.read_contents(path)
    assert inspection.facts(contents)["identities"] == "9"
    lines = next(lines for what, lines in inspection.list_uses(str(path), contents, inspection.try_it(contents)[0]).items())
    (tmp_path / "lines.yml").write_text(lines, encoding="utf-8")
    cfg = load_cfg(tmp_path / "lines.yml")
    assert (True, named, "after") == (cfg.MODEL.DISENTANGLE, cfg.MODEL.ABLATION_MODE, cfg.TEST.NECK_FEAT)
    model = build_model(cfg)
    load_weights(cfg.TEST.WEIGHT, model)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    save(tmp_path / "backbone.pth", make_model(img_size=(256, 128)).base.state_dict())
    assert "is a backbone of SDF-Net, without its neck" in inspection.inspect(str(tmp_path / "backbone.pth"))


# Colours


def test_factors_of_one_change_no_colour_and_a_grey_picture_has_no_saturation():
    pixels = optical_pixels()
    assert np.array_equal(jitter_colours(pixels, (1.0, 1.0, 1.0), (2, 0, 1)), pixels)
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    assert np.array_equal(jitter_colours(grey, (1.0, 1.0, 0.4), (0, 1, 2)), grey)
    assert np.array_equal(jitter_colours(pixels, (0.5, 1.0, 1.0), (0, 1, 2)), pixels // 2)


def test_colours_are_changed_within_their_range_in_any_order_and_not_on_the_black_border(monkeypatch):
    drawn = []

    def note(pixels, factors, order):
        drawn.append((*factors, *order))
        return jitter_colours(pixels, factors, order)

    monkeypatch.setattr("datasets.transforms.jitter_colours", note)
    chances = {"flip_probability": 0.0, "erasing_probability": 0.0, "padding": 4, "mean": (0, 0, 0), "std": (1, 1, 1)}
    transform = partial(augment, size=(16, 16), **chances)
    bright = np.full((16, 16, 3), 255, np.uint8)
    for seed in range(300):
        image = transform(bright, np.random.default_rng(seed), jitter=0.2)
        assert ((image == 0) | (image > 0.6)).all()
    factors, orders = np.array(drawn)[:, :3], {tuple(row[3:]) for row in drawn}
    assert factors.min(0) == pytest.approx([0.8] * 3, abs=0.01) and factors.max(0) == pytest.approx([1.2] * 3, abs=0.01)
    assert len(orders) == 6


def test_without_jitter_nothing_is_drawn_for_it():
    pixels = optical_pixels()
    chances = {"flip_probability": 0.5, "erasing_probability": 0.5, "padding": 4, "mean": (0, 0, 0), "std": (1, 1, 1)}
    images = [augment(pixels, np.random.default_rng(3), size=(32, 16), **chances, **jitter) for jitter in ({}, {"jitter": 0.0})]
    assert torch.equal(*images)
    assert not torch.equal(images[0], augment(pixels, np.random.default_rng(3), size=(32, 16), **chances, jitter=0.2))


def test_features_of_a_collapsed_network_have_finite_gradients():
    shared, specific = torch.zeros(4, 8).requires_grad_(), torch.zeros(4, 8).requires_grad_()
    (orthogonality(shared, specific) + functional.mse_loss(shared, specific)).backward()
    assert shared.grad.isfinite().all() and specific.grad.isfinite().all()


@pytest.mark.parametrize("name", ["sdf_net", "mos_sdf"])
def test_shipped_files_build_the_model(name):
    cfg = load_cfg(Path(__file__).parent.parent / "configs" / f"{name}.yml")
    assert (cfg.MODEL.DISENTANGLE, cfg.MODEL.STRUCT_LAYER_INDEX, cfg.MODEL.ORTH_LOSS_WEIGHT) == (True, 6, 10.0)
    with torch.device("meta"):
        model = build_model(cfg, 361)
    assert model.base.pos_embed.shape == (1, 130, 768)


def test_it_trains_keeps_the_best_weights_alone_and_ranks_in_an_ensemble_with_mos(tmp_path):
    """The commands of docs/sdf_net.md, on a tiny network."""
    data, configs = write_hoss(tmp_path / "data", train_ships=4, test_ships=4), Path(__file__).parent.parent / "configs"
    common = {"DATASETS__ROOT_DIR": data, "SOLVER__MAX_EPOCHS": 2, "SOLVER__EVAL_PERIOD": 1, "MODEL__STRUCT_LAYER_INDEX": 2}
    changes = settings(**common)
    without_switches = [
        part
        for name, value in zip(changes[::2], changes[1::2], strict=True)
        if name not in ("MODEL.MODALITY_LOSS_WEIGHT", "SOLVER.CHECKPOINT_PERIOD", "TEST.NECK_FEAT")
        for part in (name, value)
    ]
    rankings = []
    for config in ("hoss_transoss", "mos_sdf"):
        call_with = ("--config_file", configs / f"{config}.yml")
        folder = tmp_path / config
        ended = call(train.main, *call_with, *without_switches, "OUTPUT_DIR", folder)
        assert ended.status == 0, ended.err
        if config == "mos_sdf":
            best = {f"best_model_{metric}.pth" for metric in ("mAP", "rank1")}
            assert {path.name for path in folder.glob("*.pth")} | {path.name for path in folder.glob("best*")} == best | {
                "last.pth"
            }
            logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            assert {"identity", "triplet", "alignment", "orthogonality", "structure"} <= logged[0].keys()
        folders = [data / "HOSS" / name for name in ("query", "bounding_box_test")]
        where = ("--query", folders[0], "--gallery", folders[1], "--output", folder / "rank")
        weights = folder / "best_model_mAP.pth"
        ended = call(rank.main, *call_with, "--weights", weights, *where, *without_switches)
        assert ended.status == 0, ended.err
        rankings.append(folder / "rank" / "ranking.csv")
    ended = call(fuse_results.main, *rankings, "--output", tmp_path / "both")
    assert ended.status == 0, ended.err
    assert f"queries fused from 2 files: {tmp_path / 'both'}" in ended.out
