"""Files that differ from good ones by chance, the same ones for the same seed.

Bytes are changed everywhere. Where a checksum or a length would give that away, what it covers is changed and it is made to
fit: a reader that survives its own checksum alone has not been tried.
"""

import io
import json
import random
import re
import zipfile
from collections.abc import Callable, Sequence

NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
"""At which readers go wrong."""

WORDS = (
    *("", "0", "-1", "1e999", "-0.0", "NaN", "Infinity", "9" * 400, "9" * 5000, "0x7fffffffffffffff", "1_0", "0o9", ".inf"),
    *(
        "null",
        "~",
        "true",
        "False",
        "[]",
        "{}",
        '""',
        "''",
        '"\\ud800"',
        "\x00",
        "\ufeff",
        "\u202e",
        "船",
        "=1+1",
        "@x",
        "a" * 5000,
    ),
    *("[" * 3000, "{" * 3000, '{"a":' * 3000, "- " * 3000, "(" * 3000, "&a [*a]", "*a", "!!python/object/apply:os.system [x]"),
    *(
        "2020-13-45",
        "<<: *a",
        "? [a]",
        "!!binary x",
        "!!set {a}",
        "%YAML 9",
        "../../etc",
        "/dev/zero",
        "C:\\x",
        "\r\n",
        "\t",
        ",",
    ),
)
"""That texts are made worse by."""

TOKEN = re.compile(r"\"[^\"\n]*\"|[\w.+-]+|[^\w\s]|\s+")

OPCODES = (
    *(b"cbuiltins\neval\n", b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nLongStorage\n"),
    *(b"ctorch\nHalfStorage\n", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"h\x00", b"h\x01"),
    *(
        b"K\xff",
        b"J\xff\xff\xff\xff",
        b"J\xff\xff\xff\x7f",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"G\x7f\xf0\0\0\0\0\0\0",
    ),
    *(bytes([code]) for code in b"}])(Rb02.usN\x88Q\x93\x94aeld1t"),
)
"""Pieces of pickles."""

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""Draws, a good file, and all good files -> a bad one."""


def mutate_bytes(draws: random.Random, content: bytes, others: Sequence[bytes], pieces: Sequence[bytes] = ()) -> bytes:
    """Change a few bytes, wherever they are."""
    changed = bytearray(content)
    for _ in range(draws.choice((1, 1, 1, 2, 3, 5, 9))):
        place, length = draws.randrange(len(changed) + 1), draws.choice((1, 1, 2, 4, 8, 16, 64, 300))
        kind = draws.randrange(10 if pieces else 9)
        if kind == 0 and changed:
            changed[place % len(changed)] ^= 1 << draws.randrange(8)
        elif kind == 1:
            changed[place : place + 1] = bytes([draws.choice(NUMBERS) & 0xFF])
        elif kind == 2:
            size = draws.choice((2, 4, 8))
            number = draws.choice(NUMBERS) & (2 ** (8 * size) - 1)
            changed[place : place + size] = number.to_bytes(size, draws.choice(("little", "big")))
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = changed[place : place + length] * draws.choice((1, 2, 30))
        elif kind == 5:
            changed[place:place] = draws.randbytes(length)
        elif kind == 6:
            del changed[place:]
        elif kind == 7:
            other = draws.choice(others)
            start = draws.randrange(len(other) + 1)
            changed[place : place + length] = other[start : start + length]
        elif kind == 8:
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif kind == 9:
            changed[place : place + draws.choice((0, 1, 4))] = draws.choice(pieces)
    return bytes(changed)


def mutate_text(draws: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change words, lines or, at times, bytes."""
    if draws.random() < 0.25:
        return mutate_bytes(draws, content, others)
    tokens = TOKEN.findall(content.decode("utf-8"))
    for _ in range(draws.choice((1, 1, 1, 2, 3, 6))):
        if not tokens:
            break
        place, kind = draws.randrange(len(tokens)), draws.randrange(6)
        if kind <= 1:
            tokens[place] = draws.choice(WORDS)
        elif kind == 2:
            tokens[place] = f'"{draws.choice(WORDS)}"'
        elif kind == 3:
            del tokens[place : place + draws.choice((1, 2, 5, 20))]
        elif kind == 4:
            tokens[place:place] = tokens[place : place + draws.choice((1, 3, 10, 50))]
        else:
            other = draws.randrange(len(tokens))
            tokens[place], tokens[other] = tokens[other], tokens[place]
    return "".join(tokens).encode("utf-8", "surrogatepass")


def mutate_archive(draws: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change a part of a zip archive, mostly its pickle, under a checksum that fits; at times any byte."""
    if draws.random() < 0.3 or not zipfile.is_zipfile(io.BytesIO(content)):
        return mutate_bytes(draws, content, others, OPCODES)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in parts if name.endswith(".pkl")]
    name = draws.choice(pickles) if pickles and draws.random() < 0.8 else draws.choice(list(parts))
    parts[name] = mutate_bytes(draws, parts[name], list(parts.values()), OPCODES)
    return pack(parts, draws)


def pack(parts: dict[str, bytes], draws: random.Random) -> bytes:
    """An archive; now and then with a part that is left out, doubled or compressed."""
    names, file = list(parts), io.BytesIO()
    if draws.random() < 0.05:
        names.remove(draws.choice(names))
    method = zipfile.ZIP_DEFLATED if draws.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in names:
            archive.writestr(name, parts[name])
    return file.getvalue()


def mutate_safetensors(draws: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change the header, a JSON text, under a length that fits; at times any byte."""
    if draws.random() < 0.3:
        return mutate_bytes(draws, content, others)
    size = int.from_bytes(content[:8], "little")
    header = mutate_text(draws, content[8 : 8 + size].rstrip(), [content])
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def mutate_arrays(draws: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change an array of an .npz, or its header, under a checksum that fits; at times any byte."""
    if draws.random() < 0.3:
        return mutate_bytes(draws, content, others)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = draws.choice(list(parts))
    start, values = parts[name][:128], parts[name][128:]
    if draws.random() < 0.5:
        text = start[10:].decode("latin-1")
        text = mutate_text(draws, text.encode(), [text.encode()]).decode("utf-8", "replace")
        start = (
            start[:8] + len(text.encode()).to_bytes(4, "little")[:2] + text.encode() if len(text.encode()) < 2**16 else start
        )
    else:
        values = mutate_bytes(draws, values, list(parts.values()))
    parts[name] = start + values
    return pack(parts, draws)


def compact(value: object) -> bytes:
    """JSON as bytes."""
    return json.dumps(value).encode()
