"""A store of samples: what is written is read back; whatever does not belong is refused by name."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from datasets import generated
from datasets.chips import read_chip, read_generated
from datasets.generated import MANIFEST, SamplingRun, is_written, open_store, read_samples, sample_of, write_sample
from datasets.records import Chip, Modality, Split
from datasets.sar import render_percentile
from utils.errors import DataError

RUN = SamplingRun(
    samples_per_image=2, sampler="released", steps=200, eta=1.0, seed=7, weights_sha256="ab" * 32, model={"width": 32}
)
SIZES = {"0001_a_RGB.tif": (12, 30), "0002_b_RGB.tif": (9, 21), "0003_c_RGB.tif": (8, 16)}


@pytest.fixture
def chips(tmp_path):
    folder = tmp_path / "chips"
    folder.mkdir()
    for name, (width, height) in SIZES.items():
        Image.new("RGB", (width, height), (50, 60, 70)).save(folder / name)
    return [Chip(folder / name, int(name[:4]), Modality.OPTICAL, Split.QUERY) for name in SIZES]


@pytest.fixture
def store(tmp_path, chips):
    """A finished store of the first two chips, which are queries."""
    folder = tmp_path / "samples"
    fill(folder, chips[:2], "query")
    return folder


def sources_of(chips, split):
    return [replace(chip, split=Split(split), size=SIZES[chip.path.name]) for chip in chips]


def fill(folder, chips, split, run=RUN):
    sources = sources_of(chips, split)
    open_store(folder, run, sources, config={"SEED": 7})
    for source in sources:
        for k in range(run.samples_per_image):
            write_sample(sample_of(source, k, folder, run), np.full((*source.size[::-1], 3), 10 * k, np.uint8))


def find(store, chips, split="query", **more):
    return read_samples(store, split=Split(split), sources=chips, **more)[0]


def read(store, chips, split="query", **more):
    """The samples, every one of them read as the network's loader does."""
    samples = find(store, chips, split, **more)
    for sample in (sample for own in samples.values() for sample in own):
        assert (sample.modality, sample.source.path in samples) == (Modality.SAR, True)
        read_chip(sample, render_percentile)
    return samples


def names(samples):
    return {source.name: [sample.path.name for sample in own] for source, own in samples.items()}


def test_samples_come_back_joined_to_their_source_by_name(store, chips):
    samples = read(store, [chips[1], chips[0]])
    assert read_samples(store, split=Split.QUERY, sources=chips[:2])[1] == RUN
    assert list(samples) == [chips[1].path, chips[0].path]
    assert names(samples)["0001_a_RGB.tif"] == ["0001_a_RGB_0.png", "0001_a_RGB_1.png"]
    sample = samples[chips[1].path][1]
    assert (sample.ship, sample.split, sample.size, sample.rendered) == (2, Split.QUERY, (9, 21), True)
    assert sample.source == replace(chips[1], size=(9, 21))
    picture = read_chip(sample, render_percentile)
    assert picture.shape == (21, 9, 3)
    assert (picture == 10).all()


def test_manifest_says_what_was_made(store):
    content = json.loads((store / MANIFEST).read_text(encoding="utf-8"))
    assert content["samples_per_image"] == 2
    assert content["steps"] == 200
    assert content["weights_sha256"] == "ab" * 32
    assert content["config"] == {"SEED": 7}
    assert content["sources"][0] == {
        "split": "query",
        "name": "0001_a_RGB.tif",
        "width": 12,
        "height": 30,
        "samples": ["0001_a_RGB_0.png", "0001_a_RGB_1.png"],
    }


def test_one_store_serves_two_splits(store, chips):
    fill(store, chips[2:], "gallery")
    assert set(names(read(store, chips[2:], "gallery"))) == {"0003_c_RGB.tif"}
    assert len(read(store, chips[:2], "query", elsewhere=chips[2:])) == 2
    with pytest.raises(DataError, match=r"no split holds: 0003_c_RGB.tif"):
        read(store, chips[:2], "query", elsewhere=())


def test_one_sample_a_chip_is_enough(tmp_path, chips):
    fill(tmp_path / "one", chips, "query", replace(RUN, samples_per_image=1))
    assert {len(own) for own in read(tmp_path / "one", chips).values()} == {1}


def test_an_unfinished_store_goes_on_with_what_is_missing(store, chips):
    (store / "0001_a_RGB_1.png").unlink()
    whole = (store / "0002_b_RGB_0.png").read_bytes()
    (store / "0002_b_RGB_0.png").write_bytes(whole[: len(whole) // 2])
    sources = sources_of(chips[:2], "query")
    open_store(store, RUN, sources, config={})
    missing = [
        (source.path.name, k) for source in sources for k in range(2) if not is_written(sample_of(source, k, store, RUN))
    ]
    assert missing == [("0001_a_RGB.tif", 1), ("0002_b_RGB.tif", 0)]


def delete(store):
    (store / "0002_b_RGB_1.png").unlink()


def truncate(store):
    path = store / "0002_b_RGB_1.png"
    path.write_bytes(path.read_bytes()[:-30])


def empty(store):
    (store / "0002_b_RGB_1.png").write_bytes(b"")


def replace_by_another_sample(store):
    shutil.copy(store / "0002_b_RGB_0.png", store / "0002_b_RGB_1.png")


def replace_by_a_foreign_picture(store):
    Image.new("RGB", (9, 21)).save(store / "0002_b_RGB_1.png")


def resize_with_its_text(store):
    with Image.open(store / "0002_b_RGB_1.png") as image:
        text = PngImagePlugin.PngInfo()
        text.add_text("generated", image.info["generated"])
        image.resize((9, 20)).save(store / "0002_b_RGB_1.png", pnginfo=text)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, r"0002_b_RGB_1\.png is damaged.*; make this sample again"),
        (empty, r"0002_b_RGB_1\.png is empty.*; make this sample again"),
        (replace_by_another_sample, r"0002_b_RGB_1\.png .* did not make under this name; make this sample again"),
        (replace_by_a_foreign_picture, r"0002_b_RGB_1\.png .* did not make under this name; make this sample again"),
        (resize_with_its_text, r"0002_b_RGB_1\.png has another size than its source 0002_b_RGB\.tif; make this sample again"),
    ],
)
def test_a_spoilt_sample_is_refused_by_name_when_it_is_read(store, chips, spoil, said):
    spoil(store)
    samples = find(store, chips[:2])
    read_chip(samples[chips[1].path][0], render_percentile)
    with pytest.raises(DataError, match=said):
        read_chip(samples[chips[1].path][1], render_percentile)


def test_missing_samples_are_refused_before_any_is_read(store, chips):
    delete(store)
    with pytest.raises(DataError, match=r"missing samples: 0002_b_RGB_1\.png; make them again"):
        find(store, chips[:2])


def test_a_picture_of_a_palette_is_no_sample(tmp_path, chips):
    folder = write_layout(tmp_path / "plain", ["0001_a_RGB_0.png"])
    Image.new("P", (12, 30)).save(folder / "0001_a_RGB_0.png")
    with pytest.raises(DataError, match=r"0001_a_RGB_0\.png is no 8-bit RGB picture; make this sample again"):
        read(folder, chips[:1])


def test_extra_pictures_are_refused_and_other_files_are_not(store, chips):
    (store / "notes.txt").write_text("seen", encoding="utf-8")
    read(store, chips[:2])
    Image.new("RGB", (9, 21)).save(store / "0002_b_RGB_2.png")
    with pytest.raises(DataError, match=r"does not know: 0002_b_RGB_2.png"):
        read(store, chips[:2])


def test_chips_that_the_store_does_not_fit_are_refused(store, chips):
    with pytest.raises(DataError, match=r"no samples of chips of the split 'query': 0003_c_RGB.tif"):
        read(store, chips)
    with pytest.raises(DataError, match=r"no samples of chips of the split 'gallery': 0001_a_RGB.tif, 0002_b_RGB.tif"):
        read(store, chips[:2], "gallery")
    with pytest.raises(DataError, match=r"no split holds: 0002_b_RGB.tif"):
        read(store, chips[:1])
    with pytest.raises(DataError, match=r"another size than these: 0002_b_RGB\.tif"):
        read(store, [chips[0], replace(chips[1], size=(9, 22))])


def test_a_chip_that_has_another_size_than_its_samples_is_refused_when_it_is_read(store, chips):
    source = find(store, chips[:2])[chips[1].path][0].source
    assert read_chip(source, render_percentile).shape == (21, 9, 3)
    Image.new("RGB", (9, 22)).save(chips[1].path)
    with pytest.raises(DataError, match=r"0002_b_RGB\.tif has 9 x 22 pixels and should have 9 x 21: .*make them again"):
        read_chip(source, render_percentile)


def edit(store, change):
    content = json.loads((store / MANIFEST).read_text(encoding="utf-8"))
    change(content)
    (store / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(weights_sha256="cd" * 32), r"0001_a_RGB_0\.png .* did not make under this name"),
        (lambda content: content.update(samples_per_image=3), "not its sources' own, in order: 0001_a_RGB.tif"),
        (lambda content: content["sources"].append(content["sources"][0]), "lists chips twice: 0001_a_RGB.tif"),
        (
            lambda content: content["sources"][0].update(samples=["0001_a_RGB_0.png"] * 2),
            "not its sources' own, in order: 0001_a_RGB.tif",
        ),
        (lambda content: content.pop("seed"), "is no manifest"),
        (lambda content: content.update(version=99), "is no manifest"),
        (lambda content: content.update(sources=3), "is no manifest"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(store, chips, change, said):
    edit(store, change)
    with pytest.raises(DataError, match=said):
        read(store, chips[:2])


def test_a_manifest_that_is_no_json_is_refused(store, chips):
    (store / MANIFEST).write_text('{"version": 1, "sour', encoding="utf-8")
    with pytest.raises(DataError, match=r"is no manifest"):
        read(store, chips[:2])


@pytest.mark.parametrize("change", [{"weights_sha256": "cd" * 32}, {"seed": 8}, {"steps": 20}, {"samples_per_image": 5}])
def test_a_store_takes_samples_of_one_run_only(store, chips, change):
    with pytest.raises(DataError, match=r"another run: .*; name a new folder with OUTPUT_DIR"):
        open_store(store, replace(RUN, **change), sources_of(chips[:2], "query"), config={})


def test_a_store_does_not_begin_among_pictures(tmp_path, chips):
    with pytest.raises(DataError, match=r"holds pictures but no manifest\.json"):
        open_store(chips[0].path.parent, RUN, sources_of(chips, "query"), config={})


def test_a_store_does_not_mix_chips_of_one_stem(tmp_path, store, chips):
    twins = [Chip(Path(f"0009_RGB{suffix}"), 9, Modality.OPTICAL, Split.QUERY, (8, 8)) for suffix in (".tif", ".png")]
    with pytest.raises(DataError, match=r"same stem: 0009_RGB"):
        open_store(tmp_path / "new", RUN, twins, config={})
    with pytest.raises(DataError, match=r"other chips of the same name: 0001_a_RGB.tif"):
        open_store(store, RUN, sources_of(chips[:1], "gallery"), config={})


def test_a_full_disk_leaves_what_was_written_whole(store, chips, monkeypatch):
    (store / "0002_b_RGB_1.png").unlink()
    sources = sources_of(chips[:2], "query")
    open_store(store, RUN, sources, config={})

    def fail(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(generated.Image.Image, "save", fail)
    with pytest.raises(DataError, match=r"0002_b_RGB_1\.png could not be written \(No space left"):
        write_sample(sample_of(sources[1], 1, store, RUN), np.zeros((21, 9, 3), np.uint8))
    monkeypatch.undo()
    assert sorted(path.name for path in store.iterdir()) == [
        "0001_a_RGB_0.png",
        "0001_a_RGB_1.png",
        "0002_b_RGB_0.png",
        MANIFEST,
    ]
    write_sample(sample_of(sources[1], 1, store, RUN), np.zeros((21, 9, 3), np.uint8))
    assert {len(own) for own in read(store, chips[:2]).values()} == {2}


def test_a_picture_of_another_size_is_not_written(store, chips):
    open_store(store, RUN, sources_of(chips[:2], "query"), config={})
    with pytest.raises(ValueError, match=r"not its source's or its run's"):
        write_sample(sample_of(sources_of(chips, "query")[0], 0, store, RUN), np.zeros((256, 256, 3), np.uint8))


def test_a_run_may_save_every_picture_in_one_size(tmp_path, chips):
    run = replace(RUN, model={**RUN.model, "SAVED_SIZE": [32, 16]})
    sources = sources_of(chips[:2], "query")
    open_store(tmp_path / "one", run, sources, config={})
    for source in sources:
        for k in range(2):
            with pytest.raises(ValueError, match="not its source's or its run's"):
                write_sample(sample_of(source, k, tmp_path / "one", run), np.zeros((*source.size[::-1], 3), np.uint8))
            write_sample(sample_of(source, k, tmp_path / "one", run), np.full((16, 32, 3), 7, np.uint8))
    found, told = read_samples(tmp_path / "one", split=Split.QUERY, sources=sources)
    assert told == run
    for source in sources:
        for sample in found[source.path]:
            assert (sample.size, sample.saved, sample.source) == (source.size, (32, 16), source)
            assert read_generated(sample).shape == (16, 32, 3)
    with pytest.raises(DataError, match=r"has another size than its manifest tells; make this sample again"):
        read_generated(replace(sample, saved=(16, 32)))


def write_layout(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (256, 256)).save(folder / name)
    return folder


FLAT = [f"{name[:-4]}_{k}.png" for name in SIZES for k in (0, 1)]
BBDM = [f"{name[:-4]}/output_{k}.png" for name in SIZES for k in (0, 1)]


@pytest.mark.parametrize("names", [FLAT, BBDM, [f"{name[:-4]}.png" for name in SIZES]], ids=["flat", "bbdm", "single"])
def test_folders_without_manifest_are_joined_by_stem(tmp_path, chips, names):
    folder = write_layout(tmp_path / "plain", names)
    samples = read(folder, chips)
    assert read_samples(folder, split=Split.QUERY, sources=chips)[1] is None
    assert {len(own) for own in samples.values()} == {len(names) // 3}
    for chip, own in zip(chips, samples.values(), strict=True):
        assert all(chip.path.stem in str(sample.path.relative_to(folder)) for sample in own)
        assert {sample.size for sample in own} == {SIZES[chip.path.name]}, "that of the source, not of the picture"


def test_numbers_of_samples_sort_as_numbers(tmp_path, chips):
    folder = write_layout(tmp_path / "plain", [f"0001_a_RGB/output_{k}.png" for k in (0, 2, 10)])
    assert names(read(folder, chips[:1])) == {"0001_a_RGB.tif": ["output_0.png", "output_2.png", "output_10.png"]}


@pytest.mark.parametrize("names", [FLAT, BBDM], ids=["flat", "bbdm"])
def test_a_folder_without_manifest_never_shifts(tmp_path, chips, names):
    folder = write_layout(tmp_path / "plain", names)
    with pytest.raises(DataError, match=r"no split holds: 0003_c_RGB"):
        read(folder, chips[:2])
    assert len(read(folder, chips[:2], elsewhere=chips[2:])) == 2
    (folder / names[0]).unlink()
    with pytest.raises(DataError, match=r"samples 0, 1 of: 0001_a_RGB.tif"):
        read(folder, chips)


def test_a_sample_given_twice_is_refused(tmp_path, chips):
    folder = write_layout(tmp_path / "plain", [*FLAT, "0001_a_RGB_1.jpg"])
    with pytest.raises(DataError, match=r"more than one picture for the same sample: 0001_a_RGB_1"):
        read(folder, chips)


def test_no_folder_and_an_empty_folder_are_refused(tmp_path, chips):
    with pytest.raises(DataError, match=r"is no folder"):
        read(tmp_path / "nowhere", chips)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"lacks some of the samples 0 of: 0001_a_RGB.tif"):
        read(tmp_path / "empty", chips)
