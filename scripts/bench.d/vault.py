"""Vaults of every kind: how fast a first copy and a delta get into them, encrypted and not, over loopback and over a
line of 50 ms and 100 Mbit/s; and what memory a gateway takes with a hundred sources.

The stores are real servers on this machine (scripts/store), so on loopback they share its processors with what is
measured: the figures say what Backstay does when the store is the bottleneck. Over the line the line is.
"""

import json
import os
import random
from pathlib import Path

import ship
from common import (GIB, MIB, Timed, drop_caches, fill, median, run, table, verdict)
from link import Link

STORE = Path(__file__).resolve().parents[1] / "store"
ROUND_TRIP_MS, MBIT = 50, 100
# Of the blocks of a disk, in a delta.
CHANGED = 0.05


class Place:
    """Somewhere vaults can be; each vault has a name of its own there."""

    def __init__(self, name, url, env=None, settings=""):
        self.name, self.url, self.env, self.settings = name, url, env or {}, settings


def folder(work, _):
    home = work.dir / "folder"
    home.mkdir(exist_ok=True)
    return Place("file://", f"file://{home}")


def store(kind, port, shown):
    def start(work, link):
        """Here, or at the far end of a link; it holds nothing yet."""
        home = work.dir / f"store-{kind}"
        inside = link.inside(link.far) if link else []
        address = link.address if link else "127.0.0.1"
        said = run(*inside, STORE, kind, "start", "--dir", home, "--address", address, "--port", port,
                   "--until", os.getpid())
        lines = (line.removeprefix("export ") for line in said.splitlines())
        env = {name: value.strip("'") for name, _, value in
               (line.partition("=") for line in lines)}
        place = Place(shown, env.pop("STORE_URL"), env)
        place.stop = lambda: run(STORE, kind, "stop", "--dir", home)
        return place

    return start


KINDS = {"file": folder, "s3": store("s3", 17480, "s3:// (radosgw)"),
         "azurite": store("azurite", 17490, "az:// (Azurite)")}


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

    def cycle(self, place, vault):
        """A cycle, timed: bytes of the disk and of the vault a second, and the most memory."""
        drop_caches()
        env = {**os.environ, **place.env}
        timed = Timed(*self.command(place, "cycle", self.name, "--vault", vault),
                      durable=self.work.dir, env=env)
        points = run(*self.command(place, "--json", "points", self.name, "--vault", vault), env=env)
        newest = max(json.loads(points), key=lambda point: point["cycle"])
        return {"moved": newest["moved_bytes"] / timed.seconds,
                "stored": newest["stored_bytes"] / timed.seconds,
                "seconds": timed.seconds, "rss": timed.rss_mib}


def both_cycles(disk, place, vault, seed):
    """A first copy into a new vault, and a delta."""
    initial = disk.cycle(place, vault)
    disk.change(seed)
    delta = disk.cycle(place, vault)
    print(f"  {disk.name} into {place.name}: initial {initial['moved'] / 1e6:.0f} MB/s"
          f" ({initial['stored'] * 8 / 1e6:.1f} Mbit/s on the line), delta {delta['moved'] / 1e6:.0f} MB/s"
          f" ({delta['stored'] * 8 / 1e6:.1f} Mbit/s), {initial['rss']:.0f} MiB", flush=True)
    return initial, delta


def fresh(work, kind, link=None):
    """A place that holds nothing yet, gone when it is stopped."""
    place = KINDS[kind](work, link)
    stop = getattr(place, "stop", lambda: run("rm", "-rf", work.dir / "folder"))
    return place, stop


def on_loopback(work, size, rounds):
    """Rates of each kind of place: lists of cycles."""
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
    found = {}
    for turn in range(rounds):
        for kind in KINDS:
            place, stop = fresh(work, kind)
            try:
                cycles = both_cycles(disk, place, f"{place.url}/round{turn}", turn)
            finally:
                stop()
            found.setdefault(place.name, []).append(cycles)
    return found


def over_the_link(work, size, rounds):
    """The same over a line; also what the line gives by itself."""
    link = Link(work, ROUND_TRIP_MS, MBIT)
    round_trip, raw = link.measure(10)
    print(f"the line: {round_trip:.1f} ms, TCP gets {raw:.1f} Mbit/s through")
    image = work.dir / "noise.img"
    fill(image, size)
    disk = Disk(work, "noise", image, size, link)
    found = {}
    for turn in range(rounds):
        for kind in KINDS:
            if kind == "file":
                continue
            place, stop = fresh(work, kind, link)
            try:
                cycles = both_cycles(disk, place, f"{place.url}/link{turn}", 100 + turn)
            finally:
                stop()
            found.setdefault(place.name, []).append(cycles)
    return round_trip, raw, found


def compare(work, options):
    quick = options.quick
    rounds = 1 if quick else 3
    loopback = on_loopback(work, 256 * MIB if quick else 2 * GIB, rounds)
    size = (64 if quick else 256) * MIB
    round_trip, raw, linked = over_the_link(work, size, rounds)
    rows = []
    for name, cycles in loopback.items():
        mb = [median([pair[which]["moved"] for pair in cycles]) / 1e6 for which in (0, 1)]
        of_file = [median([pair[which]["moved"] / base[which]["moved"] for pair, base in
                           zip(cycles, loopback["file://"])]) for which in (0, 1)]
        memory = max(cycle["rss"] for pair in cycles for cycle in pair)
        rows.append([name, f"{mb[0]:.0f} MB/s", f"{of_file[0]:.2f}", f"{mb[1]:.0f} MB/s",
                     f"{of_file[1]:.2f}", f"{memory:.0f} MiB"])
    speeds = table(["vault on loopback", "initial", ": file://", "delta", ": file://", "most memory"],
                   rows)
    rows, aims = [], []
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
             f"{ROUND_TRIP_MS}), {MBIT} Mbit/s each way, one TCP connection gets {raw:.1f} Mbit/s through; a "
             f"disk of {size // MIB} MiB that does not compress; bytes that are in the vault afterwards, "
             f"divided by the whole time of the command. Delta: {CHANGED:.0%} of the 4 KiB blocks overwritten "
             f"at random. The page cache is dropped before each cycle.")
    return "\n\n".join([table(["aim", "found", ""], aims), speeds, line, notes])
