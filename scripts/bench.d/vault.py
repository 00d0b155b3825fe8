"""Vaults of every kind: how fast a first copy and a delta get into them, encrypted and not, over loopback and over a
line of 50 ms and 100 Mbit/s; and what memory a gateway takes with a hundred sources.

The stores are real servers on this machine (scripts/store), so on loopback they share its processors with what is
measured: the figures say what Backstay does when the store is the bottleneck. Over the line the line is.
"""

import contextlib
import json
import os
import random
import subprocess
import time
from pathlib import Path

import ship
from common import (GIB, MIB, Timed, drop_caches, fill, median, run, table, verdict)
from link import ADDRESSES, Link

STORE = Path(__file__).resolve().parents[1] / "store"
ROUND_TRIP_MS, MBIT = 50, 100
# Of the blocks of a disk, in a delta.
CHANGED = 0.05


class Place:
    """A vault that holds nothing yet: its URL, what reaches it, and how it goes."""

    def __init__(self, url, env=None, settings="", stop=lambda: None, store_url=None):
        self.url, self.env, self.settings, self.stop = url, env or {}, settings, stop
        # Where its objects are: what a gateway hides.
        self.store_url = store_url or url


def folder(work, _):
    home = work.dir / "folder"
    return Place(f"file://{home}", stop=lambda: run("rm", "-rf", home))


def store(kind, port):
    def start(work, link):
        home = work.dir / f"store-{kind}"
        inside = link.inside(link.far) if link else []
        address = link.address if link else "127.0.0.1"
        said = run(*inside, STORE, kind, "start", "--dir", home, "--address", address, "--port", port,
                   "--until", os.getpid())
        lines = (line.removeprefix("export ") for line in said.splitlines())
        env = {name: value.strip("'") for name, _, value in
               (line.partition("=") for line in lines)}
        return Place(f"{env.pop('STORE_URL')}/vault", env,
                     stop=lambda: run(STORE, kind, "stop", "--dir", home))

    return start


class Gateway(Place):
    """A gateway before a folder, and an authority for it."""

    def __init__(self, work, link):
        self.pki, home = work.dir / "pki", work.dir / "behind"
        address = link.address if link else "127.0.0.1"
        if not self.pki.exists():
            work.backstay("pki", "init", "--no-passphrase", self.pki)
            work.backstay("pki", "issue", self.pki, "gateway", "--server", "--ip", "127.0.0.1",
                          "--ip", ADDRESSES[1])
            self.issue(work, "source", "files", "noise")
        super().__init__(f"https://{address}:9443", settings=self.reached_as("source"),
                         store_url=f"file://{home}")
        self.start = lambda: self.serve(work, link, address)
        self.work, self.home = work, home
        self.stop = self.end

    def issue(self, work, name, *disks):
        disks = [flag for disk in disks for flag in ("--disk", disk)]
        work.backstay("pki", "issue", self.pki, name, "--role", "source", *disks)

    def reached_as(self, name):
        return (f'[store]\nclient_cert = "{self.pki}/issued/{name}.pem"\n'
                f'ca_file = "{self.pki}/ca.crt"\n')

    def serve(self, work, link, address):
        config = work.dir / "gateway.toml"
        config.write_text("")
        command = [part for part in work.command("--config", config) if part != "--quiet"]
        self.process = subprocess.Popen(
            [str(part) for part in [
                *(link.inside(link.far) if link else []), *command, "gateway", "--listen",
                f"{address}:9443", "--health", "127.0.0.1:9444", "--store", self.store_url, "--cert",
                self.pki / "issued" / "gateway.pem", "--client-ca", self.pki / "ca.crt", "--cache",
                work.dir / "gateway-cache"]],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if "gateway to" not in self.process.stdout.readline():
            raise SystemExit("the gateway did not start")

    def most_mib(self):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def end(self):
        self.process.terminate()
        self.process.wait()
        run("rm", "-rf", self.home, self.work.dir / "gateway-cache")


KINDS = {"file://": folder, "gateway, file:// behind it": Gateway,
         "s3:// (radosgw)": store("s3", 17480), "az:// (Azurite)": store("azurite", 17490)}
SEALED = ", encrypted"


@contextlib.contextmanager
def fresh(work, kind, link=None, sealed=False):
    """A vault that holds nothing yet."""
    place = KINDS[kind](work, link)
    try:
        if sealed:
            key = work.dir / "vault.key"
            inside = link.inside(link.near) if link and not isinstance(place, Gateway) else []
            run(*inside, *work.command("key", "init", "--vault", place.store_url, "--key-file", key),
                env={**os.environ, **place.env})
            place.settings += f'[encryption]\nkey_file = "{key}"\n'
        else:
            inside = link.inside(link.near) if link and not isinstance(place, Gateway) else []
            run(*inside, *work.command("vault", "init", "--vault", place.store_url, "--replace-missing"),
                env={**os.environ, **place.env})
        if isinstance(place, Gateway):
            place.start()
        yield place
    finally:
        place.stop()


class Disk:
    """A disk that is served, and shipped from here or from the near end of a link."""

    def __init__(self, work, name, image, size, link=None):
        self.work, self.name, self.size = work, name, size
        self.served = work.mount(name, image)
        self.inside = link.inside(link.near) if link else []

    def change(self, seed):
        """Overwrites some blocks, anywhere, with bytes that do not compress."""
        dice = random.Random(seed)
        blocks = self.size // ship.BLOCK
        with open(self.served, "r+b", buffering=0) as disk:
            for block in sorted(dice.sample(range(blocks), int(blocks * CHANGED))):
                os.pwrite(disk.fileno(), dice.randbytes(ship.BLOCK), block * ship.BLOCK)
            os.fsync(disk.fileno())

    def command(self, place, *args):
        config = self.work.dir / f"{self.name}.toml"
        config.write_text(place.settings)
        return [*self.inside, *self.work.command("--config", config, *args)]

    def cycle(self, place):
        """A cycle, timed: bytes of the disk and of the vault a second, and the most memory."""
        drop_caches()
        env = {**os.environ, **place.env}
        timed = Timed(*self.command(place, "cycle", self.name, "--vault", place.url),
                      durable=self.work.dir, env=env)
        points = run(*self.command(place, "--json", "points", self.name, "--vault", place.url), env=env)
        newest = max(json.loads(points), key=lambda point: point["cycle"])
        return {"moved": newest["moved_bytes"] / timed.seconds,
                "stored": newest["stored_bytes"] / timed.seconds,
                "seconds": timed.seconds, "rss": timed.rss_mib}


def both_cycles(disk, place, shown, seed):
    """A first copy into a new vault, and a delta."""
    initial = disk.cycle(place)
    disk.change(seed)
    delta = disk.cycle(place)
    print(f"  {disk.name} into {shown}: initial {initial['moved'] / 1e6:.0f} MB/s"
          f" ({initial['stored'] * 8 / 1e6:.1f} Mbit/s stored), delta {delta['moved'] / 1e6:.0f} MB/s"
          f" ({delta['stored'] * 8 / 1e6:.1f} Mbit/s stored), {initial['rss']:.0f} MiB", flush=True)
    return initial, delta


def every(work, disk, kinds, rounds, link=None):
    """Cycles into vaults of these kinds, round by round: lists of pairs."""
    found = {}
    for turn in range(rounds):
        for kind, sealed in kinds:
            shown = kind + SEALED * sealed
            with fresh(work, kind, link, sealed) as place:
                cycles = both_cycles(disk, place, shown, turn)
            found.setdefault(shown, []).append(cycles)
    return found


def on_loopback(work, size, rounds):
    """Rates of each kind of vault."""
    image = work.dir / "files.img"
    with open(image, "wb") as file:
        file.truncate(size)
    disk = Disk(work, "files", image, size)
    print("copying files in")
    device = run("losetup", "--find", "--show", "--direct-io=on", disk.served).strip()
    try:
        ship.fill_with_files(device, work.dir / "mnt", size)
    finally:
        run("losetup", "--detach", device)
    return every(work, disk, [(kind, sealed) for kind in KINDS for sealed in (False, True)], rounds)


def over_the_link(work, size, rounds):
    """The same over a line; also what the line gives by itself."""
    link = Link(work, ROUND_TRIP_MS, MBIT)
    round_trip, raw = link.measure(10)
    print(f"the line: {round_trip:.1f} ms, TCP gets {raw:.1f} Mbit/s through")
    image = work.dir / "noise.img"
    fill(image, size)
    disk = Disk(work, "noise", image, size, link)
    kinds = [(kind, False) for kind in KINDS if kind != "file://"]
    return (round_trip, raw, link.control), every(work, disk, kinds, rounds, link)


def hundred(work, count, size):
    """Many sources ship at once to one gateway: the most memory it took, and how long all took."""
    with fresh(work, "gateway, file:// behind it") as gateway:
        commands = []
        for number in range(count):
            name = f"source{number}"
            gateway.issue(work, name, name)
            image, config = work.dir / f"{name}.img", work.dir / f"{name}.toml"
            fill(image, size)
            config.write_text(gateway.reached_as(name))
            work.mount(name, image)
            commands.append(work.command("--config", config, "cycle", name, "--vault", gateway.url))
        before = gateway.most_mib()
        began = time.monotonic()
        children = [subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
                    for command in commands]
        said = [child.communicate()[1] for child in children]
        seconds = time.monotonic() - began
        failed = [text for child, text in zip(children, said) if child.returncode != 0]
        if failed:
            raise SystemExit(f"{len(failed)} of {count} sources failed: {failed[0]}")
        after = gateway.most_mib()
        print(f"  {count} sources at once: {before:.0f} MiB, then {after:.0f} MiB, {seconds:.0f} s")
        return before, after, seconds


def compare(work, options):
    quick = options.quick
    rounds = 1 if quick else 3
    loopback = on_loopback(work, 256 * MIB if quick else 2 * GIB, rounds)
    size = (64 if quick else 512) * MIB
    (round_trip, raw, control), linked = over_the_link(work, size, rounds)
    count, each = (10, 4 * MIB) if quick else (100, 16 * MIB)
    before, after, seconds = hundred(work, count, each)
    rows, aims = [], []
    for name, cycles in loopback.items():
        mb = [median([pair[which]["moved"] for pair in cycles]) / 1e6 for which in (0, 1)]
        of_file = [median([pair[which]["moved"] / base[which]["moved"] for pair, base in
                           zip(cycles, loopback["file://"])]) for which in (0, 1)]
        memory = max(cycle["rss"] for pair in cycles for cycle in pair)
        rows.append([name, f"{mb[0]:.0f} MB/s", f"{of_file[0]:.2f}", f"{mb[1]:.0f} MB/s",
                     f"{of_file[1]:.2f}", f"{memory:.0f} MiB"])
        if name.endswith(SEALED):
            plain = loopback[name.removesuffix(SEALED)]
            part = median([sealed[0]["moved"] / base[0]["moved"] for sealed, base in zip(cycles, plain)])
            aims.append([f"{name}: first copy at least 0.85 × that of plain", f"{part:.2f} ×",
                         verdict(part >= 0.85)])
    speeds = table(["vault on loopback", "initial", ": file://", "delta", ": file://", "most memory"],
                   rows)
    rows = []
    for name, cycles in linked.items():
        rates = [median([pair[which]["stored"] for pair in cycles]) * 8 / 1e6 for which in (0, 1)]
        rows.append([name, *(cell for rate in rates for cell in
                             (f"{rate:.1f} Mbit/s", f"{rate / MBIT:.0%}", f"{rate / raw:.0%}"))])
        aims.append([f"first copy over the line to {name}: 90 % of its rate", f"{rates[0] / MBIT:.0%}",
                     verdict(rates[0] >= 0.9 * MBIT)])
    line = table(["vault over the line", "initial", "of the line", "of TCP", "delta", "of the line",
                  "of TCP"], rows)
    notes = (f"Loopback: a disk with ext4 and real files, three quarters full; bytes of the disk a second. The "
             f"line: two network namespaces, {round_trip:.1f} ms there and back as measured (set: "
             f"{ROUND_TRIP_MS}), {MBIT} Mbit/s each way, one TCP connection ({control}) gets {raw:.1f} Mbit/s "
             f"through; a disk of {size // MIB} MiB that does not compress; bytes that are in the vault afterwards, "
             f"divided by the whole time of the command. Delta: {CHANGED:.0%} of the 4 KiB blocks overwritten "
             f"at random. The page cache is dropped before each cycle.")
    many = (f"**Gateway**: {before:.0f} MiB at rest; {after:.0f} MiB at most (VmHWM) while {count} sources, each with a "
            f"certificate and a sidecar of its own, made their first copies of {each // MIB} MiB at once, "
            f"which took {seconds:.0f} s ({count * each / 1e6 / seconds:.0f} MB/s together).")
    return "\n\n".join([table(["aim", "found", ""], aims), speeds, line, many, notes])
