"""The ground: whole files or none, safe reading of weights, devices, seeds, logs, and how commands end."""

import json
import logging
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import load_cfg
from configs.parser import config_parser
from tests.commands import call, tiny_cfg
from utils import cli, log
from utils.checkpoint import load, load_state_dict, save, sha256, strip_prefix, without_start_values
from utils.device import Precision, build_compilation, build_device, find_device, find_precision
from utils.errors import CheckpointError, DataError, UsageError
from utils.files import replacing, write_json, write_text
from utils.log import MetricsWriter, describe_environment, make_output_dir, progress, table
from utils.seed import seed_everything, seed_step

CPU = torch.device("cpu")

# Files


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "some.pth"
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        assert (temporary.parent, temporary.suffix) == (path.parent, ".pth")
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
def test_a_failed_writing_leaves_the_file_before_it(tmp_path, fault):
    path = tmp_path / "some.txt"
    write_text(path, "before")
    with pytest.raises(fault), replacing(path) as temporary:
        temporary.write_text("half")
        raise fault
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_utf_8_and_refuses_what_json_lacks(tmp_path):
    write_json(tmp_path / "a.json", {"ship": "Ærø"})
    assert "Ærø" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"R1": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ship": "Ærø"}


# Checkpoints

TENSORS = {"a.weight": torch.arange(3.0), "b.bias": torch.ones(1, dtype=torch.int64)}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_are_found_in_every_wrapping(tmp_path, container, prefix):
    tensors = {prefix + name: value for name, value in TENSORS.items()}
    save(tmp_path / "a.pth", {container: tensors, "epoch": 3} if container else tensors)
    assert same(load_state_dict(tmp_path / "a.pth"), TENSORS)


def test_files_of_the_old_format_are_read(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert same(load_state_dict(tmp_path / "a.pth"), TENSORS)


def test_a_prefix_that_only_some_names_have_stays():
    assert strip_prefix({"module.a": 1, "b": 2}, "module.") == {"module.a": 1, "b": 2}
    assert strip_prefix({}, "module.") == {}


class Harmful:
    """Code in a file of weights."""

    def __reduce__(self):
        return (os.mkdir, ("code_ran",))


def test_a_file_that_could_run_code_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "x": Harmful()}, "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds \S*mkdir beside tensors and could run code"):
        load("a.pth")
    assert not Path("code_ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path, share, new_format):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.randn(1000)}, path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"a\.pth is no checkpoint"):
        load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"text\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", bytes(range(256)), b"\x80\x04."])
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth"):
        load_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 1}, {"state_dict": {"a": 1}}, [1], torch.zeros(2)])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds no tensors by name"):
        load_state_dict(tmp_path / "a.pth")


def test_no_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            load(path)


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Devices


def gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("name", "device_id", "count", "found"),
    [
        ("auto", "0", 0, "cpu"),
        ("cpu", "0", 2, "cpu"),
        ("auto", "0", 1, "cuda:0"),
        ("cuda", "1", 2, "cuda:1"),
        ("cuda", "1,0", 2, "cuda:1"),
        ("cuda:1", "0", 2, "cuda:1"),
    ],
)
def test_devices(monkeypatch, name, device_id, count, found):
    gpus(monkeypatch, count)
    assert find_device(name, device_id=device_id) == torch.device(found)


@pytest.mark.parametrize(
    ("name", "device_id", "count", "said"),
    [
        ("cuda", "0", 0, "offers no CUDA device; set MODEL.DEVICE cpu"),
        ("cuda:3", "0", 2, "CUDA device 3 was asked for and this machine has 2"),
        ("cuda", "2", 2, "CUDA device 2 was asked for and this machine has 2"),
        ("cuda", "first", 1, "MODEL.DEVICE_ID is 'first'"),
        ("tpu", "0", 1, "MODEL.DEVICE 'tpu' is no device"),
        ("", "0", 1, "MODEL.DEVICE '' is no device"),
        ("meta", "0", 1, "MODEL.DEVICE 'meta' is not supported"),
    ],
)
def test_devices_that_are_not_there(monkeypatch, name, device_id, count, said):
    gpus(monkeypatch, count)
    with pytest.raises(UsageError, match=said) as raised:
        find_device(name, device_id=device_id)
    assert raised.value.exit_status == 2


def test_each_process_of_torchrun_takes_its_own_gpu(monkeypatch):
    gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device("auto") == find_device("cuda:0") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="CUDA device 2"):
        find_device("cuda")


def test_weights_that_are_cast_once_give_what_autocast_gives():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.Flatten(), torch.nn.Linear(72, 4)
    )
    pictures, precision = torch.randn(2, 3, 5, 5), Precision("cpu", torch.bfloat16)
    with precision.autocast():
        expected = network(pictures)
        assert precision.cast(network) is network
        assert torch.equal(network(pictures), expected)
    assert [network[place].weight.dtype for place in (0, 1, 3)] == [torch.bfloat16, torch.float32, torch.bfloat16]
    plain = torch.nn.Linear(2, 2)
    assert Precision("cpu").cast(plain).weight.dtype is torch.float32


def test_a_network_without_start_values_takes_weights_as_any_other():
    def build() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))

    state, network = torch.get_rng_state(), without_start_values(build)
    assert torch.equal(torch.get_rng_state(), state)
    tensors = network.state_dict()
    assert all(value.device.type == "cpu" and not value.any() for value in tensors.values())
    weights = build().state_dict()
    assert {name: value.dtype for name, value in tensors.items()} == {name: value.dtype for name, value in weights.items()}
    network.load_state_dict(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_network_is_compiled_only_where_that_is_asked_for_and_never_with_graphs_to_learn(monkeypatch):
    network, asked = torch.nn.Linear(1, 1), []
    monkeypatch.setattr(network, "compile", lambda **options: asked.append(options))
    for value in ("off", "on", "graphs"):
        build_compilation(load_cfg(None, ["SOLVER.COMPILE", value]), network)
    assert asked == [{"mode": None}, {"mode": "reduce-overhead"}]
    build_compilation(load_cfg(None, ["SOLVER.COMPILE", "on"]), network, learns=True)
    with pytest.raises(UsageError, match=r"SOLVER\.COMPILE graphs .* set it to on"):
        build_compilation(load_cfg(None, ["SOLVER.COMPILE", "graphs"]), network, learns=True)


@pytest.mark.parametrize("name", ["off", "tf32", "bf16"])
def test_convolutions_round_to_tf32_only_where_that_is_asked_for(monkeypatch, name):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", name != "tf32")
    build_device(load_cfg(None, ["MODEL.DEVICE", "cpu", "SOLVER.AMP", name]))
    assert torch.backends.cudnn.allow_tf32 == (name == "tf32")


def test_precision_follows_the_device():
    assert find_precision("tf32", torch.device("cuda")) == Precision("cuda")
    assert find_precision("auto", CPU).dtype is None
    assert find_precision("bf16", CPU).dtype is torch.bfloat16
    assert find_precision("fp16", torch.device("cuda")) == Precision("cuda", torch.float16)
    assert not Precision("cpu").scaler().is_enabled()
    with pytest.raises(UsageError, match=r"SOLVER\.AMP fp16 needs a CUDA device"):
        find_precision("fp16", CPU)
    with Precision("cpu", torch.bfloat16).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with Precision("cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


# Seeds


def draw() -> tuple:
    return random.random(), np.random.random(), np.random.normal(), torch.rand(1).item()


@pytest.fixture
def kept_random_state():
    python, numpy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(own)


@pytest.mark.usefixtures("kept_random_state")
def test_seeds_fix_every_generator_and_differ_by_rank():
    draws = []
    for seed, rank in [(1, 0), (1, 0), (1, 1), (2, 0)]:
        seed_everything(seed, rank)
        draws.append(draw())
    assert draws[0] == draws[1]
    assert all(len({values[i] for values in draws}) == 3 for i in range(4))


@pytest.mark.usefixtures("kept_random_state")
def test_a_step_draws_what_its_place_in_the_run_says():
    draws = []
    for place in [(1, 0, 1, 1), (1, 0, 1, 1), (2, 0, 1, 1), (1, 1, 1, 1), (1, 0, 2, 1), (1, 0, 1, 2)]:
        seed_step(*place)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[1]
    assert len(set(draws)) == 5


# Logs


def test_metrics_are_json_lines_without_nan(tmp_path):
    MetricsWriter(tmp_path / "m.jsonl").write(epoch=1, loss=float("inf"), lr=0.5, name="x")
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"epoch": 1, "loss": None, "lr": 0.5, "name": "x"}


def test_metrics_of_a_resumed_run_go_on_after_its_epoch(tmp_path, caplog):
    path = tmp_path / "m.jsonl"
    writer = MetricsWriter(path)
    for epoch in (1, 2, 3):
        writer.write(kind="epoch", epoch=epoch)
    with path.open("ab") as file:
        file.write(b'{"kind": "step", "epoch": 2, "lo\n\xff\x00\n17\n{"epoch": 3, "lo')  # by whatever stopped the run
    MetricsWriter(path, keep=lambda line: line["epoch"] <= 2).write(kind="epoch", epoch=3, again=True)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"kind": "epoch", "epoch": 1}, {"kind": "epoch", "epoch": 2}, {"kind": "epoch", "epoch": 3, "again": True},
    ]  # fmt: skip
    assert f"{path}: damaged lines, such as a kill leaves, were cut out: 4" in caplog.text
    MetricsWriter(path)
    assert path.read_text() == ""  # of another run


def test_an_output_folder_is_made_and_left_empty(tmp_path):
    folder = make_output_dir(str(tmp_path / "a" / "b"))
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_an_output_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="OUTPUT_DIR is empty"):
        make_output_dir("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=f"OUTPUT_DIR {path} cannot be written to"):
            make_output_dir(str(path))


def test_an_environment_can_be_written():
    environment = json.loads(json.dumps(describe_environment(seed=3, device=CPU), allow_nan=False))
    assert (environment["seed"], environment["device"], environment["processes"]) == (3, "cpu", 1)
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0] or environment["packages"]["torch"]


def test_a_missing_git_is_no_fault(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_environment(seed=0, device=CPU)["commit"] is None


def test_tables_align():
    assert table(["name", "R1"], [["a", 1], ["long name", 10.5]]).splitlines() == [
        "name         R1",
        "---------------",
        "a             1",
        "long name  10.5",
    ]


def test_tables_put_words_to_the_left_and_figures_to_the_right():
    rows = [["ALL", "24.3", "[20.1, 28.9]", "", 88, None], ["O2S", "-", "+4.0", "<- chosen", "1,234", "none"]]
    assert table(["protocol", "mAP", "95 %", "", "queries", "last"], rows).splitlines() == [
        "protocol   mAP          95 %             queries  last",
        "------------------------------------------------------",
        "ALL       24.3  [20.1, 28.9]                  88  None",
        "O2S          -          +4.0  <- chosen    1,234  none",
    ]


def test_tables_without_rows_and_those_whose_headers_are_short_keep_their_line():
    assert table(["a", "bc"], []).splitlines() == ["a  bc", "-----"]
    assert table(["a", ""], [["1", "word"]]).splitlines() == ["a", "-------", "1  word"]


def test_tables_for_papers():
    assert table(["name", "R1"], [["a", "1.50"]], "pipe").splitlines() == [
        "| name   |   R1 |",
        "|:-------|-----:|",
        "| a      | 1.50 |",
    ]
    assert r"a & 1.50 \\" in " ".join(table(["name", "R1"], [["a", "1.50"]], "latex").split())


def test_bars_are_lines_where_there_is_no_terminal_and_hidden_where_not_asked_for(capsys):
    for visible in (True, False):
        bar = progress(2, "work", visible=visible)
        bar.update(2)
        bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["work", "work"]
    assert lines[-1].startswith("work: 100%")


# Commands


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("a.tif is no picture; replace it"), 1, "a.tif is no picture; replace it"),
        (UsageError("KEY is wrong"), 2, "KEY is wrong"),
        (FileNotFoundError(2, "No such file or directory", "b.txt"), 1, "b.txt: No such file or directory"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_that_a_user_can_mend_end_in_one_sentence(error, status, said):
    def main(arguments):
        raise error

    ended = call(main)
    assert (ended.status, ended.sentence) == (status, said)


def test_faults_of_the_program_keep_their_traceback():
    def main(arguments):
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        call(main)


def test_arguments_reach_the_command_and_success_is_zero(monkeypatch):
    assert call(lambda arguments: print(*arguments), "A", 1).out == "A 1\n"
    assert call(lambda arguments: None).status == 0
    assert sys.argv[0] != "A"


def test_the_screen_gets_lines_and_the_file_gets_names(tmp_path, capsys):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    try:
        log.setup_logging(tmp_path, "train_log.txt")
        logging.getLogger("some.module").info("a line")
        log.setup_logging()  # closes the file; a second call adds no second handler
        logging.getLogger("some.module").info("another line")
        assert len(root.handlers) == 1
    finally:
        root.handlers, root.level = handlers, level
        logging.captureWarnings(False)
    assert capsys.readouterr().err == "a line\nanother line\n"
    assert (tmp_path / "train_log.txt").read_text().endswith("some.module INFO: a line\n")


def test_settings_may_stand_before_options():
    parser = config_parser("program", "", "program")
    parsed = parser.parse_intermixed_args(["SOLVER.SEED", "1", "--config_file", "a.yml", "SOLVER.BASE_LR", "-1"])
    assert (parsed.config_file, parsed.overrides) == ("a.yml", ["SOLVER.SEED", "1", "SOLVER.BASE_LR", "-1"])


def test_a_full_gpu_is_told_in_a_sentence_that_names_keys(monkeypatch, capsys):
    def fill(arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        cli.run(fill)
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert told.count("\n") == 1 and "20.00 GiB" in told and "SOLVER.IMS_PER_BATCH" in told


def test_the_deterministic_switch(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert not torch.are_deterministic_algorithms_enabled()
    build_device(tiny_cfg(MODEL__DEVICE="cpu", SOLVER__DETERMINISTIC=True))
    try:
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG")


def test_equal_content_makes_equal_files(tmp_path):
    for name in ("a.pth", "b.pth"):
        save(tmp_path / name, {"weight": torch.arange(4.0)})
    assert sha256(tmp_path / "a.pth") == sha256(tmp_path / "b.pth")
