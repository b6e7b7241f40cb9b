"""Several hosts on this one Linux machine, for what only a real cluster can show: `with Hosts(…) as hosts: …`.

A host is a set of namespaces (network, mounts, processes, name) whose first process serves SSH. It has an address, a
disk of its own laid over this machine's files, a user `green` and the folder /shared, which all hosts see. Hosts reach
each other and nothing else. No trace is left when the block ends, or when this process dies. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NEEDS = {"sshd": "openssh-server", "rsync": "rsync", "ip": "iproute2", "tmux": "tmux", "mkfs.ext4": "e2fsprogs"}
USER, UID = "green", 5150
NETWORK = "10.77.0"
SSHD = """
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/key.pub
UsePAM no
StrictModes no
UseDNS no
"""


def lacking() -> str | None:
    """What keeps hosts from being made here, with its remedy; None where nothing does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts in namespaces need Linux and root; run it as root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = [package for tool, package in NEEDS.items() if not shutil.which(tool, path=path)]
    if packages:
        return f"hosts in namespaces need more programs; apt-get install {' '.join(packages)}"
    tried = subprocess.run(["unshare", "-n", "-m", "-p", "-u", "--fork", "true"], capture_output=True, text=True)
    return f"namespaces can't be made here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass
class Host:
    name: str
    address: str
    pid: int  # of its first process, seen from here
    cpu: int

    def enter(self, *command: str, user: str = USER) -> list[str]:
        """The command that runs `command` on this host as a login of `user` would."""
        home = "/root" if user == "root" else f"/home/{user}"
        who = [] if user == "root" else ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        bare = ["env", "-i", f"HOME={home}", f"USER={user}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        space = ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "-r", "-w", "--"]
        return ["taskset", "-c", str(self.cpu), *space, *bare, *who, *command]

    def run(self, script: str, user: str = USER, timeout: float = 300, check: bool = True) -> str:
        """What a login shell of this host prints. Raises AssertionError, with all it printed, where it fails."""
        done = subprocess.run(
            self.enter("bash", "-lc", f"cd; {script}", user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{self.name}: {script}: {done.returncode}\n{done.stdout}"
        return done.stdout


class Hosts:
    """`names`: the hosts. `site_packages`: where their Python finds its packages, beside its own environment."""

    def __init__(self, folder: Path, names: Sequence[str], site_packages: Sequence[str], disk: str = "2g") -> None:
        self.folder, self.names, self.disk, self.site_packages = folder, names, disk, site_packages
        self.mounted = folder / "shared"  # by hosts as /shared
        self._hosts: dict[str, Host] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def __enter__(self) -> Hosts:
        self.image = self._image()
        self._room = subprocess.Popen(
            ["unshare", "-n", "-m", "-p", "--fork", "--kill-child", "--mount-proc", "cat"], stdin=subprocess.PIPE
        )  # ends when its input does, and all hosts with it
        self._room_pid = _innermost(self._room.pid, 2)
        self._in_room("ip link set lo up; ip link add bridge type bridge; ip link set bridge up")
        self._in_room(f"ip addr add {NETWORK}.254/24 dev bridge; mount --make-rprivate /")
        disk = self.folder / "shared.img"
        subprocess.run(["truncate", "-s", "4G", disk], check=True)
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
        self.mounted.mkdir()
        self._in_room(f"mount -o loop {disk} {self.mounted}; chown {UID}:{UID} {self.mounted}")
        for name in self.names:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        assert isinstance(self._room.stdin, IO) or self._room.stdin
        self._room.stdin.close()
        self._room.wait(timeout=60)
        for running in self._running.values():
            running.wait(timeout=60)

    @property
    def shared(self) -> Path:
        """The hosts' /shared, as this process sees it."""
        return Path(f"/proc/{self._room_pid}/root{self.mounted}")

    def start(self, name: str) -> Host:
        """A host that is new, or was killed: then with the disk and the address that it had."""
        number = self.names.index(name) + 1
        disk = self.folder / name
        if not disk.exists():
            disk.mkdir()
            self._in_room(f"mount -t tmpfs -o size={self.disk} disk-{name} {disk}; mkdir {disk}/work {disk}/root")
            self._in_room(f"cp -a {self.image} {disk}/upper")
        cpu = number % (os.cpu_count() or 1)
        script = [Path(__file__).parent / "host.sh", name, disk, self.mounted]
        space = ["unshare", "-n", "-m", "-p", "-u", "--fork", "--kill-child"]
        command = ["taskset", "-c", str(cpu), *self._room_command(), *space, *map(str, script)]
        with (self.folder / f"{name}.log").open("ab") as log:
            running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._running[name] = running
        host = Host(name, f"{NETWORK}.{number}", _innermost(running.pid, 3), cpu)
        self._in_room(
            f"ip link del {name} 2>/dev/null; ip link add {name} type veth peer name eth0 netns {host.pid};"
            f"ip link set {name} master bridge up",
            check=False,
        )
        inside = ["nsenter", "-t", str(host.pid), "-n", "--", "bash", "-c"]
        route = f"ip route add default via {NETWORK}.254"
        subprocess.run([*inside, f"ip addr add {host.address}/24 dev eth0; ip link set eth0 up; {route}"], check=True)
        self._hosts[name] = host
        wait_for(lambda: "sshd" in host.run("ps -e", user="root", check=False), 30, f"sshd on {name}")
        return host

    def kill(self, name: str) -> None:
        """As if its power was cut: nobody says goodbye."""
        os.kill(self._hosts.pop(name).pid, 9)
        self._running.pop(name).wait(timeout=60)

    @contextmanager
    def disk_full(self, name: str) -> Iterator[None]:
        """No byte is left on a host's disk."""
        self[name].run("dd if=/dev/zero of=/var/filler bs=1M 2>/dev/null; df / | grep 100%", user="root")
        try:
            yield
        finally:
            self[name].run("rm /var/filler", user="root")

    @contextmanager
    def cut_off(self, name: str) -> Iterator[None]:
        """A host's cable is out."""
        self._in_room(f"ip link set {name} down")
        try:
            yield
        finally:
            self._in_room(f"ip link set {name} up")

    @contextmanager
    def shared_frozen(self) -> Iterator[None]:
        """Nobody's writes to /shared return."""
        self._in_room(f"fsfreeze --freeze {self.mounted}")
        try:
            yield
        finally:
            self._in_room(f"fsfreeze --unfreeze {self.mounted}")

    def _room_command(self) -> list[str]:
        return ["nsenter", "-t", str(self._room_pid), "-n", "-m", "-p", "--"]

    def _in_room(self, script: str, check: bool = True) -> None:
        done = subprocess.run(
            ["nsenter", "-t", str(self._room_pid), "-n", "-m", "--", "bash", "-c", script],
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, f"{script}: {done.stderr}"

    def _image(self) -> Path:
        """Files that hosts see over this machine's: a user with a Python, keys, and empty /tmp and /home."""
        image = self.folder / "image"
        for empty in ("tmp", "home", "etc/ssh", "var/log"):
            (image / empty).mkdir(parents=True)
            os.setxattr(image / empty, "trusted.overlay.opaque", b"y")
        (image / "tmp").chmod(0o1777)
        there = [Path(sys.base_prefix), *map(Path, self.site_packages)]  # may be in a home that is closed to others
        for above in {above for path in there for above in path.parents[:-1]} - {Path("/home"), Path("/tmp")}:
            (image / above.relative_to("/")).mkdir(parents=True, exist_ok=True, mode=0o755)
        home, ssh = image / "home" / USER, image / "etc" / "ssh"
        shutil.copytree("/etc/skel", home)
        (image / "etc" / "passwd").write_text(
            f"{Path('/etc/passwd').read_text()}{USER}:*:{UID}:{UID}::/home/{USER}:/bin/bash\n"
        )
        (image / "etc" / "group").write_text(f"{Path('/etc/group').read_text()}{USER}:x:{UID}:\n")
        (image / "etc" / "shadow").write_text(f"{Path('/etc/shadow').read_text()}{USER}:*:20000:0:99999:7:::\n")
        names = [f"{NETWORK}.{number} {name}" for number, name in enumerate(self.names, 1)]
        (image / "etc" / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        (image / "etc" / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        # what pip would fetch is there, and there is no index to ask; pip says "false" for without isolation
        (image / "etc" / "pip.conf").write_text("[global]\nno-index = true\n[install]\nno-build-isolation = false\n")
        (ssh / "sshd_config_of_hosts").write_text(SSHD)
        for key in (ssh / "host_key", ssh / "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        with (home / ".profile").open("a") as profile:  # Ray's workers step back, and here all hosts share the cores
            profile.write("export RAY_worker_niceness=0\n")
        self._python(home / "venv")
        (home / ".ssh").mkdir()
        shutil.copy(ssh / "key", home / ".ssh" / "id_ed25519")
        (home / ".ssh" / "config").write_text(
            "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        )
        subprocess.run(["chown", "-R", f"{UID}:{UID}", home], check=True)
        return image

    def _python(self, environment: Path) -> None:
        """This interpreter as `python3`, and an environment that finds `site_packages`; `python3 -m venv` keeps it."""
        interpreter = Path(sys.base_prefix) / "bin" / "python3"
        _program(environment.parents[2] / "usr/local/bin/python3", f'#!/bin/sh\nexec {interpreter} "$@"\n')
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        activate = environment / "bin" / "activate"
        activate.write_text(activate.read_text().replace(str(environment), f"/home/{USER}/venv"))
        there = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (there / "machine.pth").write_text("\n".join(self.site_packages) + "\n")
        ray = f"#!/home/{USER}/venv/bin/python\nfrom ray.scripts.scripts import main\nmain()\n"
        _program(environment / "bin/ray", ray)


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def wait_for(true: object, seconds: float, what: str, every: float = 0.2) -> None:
    """Raises AssertionError where `true()` isn't within `seconds`."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)


def _innermost(pid: int, depth: int, seconds: float = 20) -> int:
    """The descendant of `pid` that is the first process of a PID namespace `depth` deep (1: this one)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        below = [pid]
        while below:
            here = below.pop()
            try:
                status = Path(f"/proc/{here}/status").read_text()
                below += map(int, Path(f"/proc/{here}/task/{here}/children").read_text().split())
            except FileNotFoundError:
                continue
            spaces = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid"))
            if len(spaces) == depth and spaces[-1] == "1":
                return here
        time.sleep(0.05)
    raise AssertionError(f"no namespace {depth} deep below {pid} within {seconds:.0f} s")
