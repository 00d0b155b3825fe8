"""The guest's path: what a read or write costs through the driver, and beside it.

All files are of one size, without holes, on one file system; all are set up before the first
measurement and measured in turn, round after round, so that the machine's moods hit all alike.
Direct I/O throughout; the page cache of the backing files is warm for anyone who uses it.
"""

import subprocess
import threading

from common import (MIB, GIB, Qemu, Work, fill, fio, median, percentile, run, table, verdict)

SHAPES = [
    ("4 KiB random write, depth 1", "randwrite", "4k", 1),
    ("4 KiB random write, depth 16", "randwrite", "4k", 16),
    ("4 KiB random read, depth 1", "randread", "4k", 1),
    ("4 KiB random read, depth 16", "randread", "4k", 16),
    ("1 MiB sequential write, depth 4", "write", "1m", 4),
    ("1 MiB sequential read, depth 4", "read", "1m", 4),
]


class Cycles(threading.Thread):
    """Cycles of a disk, back to back."""

    def __init__(self, work, name, vault):
        super().__init__()
        self.work, self.name_of_disk, self.vault = work, name, vault
        self.stopping = threading.Event()
        self.held_ms = []
        self.failed = 0

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join()

    def run(self):
        while not self.stopping.is_set():
            try:
                report = self.work.cycle(self.name_of_disk, self.vault)
                self.held_ms.append(report["held_ns"] / 1e6)
            except SystemExit as error:
                # A cycle may lose its point in time under such load; the guest must not notice.
                self.failed += 1
                print(f"  a cycle failed: {str(error).strip().splitlines()[-1]}")


class Service:
    """The sidecar's service over all disks of a work folder, a cut each second."""

    def __init__(self, work, vault):
        work.vault_init(vault)
        config = work.dir / "second.toml"
        config.write_text(f'vault = "{vault}"\ninterval = "1s"\n')
        self.command = work.command("--config", config, "sidecar")

    def __enter__(self):
        self.process = subprocess.Popen([str(part) for part in self.command],
                                        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def show(shape, result):
    if shape[1] in ("read", "write"):
        return f"{result['mb'] / 1000:.2f} GB/s"
    return f"{result['iops'] / 1000:.1f}k"


def compare(work, options):
    size = (256 * MIB) if options.quick else GIB
    rounds, seconds = (1, 2) if options.quick else (5, 4)
    first = work.dir / "raw.img"
    print("making files")
    fill(first, size)

    def copy(name):
        path = work.dir / f"{name}.img"
        run("cp", "--sparse=never", "--reflink=never", first, path)
        run("sync", "-f", path)
        return path

    engine = ("--engine", options.engine)
    # Of its own: the service ships every disk it finds.
    seconds_work = work.enter_context(Work())
    targets = {
        "raw loop device": work.loop(first),
        "tracking off": work.loop(work.mount("off", copy("off"), "--no-tracking", *engine)),
        "tracking on": work.loop(work.mount("on", copy("on"), *engine)),
        "a cut a second": seconds_work.loop(seconds_work.mount("disk", copy("second"), *engine)),
        "cycle running": work.loop(work.mount("cycle", copy("cycle"), *engine)),
        "qemu, cached": Qemu(work, "cached", copy("cached"), "cache.direct=off").served,
        "qemu, direct": Qemu(work, "direct", copy("direct"), "cache.direct=on,aio=native").served,
        "Backstay": work.mount("file", copy("file"), *engine),
    }
    results = {(shape[0], name): [] for shape in SHAPES for name in targets}
    held_ms, failed = [], 0
    for turn in range(rounds):
        for shape in SHAPES:
            for name, target in targets.items():
                measure = lambda: fio(target, shape[1], shape[2], shape[3], seconds, size)
                if name == "cycle running":
                    vault = work.dir / f"vault{turn}-{shape[1]}-{shape[3]}"
                    work.cycle("cycle", vault)
                    with Cycles(work, "cycle", vault) as cycles:
                        result = measure()
                    held_ms += cycles.held_ms
                    failed += cycles.failed
                    run("rm", "-rf", vault)
                elif name == "a cut a second":
                    vault = seconds_work.dir / f"vault{turn}-{shape[1]}-{shape[3]}"
                    seconds_work.cycle("disk", vault)
                    with Service(seconds_work, vault):
                        result = measure()
                    run("rm", "-rf", vault)
                else:
                    result = measure()
                results[shape[0], name].append(result)
                print(f"  round {turn + 1}, {shape[0]}, {name}: {show(shape, result)},"
                      f" p99 {result['p99_us']:.0f} us", flush=True)
    status = work.status("on")
    return report(results, targets, held_ms, failed, status["driver"]["engine"])


def report(results, targets, held_ms, failed, engine):
    def typical(shape, name, key="iops"):
        return median([result[key] for result in results[shape[0], name]])

    def ratio(shape, name, to):
        # Of each round, then the median: both were taken in the same minute.
        pairs = zip(results[shape[0], name], results[shape[0], to])
        return median([a["iops"] / b["iops"] for a, b in pairs])

    def cell(shape, name):
        return show(shape, {"iops": typical(shape, name), "mb": typical(shape, name, "mb")})

    loops = [name for name in list(targets)[:5]]
    first = table(
        ["through a loop device", *loops, "on : raw", "on : off", "p99 on",
         "p99 a cut a second", "p99 cycle"],
        [[shape[0], *[cell(shape, name) for name in loops],
          f"{ratio(shape, 'tracking on', 'raw loop device'):.2f}",
          f"{ratio(shape, 'tracking on', 'tracking off'):.2f}",
          f"{typical(shape, 'tracking on', 'p99_us'):.0f} µs",
          f"{typical(shape, 'a cut a second', 'p99_us'):.0f} µs",
          f"{typical(shape, 'cycle running', 'p99_us'):.0f} µs"] for shape in SHAPES])

    def best_qemu(shape):
        return max(("qemu, cached", "qemu, direct"), key=lambda name: typical(shape, name))

    second = table(
        ["on the FUSE file", "qemu, cached", "qemu, direct", "Backstay", "Backstay : better qemu"],
        [[shape[0], *[cell(shape, name) for name in ("qemu, cached", "qemu, direct", "Backstay")],
          f"{ratio(shape, 'Backstay', best_qemu(shape)):.2f}"] for shape in SHAPES])

    worst_raw = min(ratio(shape, "tracking on", "raw loop device") for shape in SHAPES)
    worst_off = min(ratio(shape, "tracking on", "tracking off") for shape in SHAPES)
    worst_p99 = {name: max(typical(shape, name, "p99_us") / typical(shape, "tracking on", "p99_us")
                           for shape in SHAPES) for name in ("a cut a second", "cycle running")}
    writes, reads = SHAPES[1], SHAPES[3]
    writes, reads = (ratio(shape, "Backstay", best_qemu(shape)) for shape in (writes, reads))
    cut = percentile(held_ms, 0.99) if held_ms else float("inf")
    aims = table(["aim", "found", ""], [
        ["no shape below 0.95 × the raw loop device", f"{worst_raw:.2f}",
         verdict(worst_raw >= 0.95)],
        ["tracking costs at most 3 %", f"{(1 - worst_off) * 100:.1f} %", verdict(worst_off >= 0.97)],
        *[[f"p99 while cycles ship ({name}) at most 1.5 × that without", f"{worst:.2f} ×",
           verdict(worst <= 1.5)] for name, worst in worst_p99.items()],
        ["random writes at depth 16, FUSE file: 2 × qemu", f"{writes:.2f} ×", verdict(writes >= 2)],
        ["random reads at depth 16, FUSE file: 3 × qemu", f"{reads:.2f} ×", verdict(reads >= 3)],
        [f"a cut holds writes at most 5 ms (p99 of {len(held_ms)} cuts)", f"{cut:.2f} ms",
         verdict(cut <= 5)],
    ])
    notes = (f"Engine of the driver: {engine}. fio with libaio and direct I/O. The backing files'"
             " page cache is warm; the raw loop device and \"qemu, direct\" go past it, so reads"
             " that others answer from memory are not the same work. While \"cycle running\","
             f" cycles ran back to back, a hundred a second when there was little to ship; {failed} of {len(held_ms) + failed} lost their point in"
             " time under the load and folded back.")
    return "\n\n".join([aims, first, second, notes])
