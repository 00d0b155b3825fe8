#!/usr/bin/python3
"""Reads a Backstay vault in a local directory without Backstay.

  read_point.py VAULT                                  the disks in it
  read_point.py VAULT DISK                             the recovery points of a disk
  read_point.py VAULT DISK --point latest --to FILE    one of them, byte for byte ("-": to stdout)
  read_point.py VAULT --groups                         points across several disks: each is one of each disk

VAULT is a directory or a file:// URL; DISK a name or an id; a point a cycle's number, an id or "latest".
With --json the lists are for programs. Nothing in the vault is changed, and no hold is put: where points
are being deleted at the same time, a restore may find one gone, and says so.

Written from docs/explanation/format-vault.md alone, to show that this page is all it takes; everything that the page tells
a reader to check is checked. Needs Python 3.9 and zstandard (Debian: python3-zstandard; PyPI: zstandard); for an
encrypted vault what read_sealed.py needs, and --key-file, --passphrase-file or --identity-file.
"""

import argparse
import functools
import heapq
import json
import os
import re
import struct
import sys
import time
import urllib.parse
import uuid
from collections import OrderedDict, namedtuple

try:
    import zstandard
except ImportError as error:
    sys.exit(f"read_point.py: {error}: install it with apt install python3-zstandard (PyPI: zstandard). Nothing was read.")

SECTOR = 512
DOCUMENT_LIMIT = 64 * 1024
ENTRIES_LIMIT = 1 << 20  # segments of a point; points, and segments of merges, of a ledger
SEGMENT_LIMIT = 1 << 30
INDEX_LIMIT = 64 << 20
FRAME_LIMIT = 262144
DISK_LIMIT = 1 << 50
ZEROES = 0xFFFFFFFF
CACHED_FRAMES = 256  # 64 MiB at most


class Refused(ValueError):
    """What was found is not what the format says; the text is for a person."""


def need(condition, what):
    if not condition:
        raise Refused(what)


# ---------------------------------------------------------------------------------- checksums
#
# Both work on many stretches of the data at once, so that Python's own loops run over whole strings and
# long integers, and not over bytes.

CRC_TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    CRC_TABLE.append(byte)
CRC_PLANES = [bytes(entry >> shift & 255 for entry in CRC_TABLE) for shift in (0, 8, 16, 24)]


@functools.lru_cache
def crc_zeroes(length):
    """Four tables that carry a CRC register over `length` bytes of zeroes."""
    def carried(register):
        for _ in range(length):
            register = register >> 8 ^ CRC_TABLE[register & 255]
        return register
    bits = [carried(1 << bit) for bit in range(32)]
    tables = []
    for first in (0, 8, 16, 24):
        table = [0]
        for bit in range(8):
            table += [entry ^ bits[first + bit] for entry in table]
        tables.append(table)
    return tables


def crc32c(data):
    register = 0xFFFFFFFF
    stretch = 512 if len(data) >= 65536 else 64
    lanes = len(data) // stretch
    if lanes < 16:
        lanes = 0
    else:
        # Stretch i is data[i * stretch:]; plane n has byte n of every stretch's register.
        whole = memoryview(data)[:lanes * stretch]
        planes = [0, 0, 0, 0]
        for column in range(stretch):
            index = (planes[0] ^ int.from_bytes(whole[column::stretch], "little")).to_bytes(lanes, "little")
            planes = [int.from_bytes(index.translate(CRC_PLANES[n]), "little")
                      ^ (planes[n + 1] if n < 3 else 0) for n in range(4)]
        a, b, c, d = crc_zeroes(stretch)
        for parts in zip(*(plane.to_bytes(lanes, "little") for plane in planes)):
            register = (a[register & 255] ^ b[register >> 8 & 255] ^ c[register >> 16 & 255]
                        ^ d[register >> 24] ^ int.from_bytes(parts, "little"))
    for value in memoryview(data)[lanes * stretch:]:
        register = register >> 8 ^ CRC_TABLE[(register ^ value) & 255]
    return register ^ 0xFFFFFFFF


BLAKE3_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
BLAKE3_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
BLAKE3_STEPS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def blake3_words(blocks, first, step):
    """Every step-th word from the first, each in 64 bits of one long integer."""
    words = blocks[first::step]
    return int.from_bytes(struct.pack(f"<{len(words)}Q", *words), "little")


def blake3_compress(value, message, counter, length, flags, lanes):
    """The compression function on `lanes` blocks at once: each number holds a word of all of them."""
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * lanes, "little")
    mask = ones * 0xFFFFFFFF
    v = [*value, *(word * ones for word in BLAKE3_IV[:4]), counter & mask, counter >> 32 & mask,
         length * ones, flags * ones]
    for _ in range(7):
        for step, (a, b, c, d) in enumerate(BLAKE3_STEPS):
            for word, x, y in ((message[2 * step], 16, 12), (message[2 * step + 1], 8, 7)):
                v[a] = v[a] + v[b] + word & mask
                v[d] ^= v[a]
                v[d] = (v[d] >> x | v[d] << 32 - x) & mask
                v[c] = v[c] + v[d] & mask
                v[b] ^= v[c]
                v[b] = (v[b] >> y | v[b] << 32 - y) & mask
        message = [message[n] for n in BLAKE3_ORDER]
    return [v[n] ^ v[n + 8] for n in range(8)]


def blake3_split(value, lanes):
    """The chaining values of the lanes, 8 words each."""
    return list(zip(*(struct.unpack("<" + "I4x" * lanes, word.to_bytes(8 * lanes, "little"))
                      for word in value)))


def blake3(data):
    """The first 32 bytes of the BLAKE3 of data."""
    if len(data) <= 1024:
        return struct.pack("<8I", *blake3_chunk(data, 0, ROOT))
    values = []
    whole = len(data) // 1024
    for first in range(0, whole, 1024):
        lanes = min(1024, whole - first)
        words = struct.unpack_from(f"<{lanes * 256}I", data, first * 1024)
        value = [word * int.from_bytes(b"\1\0\0\0\0\0\0\0" * lanes, "little") for word in BLAKE3_IV]
        counter = blake3_words(range(first, first + lanes), 0, 1)
        for block in range(16):
            flags = (CHUNK_START if block == 0 else 0) | (CHUNK_END if block == 15 else 0)
            message = [blake3_words(words, 16 * block + n, 256) for n in range(16)]
            value = blake3_compress(value, message, counter, 64, flags, lanes)
        values += blake3_split(value, lanes)
    if len(data) % 1024:
        values.append(tuple(blake3_chunk(data[whole * 1024:], whole, 0)))
    while len(values) > 1:
        lanes = len(values) // 2
        words = [word for value in values[:2 * lanes] for word in value]
        value = [word * int.from_bytes(b"\1\0\0\0\0\0\0\0" * lanes, "little") for word in BLAKE3_IV]
        flags = PARENT | (ROOT if len(values) == 2 else 0)
        message = [blake3_words(words, n, 16) for n in range(16)]
        value = blake3_compress(value, message, 0, 64, flags, lanes)
        values = blake3_split(value, lanes) + values[2 * lanes:]
    return struct.pack("<8I", *values[0])


def blake3_chunk(data, counter, root):
    value = list(BLAKE3_IV)
    blocks = [data[at:at + 64] for at in range(0, len(data), 64)] or [b""]
    for number, block in enumerate(blocks):
        flags = (CHUNK_START if number == 0 else 0) | (CHUNK_END | root if number == len(blocks) - 1 else 0)
        message = struct.unpack("<16I", bytes(block).ljust(64, b"\0"))
        value = blake3_compress(value, message, counter, len(block), flags, 1)
    return value


# ------------------------------------------------------------------------------------ objects


class Directory:
    """A vault's objects in a local directory."""

    def __init__(self, root):
        self.root = root

    def read(self, path, limit):
        """A whole object; None if it is not there."""
        try:
            with open(os.path.join(self.root, path), "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        need(len(data) <= limit, f"{path} is larger than {limit} bytes")
        return data

    def open(self, path):
        try:
            return open(os.path.join(self.root, path), "rb")
        except FileNotFoundError:
            raise Refused(f"{path} is not there: deleted while this was reading, or lost") from None

    def names(self, folder, pattern):
        """The names in a folder that match, sorted: as they count, since numbers are padded."""
        try:
            entries = os.listdir(os.path.join(self.root, folder))
        except FileNotFoundError:
            return []
        # What is being written ("name#1") matches no pattern.
        return sorted(name for name in entries if re.fullmatch(pattern, name))


def document(data, format_name, path):
    """The body of a JSON document."""
    def refuse(_):
        raise Refused(f"{path} has a number with a fraction")
    try:
        outer = json.loads(data.decode("utf-8"), parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is no JSON: {error}") from None
    need(isinstance(outer, dict) and outer.get("format") == format_name, f"{path} is no {format_name}")
    need(outer.get("version") == 1, f"{path} has version {outer.get('version')}, only 1 is known")
    body = outer.get("body")
    need(isinstance(body, dict), f"{path} has no body")
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    need(outer.get("crc32c") == crc32c(canonical), f"{path}: the checksum does not match")
    return body


def sealed():
    """What only an encrypted vault needs, with the libraries that it needs itself."""
    import read_sealed
    return read_sealed


def binary(data, magic, head, path, end=4, version=1):
    """Checks what all binary formats begin and end with: length, magic, checksum, version."""
    need(len(data) >= head + end, f"{path} is too short")
    need(data[:8] == magic, f"{path} does not begin with {magic.decode()}")
    need(struct.unpack_from("<I", data, len(data) - 4)[0] == crc32c(data[:-4]),
         f"{path}: the checksum does not match")
    found = struct.unpack_from("<I", data, 8)[0]
    need(found == version, f"{path} has version {found}, only {version} is known here")


Entry = namedtuple("Entry", "cycle attempt size data_sectors zero_sectors number bounds digest")
Point = namedtuple("Point", "kind consistency disk id before_id size cycle term before cut committed "
                            "written moved moved_digest segments")
Ledger = namedtuple("Ledger", "revision horizon points")


def entries(data, at, count):
    for fields in struct.iter_unpack("<QQQQQII32s", data[at:at + 80 * count]):
        yield Entry(*fields)


def admitted(bounds):
    """First sector and sector after the last of what an entry's bounds let a segment hold."""
    granules, first, shift = (bounds & 0xFF) + 1, bounds >> 8 & 0x7FFFF, (bounds >> 27) + 10
    return (first << shift, first + granules << shift) if bounds >> 27 else (0, 1 << 64)


def read_point(data, path, disk, cycle):
    binary(data, b"BSTYPONT", 196, path)
    fields = struct.unpack_from("<BB2x16s16s16sQQQQQQQQ32sI", data, 12)
    count = fields[-1]
    need(count <= ENTRIES_LIMIT and len(data) == 196 + 80 * count + 4, f"{path} has the wrong length")
    point = Point(*fields[:-1], list(entries(data, 196, count)))
    need(point.disk == disk.bytes, f"{path} is of another disk")
    need(point.cycle == cycle and cycle >= 1, f"{path} is of another cycle")
    need(point.kind in (1, 2, 3) and point.consistency in (1, 2), f"{path}: its kind is not known")
    need(1 <= point.size <= DISK_LIMIT, f"{path}: a disk cannot have {point.size} bytes")
    need(point.before < cycle, f"{path} follows a point that does not come before it")
    need((point.before == 0) == (point.before_id == bytes(16)), f"{path}: it is not clear what it follows")
    for entry in point.segments:
        need(1 <= entry.cycle <= cycle and 192 <= entry.size <= SEGMENT_LIMIT,
             f"{path}: an entry for a segment is out of bounds")
    return point


def read_ledger(data, path, disk, revision):
    binary(data, b"BSTYLEDG", 80, path)
    of, found, horizon, points, merges = struct.unpack_from("<16sQQ24xII", data, 16)
    need(of == disk.bytes and found == revision >= 1, f"{path} is of another disk or revision")
    need(points <= ENTRIES_LIMIT and merges <= 1024, f"{path} lists too much")
    need(len(data) >= 80 + 40 * points + 64 * merges + 4, f"{path} has the wrong length")
    states = OrderedDict()
    last = 0
    for cycle, identity, cut, state in struct.iter_unpack("<Q16sQI4x", data[80:80 + 40 * points]):
        need(last < cycle <= horizon and state in (1, 2), f"{path}: its points are not in order")
        states[cycle] = (identity, state == 2)
        last = cycle
    at, new = 80 + 40 * points, 0
    for _ in range(merges):
        need(len(data) >= at + 64 + 4, f"{path} has the wrong length")
        replaced, count = struct.unpack_from("<20xI32xI4x", data, at)
        new += count
        need(replaced >= 1 and count >= 1 and new <= ENTRIES_LIMIT, f"{path}: a merge is out of bounds")
        at += 64 + 80 * count
    need(len(data) == at + 4, f"{path} has the wrong length")
    return Ledger(revision, horizon, states)


# -------------------------------------------------------------------------------------- vault

NUMBER = r"[0-9]{20}"
NAME = r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


class Vault:
    def __init__(self, directory, options):
        self.objects, self.keys = directory, None
        self.body = self.document("vault.json", "backstay-vault")
        need(self.body is not None, f"there is no vault in {directory.root}")
        if self.body.get("encrypted"):
            revisions = directory.names("keys", NUMBER)
            need(revisions, "the vault is encrypted and its keyring is gone")
            keyring = self.document(f"keys/{revisions[-1]}", "backstay-keyring")
            self.keys = sealed().Keys(self.body["vault"], keyring, int(revisions[-1]), options, directory, blake3)

    def content(self, path, data):
        """What stands in a point or ledger, if it is signed as it must be."""
        return data if self.keys is None else self.keys.content(path, data)

    def document(self, path, format_name):
        data = self.objects.read(path, DOCUMENT_LIMIT)
        if data is None:
            return None
        body = document(data, format_name, path)
        if self.keys is not None:
            self.keys.document(path, data)
        return body

    def disks(self):
        """Records of all disks by id."""
        found = {}
        for name in self.objects.names("disks", UUID):
            record = self.document(f"disks/{name}/disk.json", "backstay-disk")
            if record is None:
                continue  # its first cycle was killed
            need(record.get("disk") == name, f"disks/{name}/disk.json is of another disk")
            need(record.get("sector_bytes") == SECTOR, f"disks/{name}/disk.json: sectors have 512 bytes")
            found[name] = record
        return found

    def names(self, disks):
        """Whose each name is: name -> (disk, change)."""
        owners, documented = {}, set()
        for name in self.objects.names("names", NAME):
            numbers = self.objects.names(f"names/{name}", NUMBER)
            if not numbers:
                continue
            path = f"names/{name}/{numbers[-1]}"
            body = self.document(path, "backstay-name")
            need(body is not None, f"{path} went while it was read; try again")
            need(body.get("name") == name and isinstance(body.get("change"), int), f"{path} is of another name")
            documented.add(name)
            if body.get("renamed_to") is None and body.get("disk") in disks:
                owners[name] = (body["disk"], body["change"])
        if not self.body.get("names"):
            for disk, record in disks.items():
                if record["name"] not in documented:
                    owners.setdefault(record["name"], (disk, -1))
        return owners

    def find(self, wanted):
        """The id of the disk with this name or id."""
        disks = self.disks()
        if wanted in disks:
            return uuid.UUID(wanted)
        owner = self.names(disks).get(wanted)
        need(owner is not None, f"there is no disk '{wanted}' in the vault")
        return uuid.UUID(owner[0])

    def holds(self, disk):
        """What of the disk is held: (first cycle, last cycle) of every version of every hold that is there."""
        ranges = []
        for name in self.objects.names(f"disks/{disk}/holds", NUMBER + "-" + NAME):
            path = f"disks/{disk}/holds/{name}"
            body = self.document(path, "backstay-hold")
            if body is None:
                continue  # let go meanwhile
            need(body.get("name") == name[21:] and body.get("version") == int(name[:20]), f"{path} is another hold")
            first, last = body.get("first_cycle"), body.get("last_cycle")
            need(isinstance(first, int) and isinstance(last, int), f"{path} does not say what it holds")
            ranges.append((first, last))
        return ranges

    def newest_ledger(self, disk):
        for _ in range(10):
            revisions = self.objects.names(f"disks/{disk}/ledger", NUMBER)
            if not revisions:
                return Ledger(0, 0, {})
            path = f"disks/{disk}/ledger/{revisions[-1]}"
            data = self.objects.read(path, (128 << 20) + 168)
            if data is not None:
                return read_ledger(self.content(path, data), path, disk, int(revisions[-1]))
        raise Refused(f"the ledger of {disk} changes faster than it can be read")

    def points(self, disk):
        """The recovery points there are, oldest first (see "Which points there are")."""
        folder = f"disks/{disk}/points"
        listed, ledger = set(), None
        for _ in range(10):
            listed |= {int(name) for name in self.objects.names(folder, NUMBER)}
            ledger = self.newest_ledger(disk)
            beyond = sorted(cycle for cycle in listed if cycle > ledger.horizon)
            # Cycles have no gaps: what a list does not show came while it was made.
            first = ledger.horizon + 1 if ledger.revision or not beyond else beyond[0]
            if beyond == list(range(first, first + len(beyond))):
                break
        else:
            raise Refused(f"{folder} has gaps: points beyond the ledger's horizon are missing")
        holds = self.holds(disk)
        found = []
        # Kept ones are asked for by name, whatever the list shows.
        for cycle in sorted(set(ledger.points) | set(beyond)):
            path = f"{folder}/{cycle:020}"
            identity, retired = ledger.points.get(cycle, (None, False))
            if retired and not any(first <= cycle <= last for first, last in holds):
                continue
            data = self.objects.read(path, 196 + 80 * ENTRIES_LIMIT + 4 + 168)
            if data is None:
                continue  # retired and deleted just now, or a person deleted it
            point = read_point(self.content(path, data), path, disk, cycle)
            if identity is not None and point.id != identity:
                raise Refused(f"{path} is not the point that the ledger knows")
            found.append(point)
        return found

    def writers(self, disk):
        found = {}
        for name in self.objects.names(f"disks/{disk}/terms", NUMBER):
            path = f"disks/{disk}/terms/{name}"
            body = self.document(path, "backstay-term")
            need(body is None or body.get("term") == int(name), f"{path} is another term")
            if body is not None:
                found[int(name)] = body.get("writer")
        return found


# ------------------------------------------------------------------------------------ segment

Extent = namedtuple("Extent", "first sectors frame offset crc")


class Segment:
    """A segment whose index has been read and checked."""

    def __init__(self, objects, keys, disk, entry, disk_size):
        self.path = f"disks/{disk}/segments/{entry.cycle:020}-{entry.attempt:016x}-{entry.number}"
        self.file = objects.open(self.path)
        size = os.fstat(self.file.fileno()).st_size
        self.need(size == entry.size, f"has {size} bytes, the point says {entry.size}")
        identity = (entry.number, disk.bytes, entry.cycle, entry.attempt)
        header, footer = self.bytes(0, 64), self.bytes(size - 128, 128)
        binary(header, b"BSTYSEGM", 60, self.path)
        self.need(struct.unpack_from("<I16sQQ", header, 12) == identity, "has another's header")
        encryption, public = struct.unpack_from("<I8s", header, 48)
        self.need(encryption == (keys is not None), "is encrypted otherwise than its vault")
        binary(footer, b"BSTYSEGF", 124, self.path, version=1 + encryption)
        self.need(struct.unpack_from("<I16sQQ", footer, 12) == identity, "has another's footer")
        at, stored, length, codec, frames, extents, digest, chunks, chunk_log = \
            struct.unpack_from("<QIIIII32sII", footer, 48)
        self.need(length == 24 * (frames + extents + chunks) <= INDEX_LIMIT, "has an index of the wrong length")
        self.need(at + stored + 128 == size and at >= 64, "has its index in the wrong place")
        self.need(digest == entry.digest, "has an index that the point does not know")
        index, self.key = self.bytes(at, stored), None
        if keys is not None:
            # Compared before it is opened.
            self.need(blake3(index) == digest, "has an index that its footer does not know")
            self.need(stored >= 72, "has an index that is too short")
            crc, = struct.unpack_from("<I", footer, 116)
            self.key = keys.segment(self.path, identity, index[-56:])
            self.need(self.key.fresh[:8] == public, "has another's header")
            numbers = (codec, stored, length, frames, extents, chunks, chunk_log, crc)
            index = self.key.open(1, at, index[:-56], numbers)
        index = self.content(index, codec, length)
        self.need(keys is not None or blake3(index) == digest, "has an index that its footer does not know")
        self.frames = list(struct.iter_unpack("<QIIII", index[:24 * frames]))
        self.extents = [Extent(*fields) for fields in
                        struct.iter_unpack("<QIIII", index[24 * frames:24 * (frames + extents)])]
        sectors = -(-disk_size // SECTOR)
        self.check(entry, at, sectors)
        self.check_chunks(index[24 * (frames + extents):], chunk_log, sectors)

    def need(self, condition, what):
        need(condition, f"{self.path} {what}")

    def bytes(self, at, length):
        data = os.pread(self.file.fileno(), length, at) if at >= 0 else b""
        self.need(len(data) == length, "ends too early")
        return data

    def content(self, stored, codec, length):
        """What is stored in one of the two ways, exactly `length` bytes of it."""
        self.need(codec in (0, 1), f"is compressed in a way ({codec}) this does not know")
        if codec == 0:
            self.need(len(stored) == length, "has raw bytes of the wrong length")
            return stored
        self.need(len(stored) < length, "has compressed bytes that are not fewer")
        try:
            said = zstandard.get_frame_parameters(stored).content_size
            # Without a size in the frame this says "unknown", a number no frame can have.
            self.need(said == length or said >= zstandard.CONTENTSIZE_ERROR, "decompresses to another length")
            data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=length)
        except zstandard.ZstdError as error:
            raise Refused(f"{self.path} cannot be decompressed: {error}") from None
        self.need(len(data) == length, "decompresses to another length")
        return data

    def check(self, entry, end, sectors):
        at = 64
        for offset, stored, length, _, codec in self.frames:
            self.need(offset == at and 1 <= length <= FRAME_LIMIT, "has a frame out of bounds")
            self.need(1 <= stored - (16 if self.key else 0) <= length, "has a frame out of bounds")
            at += stored
        self.need(at == end, "has bytes between its frames and its index")
        data = zero = last = 0
        self.in_frame = [[] for _ in self.frames]
        for extent in sorted(self.extents):
            self.need(extent.sectors >= 1 and extent.first >= last, "has extents that overlap or are empty")
            last = extent.first + extent.sectors
            if extent.frame == ZEROES:
                self.need(extent.offset == 0 and extent.crc == 0, "has zeroes that are somewhere")
                zero += extent.sectors
                continue
            self.need(extent.frame < len(self.frames), "has an extent in a frame there is not")
            self.need(extent.offset + extent.sectors * SECTOR <= self.frames[extent.frame][2],
                      "has an extent beyond its frame's end")
            data += extent.sectors
            self.in_frame[extent.frame].append(extent)
        self.need(last <= sectors, "has an extent beyond the disk's end")
        self.need((data, zero) == (entry.data_sectors, entry.zero_sectors),
                  "does not hold as many sectors as the point says")
        low, high = admitted(entry.bounds)
        self.need(last <= high and all(extent.first >= low for extent in self.extents),
                  "holds sectors outside of the bounds that the point says it has")

    def check_chunks(self, table, chunk_log, sectors):
        self.need(3 <= chunk_log <= 9 or not table and chunk_log == 0, "has chunks of a size there is not")
        for first, _ in struct.iter_unpack("<Q16s", table):
            self.need(first % (1 << chunk_log) == 0 and first + (1 << chunk_log) <= sectors,
                      "has a chunk where none can be")

    def frame(self, number):
        """The sectors of a frame, checked before and after decompression (I6)."""
        offset, stored, length, crc, codec = self.frames[number]
        data = self.bytes(offset, stored)
        self.need(crc32c(data) == crc, f"is damaged in frame {number}")
        if self.key:
            data = self.key.open(0, offset, data, (codec, stored, length))
        data = self.content(data, codec, length)
        for extent in self.in_frame[number]:
            sectors = data[extent.offset:extent.offset + extent.sectors * SECTOR]
            self.need(crc32c(sectors) == extent.crc, f"is damaged in frame {number}: sectors from {extent.first}")
        return data


# ------------------------------------------------------------------------------------ restore


def pieces(segments):
    """(first sector, sector after the last, segment's number, extent) in order: the later segment holds."""
    starts = sorted(((extent.first, rank, extent) for rank, segment in enumerate(segments)
                     for extent in segment.extents), key=lambda start: start[:2])
    open_ones, at, upcoming = [], 0, 0
    while open_ones or upcoming < len(starts):
        if not open_ones:
            at = starts[upcoming][0]
        while upcoming < len(starts) and starts[upcoming][0] <= at:
            _, rank, extent = starts[upcoming]
            heapq.heappush(open_ones, (-rank, extent))
            upcoming += 1
        rank, extent = open_ones[0]
        end = extent.first + extent.sectors
        if end <= at:
            heapq.heappop(open_ones)
            continue
        until = min(end, starts[upcoming][0]) if upcoming < len(starts) else end
        yield at, until, -rank, extent
        at = until


def restore(vault, disk, point, output, sparse):
    """Writes a point to a file that is empty (sparse) or to a stream."""
    segments = [Segment(vault.objects, vault.keys, disk, entry, point.size) for entry in point.segments]
    sectors = -(-point.size // SECTOR)
    cache, at = OrderedDict(), 0
    for first, end, rank, extent in pieces(segments):
        need(first == at, f"the point of cycle {point.cycle} has nothing for sectors {at} to {first - 1}")
        at = end
        length = min(end * SECTOR, point.size) - first * SECTOR
        if extent.frame == ZEROES:
            if sparse:
                output.seek(length, os.SEEK_CUR)
            else:
                for done in range(0, length, 1 << 20):
                    output.write(bytes(min(1 << 20, length - done)))
            continue
        key = (rank, extent.frame)
        if key not in cache:
            cache[key] = segments[rank].frame(extent.frame)
            if len(cache) > CACHED_FRAMES:
                cache.popitem(last=False)
        cache.move_to_end(key)
        begin = extent.offset + (first - extent.first) * SECTOR
        output.write(cache[key][begin:begin + length])
    need(at == sectors, f"the point of cycle {point.cycle} has nothing for sectors from {at}")
    if sparse:
        output.truncate(point.size)


def restore_to(vault, disk, point, target, force):
    if target == "-":
        restore(vault, disk, point, sys.stdout.buffer, sparse=False)
        sys.stdout.buffer.flush()
        return
    need(force or not os.path.lexists(target), f"{target} is there already (--force replaces it)")
    need(os.path.isfile(target) or not os.path.exists(target), f"{target} is no file")
    unfinished = target + ".unfinished"
    try:
        with open(unfinished, "wb") as output:
            restore(vault, disk, point, output, sparse=True)
            output.flush()
            os.fsync(output.fileno())
        os.replace(unfinished, target)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise


# --------------------------------------------------------------------------------------- main


def directory_of(url):
    if "://" not in url:
        return url
    parts = urllib.parse.urlsplit(url)
    need(parts.scheme == "file" and parts.netloc in ("", "localhost"), f"{url}: only file:// vaults are read")
    return urllib.parse.unquote(parts.path)


def clock(unix_ns):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(unix_ns // 10**9)) + f".{unix_ns % 10**9 // 10**6:03}Z"


def show(rows, as_json):
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if rows:
        lines = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(*lines)]
        for line in lines:
            print("  ".join(value.ljust(width) for value, width in zip(line, widths)).rstrip())


def disk_rows(vault):
    disks = vault.disks()
    names = {}
    for name, (disk, change) in vault.names(disks).items():
        if change > names.get(disk, ("", -2))[1]:
            names[disk] = (name, change)
    for disk in disks:
        points = vault.points(uuid.UUID(disk))
        yield {"name": names.get(disk, ("", 0))[0], "disk": disk, "points": len(points),
               "size_bytes": points[-1].size if points else disks[disk]["size_bytes"]}


def point_rows(vault, disk):
    writers = vault.writers(disk)
    for point in vault.points(disk):
        yield {"cycle": point.cycle, "point": str(uuid.UUID(bytes=point.id)), "cut": clock(point.cut),
               "kind": ("initial", "delta", "resync")[point.kind - 1],
               "consistency": ("crash", "application")[point.consistency - 1],
               "size_bytes": point.size, "term": point.term, "writer": writers.get(point.term),
               "segments": len(point.segments)}


def group_rows(vault):
    for group in vault.objects.names("groups", NAME):
        for number in vault.objects.names(f"groups/{group}/points", NUMBER):
            path = f"groups/{group}/points/{number}"
            body = vault.document(path, "backstay-group-point")
            if body is None:
                continue  # deleted meanwhile
            need(body.get("group") == group and body.get("number") == int(number), f"{path} is another group point")
            members = body.get("members")
            need(isinstance(members, list) and 1 <= len(members) <= 100, f"{path} has no members")
            yield {"group": group, "number": int(number), "cut": clock(body["cut_unix_ns"]),
                   "members": " ".join(f"{member['name']}@{member['cycle']}" for member in members)}


def choose(points, wanted):
    need(points, "the disk has no recovery point")
    if wanted == "latest":
        return points[-1]
    for point in points:
        if wanted in (str(point.cycle), str(uuid.UUID(bytes=point.id))):
            return point
    raise Refused(f"there is no point '{wanted}'; cycles {points[0].cycle} to {points[-1].cycle} are asked from")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vault")
    parser.add_argument("disk", nargs="?")
    parser.add_argument("--point", default="latest")
    parser.add_argument("--to", metavar="FILE")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--groups", action="store_true", help="list the groups' points")
    parser.add_argument("--json", action="store_true")
    for name in ("--key-file", "--passphrase-file", "--identity-file"):
        parser.add_argument(name, metavar="FILE", help="opens an encrypted vault")
    parser.add_argument("--owner", metavar="HEX", help="the only owner of an encrypted vault that is believed")
    options = parser.parse_args()
    try:
        vault = Vault(Directory(directory_of(options.vault)), options)
        if options.groups:
            show(list(group_rows(vault)), options.json)
            return 0
        if options.disk is None:
            need(options.to is None, "which disk?")
            show(list(disk_rows(vault)), options.json)
            return 0
        disk = vault.find(options.disk)
        if options.to is None:
            show(list(point_rows(vault, disk)), options.json)
            return 0
        restore_to(vault, disk, choose(vault.points(disk), options.point), options.to, options.force)
        return 0
    except (ValueError, OSError, KeyError, TypeError) as error:
        print(f"read_point.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
