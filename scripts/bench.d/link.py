"""A link between two network namespaces: so many milliseconds there and back, so many bits a second.

netem is not in every kernel, so the delay is ours: a TUN device on each side, and a process that hands each packet to
the other one when its time has come. The rate is the kernel's (tbf). Nothing is lost but what does not fit into the
queue in front of the rate, as on a real line.

As a program it is that process: `link.py MILLISECONDS SPACE SPACE`, until its input ends.
"""

import collections
import contextlib
import ctypes
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

from common import clean_up, median, run

DEVICE = "line"
ADDRESSES = ("10.99.9.1", "10.99.9.2")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
PORT = 17470


def enter(space):
    """Has what this process opens from now on belong to a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}", "rb") as handle:
        if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {space}")


def device(space):
    """A TUN device of a namespace; what is read there is what is sent there."""
    enter(space)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def hand_on(seconds, spaces):
    """Hands on packets, each after its time, until standard input ends."""
    sides = [device(space) for space in spaces]
    print("ready", flush=True)
    waiting = {side: collections.deque() for side in sides}
    other = {sides[0]: sides[1], sides[1]: sides[0]}
    while True:
        now = time.monotonic()
        first = min((queue[0][0] for queue in waiting.values() if queue), default=now + 1)
        ready, _, _ = select.select([*sides, sys.stdin], [], [], max(0, first - now))
        if sys.stdin in ready:
            return
        for side in ready:
            try:
                for _ in range(64):
                    packet = os.read(side, 65536)
                    waiting[side].append((time.monotonic() + seconds, packet))
            except BlockingIOError:
                pass
        now = time.monotonic()
        for side, queue in waiting.items():
            while queue and queue[0][0] <= now:
                # Towards a device that is not up it is lost.
                with contextlib.suppress(OSError):
                    os.write(other[side], queue.popleft()[1])


class Control:
    """The congestion control of TCP that Linux has when nobody chose another (cubic). In namespaces only what the
    host allows can be set; what it allows is put back."""

    WANTED = "cubic"
    ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    HERE = "/proc/sys/net/ipv4/tcp_congestion_control"

    def __init__(self, link):
        before = self.ALLOWED.read_text()
        if self.WANTED not in before.split():
            # A kernel without it refuses: then it is the host's.
            with contextlib.suppress(OSError):
                self.ALLOWED.write_text(f"{before.strip()} {self.WANTED}")
        try:
            for space in (link.near, link.far):
                subprocess.run(link.inside(space, "tee", self.HERE), input=self.WANTED, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        finally:
            self.ALLOWED.write_text(before)
        self.name = run(*link.inside(link.near, "cat", self.HERE)).strip()


class Link:
    """Two namespaces, `near` and `far`, with the link between them; gone with the work."""

    def __init__(self, work, round_trip_ms, mbit):
        tag = f"bsb{os.getpid()}"
        self.near, self.far = spaces = [f"{tag}-near", f"{tag}-far"]
        self.address = ADDRESSES[1]
        for space in spaces:
            run("ip", "netns", "add", space)
            work.callback(clean_up, "ip", "netns", "del", space)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(round_trip_ms / 2), *spaces], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        work.callback(self.stop)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit("the link did not come up")
        # What the line holds in its time, twice over, waits in front of it; then packets are lost.
        queue = int(mbit * 1e6 / 8 * round_trip_ms / 1e3 * 2)
        for space, here, there in zip(spaces, ADDRESSES, reversed(ADDRESSES)):
            run("ip", "-n", space, "link", "set", "lo", "up")
            run("ip", "-n", space, "addr", "add", here, "peer", there, "dev", DEVICE)
            run("ip", "-n", space, "link", "set", DEVICE, "up", "mtu", "1500")
            run(*self.inside(space, "tc", "qdisc", "add", "dev", DEVICE, "root", "tbf",
                "rate", f"{mbit}mbit", "burst", "16kb", "limit", queue))
        self.control = Control(self).name

    def stop(self):
        self.process.stdin.close()
        self.process.wait()

    def inside(self, space, *command):
        # Not "ip netns exec": what it starts keeps a copy of all mounts, and disks could not be unmounted.
        return ["nsenter", f"--net=/run/netns/{space}", "--", *command]

    def measure(self, seconds):
        """Round trips in milliseconds (median), and what TCP gets through one way, in Mbit/s."""
        receiver = subprocess.Popen(self.inside(self.far, sys.executable, __file__, "receive"),
                                    text=True, stdout=subprocess.PIPE)
        if receiver.stdout.readline() != "ready\n":
            raise SystemExit("nothing listens at the far end")
        said = run(*self.inside(self.near, sys.executable, __file__, "send", str(seconds)))
        mbit = json.loads(receiver.stdout.readline())
        receiver.wait()
        return json.loads(said), mbit


def receive():
    """The far end of a measurement: answers bytes, then counts what comes in its second half."""
    import socket
    with socket.create_server((ADDRESSES[1], PORT)) as server:
        print("ready", flush=True)
        with server.accept()[0] as echo:
            while byte := echo.recv(1):
                echo.send(byte)
        with server.accept()[0] as bulk:
            came, steps = 0, []
            while chunk := bulk.recv(1 << 20):
                came += len(chunk)
                steps.append((time.monotonic(), came))
    half = next(step for step in steps if step[0] >= (steps[0][0] + steps[-1][0]) / 2)
    print(json.dumps((steps[-1][1] - half[1]) * 8 / 1e6 / (steps[-1][0] - half[0])), flush=True)


def send(seconds):
    """The near end."""
    import socket
    times = []
    with socket.create_connection((ADDRESSES[1], PORT)) as echo:
        echo.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(11):
            began = time.monotonic()
            echo.send(b"x")
            echo.recv(1)
            times.append((time.monotonic() - began) * 1e3)
    with socket.create_connection((ADDRESSES[1], PORT)) as bulk:
        until, chunk = time.monotonic() + seconds, bytes(1 << 16)
        while time.monotonic() < until:
            bulk.sendall(chunk)
    print(json.dumps(median(times)))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive"]:
            receive()
        case ["send", duration]:
            send(float(duration))
        case [milliseconds, *both]:
            hand_on(float(milliseconds) / 1e3, both)
