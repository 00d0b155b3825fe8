"""Shipping: the first copy of a disk, the copy after 1 % changed, and getting it back.

Every tool reads the same file, with the page cache dropped before, and is timed until what it wrote
is on the disk (syncfs). After each restore the result is compared with the disk. The changes are
random 4 KiB blocks, written through the driver, which is there all the time.
"""

import os
import random
import shutil
from pathlib import Path

from common import (GIB, MIB, Timed, drop_caches, median, run, sha256, table, verdict)

BLOCK = 4096


class Backstay:
    """This project: cycles into a vault in a folder."""
    name = "Backstay"

    def __init__(self, work, home, image):
        self.work, self.home, self.image = work, home, image
        self.vault = home / "vault"
        work.vault_init(self.vault)

    def ship(self):
        return Timed(*self.work.command("cycle", "disk", "--vault", self.vault), durable=self.home)

    def restore(self, to):
        return Timed(*self.work.command("restore", "disk", "--point", "latest", "--to", to,
                                        "--vault", self.vault), durable=to.parent)


class Restic:
    name = "restic"

    def __init__(self, _, home, image):
        self.home, self.image = home, image
        self.env = {**os.environ, "RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(home / "repo"),
                    "RESTIC_CACHE_DIR": str(home / "cache")}
        run("restic", "init", env=self.env)

    def ship(self):
        return Timed("restic", "backup", self.image, durable=self.home, env=self.env)

    def restore(self, to):
        timed = Timed("restic", "restore", "latest", "--target", to.parent / "restic",
                      durable=to.parent, env=self.env)
        os.rename(to.parent / "restic" / str(self.image).lstrip("/"), to)
        return timed


class Borg:
    name = "borg"

    def __init__(self, _, home, image):
        self.home, self.image, self.count = home, image, 0
        self.env = {**os.environ, "BORG_BASE_DIR": str(home / "base"), "BORG_REPO": str(home / "repo"),
                    "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        run("borg", "init", "--encryption", "none", env=self.env)

    def ship(self):
        self.count += 1
        return Timed("borg", "create", "--compression", "zstd,1", f"::{self.count}", self.image,
                     durable=self.home, env=self.env)

    def restore(self, to):
        # It writes below the folder it is started in.
        timed = Timed("sh", "-c", f"cd '{to.parent}' && mkdir borg && cd borg && "
                      f"borg extract --sparse ::{self.count}", durable=to.parent, env=self.env)
        os.rename(to.parent / "borg" / str(self.image).lstrip("/"), to)
        return timed


class Rsync:
    name = "rsync --inplace"
    flags = ["--inplace", "--ignore-times"]

    def __init__(self, _, home, image):
        self.home, self.image, self.copy = home, image, home / "copy.img"

    def ship(self):
        return Timed("rsync", *self.flags, self.image, self.copy, durable=self.home)

    def restore(self, to):
        return Timed("rsync", *self.flags, self.copy, to, durable=to.parent)


class RsyncDelta(Rsync):
    name = "rsync --inplace --no-whole-file"
    flags = ["--inplace", "--ignore-times", "--no-whole-file"]


class Zstd:
    """Not a backup tool: what reading and compressing the file costs at least."""
    name = "zstd -1 -T2"

    def __init__(self, _, home, image):
        self.image, self.copy = image, home / "copy.zst"

    def ship(self):
        return Timed("zstd", "-1", "-T2", "--force", "--quiet", self.image, "-o", self.copy,
                     durable=self.copy.parent)

    def restore(self, to):
        return Timed("zstd", "-d", "--quiet", self.copy, "-o", to, durable=to.parent)


TOOLS = [Backstay, Zstd, Restic, Borg, Rsync, RsyncDelta]


def fill_with_files(device, mnt, size):
    """A file system with real files, three quarters full."""
    run("mkfs.ext4", "-q", device)
    mnt.mkdir()
    run("mount", device, mnt)
    try:
        done = 0
        for number in range(100):
            for tree in ("/usr/lib", "/usr/share", "/usr/bin", "/usr/include"):
                if done > size * 3 // 4 or not Path(tree).is_dir():
                    continue
                budget = size * 3 // 4 - done
                done += copy_some(Path(tree), mnt / str(number) / tree.lstrip("/"), budget)
            if done > size * 3 // 4 - 64 * MIB:
                return
    finally:
        run("umount", mnt)


def copy_some(source, target, budget):
    """Copies files until so many bytes are there."""
    done = 0
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder) / name
            if path.is_symlink() or not path.is_file():
                continue
            length = path.stat().st_size
            if done + length > budget:
                return done + 1
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
            done += length
    return done


def change(served, size, seed):
    """Overwrites 1 % of all blocks, anywhere, with bytes that do not compress."""
    dice = random.Random(seed)
    with open(served, "r+b", buffering=0) as disk:
        for block in sorted(dice.sample(range(size // BLOCK), size // BLOCK // 100)):
            os.pwrite(disk.fileno(), dice.randbytes(BLOCK), block * BLOCK)
        os.fsync(disk.fileno())


def compare(work, options):
    size = (512 * MIB) if options.quick else 4 * GIB
    rounds = 1 if options.quick else 5
    image = work.dir / "disk.img"
    with open(image, "wb") as file:
        file.truncate(size)
    served = work.mount("disk", image, "--engine", options.engine)
    print("copying files in")
    device = run("losetup", "--find", "--show", "--direct-io=on", served).strip()
    try:
        fill_with_files(device, work.dir / "mnt", size)
    finally:
        run("losetup", "--detach", device)
    results = {(tool.name, what): [] for tool in TOOLS
               for what in ("initial", "delta", "restore", "rss")}
    for turn in range(rounds):
        one_round(work, image, served, size, turn, results)
    print("memory of the driver")
    return report(results, size, driver_memory(work, options))


def one_round(work, image, served, size, turn, results):
    tools = []
    for tool in TOOLS:
        home = work.dir / f"round{turn}-{len(tools)}"
        home.mkdir()
        tools.append(tool(work, home, image))

    def measure(tool, what, action):
        drop_caches()
        timed = action()
        results[tool.name, what].append(timed.seconds)
        results[tool.name, "rss"].append(timed.rss_mib)
        print(f"  round {turn + 1}, {tool.name}, {what}: {timed.seconds:.2f} s,"
              f" {timed.rss_mib:.0f} MiB", flush=True)

    for tool in tools:
        measure(tool, "initial", tool.ship)
    change(served, size, turn)
    for tool in tools:
        measure(tool, "delta", tool.ship)
    want = sha256(image)
    for tool in tools:
        to = work.dir / "restored.img"
        measure(tool, "restore", lambda: tool.restore(to))
        if sha256(to) != want:
            raise SystemExit(f"{tool.name} restored something else")
        for path in (to, work.dir / "restic", work.dir / "borg"):
            run("rm", "-rf", path)
    for number in range(len(tools)):
        shutil.rmtree(work.dir / f"round{turn}-{number}")


def driver_memory(work, options):
    """Resident memory of drivers of sparse 1 TiB disks after random 4 KiB writes."""
    found = []
    count = 20_000 if options.quick else 200_000
    for name, span in (("16 GiB of it", 16 * GIB), ("all of it", 1 << 40)):
        disk = f"big{span >> 30}"
        image = work.dir / f"{disk}.img"
        with open(image, "wb") as file:
            file.truncate(1 << 40)
        served = work.mount(disk, image, "--engine", options.engine)
        run("fio", "--name=busy", f"--filename={served}", "--rw=randwrite", "--bs=4k",
            "--iodepth=16", "--ioengine=libaio", "--direct=1", f"--size={span}",
            f"--number_ios={count}", "--norandommap", "--randrepeat=0")
        pid = work.status(disk)["driver"]["pid"]
        fields = dict(line.split(":", 1) for line in
                      Path(f"/proc/{pid}/status").read_text().splitlines())
        mib = {key: int(fields[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile", "RssShmem")}
        found.append((name, count, mib))
        print(f"  writes to {name}: {mib}")
    return found


def report(results, size, memory):
    def typical(tool, what):
        return median(results[tool, what])

    def ratio(tool, what):
        return median([a / b for a, b in zip(results[tool, what], results["Backstay", what])])

    rows = []
    for tool in TOOLS:
        cells = [tool.name]
        for what in ("initial", "delta", "restore"):
            cells += [f"{typical(tool.name, what):.2f} s", f"{ratio(tool.name, what):.1f} ×"]
        rows.append([*cells, f"{max(results[tool.name, 'rss']):.0f} MiB"])
    times = table(["tool", "initial", ": Backstay", "delta", ": Backstay", "restore", ": Backstay",
                   "most memory"], rows)
    rsync = min(ratio("rsync --inplace", "delta"), ratio(RsyncDelta.name, "delta"))
    sidecar = max(results["Backstay", "rss"])
    aims = table(["aim", "found", ""], [
        ["initial at least as fast as zstd -1 -T2", f"{ratio('zstd -1 -T2', 'initial'):.2f} ×",
         verdict(ratio("zstd -1 -T2", "initial") >= 1)],
        ["initial 2 × restic", f"{ratio('restic', 'initial'):.1f} ×",
         verdict(ratio("restic", "initial") >= 2)],
        ["delta 30 × restic", f"{ratio('restic', 'delta'):.1f} ×",
         verdict(ratio("restic", "delta") >= 30)],
        ["delta 30 × rsync (the faster way)", f"{rsync:.1f} ×", verdict(rsync >= 30)],
        ["restore 2 × restic", f"{ratio('restic', 'restore'):.1f} ×",
         verdict(ratio("restic", "restore") >= 2)],
        ["sidecar at most 256 MiB", f"{sidecar:.0f} MiB", verdict(sidecar <= 256)],
        *[[f"driver at most 64 MiB, busy 1 TiB sparse disk, writes to {name}",
           f"{sum(mib.values()):.0f} MiB", verdict(sum(mib.values()) <= 64)]
          for name, _, mib in memory],
    ])
    drivers = table(
        ["driver of a sparse 1 TiB disk", "own memory", "program", "bitmap pages on tmpfs"],
        [[f"{count} random 4 KiB writes to {name}", f"{mib['RssAnon']:.1f} MiB",
          f"{mib['RssFile']:.1f} MiB", f"{mib['RssShmem']:.1f} MiB"]
         for name, count, mib in memory])
    notes = (f"An image of {size / GIB:.1f} GiB with ext4 and real files (libraries, programs,"
             " documentation), three quarters full. Page cache dropped before each measurement; each"
             " ends when what it wrote is on the disk (syncfs). delta: after 1 % of the 4 KiB blocks"
             " were overwritten at random. restic encrypts; borg is set not to (zstd,1); Backstay"
             " writes to a plain vault (the section on vaults has encrypted ones). Ratios are medians"
             " of the rounds' own ratios.")
    return "\n\n".join([aims, times, drivers, notes])
