"""The bytes of a list of samples: UTF-8 or refused with what they are instead, and how to convert them."""

import codecs
from collections.abc import Iterator

from imu_cli.errors import ImuError

MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
"""Byte order marks, the longer first: that of UTF-16 begins that of UTF-32."""
PACKED = (
    (b"\x1f\x8b", "packed with gzip", "unpack it: gzip -dk FILE"),
    (b"PK\x03\x04", "a zip archive, as .xlsx, .ods and .zip are", "unpack it, or save the sheet as CSV in UTF-8"),
    (b"PAR1", "a Parquet file", "write it as JSON lines: pandas.read_parquet(FILE).to_json(OUT, orient='records', lines=True)"),
    (b"ARROW1", "an Arrow file", "write it as JSON lines: datasets.Dataset.from_file(FILE).to_json(OUT)"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "write it as JSON lines: datasets.Dataset.from_file(FILE).to_json(OUT)"),
    (b"BZh", "packed with bzip2", "unpack it: bunzip2 -k FILE"),
    (b"\xfd7zXZ\x00", "packed with xz", "unpack it: unxz -k FILE"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it: unzstd FILE"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save the sheet as CSV in UTF-8"),
    (b"SQLite format 3\x00", "an SQLite data base", "export the table: sqlite3 -csv -header FILE 'select * from TABLE'"),
    (b"\x80\x04\x95", "a pickle", "write it as CSV: a pickle can run code, and is not read"),
    (b"%PDF-", "a PDF", "write its rows as CSV"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "get it: git lfs pull"),
)  # fmt: skip
"""How files of other kinds begin, what they are, and what to do."""
OTHER_SUFFIXES = {
    ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zip": b"PK\x03\x04", ".xlsx": b"PK\x03\x04", ".ods": b"PK\x03\x04",
    ".parquet": b"PAR1", ".arrow": b"ARROW1", ".feather": b"ARROW1", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00",
    ".zst": b"\x28\xb5\x2f\xfd", ".xls": b"\xd0\xcf\x11\xe0", ".db": b"SQLite format 3\x00", ".sqlite": b"SQLite format 3\x00",
    ".pkl": b"\x80\x04\x95", ".pickle": b"\x80\x04\x95",
}  # fmt: skip
"""The suffixes of such files, for those that are refused before they are read."""
WINDOWS = range(0x80, 0xA0)
"""Bytes that are letters and quotes in Windows-1252, and control characters that nobody writes in Latin-1."""


def refuse_suffix(spec: str) -> None:
    """Refuse a file that its name says is no list of text.

    Raises:
        ImuError: what it is, and what to do.
    """
    start = next((OTHER_SUFFIXES[suffix] for suffix in OTHER_SUFFIXES if spec.lower().endswith(suffix)), None)
    if start is not None:
        _refuse_start(spec, start)


def _refuse_start(name: str, data: bytes) -> None:
    begin = data[:100].lstrip().lower()
    if begin.startswith((b"<!doctype html", b"<html")):
        raise ImuError(f"{name}: is a web page, not a list; download the file itself")
    if begin and not begin.strip(b"\0") and not data.strip(b"\0"):
        raise ImuError(f"{name}: is nothing but NULs, not a list; it was not written to its end, copy it again")
    for start, what, remedy in PACKED:
        if data.startswith(start):
            raise ImuError(f"{name}: is {what}, not a list; {remedy.replace('FILE', name)}")


def refuse(name: str, data: bytes) -> None:
    """Refuse bytes that are not UTF-8 text, with or without its mark; line ends may be any.

    Raises:
        ImuError: another kind of file, or another encoding, with the line and the way to convert it.
    """
    _refuse_start(name, data)
    marked = next((what for mark, what in MARKS if data.startswith(mark)), None)
    if marked is None and not data.startswith(codecs.BOM_UTF8) and data[:200].count(b"\0") * 3 > len(data[:200]):
        zeros = data[0:200:2].count(0), data[1:200:2].count(0)
        marked = "UTF-16BE" if zeros[0] > zeros[1] else "UTF-16LE"
    if marked is not None:
        raise ImuError(f"{name}: is {marked}; {_convert(name, marked)}")
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    for part in _parts(data):
        try:
            held = len(decoder.getstate()[0])
            decoder.decode(part, final=at + len(part) == len(data))
        except UnicodeDecodeError as error:
            _refuse_byte(name, data, at - held + error.start)
        at += len(part)


def _parts(data: bytes, size: int = 1 << 20) -> Iterator[memoryview]:
    whole = memoryview(data)
    return (whole[at : at + size] for at in range(0, len(data), size))


def _refuse_byte(name: str, data: bytes, at: int) -> None:
    line = data.count(b"\n", 0, at) + 1
    odd = {byte for byte in set(data) if byte >= 0x80}
    likely = "WINDOWS-1252" if odd & set(WINDOWS) else "ISO-8859-1"
    called = "Windows-1252" if likely == "WINDOWS-1252" else "Latin-1 (ISO-8859-1)"
    raise ImuError(f"{name}:{line}: not UTF-8 (byte 0x{data[at]:02x}), probably {called}; {_convert(name, likely)}")


def _convert(name: str, encoding: str) -> str:
    return f"save it as UTF-8, such as with iconv -f {encoding} -t UTF-8 {name} > OUT"
