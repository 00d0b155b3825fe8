"""What read_point.py needs for an encrypted vault: the keyring, signatures, sealed segments.

Written from docs/explanation/format-vault.md, section "An encrypted vault", alone. Needs cryptography and argon2 (Debian:
python3-cryptography, python3-argon2; PyPI: cryptography, argon2-cffi).
"""

import base64
import hashlib
import hmac
import json
import os
import stat
import struct
import sys
import uuid

try:
    import argon2.low_level
    from cryptography.exceptions import InvalidSignature, InvalidTag
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
except ImportError as error:
    sys.exit(f"read_sealed.py: {error}: the vault is encrypted, and reading it needs more: install it with apt install "
             "python3-cryptography python3-argon2 (PyPI: cryptography, argon2-cffi). Nothing was read.")

TRAILER = 168
ENVELOPE = 56
TAG = 16


class Sealed(ValueError):
    """Something did not open, or is not signed; the text is for a person."""


def need(condition, what):
    if not condition:
        raise Sealed(what)


def raw(public):
    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def derive(material, salt, purpose):
    """HKDF-SHA256, one block of it."""
    key = hmac.new(salt or bytes(32), material, hashlib.sha256).digest()
    return hmac.new(key, purpose + b"\1", hashlib.sha256).digest()


def agreed(secret, fresh, purpose):
    """The key that a fresh public half and the owner of a secret agree on."""
    ours = X25519PrivateKey.from_private_bytes(secret)
    try:
        shared = ours.exchange(X25519PublicKey.from_public_bytes(fresh))
    except ValueError:
        return None  # a point of low order
    return derive(shared, fresh + raw(ours.public_key()), purpose)


def opened(key, nonce, data, associated):
    try:
        return AESGCM(key).decrypt(nonce, data, associated)
    except InvalidTag:
        return None


def open_box(secret, purpose, context, box):
    """A secret that was sealed to the public half of another; None if it was not."""
    key = agreed(secret, box[:32], purpose) if len(box) == 80 else None
    return key and opened(key, bytes(12), box[32:], context)


def signed(public, message, signature):
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        return True
    except InvalidSignature:
        return False


# ---------------------------------------------------------------------------------------- secrets


def private(path):
    """The content of a file that nobody else can read."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        need(stat.S_ISREG(mode) and mode & 0o077 == 0, f"{path}: others can read it and it holds a secret: chmod 600 it")
        return file.read(65536)


def bech32(text, prefix):
    """The bytes of a bech32 string (BIP 173)."""
    digits = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    text = text.strip().lower()
    head, _, tail = text.rpartition("1")
    need(head == prefix and all(c in digits for c in tail), "this is no age identity")
    values = [digits.index(c) for c in tail]
    check = 1
    for value in [ord(c) >> 5 for c in head] + [0] + [ord(c) & 31 for c in head] + values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, mask in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= mask if top >> bit & 1 else 0
    need(check == 1, "this is no age identity: its checksum does not match")
    bits = "".join(f"{value:05b}" for value in values[:-6])
    return bytes(int(bits[at:at + 8], 2) for at in range(0, len(bits) // 8 * 8, 8))


def age(identity, data):
    """What an age file (version 1) holds for an X25519 identity; None if nothing."""
    def plain(text):
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    head, _, rest = data.partition(b"\n--- ")
    mac, _, payload = rest.partition(b"\n")
    lines = head.split(b"\n")
    if lines[0] != b"age-encryption.org/v1" or len(payload) < 16 + TAG:
        return None
    ours = X25519PrivateKey.from_private_bytes(identity)
    for at, line in enumerate(lines):
        words = line.split(b" ")
        if words[:2] != [b"->", b"X25519"] or at + 1 >= len(lines):
            continue
        share = plain(words[2])
        shared = ours.exchange(X25519PublicKey.from_public_bytes(share))
        wrap = derive(shared, share + raw(ours.public_key()), b"age-encryption.org/v1/X25519")
        try:
            key = ChaCha20Poly1305(wrap).decrypt(bytes(12), plain(lines[at + 1]), None)
            tag = hmac.new(derive(key, b"", b"header"), head + b"\n---", hashlib.sha256).digest()
            if not hmac.compare_digest(tag, plain(mac)):
                return None
            stream = derive(key, payload[:16], b"payload")
            # One chunk, the last: there are 32 bytes in it.
            return ChaCha20Poly1305(stream).decrypt(bytes(11) + b"\1", payload[16:], None)
        except InvalidTag:
            continue
    return None


# ---------------------------------------------------------------------------------------- keyring


def slot_secret(slot, vault, owner, options):
    """The newest generation's secret, if one of these options opens this slot."""
    sealed = bytes.fromhex(slot["sealed"])
    kind = slot["kind"]
    if kind == "recipient":
        for line in private(options.identity_file).decode().splitlines() if options.identity_file else []:
            if line.upper().startswith("AGE-SECRET-KEY-"):
                secret = age(bech32(line, "age-secret-key-"), sealed)
                if secret:
                    return secret
        return None
    salt = bytes.fromhex(slot["salt"])
    if kind == "key-file" and options.key_file:
        material = derive(private(options.key_file), salt, b"backstay key file 1")
    elif kind == "passphrase" and options.passphrase_file:
        hard = slot["argon2id"]
        need(8 * hard["lanes"] <= hard["memory_kib"] <= 1 << 20 and 1 <= hard["passes"] <= 64
             and 1 <= hard["lanes"] <= 16, "a slot asks for more work than makes sense")
        text = private(options.passphrase_file).splitlines()[0]
        material = argon2.low_level.hash_secret_raw(
            text, salt, hard["passes"], hard["memory_kib"], hard["lanes"], 32, argon2.low_level.Type.ID, 19)
    else:
        return None
    proof = hmac.new(derive(material, b"", b"backstay slot proof 1"), vault.bytes + owner, hashlib.sha256).digest()
    if not hmac.compare_digest(proof, bytes.fromhex(slot["proof"])):
        return None
    context = vault.bytes + struct.pack("<I", slot["slot"])
    return open_box(derive(material, b"", b"backstay slot 1"), b"backstay slot secret 1", context, sealed)


class Keys:
    """What opens an encrypted vault."""

    def __init__(self, vault_id, keyring, revision, options, objects, digest):
        self.vault, self.keyring, self.objects, self.digest, self.known = uuid.UUID(vault_id), keyring, objects, digest, {}
        need(keyring["vault"] == vault_id and keyring["revision"] == revision, "the keyring is another's")
        unsigned = {name: value for name, value in keyring.items() if name != "signature"}
        canonical = json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        self.owner = bytes.fromhex(keyring["owner"])
        need(options.owner is None or options.owner == keyring["owner"], "the keyring is of another owner")
        need(signed(self.owner, b"backstay keyring 1\0" + canonical, bytes.fromhex(keyring["signature"])),
             "the keyring is not signed by the vault's owner")
        found = (slot_secret(slot, self.vault, self.owner, options) for slot in keyring["slots"])
        newest = next((secret for secret in found if secret), None)
        need(newest, "the vault is encrypted, and no key given opens it (--key-file, --passphrase-file, --identity-file)")
        generations = keyring["generations"]
        self.secrets = {generations[-1]["generation"]: newest}
        for older in generations[:-1]:
            context = self.vault.bytes + struct.pack("<I", older["generation"])
            secret = open_box(newest, b"backstay generation 1", context, bytes.fromhex(older["sealed"]))
            self.secrets[older["generation"]] = secret
        for number, generation in enumerate(generations, 1):
            secret = self.secrets.get(number)
            need(generation["generation"] == number and secret, "the keyring's generations do not fit together")
            public = raw(X25519PrivateKey.from_private_bytes(secret).public_key())
            need(public.hex() == generation["public"], "the keyring's generations do not fit together")
        seed = open_box(newest, b"backstay owner 1", self.vault.bytes, bytes.fromhex(keyring["owner_sealed"]))
        need(seed and raw(Ed25519PrivateKey.from_private_bytes(seed).public_key()) == self.owner,
             "the keyring's owner is not the one it says")

    def allowed(self, signer, certificate, path):
        """That the owner signed, or somebody whom the owner allowed to."""
        allowed = b"backstay writer 1\0" + self.vault.bytes + signer
        need(certificate == bytes(64) if signer == self.owner else signed(self.owner, allowed, certificate),
             f"{path} is signed by somebody whom the vault's owner did not allow to write")

    def content(self, path, data):
        """A signed object without its signature."""
        need(len(data) > TRAILER and data[-TRAILER:-TRAILER + 8] == b"BSTYSIGN", f"{path} is not signed")
        content, trailer = data[:-TRAILER], data[-TRAILER + 8:]
        signer, certificate, signature = trailer[:32], trailer[32:96], trailer[96:]
        self.allowed(signer, certificate, path)
        name = path.encode()
        message = b"backstay object 1\0" + self.vault.bytes + struct.pack("<I", len(name)) + name + content
        need(signed(signer, message, signature), f"{path}: its signature does not fit")
        self.counts(signer, path)
        return content

    def bounds(self, digest):
        """What was there when a writer was removed, or when documents were not signed yet."""
        if digest not in self.known:
            path = f"keys/bounds-{digest}"
            data = self.objects.read(path, 64 << 20)
            need(data is not None and self.digest(data).hex() == digest, f"{path} is not what its name says")
            found = json.loads(data)
            need(found["vault"] == str(self.vault), f"{path} is another vault's")
            self.known[digest] = (found["last"], set(found["there"]))
        return self.known[digest]

    def covers(self, digest, path):
        last, there = self.bounds(digest)
        folder, _, name = path.rpartition("/")
        return path in there or name <= last.get(folder, "")

    def counts(self, signer, path):
        """What a writer signed that was removed counts if it was there before."""
        for one in self.keyring.get("removed", ()):
            need(one["writer"] != signer.hex() or self.covers(one["bounds"], path),
                 f"{path} is signed by a writer that was removed from the vault, and was not there before that")

    def document(self, path, data):
        """That a document is signed, if it is of a kind that is."""
        if not path.startswith(("disks/", "names/", "groups/")):
            return
        whole = json.loads(data)
        seal = whole.get("signature")
        if seal is None:
            unsigned = self.keyring.get("unsigned")
            need(not self.keyring.get("documents_signed") or (unsigned and self.covers(unsigned, path)), f"{path} is not signed")
            return
        try:
            seal = bytes.fromhex(seal)
        except ValueError:
            seal = b""
        need(len(seal) == TRAILER - 8, f"{path}: its signature does not fit")
        signer, certificate, signature = seal[:32], seal[32:96], seal[96:]
        self.allowed(signer, certificate, path)
        name = path.encode()
        canonical = json.dumps(whole["body"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        message = b"backstay document 1\0" + self.vault.bytes + struct.pack("<I", len(name)) + name + canonical
        need(signed(signer, message, signature), f"{path}: its signature does not fit")
        self.counts(signer, path)

    def segment(self, path, identity, envelope):
        """The key of a segment, from its envelope; identity is number, disk, cycle, attempt."""
        generation, fresh = struct.unpack("<I20x32s", envelope)
        need(generation in self.secrets, f"{path} is sealed to generation {generation}, which the keyring does not have")
        key = agreed(self.secrets[generation], fresh, b"backstay segment 1")
        need(key, f"{path}: what it is sealed with is no key")
        number, disk, cycle, attempt = identity
        return SegmentKey(path, key, disk + struct.pack("<QQI", cycle, attempt, number), fresh)


class SegmentKey:
    """Opens the pieces of one segment."""

    def __init__(self, path, key, identity, fresh):
        self.path, self.key, self.identity, self.fresh = path, key, identity, fresh

    def open(self, piece, offset, data, numbers):
        associated = self.identity + struct.pack(f"<{len(numbers)}I", *numbers)
        content = opened(self.key, struct.pack("<IQ", piece, offset), data, associated)
        need(content is not None, f"{self.path}: what is at {offset} is not what was sealed for this place")
        return content
