"""The deliberate faults themselves: what is changed, what is left alone, and that a fault is noticed."""

from pathlib import Path
from queue import Queue

from tests.mutation import choose, files_testing, is_noticed, mutants_of

SOURCE = '''"""Text."""

LIMIT = 3


def area(width: float, height: float = 2.0) -> float:
    """1 + 1."""
    logger.info("area %d", 1 + 1)
    if width < 0:
        raise ValueError(f"{width + 1}")
    if width < LIMIT and not height:
        return clip(width.detach(), height, low=-1)
    return width * height


def note(record):
    record.update(a=True)
'''


def test_the_faults_of_a_source():
    changes = {(mutant.line, mutant.old, mutant.new) for mutant in mutants_of("a.py", SOURCE)}
    assert {
        (3, "3", "4"),
        (6, "2.0", "4.0"),
        (9, "width < 0", "(width <= 0)"),
        (11, "width < LIMIT", "(width <= LIMIT)"),
        (11, "not height", "(height)"),
        (11, "width < LIMIT and not height", "((width < LIMIT) or (not height))"),
        (11, "width < LIMIT and not height", "(not (width < LIMIT and (not height)))"),
        (12, "width.detach()", "width"),
        (12, "clip(width.detach(), height, low=-1)", "clip(height, width.detach(), low=-1)"),
        (12, "clip(width.detach(), height, low=-1)", "clip(width.detach(), height)"),
        (12, "-1", "(1)"),
        (13, "width * height", "(width / height)"),
        (17, "record.update(a=True)", "pass"),
        (17, "record.update(a=True)", "return"),
        (17, "True", "False"),
    } <= changes
    assert not {line for line, *_ in changes} & {1, 7, 8, 10}  # text, logging and errors


def test_faults_are_the_same_for_the_same_seed_and_come_from_every_module():
    chosen = choose(["loss", "solver"], 20, seed=3)
    assert chosen == choose(["loss", "solver"], 20, seed=3) != choose(["loss", "solver"], 20, seed=4)
    assert len(chosen) == 20
    assert {mutant.path for mutant in chosen} == {
        "loss/criterion.py", "loss/terms.py", "solver/optimizer.py", "solver/schedule.py"
    }  # fmt: skip


def test_tests_of_a_module_are_those_that_import_it():
    assert files_testing("solver/schedule.py")[0] == "tests/test_solver.py"
    assert "tests/test_golden.py" in files_testing("loss/terms.py")  # through the golden checks
    assert files_testing("bbdm/drawing.py")


def test_a_fault_is_made_in_the_copy_noticed_and_taken_back(tmp_path):
    source = "def twice(x):\n    return 2 * x\n\n\ndef unused():\n    return 2\n"
    (tmp_path / "doubling.py").write_text(source)
    (tmp_path / "test_doubling.py").write_text("from doubling import twice\n\n\ndef test_twice():\n    assert twice(3) == 6\n")
    trees: Queue[Path] = Queue()
    trees.put(tmp_path)
    faults = {(mutant.line, mutant.new): mutant for mutant in mutants_of("doubling.py", source)}
    assert is_noticed(faults[2, "3"], ["test_doubling.py"], trees, {})
    assert not is_noticed(faults[6, "3"], ["test_doubling.py"], trees, {})
    assert (tmp_path / "doubling.py").read_text() == source
    assert trees.qsize() == 1
