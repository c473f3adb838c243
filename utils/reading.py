"""Reading text that a stranger may have made: regular files of a bounded size, and JSON and YAML that stay small when parsed.

Every fault is an OSError (of the file) or a ValueError (of what it holds), whose text readers put into a sentence of their own.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

TEXT_LIMIT = 2**27
"""Bytes of a table or JSON file: a line for each of a million chips fits."""

CONFIG_LIMIT = 2**17
"""Characters of a YAML text; the longest of ours has a twentieth of it."""

YAML_NODES, YAML_DEPTH = 10_000, 32
"""Values that a YAML text may stand for, each alias counted with all that it repeats, and how deep they may lie."""


def open_regular(path: str | Path, *, limit: int | None = None) -> BinaryIO:
    """Open a regular file to read its bytes; never waits, as opening a pipe would.

    Args:
        path: of the file, or of a link to it.
        limit: most bytes that it may hold; None: any number.

    Raises:
        OSError: it cannot be opened, is a folder, pipe or device, or holds more than `limit`; `strerror` says so.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or device, no regular file", str(path))
        if limit is not None and status.st_size > limit:
            told = f"it holds {status.st_size:,} bytes, and at most {limit:,} are read"
            raise OSError(errno.EFBIG, told, str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | Path, *, limit: int = TEXT_LIMIT) -> bytes:
    """All bytes of a regular file; raises as `open_regular`, also if it grows beyond `limit` meanwhile."""
    with open_regular(path, limit=limit) as file:
        content = bytearray()
        while len(content) <= limit and (part := file.read(2**20)):  # for as much as it is asked for, Python takes memory
            content += part
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it grew beyond {limit:,} bytes while it was read", str(path))
    return bytes(content)


def read_text(path: str | Path, *, limit: int = TEXT_LIMIT, encoding: str = "utf-8") -> str:
    """The text of a regular file; raises as `read_bytes`, and UnicodeDecodeError (a ValueError)."""
    return read_bytes(path, limit=limit).decode(encoding)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError, also where it is nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(path: str | Path, *, limit: int = TEXT_LIMIT, encoding: str = "utf-8") -> Any:
    """The value of a JSON file; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit=limit, encoding=encoding))


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and the node that it was made of (None for an empty text), which knows lines.

    Aliases are resolved only after what they stand for was counted, so that a short text cannot grow without end.

    Raises:
        ValueError: no YAML, or more of it than the limits of this module.
    """
    if len(text) > CONFIG_LIMIT:
        raise ValueError(f"it is longer than {CONFIG_LIMIT:,} characters")
    reader = None
    try:
        _check_depth(text)
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None, None
        _expanded_size(node, 0, {})
        return reader.construct_document(node), node
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{problem}, in line {mark.line + 1}" if mark else problem) from error
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # Beside its own errors PyYAML lets those of int(), chr() and datetime() through, at what it took for one of theirs.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    finally:
        if reader is not None:
            reader.dispose()


def _check_depth(text: str) -> None:
    """Refuse a text that is nested too deep, as it is scanned: making values of it first takes a second for 3,000 levels."""
    for loader in dict.fromkeys((getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader)):
        depth = 0
        try:
            for event in yaml.parse(text, Loader=loader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > YAML_DEPTH + 1:
                    raise ValueError("it is nested too deep")
            return
        except yaml.YAMLError:
            continue  # libyaml, which is fast, takes a little less than PyYAML; what neither takes, the reader itself tells


def _expanded_size(node: yaml.Node, depth: int, sizes: dict[int, int]) -> int:
    """Number of values that a node stands for; `sizes` holds those of nodes seen so far, 0 while one is being counted."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError("a value holds itself")
        return sizes[id(node)]
    if depth > YAML_DEPTH:
        raise ValueError("it is nested too deep")
    sizes[id(node)] = 0
    children = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in children for part in pair]
    size = 1 + sum(_expanded_size(child, depth + 1, sizes) for child in children)
    if size > YAML_NODES:
        raise ValueError(f"it stands for more than {YAML_NODES:,} values, its aliases resolved")
    sizes[id(node)] = size
    return size
