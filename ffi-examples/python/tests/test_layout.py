"""The package's structs and constants are those of the header that was installed."""

import ctypes
import os
import re
from pathlib import Path

import pytest

from inflight import _library, _structs, enums, errors

ROOT = Path(__file__).resolve().parents[3]


def _header():
    parents = Path(os.environ.get("INFLIGHT_LIBRARY", "/")).resolve().parents
    places = [p / "include" / "inflight.h" for p in parents] + [ROOT / "include" / "inflight.h"]
    text = next(p for p in places if p.exists()).read_text(encoding="utf-8")
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)


HEADER = _header()
STRUCTS = dict(re.findall(r"typedef struct inflight_(\w+) \{(.*?)\} inflight_\1;", HEADER, re.S))
NUMBERS = {
    "size_t": ctypes.c_size_t,
    "uint64_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "int32_t": ctypes.c_int32,
    "uint8_t": ctypes.c_uint8,
    "float": ctypes.c_float,
    "char": ctypes.c_char,
}


def _python_name(name):
    return "".join(part.capitalize() for part in name.split("_")).replace("Kv", "KV")


def _type_of(declared, pointer, count):
    """ctypes' type of a declaration, laid out by the rules of C."""
    if pointer:
        return ctypes.c_char_p if declared == "const char" else ctypes.c_void_p
    base = declared.replace("const ", "").replace("struct inflight_", "")
    kind = NUMBERS.get(base) or getattr(_structs, _python_name(base))
    if not count:
        return kind
    return kind * int(count if count.isdigit() else _define(count))


def _define(name):
    value = re.search(rf"#define {name} (\S+)", HEADER).group(1)
    return {"UINT32_MAX": 2**32 - 1, "UINT64_MAX": 2**64 - 1}.get(value) or int(value)


def test_every_struct_of_the_header_is_here():
    here = {s for s in vars(_structs).values() if isinstance(s, type(ctypes.Structure))}
    here.discard(ctypes.Structure)
    assert {s.__name__ for s in here} == {_python_name(name) for name in STRUCTS}


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_are_the_headers(name):
    struct = getattr(_structs, _python_name(name))
    declared = [
        (field, _type_of(" ".join(base.split()), pointer, count))
        for base, pointer, field, count in re.findall(
            r"([\w ]+?)\s(\*?)(\w+)(?:\[(\w+)\])?;", STRUCTS[name]
        )
    ]
    assert [(f, t) for f, t in struct._fields_] == declared


def test_offsets_are_those_of_the_dump():
    """tests/data/abi.txt is what a C compiler says, as far as it goes."""
    dump = ROOT / "tests" / "data" / "abi.txt"
    if not dump.exists():
        pytest.skip("not in the source tree")
    checked = 0
    blocks = re.findall(
        r"^struct inflight_(\w+), (\d+) bytes, aligned to (\d+)\n((?: .*\n)*)",
        dump.read_text(),
        re.M,
    )
    for name, size, align, fields in blocks:
        struct = getattr(_structs, _python_name(name))
        assert (ctypes.sizeof(struct), ctypes.alignment(struct)) == (int(size), int(align)), name
        of_c = [
            (field, int(start), int(end))
            for start, end, field in re.findall(r"(\d+)\.\.(\d+) (\w+):", fields)
        ]
        here = [(field, getattr(struct, field)) for field, _ in struct._fields_]
        assert [(field, at.offset, at.offset + at.size) for field, at in here] == of_c, name
        checked += 1
    assert checked == len(STRUCTS)


def test_each_init_writes_the_size_that_this_package_has():
    for name, struct in _structs.PREPARED.items():
        prepared = _library.prepared(struct)
        assert prepared.struct_size == ctypes.sizeof(struct), name


def test_constants_are_the_headers():
    groups = {
        "LOG": enums.LogLevel,
        "POLICY": enums.Policy,
        "ROW": enums.RowFlag,
        "BLOCK": enums.BlockOpKind,
        "FINISH": enums.Finish,
        "EVENT": enums.EventKind,
        "DEVICE": enums.DeviceKind,
        "ISA": enums.Isa,
        "DTYPE": enums.DType,
        "LAYOUT": enums.Layout,
        "ROPE_PAIRS": enums.RopePairs,
        "ROPE_SCALING": enums.RopeScaling,
        "DLPACK": enums.DLPack,
    }
    for prefix, enum in groups.items():
        found = re.findall(rf"#define INFLIGHT_{prefix}_(\w+) (\d+)", HEADER)
        declared = {name: int(value) for name, value in found if name != "NAME_SIZE"}
        assert {e.name: int(e) for e in enum} == declared, prefix
    statuses = {n: int(v) for n, v in re.findall(r"INFLIGHT_STATUS_(\w+) = (\d+)", HEADER)}
    assert {s.name: int(s) for s in errors.Status} == statuses
    for name in ("NO_TOKEN", "NOW", "NO_WINDOW", "MAX_STATES", "ABI_VERSION"):
        assert getattr(enums, name) == _define(f"INFLIGHT_{name}")
    for name in ("ERROR_FIELD_SIZE", "ERROR_MESSAGE_SIZE", "DEVICE_NAME_SIZE"):
        assert getattr(_structs, name) == _define(f"INFLIGHT_{name}")


def test_every_function_of_the_header_is_called_with_its_arguments():
    """Numbers of 64 bits, of 32, and pointers, in the header's order."""
    kinds = {"uint64_t": ctypes.c_uint64, "size_t": ctypes.c_size_t, "uint32_t": ctypes.c_uint32}
    declared = {
        name: [
            ctypes.c_void_p if "*" in a else kinds.get(a.split()[0], ctypes.c_void_p)
            for a in arguments.split(",")
        ]
        for name, arguments in re.findall(
            r"^inflight_status inflight_(\w+)\(([^;]*?)\);", HEADER, re.M | re.S
        )
    }
    called = {name: [*arguments, ctypes.c_void_p] for name, arguments in _structs.CALLS.items()}
    assert called == declared
    freed = re.findall(r"^void inflight_(\w+)_free\(", HEADER, re.M)
    assert sorted(freed) == sorted(_structs.FREED)
