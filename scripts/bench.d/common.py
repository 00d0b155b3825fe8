"""What both comparisons use: a work folder, timed commands, loop devices, fio, tables."""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


def run(*command, env=None):
    """Runs a command that must succeed; its output."""
    done = subprocess.run([str(part) for part in command], env=env, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n"
                         f"{done.stdout}{done.stderr}")
    return done.stdout


class Timed:
    """How long a command took until its result was on the disk, and its most memory."""

    def __init__(self, *command, durable, env=None, stdout=None):
        started = time.monotonic()
        with open(stdout, "wb") if stdout else open(os.devnull, "wb") as out:
            child = subprocess.Popen([str(part) for part in command], env=env, stdout=out,
                                     stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
            said = child.stderr.read()
            _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        child.stderr.close()
        if child.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))}: exit code {child.returncode}\n"
                             f"{said.decode(errors='replace')}")
        # The same for all: nothing counts as done before it is durable.
        run("sync", "-f", durable)
        self.seconds = time.monotonic() - started
        self.rss_mib = usage.ru_maxrss / 1024


def drop_caches():
    run("sync")
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def sha256(path):
    return run("sha256sum", path).split()[0]


def fill(path, size):
    """A file without holes, of bytes that do not compress."""
    with open("/dev/urandom", "rb") as noise, open(path, "wb") as out:
        left = size
        while left:
            left -= out.write(noise.read(min(left, 4 * MIB)))
        os.fsync(out.fileno())


def clean_up(*command):
    """Undoes something; what cannot be undone is told and no more."""
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        print(f"clean-up: {' '.join(map(str, command))}: {done.stderr.strip()}")


class Work(contextlib.ExitStack):
    """Two folders, on the disk and on tmpfs, and all that was started there; gone at the end."""

    def __enter__(self):
        super().__enter__()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: exit(143))
        self.dir = Path(tempfile.mkdtemp(prefix="backstay-bench.", dir="/var/tmp"))
        self.runtime = Path(tempfile.mkdtemp(prefix="backstay-bench.", dir="/dev/shm"))
        self.callback(shutil.rmtree, self.runtime, ignore_errors=True)
        self.callback(shutil.rmtree, self.dir, ignore_errors=True)
        return self

    def loop(self, path):
        """A loop device with direct I/O."""
        device = run("losetup", "--find", "--show", "--direct-io=on", path).strip()
        self.callback(clean_up, "losetup", "--detach", device)
        return device

    def backstay(self, *args):
        return run(*self.command(*args))

    def command(self, *args):
        return [os.environ["BACKSTAY"], "--quiet", "--state-dir", self.dir / "state",
                "--runtime-dir", self.runtime, *args]

    def mount(self, name, backing, *flags):
        """Serves a file; where."""
        served = self.backstay("mount", backing, "--name", name, *flags).strip()
        self.callback(clean_up, *self.command("umount", name))
        return Path(served)

    def status(self, name):
        return json.loads(self.backstay("--json", "status", name))[0]

    def vault_init(self, vault):
        """Makes a vault, if it is not there: nothing that ships into one does."""
        path = Path(str(vault).removeprefix("file://"))
        if not (path / "vault.json").exists():
            self.backstay("vault", "init", "--vault", vault, "--replace-missing")

    def cycle(self, name, vault):
        self.vault_init(vault)
        return json.loads(self.backstay("--json", "cycle", name, "--vault", vault))


class Qemu:
    """qemu-storage-daemon: a file as a FUSE export, with a dirty bitmap."""

    def __init__(self, work, name, backing, mode):
        import socket
        self.served = work.dir / f"{name}.export"
        self.served.touch()
        qmp = work.dir / f"{name}.qmp"
        self.process = subprocess.Popen(
            ["qemu-storage-daemon",
             "--blockdev", f"driver=file,node-name=file,filename={backing},discard=unmap,{mode}",
             "--blockdev", "driver=raw,node-name=disk,file=file",
             "--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off",
             "--monitor", "chardev=qmp",
             "--export", f"type=fuse,id=fuse,node-name=disk,mountpoint={self.served},writable=on"],
            stdin=subprocess.DEVNULL)
        work.callback(self.stop)
        for _ in range(100):
            if str(self.served) in Path("/proc/self/mounts").read_text():
                break
            time.sleep(0.05)
        else:
            raise SystemExit("qemu-storage-daemon did not mount its export")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(qmp))
            stream = connection.makefile("rw")
            stream.readline()
            for ask in ({"execute": "qmp_capabilities"},
                        {"execute": "block-dirty-bitmap-add",
                         "arguments": {"node": "disk", "name": "changes"}}):
                stream.write(json.dumps(ask) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
                if "error" in answer:
                    raise SystemExit(f"qemu-storage-daemon: {answer}")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def fio(target, mode, block, depth, seconds, size):
    """One fio run with direct I/O."""
    out = json.loads(run(
        "fio", "--name=bench", f"--filename={target}", f"--rw={mode}", f"--bs={block}",
        f"--iodepth={depth}", "--ioengine=libaio", "--direct=1", f"--size={size}",
        f"--runtime={seconds}", "--time_based", "--ramp_time=0.5", "--norandommap",
        "--randrepeat=0", "--refill_buffers", "--output-format=json"))
    side = out["jobs"][0]["read" if "read" in mode else "write"]
    return {"iops": side["iops"], "mb": side["bw_bytes"] / 1e6,
            "p99_us": side["clat_ns"]["percentile"]["99.000000"] / 1e3}


def median(values):
    return statistics.median(values)


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * part))]


def table(header, rows):
    """A markdown table; the first column left, all others right."""
    rows = [[str(cell) for cell in row] for row in rows]
    lines = ["| " + " | ".join(header) + " |",
             "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def verdict(good):
    return "met" if good else "**missed**"


def machine():
    """What the figures were taken on."""
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                  if line.startswith("model name")), "unknown processor")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    kernel = os.uname().release.split("-")[0]
    where = run("findmnt", "--noheadings", "--output", "FSTYPE", "--target", "/var/tmp").strip()
    load = os.getloadavg()[0]
    return (f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {kernel}, {where}, "
            f"load before the run {load:.1f}")
