"""Files as a bad disk, a careless person or an enemy leaves them: bytes and a seed → other bytes, and what was done in words.

`damage` knows the insides of JSON, TOML, CSV, PNG, gzip, `.npz` and safetensors, so that half of its damage gets past the
first check; the other half is done to bytes as they come. The same seed does the same.
"""

import contextlib
import functools
import gzip
import io
import json
import math
import os
import struct
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import tomli_w

Damage = tuple[bytes, str]
HUGE = 10**30
DEEP = 100_000
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    "",
    " ",
    "a\nb",
    "\x1b[31mred",
    "\0",
    "\ud800",
    "../../x",
    "/etc/passwd",
    "é" * 3000,
    "%s{0}",
    "__proto__",
    "nan",
)
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 255, 2**31, 2**63, HUGE, 10**400, -0.5, 0.5, 1e308, math.nan, math.inf),
    *(*_TEXTS, [], {}, [[]], [1, 2, 3], ["a"], {"a": {"b": 1}}, [0] * 5000, [HUGE, HUGE], [1e308, -1]),
)


def damage(name: str, content: bytes, random: Random, others: Sequence[bytes] = ()) -> Damage:
    """Damage the file `name`, half the time inside its format where that is known; `others` are whole files to mix in."""
    inside = next((change for ending, change in FORMATS.items() if name.endswith(ending)), None)
    if inside is not None and random.random() < 0.5:
        # What is damaged already may no longer be read by its format.
        with contextlib.suppress(
            ValueError, LookupError, TypeError, zipfile.BadZipFile, OSError, EOFError, struct.error
        ):
            return inside(content, random)
    return any_bytes(content, random, others)


def any_bytes(content: bytes, random: Random, others: Sequence[bytes] = ()) -> Damage:
    """Damage that needs to know nothing of the content."""
    size = len(content)
    at, end = sorted((random.randint(0, size), random.randint(0, size)))
    length = min(end - at, random.choice((1, 4, 64, size)))
    other = random.choice(others) if others else b""
    changes: list[Callable[[], Damage]] = [
        lambda: (content[:at], f"cut off at {at} of {size}"),
        lambda: _flip(content, random, 1),
        lambda: _flip(content, random, random.randint(2, 40)),
        lambda: (content[:at] + bytes(length) + content[at + length :], f"{length} bytes from {at} zeroed"),
        lambda: (content[:at] + random.randbytes(random.randint(1, 64)) + content[at:], f"noise put in at {at}"),
        lambda: (content[: at + length] + content[at:], f"{length} bytes from {at} doubled"),
        lambda: (content[:at] + content[at + length :], f"{length} bytes from {at} taken out"),
        lambda: (content[:at] + other[min(at, len(other)) :], f"another file's end from {at}"),
        lambda: (other, "another file in its place"),
        lambda: _number(content, random, size),
        lambda: _number(content, random, min(size, 64)),
        lambda: _number(content, random, min(size, 400)),
    ]
    return random.choice(changes)()


def _flip(content: bytes, random: Random, count: int) -> Damage:
    changed = bytearray(content)
    places = [random.randrange(8 * len(content)) for _ in range(count)] if content else []
    for place in places:
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed), f"bits {places[:4]} flipped ({count} in all)"


def _number(content: bytes, random: Random, most: int) -> Damage:
    """A number of 1, 2, 4 or 8 bytes, somewhere before `most`, gets an extreme value."""
    size, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
    value = random.choice(_NUMBERS) % 256**size
    at = random.randint(0, max(0, most - size))
    return content[:at] + value.to_bytes(size, order) + content[
        at + size :
    ], f"{size} bytes at {at} say {value} ({order})"


# Text


def any_text(text: str, random: Random) -> Damage:
    """Damage to text of any kind: its encoding, and what parsers trip over."""
    at = random.randint(0, len(text))
    raw = text.encode("utf-8", "surrogatepass")
    changes: list[Callable[[], Damage]] = [
        lambda: (text.encode("utf-16", "surrogatepass"), "in UTF-16"),
        lambda: (b"\xef\xbb\xbf" + raw, "with a byte order mark"),
        lambda: (text.encode("latin-1", "replace") + b"\xe9\xff", "in Latin-1"),
        lambda: (raw + b"\0", "a NUL at the end"),
        lambda: ((text[:at] + "\0" + text[at:]).encode("utf-8", "surrogatepass"), f"a NUL at {at}"),
        lambda: (raw.replace(b"\n", b"\r"), "lines ended by CR"),
        lambda: (raw + raw, "twice"),
        lambda: (raw * 50, "fifty times"),
        lambda: (b"", "emptied"),
        lambda: (b"\n" * 5000, "blank lines alone"),
    ]
    return random.choice(changes)()


def json_file(content: bytes, random: Random) -> Damage:
    if random.random() < 0.25:
        return any_text(content.decode(), random)
    text = content.decode()
    nested = random.choice(("[" * DEEP, '{"a":' * DEEP, "[" * 900 + "]" * 900))
    whole: list[Callable[[], Damage]] = [
        lambda: (nested.encode(), "nested deeply"),
        lambda: (text.replace(":", f": {nested}", 1).encode(), "nested deeply inside"),
        lambda: (("9" * 5000).encode(), "a number of 5000 digits"),
        lambda: (json.dumps(random.choice(_ODD)).encode(), "another value"),
        lambda: (text.replace("{", '{"format": 1, "format": 2,', 1).encode(), "the same key twice"),
    ]
    if random.random() < 0.2:
        return random.choice(whole)()
    changed, said = _tree(json.loads(text), random)
    return json.dumps(changed).encode(), said


def json_lines(content: bytes, random: Random) -> Damage:
    lines = content.splitlines(keepends=True)
    if not lines or random.random() < 0.3:
        return any_text(content.decode(), random)
    at = random.randrange(len(lines))
    if random.random() < 0.3:
        random.shuffle(lines)
        return b"".join(lines), "lines in another order"
    changed, said = json_file(lines[at], random)
    return b"".join([*lines[:at], changed, b"\n", *lines[at + 1 :]]), f"line {at}: {said}"


def toml_file(content: bytes, random: Random) -> Damage:
    text = content.decode()
    if random.random() < 0.25:
        return any_text(text, random)
    deep = random.choice(("[" * DEEP, "{a=" * DEEP, "[" * 400 + "]" * 400))
    long = "x." * 4000
    if random.random() < 0.25:
        added = random.choice(
            (
                f"a = {deep}",
                f"a = {'9' * 5000}",
                f"[{long}x]",
                "a = 1979-05-27T07:32:00Z",
                'a = """',
                "a = nan",
                "[a]\n[a]",
            )
        )
        return f"{added}\n{text}".encode(), f"begins with {added[:30]}"
    for _ in range(20):
        changed, said = _tree(tomllib.loads(text), random)
        try:
            return tomli_w.dumps(changed).encode(), said
        except (TypeError, ValueError, AttributeError):
            continue  # TOML has no null, and tables have text as keys
    return any_text(text, random)


def _tree(tree: Any, random: Random) -> tuple[Any, str]:
    """One place of nested tables and lists deleted, renamed, doubled or given another value."""
    places = [*_places(tree, ())]
    if not places:
        return random.choice(_ODD), "another value in its place"
    path = random.choice(places)
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    key, shown = path[-1], ".".join(map(str, path))
    kind = random.choice(("delete", "rename", "retype", "retype", "retype", "nudge"))
    if kind == "delete":
        del parent[key]
        return tree, f"{shown} deleted"
    if kind == "rename" and isinstance(parent, dict):
        new = random.choice((key + "x", key.upper(), "a\nb", "", "../x", "\ud800", "k" * 300))
        parent[new] = parent.pop(key)
        return tree, f"{shown} is called {new[:20]!r}"
    value = parent[key]
    if kind == "nudge" and isinstance(value, str | int | float | list) and not isinstance(value, bool):
        parent[key] = value * random.choice((2, 3) if isinstance(value, str | list) else (-1, 2, 1000, 10**9))
        return tree, f"{shown} grown"
    new = random.choice(_ODD)
    parent[key] = new
    return tree, f"{shown} = {str(new)[:30]!r}"


def _places(tree: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield (*path, key)
            yield from _places(tree[key], (*path, key))


def table_file(content: bytes, random: Random) -> Damage:
    """A table with a header line, separated by commas or tabs."""
    if random.random() < 0.2:
        return any_text(content.decode(), random)
    separator = "\t" if b"\t" in content.splitlines()[0] else ","
    rows = [line.split(separator) for line in content.decode().splitlines()]
    row, column = random.randrange(len(rows)), random.randrange(len(rows[0]))
    odd = random.choice((*_TEXTS, '"', '"a', 'a"b', "-1", "1e400", "a|b", "|", ";;", "x" * 140_000, "a.png", "train"))
    kind = random.choice(("cell", "cell", "cell", "head", "drop", "more", "row", "column", "twice"))
    if kind == "cell":
        rows[row][column] = odd
    elif kind == "head":
        rows[0][column] = random.choice((*rows[0], "image", "label", "split", "labels", odd))
    elif kind == "drop":
        del rows[row][column]
    elif kind == "more":
        rows[row].append(odd)
    elif kind == "row":
        del rows[row]
    elif kind == "column":
        for each in rows:
            del each[column]
    else:
        rows.append(rows[row])
    text = "\n".join(separator.join(each) for each in rows) + "\n"
    return text.encode("utf-8", "surrogatepass"), f"{kind} at row {row}, column {column}: {odd[:20]!r}"


def lines_file(content: bytes, random: Random) -> Damage:
    """A list, one entry a line."""
    lines = content.decode().splitlines()
    if not lines or random.random() < 0.3:
        return any_text(content.decode(), random)
    at, odd = random.randrange(len(lines)), random.choice((*_TEXTS, "x y z", "1 2"))
    lines[at] = random.choice((odd, lines[at] + odd, lines[at][1:], lines[at] * 2))
    return "\n".join(lines).encode("utf-8", "surrogatepass"), f"line {at} is {lines[at][:20]!r}"


# Containers


def png_file(content: bytes, random: Random) -> Damage:
    """A chunk changed, doubled or moved, with its checksum made right again; or a bomb in a chunk of text."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    number = random.randrange(len(chunks))
    kind, body = chunks[number]
    said = f"chunk {kind.decode('latin-1')} "
    what = random.choice(("body", "body", "body", "size", "type", "twice", "gone", "bomb", "packed"))
    if what == "body":
        body, more = any_bytes(body, random)
        chunks[number], said = (kind, body), said + more
    elif what == "size":
        sides = struct.pack(">II", *(random.choice((0, 1, 11000, 2**16, 2**31 - 1, 2**32 - 1)) for _ in "hw"))
        chunks[0], said = (b"IHDR", sides + chunks[0][1][8:]), f"IHDR says {sides.hex()}"
    elif what == "type":
        chunks[number] = (random.choice((b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fdAT", b"IEND", b"zzZZ")), body)
        said += f"is called {chunks[number][0].decode()}"
    elif what == "twice":
        chunks.insert(random.randrange(len(chunks)), (kind, body))
    elif what == "gone":
        del chunks[number]
    else:
        bomb = (b"zTXt" if what == "bomb" else b"iCCP", b"a\0\0" + _bomb())
        chunks.insert(1, bomb)
        said = f"a bomb in {bomb[0].decode()}"
    joined = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return content[:8] + joined, said


@functools.cache
def _bomb() -> bytes:
    return zlib.compress(bytes(2**26))


def gzip_file(content: bytes, random: Random) -> Damage:
    """Damage to what is packed, whole on the outside; or a bomb."""
    if random.random() < 0.1:
        return gzip.compress(gzip.decompress(content)[:16] + bytes(2**28), 1), "a bomb of 256 MiB"
    changed, said = any_bytes(gzip.decompress(content), random)
    return gzip.compress(changed, 1), f"packed: {said}"


_TYPES = (
    *("<f4", ">f4", "<f2", "<f8", "<f16", "<i8", "|b1", "|i1", "<u2", "|V2", "|V3", "|O", "O", "<U9", "|S4", "<c16"),
    *("<M8[s]", "(2,)<f4", "<f0", "f", "", "1000000000V", "<f4,<f4", "<V2", "<q"),
)
_SHAPES = (
    *("()", "(0,)", "(-1,)", "(-4, 3)", "(4611686018427387904, 4)", f"({HUGE},)", "(4294967296, 4294967296)", "(1.5,)"),
    *(
        "('a',)",
        "None",
        "3",
        "(1000000000,)",
        "(True,)",
        "(0, 1000000000000)",
        "(" + "1, " * 70 + ")",
        "[2, 3]",
        "(2 3)",
    ),
)


def npz_file(content: bytes, random: Random) -> Damage:
    """One member's header, name, data or packing changed, in an archive that is whole; or a lying directory."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = random.randrange(len(members))
    name, raw = members[at]
    said, how, extra = "", zipfile.ZIP_STORED, 0
    what = random.choice(
        ("header", "header", "header", "code", "name", "bytes", "packed", "twice", "gone", "bomb", "lie", "lie")
    )
    if what == "header":
        members[at], said = _npy(name, raw, random)
    elif what == "code":
        text = random.choice(_HEADERS)
        members[at], said = (name, _header(text, raw)), f"header {text[:40]!r}"
    elif what == "name":
        new = random.choice(
            ("../x.npy", "/x.npy", "x.txt", "a\nb.npy", ".npy", "é" * 200 + ".npy", "x/", "\\..\\x.npy")
        )
        members[at], said = (new, raw), f"member called {new[:20]!r}"
    elif what == "bytes":
        changed, said = any_bytes(raw, random, [each for _, each in members])
        members[at] = (name, changed)
    elif what == "packed":
        how = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        said = f"packed by method {how}"
    elif what == "twice":
        members.append((random.choice((name, name.upper(), "more.npy")), raw))
        said = f"{name} twice"
    elif what == "gone":
        del members[at]
        said = f"{name} taken out"
    elif what == "bomb":
        members[at], how = (name, raw[:128] + bytes(2**27)), zipfile.ZIP_DEFLATED
        said = "a bomb of 128 MiB"
    packed = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w") as archive:
        warnings.simplefilter("ignore")  # it does not like the same name twice
        for number, (each, data) in enumerate(members):
            entry = zipfile.ZipInfo(each)
            entry.compress_type = how if number == at else zipfile.ZIP_STORED
            if what == "name" and random.random() < 0.3:
                extra = 0o120777 << 16  # a symbolic link, as archives hold them
            entry.external_attr = extra
            archive.writestr(entry, data)
    result = bytearray(packed.getvalue())
    if what == "lie":
        start = bytes(result).find(b"PK\x01\x02")
        field, size = random.choice(((10, 2), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4), (8, 2), (16, 4)))
        value = random.choice(_NUMBERS) % 256**size
        result[start + field : start + field + size] = value.to_bytes(size, "little")
        said = f"the directory's field at {field} says {value}"
    return bytes(result), said


_HEADERS = (
    "__import__('os').system('touch executed')",
    "{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').getcwd()}",
    "(" * 3000 + ")" * 3000,
    "-" * 9000 + "1",
    "{'descr': '\\d<f4', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 5L), }",
    "{'descr': '<f4', 'fortran_order': 1, 'shape': (1,), 'more': 2}",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', [('b', [('c', 'O')])])], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': {'names': ['a'], 'formats': ['<f4'], 'offsets': [1000000000]}, 'fortran_order': False, 'shape': (1,), }",
    "{" * 50,
    "x" * 20000,
    "1 if 1 is 1 else 2",
    "'\\N{BEE}'" + "\0",
    "",
)


def _npy(name: str, raw: bytes, random: Random) -> tuple[tuple[str, bytes], str]:
    kind, shape = repr(random.choice(_TYPES)), random.choice(_SHAPES)
    order = random.choice(("False", "True", "None"))
    if random.random() < 0.5:
        kind = "'<f4'"
    elif random.random() < 0.5:
        shape = "(2, 3)"
    text = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return (name, _header(text, raw)), f"{name}: {text[:90]}"


def _header(text: str, raw: bytes) -> bytes:
    body = text.encode("latin-1") + b"\n"
    if len(body) > 0xFFFF:
        return b"\x93NUMPY\x02\0" + struct.pack("<I", len(body)) + body + raw[128:]
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(body)) + body + raw[128:]


def safetensors_file(content: bytes, random: Random) -> Damage:
    """The header rewritten with lies in it, the tensors' bytes as they were."""
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = random.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    what = random.choice(("offsets", "dtype", "shape", "length", "tree", "name", "overlap", "metadata", "deep", "nan"))
    said, length = f"{name}: {what}", None
    if what == "offsets":
        entry["data_offsets"] = random.choice(([0, 0], [0, HUGE], [-1, 4], [4, 0], [0, 2**64 - 1], [0], "a", [1, 5]))
    elif what == "dtype":
        entry["dtype"] = random.choice(
            ("F64", "F16", "BF16", "I8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U64", "XX", "", 5)
        )
        if random.random() < 0.5 and entry["dtype"] in ("I32", "U32"):
            entry["dtype"] = "F32"
    elif what == "shape":
        entry["shape"] = random.choice(
            ([], [0], [2**63, 2**63], [-1], [HUGE], [1] * 100, [0, 2**62], "a", entry["shape"][::-1], [2**32, 2**32])
        )
        if math.prod(entry["shape"]) == 0 if isinstance(entry["shape"], list) else False:
            entry["data_offsets"] = [entry["data_offsets"][0]] * 2
    elif what == "length":
        length = random.choice((0, 1, 100_000_001, 2**63, 2**64 - 1, size - 1, size + 1, size + len(rest)))
    elif what == "tree":
        header, said = _tree(header, random)
    elif what == "name":
        header[random.choice((*_TEXTS[:-2], "blocks.0.x"))] = header.pop(name)
    elif what == "overlap":
        header[name + ".again"] = dict(entry)
    elif what == "metadata":
        header["__metadata__"] = random.choice(({"format": 5}, {"format": "tf"}, [], "pt", {"a": "é" * 100_000}, None))
    elif what == "deep":
        header[name] = "DEEP"
    elif what == "nan":
        odd = struct.pack("<f", random.choice((math.nan, math.inf, -math.inf, 1e9)))
        rest = odd * (len(rest) // 4)
        said = "every value is no number"
    text = json.dumps(header).replace('"DEEP"', "[" * DEEP).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + rest, said


FORMATS: dict[str, Callable[[bytes, Random], Damage]] = {
    ".json": json_file,
    ".jsonl": json_lines,
    ".toml": toml_file,
    ".csv": table_file,
    ".tsv": table_file,
    ".txt": lines_file,
    ".png": png_file,
    ".gz": gzip_file,
    ".npz": npz_file,
    ".safetensors": safetensors_file,
}


# Folders


def damage_folder(folder: Path, files: Sequence[str], random: Random, others: Sequence[bytes] = ()) -> str:
    """Damage one of the folder's `files` (patterns), or exchange, remove or replace it; says what was done."""
    found = sorted({path for pattern in files for path in folder.glob(pattern) if path.is_file()})
    path = random.choice(found)
    name = path.relative_to(folder).as_posix()
    others = [*others, *(each.read_bytes() for each in found)]
    if random.random() < 0.85:
        changed, said = damage(path.name, path.read_bytes(), random, others)
        if random.random() < 0.1:
            changed, more = any_bytes(changed, random, others)
            said += f", then {more}"
        path.write_bytes(changed)
        return f"{name}: {said}"
    what = random.choice(
        ("gone", "swapped", "a folder", "a link to nowhere", "a link to itself", "a pipe", "without end")
    )
    content = path.read_bytes()
    path.unlink()
    if what == "swapped":
        other = random.choice(found)
        if other != path:
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
        else:
            path.write_bytes(content[::-1])
    elif what == "a folder":
        path.mkdir()
        (path / "inside").write_bytes(content)
    elif what == "a link to nowhere":
        path.symlink_to("nowhere")
    elif what == "a link to itself":
        path.symlink_to(path.name)
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "without end":
        path.symlink_to("/dev/zero")
    return f"{name} {'is ' if what != 'gone' else ''}{what}"


ODD_NAMES: tuple[bytes, ...] = (
    *(
        b"a\nb",
        b"\x1b[31mred",
        b"\xff\xfe",
        b"..x",
        b"-rf",
        b" ",
        b"n" * 255,
        "é".encode(),
        "é".encode(),
        b"%s{}",
        b"$(touch x)",
    ),
    *(
        b"ANT",
        b"train",
        b"test",
        b"Val",
        b".hidden",
        b"1",
        b"01",
        b"a|b",
        b"a;b",
        b"<script>",
        b"con",
        b"x.png",
        b"\xe2\x80\xae",
    ),
)


def odd_tree(folder: Path, random: Random) -> str:
    """Class folders and pictures renamed, linked, emptied and nested in ways that file systems allow."""
    root = os.fsencode(folder)
    done = []
    for _ in range(random.randint(1, 3)):
        below = [os.path.join(at, each) for at, folders, names in os.walk(root) for each in (*folders, *names)]
        if not below:
            break
        path = random.choice(below)
        odd = random.choice(ODD_NAMES) + random.choice((b"", b".png", b".JPG", b".csv", b".parquet"))
        target = os.path.join(os.path.dirname(path), odd[:255])
        what = random.choice(("rename", "rename", "link", "loop", "folder", "file", "pipe", "endless"))
        with contextlib.suppress(OSError):
            if what == "rename":
                os.rename(path, target)
            elif what == "link":
                os.symlink(random.choice((b"/etc/passwd", b"/", path, b"nowhere")), target)
            elif what == "loop":
                os.symlink(b".", target)
            elif what == "folder":
                os.mkdir(target)
            elif what == "file":
                Path(os.fsdecode(target)).write_bytes(random.randbytes(50))
            elif what == "pipe":
                os.mkfifo(target)
            else:
                os.symlink(b"/dev/zero", target)
            done.append(f"{what} {target[len(root) + 1 :][:40]!r}")
    return "; ".join(done)
