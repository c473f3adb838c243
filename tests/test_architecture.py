"""That the code stays laid out as docs/architecture.md says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "configs": {"utils"},
    "utils": set(),
    "datasets": {"utils"},
    "model": {"utils"},
    "loss": set(),
    "solver": set(),
    "processor": {"datasets", "model", "utils"},
    "bbdm": {"configs", "datasets", "model", "processor", "utils"},
}
"""Package -> packages or modules that its modules may import beside their own."""

FACES = {"model/load.py": {"configs", "datasets", "processor"}}
"""Module that stands before the packages, as a command does, although it lies in one -> what it may import beside its own."""

LEAN = {"loss": {"torch"}, "solver": {"torch", "timm"}}
"""Packages that know nothing of the rest of the world: the libraries that they may import."""

ENTRY_POINTS = sorted(ROOT.glob("*.py"))
PROGRAMS = {"bbdm/train.py", "bbdm/sample.py"}
OURS = {*ALLOWED, "tools", "tests", "benchmarks", *(path.stem for path in ENTRY_POINTS)}
MODULES = [path for package in ALLOWED for path in sorted((ROOT / package).glob("**/*.py"))]

SOURCES = [*MODULES, *(path for package in ("tools", "benchmarks") for path in sorted((ROOT / package).glob("*.py")))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}: imports are absolute"
            # `from utils import distributed` imports a module too.
            names |= {f"{node.module}.{alias.name}" if node.module in ALLOWED else node.module for alias in node.names}
    return names


def functions_of(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]


def calls_of(path: Path) -> set[str]:
    """Dotted names of what a file calls, such as 'print' or 'torch.load'."""
    return {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}


def is_inside(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_there_is_something_to_check():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ALLOWED)
    assert {"train.py", "test.py"} <= {path.name for path in ENTRY_POINTS}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_packages_import_what_the_layout_allows(path):
    own = path.relative_to(ROOT).parts[0]
    ours = {module for module in imports_of(path) if module.split(".")[0] in OURS}
    assert {module for module in ours if not is_inside(module, ALLOWED[own] | {own} | FACES.get(name_of(path), set()))} == set()
    if own in LEAN:
        foreign = {module.split(".")[0] for module in imports_of(path) - ours}
        assert foreign <= LEAN[own] | {"collections", "logging", "math"}


@pytest.mark.parametrize("path", ENTRY_POINTS, ids=name_of)
def test_entry_points_parse_build_and_call(path):
    ours = {module for module in imports_of(path) if module.split(".")[0] in OURS}
    assert {module for module in ours if is_inside(module, {"bbdm", "tools", "tests", "benchmarks"})} == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_do_not_print_and_read_weights_in_one_place(path):
    calls = calls_of(path)
    if name_of(path) not in PROGRAMS | {"utils/cli.py"}:
        assert "print" not in calls
    if name_of(path) != "utils/checkpoint.py":
        assert not calls & {"torch.load", "pickle.load", "pickle.loads", "torch.save"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_builders_and_programs_see_a_configuration(path):
    if name_of(path) in PROGRAMS or path.parent.name == "configs":
        return
    for node in functions_of(path):
        seen = {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
        if "cfg" in seen:
            assert node.name.startswith("build_"), f"{name_of(path)}: {node.name}"


def test_nothing_but_a_tool_and_the_benchmarks_import_the_bridge():
    parts = ("bbdm", "benchmarks")
    outside = [path for path in [*SOURCES, *ENTRY_POINTS] if path.relative_to(ROOT).parts[0] not in parts]
    users = {name_of(path) for path in outside if any(is_inside(module, {"bbdm"}) for module in imports_of(path))}
    assert users <= {"tools/evaluate_ships.py"}


def test_no_two_classes_share_a_name():
    places: dict[str, list[str]] = {}
    for path in [*SOURCES, *ENTRY_POINTS]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_two_public_functions_share_a_name():
    places: dict[str, list[str]] = {}
    for path in [*SOURCES, *ENTRY_POINTS]:
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    allowed = {"main", "build_parser"}  # of each command its own
    assert {name: paths for name, paths in places.items() if len(paths) > 1 and name not in allowed} == {}


@pytest.mark.parametrize("path", [*SOURCES, *ENTRY_POINTS], ids=name_of)
def test_functions_fit_on_a_screen(path):
    lengths = {f"{name_of(path)}: {node.name}": node.end_lineno - node.lineno + 1 for node in functions_of(path)}
    assert {name: length for name, length in lengths.items() if length > 45} == {}


@pytest.mark.parametrize("path", [*MODULES, *ENTRY_POINTS], ids=name_of)
def test_files_can_be_held_in_the_head(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    for node in ast.walk(tree_of(path)):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{name_of(path)}: a bare except"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_happens_at_import(path):
    """At the top of a module there are definitions, not calls for their effect."""
    for node in tree_of(path).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{name_of(path)}, line {node.lineno}"
        assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try), f"{name_of(path)}, line {node.lineno}"


WRITTEN = re.findall(
    r"^### (\w+) \(imports ([\w, ]+)\):.*\n\n((?:.+\n)+)", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.MULTILINE
)
"""Package, what it imports, and the paragraph that names its modules."""


def test_the_layout_that_is_written_is_the_one_that_is_checked():
    written = {package: set(imports.split(", ")) - {"nothing"} for package, imports, _ in WRITTEN}
    assert written == ALLOWED | {"tools": {"anything"}}


@pytest.mark.parametrize(("package", "imports", "text"), WRITTEN, ids=lambda value: value.split()[0])
def test_every_module_is_named_in_the_layout_and_every_name_is_one(package, imports, text):
    modules = {path.relative_to(ROOT / package).with_suffix("").as_posix() for path in (ROOT / package).glob("**/*.py")}
    named = set(re.findall(r"`([\w/]*\w)`", text))
    assert named == {name for name in modules if not name.endswith("__init__")}
