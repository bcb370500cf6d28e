"""Mutated files: bytes anywhere, and the fields of what is read: npy, zip, tar, safetensors, IDX, PNG, torch."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz.values import INTEGERS, json_text, made_up, mutated

__all__ = ["anywhere", "gzipped", "idx", "json_lines", "npy", "png", "safetensors", "tar", "torch_file", "zipped"]

_BOMB = 2**24 + 2**20
_BYTES = (0, 1, 0x7F, 0x80, 0xFF)
Change = Callable[[Random, bytes], bytes]


def anywhere(rng: Random, content: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """One to four changes of bytes: flipped, overwritten, cut out, doubled, put in, cut off, or from another file."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        if rng.randrange(2):
            at = min(at, rng.randrange(64))  # headers are at the start
        size = rng.choice((1, 2, 4, 8, 16, 100))
        kind = rng.randrange(9)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice(_BYTES)
        elif kind == 2:
            form = rng.choice(("<I", ">I", "<Q", ">Q", "<H", ">H"))
            number = rng.choice(INTEGERS) % 2 ** (8 * struct.calcsize(form))
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            data[at:at] = bytes(rng.choice((*_BYTES, 0x20, 0x5B, 0x7B)) for _ in range(min(size, 8))) * rng.choice(
                (1, 9)
            )
        elif kind == 6:
            del data[at:]
        elif kind == 7 and others:
            other = others[rng.randrange(len(others))]
            data[at:] = other[rng.randrange(len(other) + 1) :]
        else:
            data += bytes(data[at : at + size]) * rng.choice((1, 3))
    return bytes(data)


_NPY_DTYPES = (
    "|u1",
    "<i8",
    "<f4",
    "<f8",
    ">f4",
    "|O",
    "|S0",
    "<U0",
    "<U5",
    "|V9",
    "<m8[ns]",
    "|b1",
    "<c16",
    "x",
    "<i3",
    "",
)
_NPY_SHAPES = (
    "()",
    "(0,)",
    "(1,)",
    "(-1,)",
    "(2, 2)",
    "(99999999999,)",
    "(4294967296, 4294967296)",
    "(1e9,)",
    "(1,) * 9",
    "[1]",
    "((1,),)",
    "(" * 500,
)


def npy(rng: Random, content: bytes) -> bytes:
    """A ``.npy`` array with another header, or mutated anywhere."""
    if rng.randrange(3) == 0 or content[:6] != b"\x93NUMPY":
        return anywhere(rng, content)
    length = int.from_bytes(content[8:10], "little")
    text, body = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        text = re.sub(r"'descr': '[^']*'", lambda _: f"'descr': '{rng.choice(_NPY_DTYPES)}'", text)
    elif kind == 1:
        text = re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {rng.choice(_NPY_SHAPES)}", text)
    elif kind == 2:
        text = re.sub(r"\d+", lambda m: str(rng.choice((0, int(m[0]) + 1, int(m[0]) * 1000, 2**62))), text, count=3)
    elif kind == 3:
        text = text.replace(
            *rng.choice((("False", "True"), ("fortran_order", "descr"), ("{", "{'x': [" * 9), ("}", "")))
        )
    elif kind == 4:
        text += " " * rng.choice((1, 4000, 70_000))
    else:
        text = anywhere(rng, text.encode("latin-1")).decode("latin-1")
    if rng.randrange(4) == 0:
        version, size = b"\x02\x00", struct.pack("<I", rng.choice((len(text), *INTEGERS)) % 2**32)
    else:
        version, size = b"\x01\x00", struct.pack("<H", len(text) % 2**16)
    return b"\x93NUMPY" + version + size + text.encode("latin-1") + body


def zipped(
    rng: Random, content: bytes, member: Change = npy, names: tuple[str, ...] = ("../x.npy", "/x.npy", "")
) -> bytes:
    """A zip archive with a member changed, renamed, doubled, lost, repacked or blown up; or mutated anywhere."""
    if rng.randrange(3) == 0:
        return anywhere(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at, kind = rng.randrange(len(members)), rng.randrange(8)
    name, data = members[at]
    if kind <= 2:
        members[at] = (name, member(rng, data))
    elif kind == 3:
        members[at] = (rng.choice((*names, "arr_0.npy", "labels.npy", "\0", "ü" * 40)), data)
    elif kind == 4:
        members.append((name, member(rng, data)))
    elif kind == 5:
        del members[at]
    elif kind == 6:
        members[at] = (name, data + bytes(rng.choice((1, 1, 1, 2**16, 2**16, _BOMB))))
    large = any(len(data) > 2**20 for _, data in members)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    method = zipfile.ZIP_DEFLATED if large else rng.choice(methods)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        for name, data in members:
            try:
                info = zipfile.ZipInfo(name)
                info.compress_type = method
                archive.writestr(info, data)
            except (UserWarning, ValueError, UnicodeError):
                continue
    return _patched_directory(rng, stream.getvalue()) if rng.randrange(4) == 0 else stream.getvalue()


def _patched_directory(rng: Random, content: bytes) -> bytes:
    """A field of the archive's directory overwritten: sizes, flags, methods and offsets are believed by many."""
    data = bytearray(content)
    places = [m.start() for m in re.finditer(rb"PK\x01\x02", content)] + [content.rfind(b"PK\x05\x06")]
    at = places[rng.randrange(len(places))]
    if at >= 0:
        field, form = rng.choice(
            ((8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (12, "<I"), (42, "<I"))
        )
        number = rng.choice((*INTEGERS, 1, 9, 14, len(content))) % 2 ** (8 * struct.calcsize(form))
        data[at + field : at + field + struct.calcsize(form)] = struct.pack(form, number)
    return bytes(data)


def safetensors(rng: Random, content: bytes) -> bytes:
    """A safetensors file with another header, or mutated anywhere."""
    if rng.randrange(4) == 0:
        return anywhere(rng, content)
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = rng.randrange(6)
    names = [name for name in header if name != "__metadata__"]
    name = names[rng.randrange(len(names))]
    if kind == 0:
        header = mutated(rng, header)
    elif kind == 1:
        header[name]["data_offsets"] = [rng.choice((0, 1, *INTEGERS, -1)), rng.choice((0, 8, len(body), *INTEGERS))]
    elif kind == 2:
        header[name]["shape"] = rng.choice(
            ([], [0], [1], [2**40, 2**40], [-1], [1.5], ["1"], [1] * 99, None, {}, [True])
        )
    elif kind == 3:
        header[name]["dtype"] = rng.choice(
            ("F32", "F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "C64", "F4", "", None, 7)
        )
    elif kind == 4:
        body = rng.choice((body[:-1], body + b"\0", bytes(len(body)), b"\xff" * len(body), b""))
    else:
        header[rng.choice(("__metadata__", "x", "", "x" * 600))] = made_up(rng)
    text = json_text(rng, header)
    size = rng.choice((len(text),) * 8 + INTEGERS) % 2**64
    return struct.pack("<Q", size) + text + body


def idx(rng: Random, content: bytes) -> bytes:
    """An IDX file with another header, or mutated anywhere."""
    if rng.randrange(2):
        return anywhere(rng, content)
    at = 4 * rng.randrange(4)
    return content[:at] + struct.pack(">I", rng.choice(INTEGERS) % 2**32) + content[at + 4 :]


def gzipped(rng: Random, content: bytes, inner: Change = idx) -> bytes:
    """A gzip file whose content is changed, or that is mutated anywhere, doubled, or blown up."""
    kind = rng.randrange(5)
    if kind == 0:
        return anywhere(rng, content)
    plain = gzip.decompress(content)
    if kind == 1:
        plain += bytes(rng.choice((1, 1, 1, 2**20, _BOMB)))
    elif kind != 2:
        plain = inner(rng, plain)
    packed = gzip.compress(plain, compresslevel=1)
    if kind == 2:  # names, comments and fields that the header may have
        flags = rng.choice((0, 4, 8, 16, 31, 255))
        packed = (
            packed[:3]
            + bytes([flags])
            + packed[4:10]
            + rng.choice((b"", b"name\0", b"\xff\xff", b"x" * 300))
            + packed[10:]
        )
    return packed + rng.choice((b"",) * 5 + (packed, b"\0" * 999, b"\x1f\x8b"))


_PAX = (
    *(f"GNU.sparse.{key}" for key in ("map", "size", "realsize", "major", "minor", "name", "numblocks", "offset")),
    *("size", "path", "linkpath", "mtime", "uid", "hdrcharset", "charset", "SCHILY.xattr.user.x", ""),
)
_PAX_VALUES = (
    "",
    "0",
    "1",
    "-1",
    "abc",
    "1,2",
    "1,b",
    "9" * 30,
    "9" * 5000,
    "1e9",
    "BINARY",
    "../../x",
    "/etc/x",
    "\ud800",
)
_TAR_FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "type": (156, 1)}
_TAR_TYPES = b"0123456789\0xgLKNSVX?"


def tar(rng: Random, content: bytes) -> bytes:
    """A tar file with other headers, members or labels, mutated anywhere, or packed."""
    kind = rng.randrange(6)
    if kind == 0:
        return anywhere(rng, content)
    with tarfile.open(fileobj=io.BytesIO(content)) as old:
        members = [(member, old.extractfile(member).read()) for member in old]  # type: ignore[union-attr]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as new:
        at = rng.randrange(len(members))
        for i, (member, data) in enumerate(members):
            if i == at and kind == 1:
                member.pax_headers = {rng.choice(_PAX): rng.choice(_PAX_VALUES).encode("utf-8", "replace").decode()}
            elif i == at and kind == 2:
                data = (
                    json_text(rng, mutated(rng, json.loads(data)))
                    if member.name.endswith("json")
                    else anywhere(rng, data)
                )
            elif i == at and kind == 3:
                data = bytes(rng.choice((0, 1, 2**20 + 1, _BOMB)))
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    made = stream.getvalue()
    if kind == 4:  # a field of a header, with a check sum that is right again
        at = 512 * rng.randrange(len(made) // 512)
        header = bytearray(made[at : at + 512])
        start, size = _TAR_FIELDS[rng.choice(list(_TAR_FIELDS))]
        octal = b"%o\0" % (rng.choice(INTEGERS) % 8**11)
        field = (
            bytes([rng.choice(_TAR_TYPES)]) if size == 1 else rng.choice((octal, b"\x80" * size, b"\xff" * size, b"x"))
        )
        header[start : start + size] = field[:size].ljust(size, b"\0")
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
        made = made[:at] + bytes(header) + made[at + 512 :]
    if len(made) > 2**21:  # the others would take longer than the reader
        return gzip.compress(made, 1)
    pack = rng.choice((bytes, bytes, bytes, gzip.compress, bz2.compress, lzma.compress, zlib.compress))
    return pack(made)


def png(rng: Random, content: bytes) -> bytes:
    """A PNG file whose chunks are changed, with check sums that are right again; or mutated anywhere."""
    if rng.randrange(4) == 0:
        return anywhere(rng, content)
    chunks, at = [], 8
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    i = rng.randrange(len(chunks))
    kind, data = chunks[i]
    what = rng.randrange(7)
    if what == 0:
        chunks[0] = (
            b"IHDR",
            struct.pack(">II", *(rng.choice((0, 1, 9, 40_000, 2**31 - 1, 2**32 - 1)) for _ in "wh")) + chunks[0][1][8:],
        )
    elif what == 1:
        chunks[0] = (b"IHDR", chunks[0][1][:8] + bytes(rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5)))
    elif what == 2:
        chunks.insert(
            i, (rng.choice((b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"PLTE", b"tRNS", b"fdAT", kind)), _chunk(rng))
        )
    elif what == 3:
        del chunks[i]
    elif what == 4:
        chunks.insert(i, chunks[i])
    elif what == 5 and kind == b"IDAT":
        chunks[i] = (kind, zlib.compress(anywhere(rng, zlib.decompress(data))))
    else:
        chunks[i] = (kind, anywhere(rng, data))
    out = content[:8]
    for kind, data in chunks:
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


def _chunk(rng: Random) -> bytes:
    bomb = zlib.compress(bytes(rng.choice((9, 9, 9, 2**20, _BOMB))))
    return rng.choice((b"", b"x\0\0" + bomb, b"x\0\1\0\0\0" + bomb, b"MM\0*\0\0\0\x08" + b"\xff" * 40, bomb))


class _Named:
    """Pickles as a call of something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _record(rng: Random, record: bytes) -> bytes:
    """The pickle inside a file of torch.save: mutated, or asking for memory or code."""
    if rng.randrange(3):
        return anywhere(rng, record)
    trap = rng.choice((_Named(bytearray, 2**40), _Named(print, "executed"), _Named(bytes, 2**40), made_up(rng)))
    return pickle.dumps({"state": trap, "param_groups": []}, protocol=2)


def torch_file(rng: Random, content: bytes) -> bytes:
    """A file of torch.save with another record or other storages, or mutated anywhere."""

    def member(rng: Random, data: bytes) -> bytes:
        return _record(rng, data) if data[:1] == b"\x80" else anywhere(rng, data)

    return zipped(rng, content, member, names=("archive/data.pkl", "x/data/0", "../data.pkl"))


def json_lines(rng: Random, content: bytes) -> bytes:
    """A file of JSON lines with one changed, or mutated anywhere."""
    if rng.randrange(4) == 0:
        return anywhere(rng, content)
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json_text(rng, mutated(rng, json.loads(lines[at])))
    return b"\n".join(lines) + rng.choice((b"\n", b"\n", b"", b"\n{", b"\r\n"))
