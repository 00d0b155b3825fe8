"""Resync: comparing a disk with its newest recovery point by checksums.

The disk is full of bytes that do not compress. Page cache dropped before each measurement. First both
sides are equal: nothing but checksums may move, and it should take about as long as reading the disk.
Then 1 % of its 64 KiB chunks get a change of 4 KiB each, behind the driver's back. rsync compares the
same disk with a copy of it that is kept beside it.
"""

import json
import os
import random

from common import (GIB, MIB, Timed, drop_caches, fill, median, run, sha256, table, verdict)

CHUNK = 64 * 1024
ROUNDS = 3


def change(image, size, seed):
    """Changes 4 KiB in 1 % of the chunks; how many chunks."""
    dice = random.Random(seed)
    chosen = sorted(dice.sample(range(size // CHUNK), size // CHUNK // 100))
    with open(image, "r+b", buffering=0) as disk:
        for chunk in chosen:
            at = chunk * CHUNK + dice.randrange(CHUNK // 4096) * 4096
            os.pwrite(disk.fileno(), dice.randbytes(4096), at)
        os.fsync(disk.fileno())
    return len(chosen)


def compare(work, options):
    size = (512 * MIB) if options.quick else 4 * GIB
    rounds = 1 if options.quick else ROUNDS
    image, copy, vault = work.dir / "disk.img", work.dir / "copy.img", work.dir / "vault"
    fill(image, size)
    run("cp", "--reflink=never", image, copy)
    work.mount("disk", image, "--engine", options.engine)
    work.cycle("disk", vault)
    found = {key: [] for key in ("read", "equal", "equal moved", "changed", "changed moved",
                                 "changed chunks", "rsync equal", "rsync changed")}

    def measure(key, *command, stdout=None):
        drop_caches()
        timed = Timed(*command, durable=work.dir, stdout=stdout)
        found[key].append(timed.seconds)
        print(f"  {key}: {timed.seconds:.2f} s", flush=True)

    def resync(key):
        out = work.dir / "report.json"
        measure(key, *work.command("--json", "resync", "disk", "--now", "--vault", vault),
                stdout=out)
        report = json.loads(out.read_text())
        found[f"{key} moved"].append(report["fetched"] + report["stored"])

    rsync = ("rsync", "-c", "--inplace", "--no-whole-file", image, copy)
    for turn in range(rounds):
        print(f"round {turn + 1}")
        measure("read", "dd", f"if={image}", "of=/dev/null", "bs=1M", "status=none")
        resync("equal")
        measure("rsync equal", *rsync)
        # The driver must not look while the backing changes.
        work.backstay("umount", "disk")
        found["changed chunks"].append(change(image, size, turn))
        work.backstay("mount", image, "--name", "disk", "--engine", options.engine)
        resync("changed")
        measure("rsync changed", *rsync)
    # Every round builds on the one before, so the last one answers for all.
    if sha256(copy) != sha256(image):
        raise SystemExit("rsync's copy is another disk")
    run("rm", "-f", work.dir / "restored.img")
    work.backstay("restore", "disk", "--point", "latest", "--to", work.dir / "restored.img",
                  "--vault", vault)
    if sha256(work.dir / "restored.img") != sha256(image):
        raise SystemExit("the restored point is another disk")
    return report(found, size)


def report(found, size):
    def ratio(a, b):
        return median([x / y for x, y in zip(found[a], found[b])])

    speed = ratio("read", "equal")
    bound = [1.1 * chunks * CHUNK + size / 1000 for chunks in found["changed chunks"]]
    moved = max(m / b for m, b in zip(found["changed moved"], bound))
    aims = table(["aim", "found", ""], [
        ["equal disks: at least 0.9 × the speed of reading the disk once", f"{speed:.2f} ×",
         verdict(speed >= 0.9)],
        ["equal disks: bytes moved, of the disk (checksums only)",
         f"{max(found['equal moved']) / size * 100:.3f} %",
         verdict(max(found["equal moved"]) <= size / 1000)],
        ["1 % of the chunks changed: bytes moved, of 1.1 × the chunks + 0.1 % of the disk",
         f"{moved:.2f}", verdict(moved <= 1)],
        ["faster than rsync -c --inplace --no-whole-file, equal",
         f"{ratio('rsync equal', 'equal'):.1f} ×", verdict(ratio("rsync equal", "equal") > 1)],
        ["faster than rsync -c --inplace --no-whole-file, 1 % changed",
         f"{ratio('rsync changed', 'changed'):.1f} ×",
         verdict(ratio("rsync changed", "changed") > 1)],
    ])
    times = table(["seconds", "read once", "resync", "rsync"], [
        ["both sides equal", *[f"{median(found[key]):.2f}"
                               for key in ("read", "equal", "rsync equal")]],
        ["1 % of the chunks changed", f"{median(found['read']):.2f}",
         *[f"{median(found[key]):.2f}" for key in ("changed", "rsync changed")]],
    ])
    notes = (f"A disk of {size / GIB:.1f} GiB full of noise, page cache dropped before each"
             " measurement. Bytes moved are those read from the vault and those put there. After"
             " the last round both copies were compared with the disk.")
    return "\n\n".join([aims, times, notes])
