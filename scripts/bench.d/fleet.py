"""A fleet: one sidecar, many disks, most of them quiet.

Each disk has a driver of its own; one sidecar serves all. First they are left alone, then the sidecar
makes a first point of each and is left alone with them, then a few are written to while cycles run at
an interval that leaves room for the RPO they must keep: from a cut to the commit of the next point,
which is the oldest a newest point ever gets. That is read from the vault, of every point of every
disk.
"""

import concurrent.futures
import json
import os
import random
import subprocess
import threading
import time
from pathlib import Path

from common import MIB, clean_up, median, percentile, run, table, verdict

# What a disk may lose at most, and what the cycles are set to so that it does not.
RPO_SECONDS = 300
TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """What the kernel says of a process."""

    def __init__(self, pid):
        self.pid = pid

    def read(self, name):
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def field(self, name, of):
        """A field in KiB, or a count."""
        line = next(line for line in self.read(of).splitlines() if line.startswith(name + ":"))
        return int(line.split()[1])

    def cpu_seconds(self):
        """Time on a processor, of all threads: those that are there, to the nanosecond."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except (FileNotFoundError, ProcessLookupError):
                pass
        return total / 1e9

    def cpu_ticks_seconds(self):
        """Time on a processor, of threads that have ended, too."""
        fields = self.read("stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class Writer(threading.Thread):
    """Writes to a disk at a steady rate and flushes each second."""

    def __init__(self, served, size, writes_per_second, stop):
        super().__init__()
        self.served, self.size, self.rate, self.stop = served, size, writes_per_second, stop
        self.written = 0

    def run(self):
        rng = random.Random(str(self.served))
        file = os.open(self.served, os.O_WRONLY)
        started = time.monotonic()
        try:
            while not self.stop.is_set():
                for _ in range(self.rate):
                    block = rng.randrange(self.size // 4096)
                    os.pwrite(file, os.urandom(4096), block * 4096)
                os.fsync(file)
                self.written += self.rate * 4096
                due = started + self.written / (self.rate * 4096)
                self.stop.wait(max(0, due - time.monotonic()))
        finally:
            os.close(file)


class Fleet:
    """The disks and their drivers."""

    def __init__(self, work, count, size):
        self.work, self.size = work, size
        self.names = [f"disk{number:04}" for number in range(count)]
        (work.dir / "disks").mkdir()
        self.state = work.dir / "state"
        self.served = {}
        self.processes = []

    def each(self, do):
        """Does something for all disks, a few at a time."""
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return list(pool.map(do, self.names))

    def mount(self):
        """Serves all; how long that took."""
        def one(name):
            backing = self.work.dir / "disks" / name
            with open(backing, "wb") as file:
                # A little of everything: some data, mostly holes.
                file.write(os.urandom(MIB))
                file.truncate(self.size)
            return self.work.backstay("mount", backing, "--name", name).strip()

        self.work.callback(self.umount)
        started = time.monotonic()
        self.served = dict(zip(self.names, self.each(one)))
        seconds = time.monotonic() - started
        started = time.monotonic()
        status = json.loads(self.work.backstay("--json", "status"))
        self.status_seconds = time.monotonic() - started
        self.processes = [Process(disk["driver"]["pid"]) for disk in status if disk["driver"]]
        if len(self.processes) != len(self.names):
            raise SystemExit(f"{len(self.processes)} of {len(self.names)} drivers answer")
        return seconds

    def umount(self):
        self.each(lambda name: clean_up(*self.work.command("umount", name)))

    def cpu_seconds(self):
        return sum(process.cpu_seconds() for process in self.processes)

    def pss_kib(self):
        return [process.field("Pss", "smaps_rollup") for process in self.processes]

    def tmpfs_kib(self):
        return int(run("du", "-skx", self.work.runtime).split()[0])

    def records(self):
        """What the sidecar remembers of each disk."""
        for name in self.names:
            try:
                yield name, json.loads((self.state / name / "sidecar.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                yield name, {"last": None, "failures": 0, "failure": None}

    def points(self, vault):
        """Cut and commit of every point of every disk, in seconds since 1970."""
        def one(name):
            listed = json.loads(self.work.backstay("--json", "points", name, "--vault", vault))
            return [(p["cut_unix_ns"] / 1e9, p["committed_unix_ns"] / 1e9) for p in listed]

        return dict(zip(self.names, self.each(one)))


class Sidecar:
    """One sidecar over the fleet."""

    def __init__(self, fleet, vault, interval):
        config = fleet.work.dir / f"every-{interval}.toml"
        config.write_text(f'vault = "{vault}"\ninterval = "{interval}s"\n')
        self.fleet = fleet
        self.command = fleet.work.command("--config", config, "sidecar")
        self.log = fleet.work.dir / "sidecar.log"

    def __enter__(self):
        self.began = time.time()
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen([str(part) for part in self.command], stderr=log,
                                          stdin=subprocess.DEVNULL)
        self.process = Process(self.child.pid)
        return self

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait()

    def wait_for_all(self, patience):
        """Until every disk has a point of this sidecar; how long that took."""
        started, missing = time.monotonic(), []
        while time.monotonic() - started < patience:
            if self.child.poll() is not None:
                raise SystemExit(f"the sidecar ended: {self.log.read_text()[-2000:]}")
            missing = [name for name, record in self.fleet.records()
                       if not record["last"]
                       or record["last"]["cut_unix_ns"] < self.began * 1e9]
            if not missing:
                return time.monotonic() - started
            time.sleep(1)
        raise SystemExit(f"{len(missing)} disks have no point after {patience} s; the sidecar "
                         f"said:\n{self.log.read_text()[-2000:]}")


    def settle(self, patience):
        """Until no disk's record has changed for some seconds: a first point is followed by another."""
        started, before, since = time.monotonic(), None, time.monotonic()
        while time.monotonic() - started < patience:
            now = [record["last"]["cycle"] for _, record in self.fleet.records() if record["last"]]
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > 5:
                return
            time.sleep(1)


def over(seconds, sidecar, fleet):
    """Processor time that drivers and sidecar use while some seconds pass."""
    drivers, ship = fleet.cpu_seconds(), sidecar.process.cpu_ticks_seconds() if sidecar else 0
    started = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - started
    used = fleet.cpu_seconds() - drivers
    shipped = (sidecar.process.cpu_ticks_seconds() if sidecar else 0) - ship
    return 100 * used / passed, 100 * shipped / passed


def worst_rpo(points, since, until):
    """The oldest that a disk's newest point became between two instants."""
    worst, newest = 0, None
    for cut, committed in points:
        if newest is not None and since <= committed <= until:
            worst = max(worst, committed - newest)
        newest = cut
    return max(worst, until - newest) if newest else float("inf")


def compare(work, options):
    count, size, hot = (100, 64 * MIB, 4) if options.quick else (1000, 256 * MIB, 10)
    count = options.disks or count
    interval, idle, minutes = (20, 10, 1) if options.quick else (240, 60, 12)
    minutes = options.minutes or minutes
    vault = f"file://{work.dir}/vault"
    work.vault_init(vault)
    fleet = Fleet(work, count, size)
    print(f"serving {count} disks")
    mounted = fleet.mount()
    print(f"  took {mounted:.0f} s; leaving them alone for {idle} s")
    fresh = fleet.pss_kib()
    alone, _ = over(idle, None, fleet)

    with Sidecar(fleet, vault, 86400) as sidecar:
        first = sidecar.wait_for_all(3600)
        print(f"  a first point of each: {first:.0f} s; leaving them alone again")
        sidecar.settle(600)
        drivers_idle, sidecar_idle = over(idle, sidecar, fleet)
        quiet_pss = sidecar.process.field("Pss", "smaps_rollup")

    stop = threading.Event()
    writers = [Writer(fleet.served[name], size, 50, stop) for name in fleet.names[:hot]]
    with Sidecar(fleet, vault, interval) as sidecar:
        for writer in writers:
            writer.start()
        try:
            whole = sidecar.wait_for_all(3600)
            print(f"  a point of each again, with {hot} being written: {whole:.0f} s; "
                  f"{minutes} minutes of cycles every {interval} s")
            since = time.time()
            drivers_busy, sidecar_busy = over(minutes * 60, sidecar, fleet)
            until = time.time()
            peak = sidecar.process.field("VmHWM", "status")
            threads = sidecar.process.field("Threads", "status")
        finally:
            stop.set()
            for writer in writers:
                writer.join()
    pss, tmpfs = fleet.pss_kib(), fleet.tmpfs_kib()
    failed = [(name, record) for name, record in fleet.records() if record["failures"]]
    for name, record in failed[:5]:
        print(f"  {name}: {record['failure']['message']}")
    print("  reading the points of all disks")
    points = fleet.points(vault)
    made = sum(1 for all in points.values() for _, at in all if since <= at <= until)
    rpo = [worst_rpo(all, since, until) for all in points.values()]
    limit = RPO_SECONDS if not options.quick else 5 * interval
    rows = [
        ("drivers: time to serve all", f"{mounted:.0f} s"),
        ("driver: memory (PSS), median and most, fresh",
         f"{median(fresh) / 1024:.2f} and {max(fresh) / 1024:.2f} MiB"),
        ("driver: memory (PSS), median and most, after the run",
         f"{median(pss) / 1024:.2f} and {max(pss) / 1024:.2f} MiB"),
        ("driver: tmpfs for each disk (bitmaps)", f"{tmpfs / count:.0f} KiB"),
        ("driver: threads", f"{fleet.processes[0].field('Threads', 'status')}"),
        ("all drivers, no sidecar, nothing written: processor", f"{alone:.2f} % of one"),
        ("all drivers, sidecar idle: processor", f"{drivers_idle:.2f} % of one"),
        ("sidecar, idle: processor", f"{sidecar_idle:.2f} % of one"),
        ("sidecar: memory (PSS) idle", f"{quiet_pss / 1024:.0f} MiB"),
        ("`backstay status` of all", f"{fleet.status_seconds:.2f} s"),
        ("first point of every disk after", f"{first:.0f} s"),
        (f"cycles of all, {hot} disks hot: all drivers' processor", f"{drivers_busy:.1f} % of one"),
        (f"cycles of all, {hot} disks hot: sidecar's processor", f"{sidecar_busy:.1f} % of one"),
        ("sidecar: most memory (RSS), threads at the end",
         f"{peak / 1024:.0f} MiB, {threads}"),
        (f"points made in {minutes} minutes", f"{made}"),
        ("disks with a failed cycle", f"{len(failed)}"),
        ("RPO of a disk, median", f"{median(rpo):.0f} s"),
        ("RPO of a disk, 99th percentile", f"{percentile(rpo, 0.99):.0f} s"),
        (f"RPO of the worst disk (at most {limit} s)",
         f"{max(rpo):.0f} s, {verdict(max(rpo) <= limit)}"),
    ]
    about = (f"{count} sparse disks of {size // MIB} MiB, one sidecar with default settings, cycles "
             f"every {interval} s, {hot} disks written at 200 KiB/s each.")
    return f"{about}\n\n{table(['what', 'measured'], rows)}"
