"""How many small deliberate faults do the tests notice? `python -m tests.mutation --modules model loss --count 40`

Each fault (a mutant) is one change in one line: a sign, a comparison, a constant, a dropped statement, swapped or left out
arguments, a negated condition, an early return. It is made in a copy of the tree, and the tests that import its module run
there until one fails. Text of errors, logs and documentation is left alone: no test should look at it.
"""

import argparse
import ast
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from queue import Queue

import pytest
import timm.models.vision_transformer  # noqa: F401
import torch
import torchmetrics  # noqa: F401
import torchvision  # noqa: F401

ROOT = Path(__file__).parent.parent
MODULES = ("model", "loss", "solver", "processor", "datasets/samplers.py", "bbdm")
PACKAGES = ("configs", "utils", "datasets", "model", "loss", "solver", "processor", "bbdm", "tools", "tests")
COMPARISONS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
               ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in"}  # fmt: skip
OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Pow: "*", ast.Mod: "//"}
METHODS = {"mean": "sum", "sum": "mean", "amax": "amin", "amin": "amax", "argmax": "argmin", "max": "min", "min": "max"}
REMOVED = {"detach", "clamp", "abs", "square", "sqrt", "exp", "t", "softmax", "eval", "normalize"}
"""Calls that are left out: `x.detach()` and `normalize(x)` become `x`."""

SYMMETRIC = {"max", "min", "mse_loss", "equal", "isinstance", "issubclass", "getattr", "hasattr", "replace", "removeprefix"}
"""Functions whose first two arguments are not swapped: nothing or a crash would come of it."""

SILENT = ("logger.", "logging.", "warnings.", "print", "some", "super().__init__", "parser.", "progress", "tqdm")
"""Starts of calls that only tell something, or that no test could do without."""

GUARDS = {"strict", "description", "desc", "total", "disable", "non_blocking", "fused", "encoding", "dtype", "why"}
"""Keyword arguments that guard, tell or speed up, and change no result."""

TINY = 1e-6
"""Constants below are against division by zero; twice as much of them is no fault."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: relative to the tree.
        line: of the change, from 1.
        start, end: places in the source that `new` replaces.
        old, new: source before and after.
    """

    path: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.path}:{self.line}: {old or '(nothing)'}  ->  {new or '(nothing)'}"


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Every fault that can be made in a module's source."""
    tree = ast.parse(source)
    lines = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    found: dict[tuple[int, int, str], Mutant] = {}
    for node in _observable(tree):
        for place, new in _changes(node):
            start, end = starts[place.lineno - 1] + place.col_offset, starts[place.end_lineno - 1] + place.end_col_offset
            old = source.encode()[start:end].decode()
            if old != new:
                found[start, end, new] = Mutant(path, place.lineno, start, end, old, new)
    return list(found.values())


def _observable(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is in it, less text, annotations and calls that only tell something."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(SILENT):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test).startswith("__name__"):
        return
    if isinstance(node, ast.If) and all(isinstance(part, ast.Raise) for part in node.body):
        yield from _observable(node.test)
        return
    if isinstance(node, ast.Expr) and (isinstance(node.value, ast.Constant) or not any(_observable(node.value))):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        if name == "keywords":
            value = [part for part in value if part.arg not in GUARDS]
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST):
                yield from _observable(part)


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Places in a node and what they become."""
    match node:
        case ast.Compare(ops=[operator]):
            yield node, f"({ast.unparse(node.left)} {COMPARISONS[type(operator)]} {ast.unparse(node.comparators[0])})"
        case ast.BinOp() if type(node.op) in OPERATORS and not _is_text(node):
            yield node, f"({ast.unparse(node.left)} {OPERATORS[type(node.op)]} {ast.unparse(node.right)})"
        case ast.BoolOp():
            other = " or " if isinstance(node.op, ast.And) else " and "
            yield node, f"({other.join(f'({ast.unparse(value)})' for value in node.values)})"
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield node, f"({ast.unparse(node.operand)})"
        case ast.Constant(value=bool()):
            yield node, str(not node.value)
        case ast.Constant(value=int() | float()) if node.value == 0 or abs(node.value) > TINY:
            yield node, repr(node.value + 1 if isinstance(node.value, int) or not node.value else node.value * 2)
        case ast.If() | ast.IfExp() | ast.While():
            yield node.test, f"(not ({ast.unparse(node.test)}))"
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Assign(targets=[ast.Subscript()]):
            yield node, "pass"
        case ast.FunctionDef():
            yield from _early_return(node)
        case ast.Call():
            yield from _changed_calls(node)


def _is_text(node: ast.BinOp) -> bool:
    """Whether an operation joins text."""
    parts = (node.left, node.right)
    return any(isinstance(part, ast.JoinedStr) or isinstance(getattr(part, "value", None), str) for part in parts)


def _early_return(node: ast.FunctionDef) -> Iterator[tuple[ast.AST, str]]:
    returns = any(isinstance(part, ast.Return | ast.Yield | ast.YieldFrom) for part in ast.walk(node))
    first = next((part for part in node.body if not isinstance(getattr(part, "value", None), ast.Constant)), None)
    if first is not None and not returns and node.name != "__init__" and isinstance(first, ast.stmt):
        yield first, "return"


def _changed_calls(node: ast.Call) -> Iterator[tuple[ast.AST, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    is_method = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in ("torch", "functional", "np")
    if name in METHODS and is_method:
        renamed = ast.Call(ast.Attribute(node.func.value, METHODS[name]), node.args, node.keywords)
        yield node, ast.unparse(renamed)
    if name in REMOVED and (is_method or node.args):
        yield node, ast.unparse(node.func.value if is_method else node.args[0])
    if len(node.args) > 1 and name not in SYMMETRIC and not any(isinstance(part, ast.Starred) for part in node.args[:2]):
        swapped = [node.args[1], node.args[0], *node.args[2:]]
        yield node, ast.unparse(ast.Call(node.func, swapped, node.keywords))
    for keyword in node.keywords:
        if keyword.arg and keyword.arg not in GUARDS:
            others = [other for other in node.keywords if other is not keyword]
            yield node, ast.unparse(ast.Call(node.func, node.args, others))


def sources(modules: Sequence[str]) -> list[str]:
    """Files of the given packages and modules, relative to the tree."""
    paths = [path for name in modules for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]
    return sorted({path.relative_to(ROOT).as_posix() for path in paths if path.name != "__init__.py"})


@cache
def imports_of(path: Path) -> frozenset[Path]:
    """Our own modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    places = (ROOT.joinpath(*name.split(".")) for name in names)
    return frozenset(file for place in places for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())


def files_testing(path: str) -> list[str]:
    """The test files that import a module, or else the modules that import it; those that import least of ours first."""
    reached = {test: _with_helpers(test) for test in sorted((ROOT / "tests").glob("test_*.py"))}
    near = [test for test, modules in reached.items() if ROOT / path in modules]
    if not near:
        users = {file for modules in reached.values() for file in modules if ROOT / path in imports_of(file)}
        near = [test for test, modules in reached.items() if users & modules]
    near.sort(key=lambda test: len(reached[test]))
    return [f"tests/{test.name}" for test in near]


def _with_helpers(test: Path) -> set[Path]:
    """What a test file imports; what helpers of tests import is its own."""
    found, front = set(), {test}
    while front:
        front = {file for one in front for file in imports_of(one)} - found
        found |= front
        front = {file for file in front if ROOT / "tests" in file.parents}
    return found


def run_test(tree: Path, test: str, limit: float | None) -> tuple[bool, float]:
    """Run a test file in a tree: whether all passes within the limit, and the seconds that it took.

    It runs in a fork of this process, which has read the libraries already: they take longer than most files.
    """
    process = multiprocessing.get_context("fork").Process(target=_run_forked, args=(tree, test))
    start = time.monotonic()
    process.start()
    process.join(limit)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == 0, time.monotonic() - start


def _run_forked(tree: Path, test: str) -> None:
    os.setsid()  # a group of its own, so that what it starts ends with it
    os.chdir(tree)
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode, sys.argv = True, ["pytest"]
    sys.path[:] = [str(tree), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] in {*PACKAGES, "benchmarks", "train", "test"}]:
        del sys.modules[name]
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    torch.set_num_threads(1)
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(tree), test]))


def copy_tree(folder: Path) -> Path:
    """A copy of the project's files without what is not its own."""
    skipped = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "logs", "data", "weights")
    return Path(shutil.copytree(ROOT, folder, ignore=skipped))


def is_noticed(mutant: Mutant, tests: Sequence[str], trees: Queue[Path], seconds: dict[str, float]) -> bool:
    """Whether a test fails, or takes far longer, with a fault made in one of the `trees`.

    Args:
        tests: files, tried one by one.
        trees: copies that are free.
        seconds: what each file takes where nothing is wrong; filled as files are first needed.
    """
    tree = trees.get()
    file = tree / mutant.path
    source = file.read_bytes()
    try:
        for test in tests:
            if test not in seconds:
                passed, seconds[test] = run_test(tree, test, None)
                if not passed:
                    raise RuntimeError(f"{test} fails before anything was changed")
            file.write_bytes(source[: mutant.start] + mutant.new.encode() + source[mutant.end :])
            passed, _ = run_test(tree, test, 30 + 3 * seconds[test])
            file.write_bytes(source)
            if not passed:
                return True
        return False
    finally:
        file.write_bytes(source)
        trees.put(tree)


def choose(modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants of the given modules, drawn without regard to how many a module has room for."""
    generator = random.Random(seed)
    every = [mutants_of(path, (ROOT / path).read_text(encoding="utf-8")) for path in sources(modules)]
    for mutants in every:
        generator.shuffle(mutants)
    total = sum(map(len, every))
    # From each file its share, by systematic sampling: no file of weight is left out.
    ends = [0]
    for mutants in every:
        ends.append(ends[-1] + len(mutants))
    offset = generator.random()
    picks = [int((number + offset) * total / count) for number in range(min(count, total))]
    chosen = []
    for (start, end), mutants in zip(pairwise(ends), every, strict=True):
        chosen += mutants[: sum(start <= pick < end for pick in picks)]
    return chosen


def main(arguments: Sequence[str]) -> None:
    """Parse `arguments`, try the mutants and tell which went unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("--modules", nargs="+", default=list(MODULES), help="packages, folders or files")
    parser.add_argument("--count", type=int, default=100, help="faults to try (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="at the same time (default 1)")
    parser.add_argument("--list", action="store_true", help="print the faults and try none")
    args = parser.parse_args(arguments)
    mutants = choose(args.modules, args.count, args.seed)
    if args.list:
        print("\n".join(map(str, mutants)))
        return
    told: list[bool] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        trees: Queue[Path] = Queue()
        for number in range(args.jobs):
            trees.put(copy_tree(Path(folder) / str(number)))
        seconds: dict[str, float] = {}
        answers = pool.map(lambda mutant: is_noticed(mutant, files_testing(mutant.path), trees, seconds), mutants)
        for mutant, noticed in zip(mutants, answers, strict=True):
            told.append(noticed)
            print(f"{'noticed    ' if noticed else 'not noticed'} {mutant}", flush=True)
    tell(mutants, told)


def tell(mutants: Sequence[Mutant], told: Sequence[bool]) -> None:
    """Print how many faults were noticed in each package, and which were not."""
    print()
    for group in sorted({mutant.path.rpartition("/")[0] for mutant in mutants}):
        of_group = [noticed for mutant, noticed in zip(mutants, told, strict=True) if mutant.path.rpartition("/")[0] == group]
        print(f"{group}: {sum(of_group)} of {len(of_group)} noticed ({sum(of_group) / len(of_group):.0%})")
    print(f"all: {sum(told)} of {len(told)} noticed")
    for mutant, noticed in zip(mutants, told, strict=True):
        if not noticed:
            print(f"not noticed: {mutant}")


if __name__ == "__main__":
    main(sys.argv[1:])
