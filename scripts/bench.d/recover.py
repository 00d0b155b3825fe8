"""Recovery: how soon a point is there, how fast it is read, how long a full restore takes.

Every point is brought up on another host: state and runtime folders of its own, nothing but the vault's URL.
The page cache is dropped before each measurement. Points are never merged here, so the newest of 1,000 needs
more than 1,000 segments: what a mount finds at worst.

The disk that is full is laid into a vault by sidecar/vault/examples/full_disk, which repeats one frame all over
it: the objects are small, their number and their indexes are those of a real one.
"""

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

from common import (GIB, MIB, Timed, clean_up, drop_caches, fill, median, run, sha256, table, verdict)
from ship import Backstay, Restic, fill_with_files

CHURN = 64 * MIB
# A disk full of data: GiB, segments, points.
FULL = (1024, 32768, 1000)
FULL_QUICK = (64, 512, 20)
ROUNDS = 5


class Host:
    """Another host, which has nothing; what was mounted on it is forgotten each time."""

    def __init__(self, work):
        self.state, self.runtime = work.dir / "other", work.runtime / "other"

    def command(self, *args):
        return [str(part) for part in (os.environ["BACKSTAY"], "--quiet", "--state-dir", self.state,
                                       "--runtime-dir", self.runtime, *args)]

    def mount(self, vault, disk, *flags):
        return Path(run(*self.command("mount", "--vault", f"file://{vault}", "--disk", disk, "--point", "latest",
                                      "--name", "back", *flags)).strip())

    def forget(self):
        run(*self.command("umount", "back", "--forget"))


class Points:
    """A disk with ext4 and a file in it that changes from point to point."""

    def __init__(self, work, name, size):
        self.work, self.name, self.vault, self.made = work, name, work.dir / f"{name}.vault", 0
        image = work.dir / f"{name}.img"
        with open(image, "wb") as file:
            file.truncate(size)
        served = work.mount(name, image)
        self.device = work.loop(served)
        run("mkfs.ext4", "-q", self.device)
        self.at = work.dir / f"{name}.mnt"
        self.at.mkdir()
        run("mount", "-o", "noatime", self.device, self.at)
        work.callback(subprocess.run, ["umount", str(self.at)], check=False)
        fill(self.at / "churn", CHURN)
        self.dice = random.Random(size)

    def make(self, count):
        """Makes points until there are so many."""
        with open(self.at / "churn", "r+b", buffering=0) as file:
            while self.made < count:
                for _ in range(16):
                    at = self.dice.randrange(CHURN // 4096) * 4096
                    os.pwrite(file.fileno(), self.dice.randbytes(4096), at)
                os.fsync(file.fileno())
                self.work.cycle(self.name, self.vault)
                self.made += 1


def bring_up(work, host, points):
    """Seconds from the command to the first byte, and to a file system that is mounted and listed."""
    drop_caches()
    began = time.monotonic()
    served = host.mount(points.vault, points.name)
    with open(served, "rb", buffering=0) as disk:
        assert len(disk.read(4096)) == 4096
    first = time.monotonic() - began
    device = run("losetup", "--find", "--show", "--direct-io=on", served).strip()
    at = work.dir / "back.mnt"
    at.mkdir(exist_ok=True)
    try:
        # As after a power loss: its journal is replayed.
        run("mount", device, at)
        assert "churn" in os.listdir(at)
        mounted = time.monotonic() - began
    finally:
        clean_up("umount", at)
        clean_up("losetup", "--detach", device)
        host.forget()
    return first, mounted


def times_to_data(work, options, host):
    sizes = [GIB, 64 * GIB] if options.quick else [GIB, 64 * GIB, 1024 * GIB]
    counts = [3, 10] if options.quick else [10, 100, 1000]
    rows, worst = [], 0
    for size in sizes:
        points = Points(work, f"disk{size // GIB}", size)
        for count in counts:
            points.make(count)
            found = [bring_up(work, host, points) for _ in range(1 if options.quick else ROUNDS)]
            first, mounted = (median(times) for times in zip(*found))
            worst = max(worst, max(times[0] for times in found))
            rows.append([f"{size // GIB} GiB", count, f"{first:.2f} s", f"{mounted:.2f} s"])
            print("  " + ", ".join(map(str, rows[-1])), flush=True)
    return worst, table(["disk", "points", "to the first byte", "to a mounted file system"], rows)


def full_disk(work, options, host):
    """The same of a disk without a hole, with an ext4 that was just made on it; and what was asked of the vault."""
    gib, segments, points = FULL_QUICK if options.quick else FULL
    vault, image = work.dir / "full.vault", work.dir / "full.img"
    with open(image, "wb") as file:
        file.truncate(gib * GIB)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", image)
    run(os.environ["FULL_DISK"], vault, "full", gib, segments, points, image)
    image.unlink()
    found = []
    for number in range(1 if options.quick else ROUNDS):
        drop_caches()
        began = time.monotonic()
        served = host.mount(vault, "full")
        with open(served, "rb", buffering=0) as disk:
            disk.seek(gib * GIB // (number + 2) + 100 * MIB)
            assert disk.read(4096) == b"\1" * 4096
        first = time.monotonic() - began
        # Read-only, as it is on the disk: this is no power loss.
        at = work.dir / "full.mnt"
        at.mkdir(exist_ok=True)
        device = run("losetup", "--find", "--show", "--read-only", served).strip()
        try:
            run("mount", "-o", "ro", device, at)
            assert os.listdir(at) == ["lost+found"]
            mounted = time.monotonic() - began
        finally:
            clean_up("umount", at)
            clean_up("losetup", "--detach", device)
        took, rss = asked(host), memory(host)
        host.forget()
        found.append((first, mounted, took["requests"], took["in_background"],
                      took["fetched_bytes"] / MIB, rss))
    shutil.rmtree(vault)
    first, mounted, requests, background, mib, rss = (median(values) for values in zip(*found))
    row = [f"{gib} GiB", f"{segments:,}", f"{points:,}", f"{first:.2f} s", f"{mounted:.2f} s",
           f"{requests:.0f}, {background:.0f} of them in the background", f"{mib:.1f} MiB", f"{rss:.0f} MiB"]
    print("  full: " + ", ".join(row), flush=True)
    return max(times[0] for times in found), table(
        ["full disk", "segments", "points", "to the first byte", "to ext4, read-only",
         "requests before the first byte", "fetched", "memory"], [row])


def asked(host):
    """What the first read of the mounted point took; its driver says so every second."""
    for _ in range(200):
        status = json.loads(run(*host.command("--json", "status", "back")))[0]["mounted_point"]
        if status.get("first_read"):
            return status["first_read"]
        time.sleep(0.05)
    raise SystemExit(f"the driver does not say what the first read took: {status}")


def memory(host):
    """MiB of the driver that serves the mounted point."""
    status = json.loads(run(*host.command("--json", "status", "back")))[0]["mounted_point"]
    lines = Path(f"/proc/{status['pid']}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def reads(target, block, depth, amount, size):
    """Reads places chosen by chance, the same in each run; MB/s."""
    out = json.loads(run(
        "fio", "--name=bench", f"--filename={target}", "--rw=randread", f"--bs={block}", f"--iodepth={depth}",
        "--ioengine=libaio", "--direct=1", f"--size={size}", f"--io_size={amount}", "--randseed=7",
        "--allrandrepeat=1", "--readonly", "--output-format=json"))
    return out["jobs"][0]["read"]["bw_bytes"] / 1e6


def throughput(options, host, image, vault, size):
    shapes = [("4 KiB", "4k", 1, 16 * MIB), ("4 KiB", "4k", 16, 64 * MIB), ("64 KiB", "64k", 16, 512 * MIB),
              ("1 MiB", "1m", 4, 1024 * MIB)]
    rows = []
    for label, block, depth, amount in shapes:
        amount = min(amount, size // 4)
        if options.quick:
            amount //= 4
        found = {"cold": [], "warm": [], "file": []}
        for _ in range(1 if options.quick else ROUNDS):
            drop_caches()
            served = host.mount(vault, "disk", "--cache", "8GiB")
            found["cold"].append(reads(served, block, depth, amount, size))
            found["warm"].append(reads(served, block, depth, amount, size))
            host.forget()
            drop_caches()
            found["file"].append(reads(image, block, depth, amount, size))
        rows.append([f"{label}, depth {depth}"] + [f"{median(values):.0f} MB/s" for values in found.values()])
        print("  " + ", ".join(rows[-1]), flush=True)
    return table(["random reads", "cold: from the vault", "warm: from the cache", "a raw file"], rows)


def restores(work, options, image, tools):
    want, rows, results = sha256(image), [], {}
    copy = work.dir / "copy.img"
    run("cp", "--sparse=always", image, copy)
    for _ in range(1 if options.quick else ROUNDS):
        for name, action in [*((tool.name, tool.restore) for tool in tools),
                             ("cp", lambda to: Timed("cp", "--reflink=never", copy, to, durable=to.parent))]:
            folder = work.dir / "restored"
            folder.mkdir()
            drop_caches()
            timed = action(folder / "disk.img")
            if sha256(folder / "disk.img") != want:
                raise SystemExit(f"{name} did not restore the disk")
            shutil.rmtree(folder)
            results.setdefault(name, []).append((timed.seconds, timed.rss_mib))
            print(f"  {name}: {timed.seconds:.2f} s", flush=True)
    for name, found in results.items():
        seconds = median([one[0] for one in found])
        rows.append([name, f"{seconds:.2f} s", f"{os.path.getsize(image) / seconds / 1e6:.0f} MB/s",
                     f"{max(one[1] for one in found):.0f} MiB"])
    return results, table(["full restore", "time", "speed", "most memory"], rows)


def compare(work, options):
    host = Host(work)
    print("times to data")
    worst, times = times_to_data(work, options, host)
    print("a disk full of data")
    worst_full, full_table = full_disk(work, options, host)
    worst = max(worst, worst_full)

    size = (512 * MIB) if options.quick else 4 * GIB
    image = work.dir / "disk.img"
    with open(image, "wb") as file:
        file.truncate(size)
    served = work.mount("disk", image)
    print("copying files in")
    device = run("losetup", "--find", "--show", "--direct-io=on", served).strip()
    try:
        fill_with_files(device, work.dir / "mnt", size)
    finally:
        run("losetup", "--detach", device)
    tools = []
    for tool in (Backstay, Restic):
        home = work.dir / tool.__name__
        home.mkdir()
        tools.append(tool(work, home, image))
        tools[-1].ship()
    print("random reads")
    speeds = throughput(options, host, image, tools[0].vault, size)
    print("full restore")
    results, full = restores(work, options, image, tools)
    ours, theirs = (median([one[0] for one in results[name]]) for name in ("Backstay", "restic"))
    aims = table(["aim", "found", ""], [
        ["the first byte of any point within 1 s (slowest of all)", f"{worst:.2f} s", verdict(worst <= 1)],
        ["a full restore is no slower than restic's", f"{ours / theirs:.2f} × its time", verdict(ours <= theirs)],
    ])
    return (f"{aims}\n\n{times}\n\n{full_table}\n\nThe disk of the following has {size / GIB:g} GiB, three quarters full of real files."
            f"\n\n{speeds}\n\n{full}")
