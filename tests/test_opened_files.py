"""How often a command opens the files that it reads: once for one use."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.catalogue import read_hoss
from datasets.chips import read_header
from datasets.generated import SamplingRun, open_store
from datasets.records import Modality
from model.build import build_model
from tests.chip_files import write_hoss
from tests.commands import settings, tiny_cfg
from utils.checkpoint import save

ROOT = Path(__file__).parent.parent
COUNTING = """
import json, os, runpy, sys
opened = []
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, os.PathLike)):
        opened.append(os.fspath(args[0]))
sys.addaudithook(hook)
module, record, sys.argv = sys.argv[1], sys.argv[2], sys.argv[2:]
try:
    runpy.run_module(module, run_name="__main__")
finally:
    open(record, "w").write(json.dumps(opened))
"""


def count_opened(module: str, *words: object, folder: Path) -> Counter:
    """Name of a picture -> how often the command opened it."""
    call = [sys.executable, "-c", COUNTING, module, str(folder / "opened.json"), *map(str, words)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    opened = json.loads((folder / "opened.json").read_text())
    return Counter(Path(path).name for path in opened if path.endswith((".tif", ".png")))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Test chips, weights, and samples of the optical queries: a store with a manifest, and the same in a plain folder."""
    root = tmp_path_factory.mktemp("root")
    write_hoss(root / "data", train_ships=1, test_ships=3)
    torch.manual_seed(0)
    save(root / "weights.pth", build_model(tiny_cfg(), 3).state_dict())
    chips = [chip for chip in read_hoss(root / "data", train=False).images if chip.modality is Modality.OPTICAL]
    sources = [replace(chip, size=read_header(chip.path)[0]) for chip in chips if chip.split == "query"]
    run = SamplingRun(samples_per_image=2, sampler="released", steps=5, eta=1.0, seed=1, weights_sha256="ab")
    store = open_store(root / "store", run, sources, config={})
    (root / "plain").mkdir()
    for number, source in enumerate(sources):
        for k in range(2):
            picture = np.random.default_rng([number, k]).integers(0, 256, (*source.size[::-1], 3), dtype=np.uint8)
            store.write(source, k, picture)
            Image.fromarray(picture).save(root / "plain" / f"{source.path.stem}_{k}.png")
    return root


@pytest.mark.parametrize(("samples", "header"), [("store", 0), ("plain", 1)])
def test_testing_with_samples_opens_a_chip_to_read_and_to_hash_it_and_a_sample_to_read_it(root, tmp_path, samples, header):
    values = {"DATASETS__ROOT_DIR": root / "data", "TEST__WEIGHT": root / "weights.pth", "OUTPUT_DIR": tmp_path / "out"}
    words = settings(**values, DATASETS__QUERY_ADD_DIR=root / samples)
    opened = count_opened("test", *words, folder=tmp_path)
    images = read_hoss(root / "data", train=False).images
    sources = [chip for chip in images if chip.split == "query" and chip.modality is Modality.OPTICAL]
    assert len(sources) == 3
    expected = {chip.path.name: 2 + (header if chip in sources else 0) for chip in images}
    expected |= {f"{chip.path.stem}_{k}.png": 1 for chip in sources for k in range(2)}
    assert opened == expected


def test_checking_a_data_set_opens_each_chip_once(root, tmp_path):
    opened = count_opened("tools.check_dataset", root / "data", folder=tmp_path)
    assert opened == {path.name: 1 for path in (root / "data").rglob("*.tif")}
