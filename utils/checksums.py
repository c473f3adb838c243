"""Whether a file of weights holds the bytes that were written.

torch.save writes the CRC-32 of each record into its archive, and torch.load does not look at it. A safetensors file has none,
so ours carry one in their metadata. zlib-ng computes it at the speed of memory; zlib's would take half as long as loading.
"""

import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

METADATA_KEY = "crc32"
"""Key of the metadata of a safetensors file under which `tensors_checksum` stands."""

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a record in an archive: its mark, and the lengths of the name and the extra bytes that lie before the content."""


def damaged_record(path: Path) -> str | None:
    """Name of the first record of an archive of torch.save whose bytes are not those that were written; None: all are.

    Raises:
        zipfile.BadZipFile, struct.error: it is no archive, or cut short.
    """
    with (
        path.open("rb") as file,
        zipfile.ZipFile(file) as archive,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as content,
    ):
        for record in archive.infolist():
            mark, name, extra = LOCAL_HEADER.unpack_from(content, record.header_offset)
            start = record.header_offset + LOCAL_HEADER.size + name + extra
            if mark != b"PK\x03\x04" or crc32(content[start : start + record.file_size]) != record.CRC:
                return record.filename
    return None


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and values, in hexadecimal."""
    total = 0
    for name in sorted(tensors):
        value = tensors[name]
        total = crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = crc32(memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy()), total)
    return f"{total:08x}"
