"""A machine with another kernel: Debian's own, which has WireGuard. `make lab-kernel` uses it.

    python tests/lab/machine.py KERNEL COMMAND...

Its file system is this machine's, read-only, with memory above it: whatever a command writes is gone with the
machine, which has no network but what the command makes. What it prints is printed, and its exit status is
ours. KERNEL is what `.ci/kernel` unpacked.

Where the processor cannot be lent (KVM), it is emulated, some fifty times slower. There time is counted in
instructions: to those inside it looks like a slow processor of its own, whatever else this machine does.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

MEMORY = "4096M"
MODULES, PROGRAMS = ("virtio_pci", "virtiofs", "overlay"), ("sh", "mount", "kmod", "mkdir", "chroot")
TOOLS_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# Before the file system is there.
INIT = """#!/bin/sh
PATH=/bin
for module in /modules/*; do insmod "$module"; done
mount -t virtiofs -o ro host /host
mount -t tmpfs -o size=75% tmpfs /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /root
cd /root
mount -n --move . /
exec chroot . /bin/sh {then}
"""
# In it.
THEN = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /lib/modules
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount --bind {modules} /lib/modules
modprobe tun
ip link set lo up
ulimit -n 524288
cd {directory}
{command}
echo $? >/dev/ttyS1
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
"""


def main(arguments: Sequence[str]) -> int:
    """Run a command there: its exit status."""
    assert os.geteuid() == 0, "the machine reads every file of this one: run it as root"
    kernel, *command = arguments
    with ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="zonegate-machine-")))
        initrd = made_initrd(Path(kernel).resolve(), command, directory)
        sock = directory / "files"
        undo.enter_context(_files(sock))
        status = directory / "status"
        machine = ["qemu-system-x86_64", *_processor(), *_devices(sock, status), "-initrd", str(initrd),
                   "-kernel", str(Path(kernel).resolve() / "vmlinuz"),
                   "-append", "console=ttyS0 quiet panic=-1 mitigations=off"]  # fmt: skip
        subprocess.run(machine, stdin=subprocess.DEVNULL, check=True)
        said = status.read_text().strip()
        print(f"the machine ended; the command's exit status is {said or 'unknown'}", flush=True)
        return int(said) if said else 1


def _processor() -> Sequence[str]:
    """KVM where the processor says that it can be lent; a host that is lent itself may only seem to."""
    can = re.search(r"^flags.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if can and os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("the machine's processor is this one (KVM)", flush=True)
        return ["-accel", "kvm", "-cpu", "host", "-smp", str(os.cpu_count())]
    print("the machine's processor is emulated (TCG): this takes long", flush=True)
    return ["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0,sleep=on", "-cpu", "max,la57=off"]


def _devices(files: Path, status: Path) -> Sequence[str]:
    return [
        "-nodefaults", "-no-reboot", "-display", "none",
        "-machine", "q35,memory-backend=memory", "-m", MEMORY,
        "-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on",
        "-serial", "stdio", "-serial", f"file:{status}",
        "-chardev", f"socket,id=files,path={files}",
        "-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024",
    ]  # fmt: skip


@contextmanager
def _files(path: Path) -> Iterator[None]:
    """Who serves this machine's files, and can change none of them."""
    places = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
    program = next(place for place in places if Path(place).exists())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        options = "source=/,cache=always,sandbox=chroot,log_level=err"
        serve = shlex.join([program, f"--fd={listener.fileno()}", "-o", options])
        script = f"mount --make-rprivate / && mount -o remount,bind,ro / && exec {serve}"
        server = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], pass_fds=[listener.fileno()])
    try:
        yield
    finally:
        server.kill()
        server.wait()


def made_initrd(kernel: Path, command: Sequence[str], directory: Path) -> Path:
    """What the machine begins with: enough to have this machine's file system."""
    root = directory / "initrd.d"
    for name in ("bin", "modules", "host", "memory", "root", "proc", "dev"):
        (root / name).mkdir(parents=True)
    for tool in PROGRAMS:
        _copy_program(tool, root)
    (root / "bin/insmod").symlink_to("kmod")
    for at, module in enumerate(_modules(kernel)):
        shutil.copy(module, root / f"modules/{at:02}-{module.name}")
    then = directory / "then"
    modules, here = shlex.quote(str(kernel / "lib/modules")), shlex.quote(str(Path.cwd()))
    then.write_text(THEN.format(modules=modules, directory=here, command=shlex.join(command)))
    (root / "init").write_text(INIT.format(then=then))
    (root / "init").chmod(0o755)
    names = subprocess.run(["find", "."], cwd=root, stdout=subprocess.PIPE, check=True).stdout
    initrd = directory / "initrd"
    with initrd.open("wb") as file:
        cpio = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(cpio, cwd=root, input=names, stdout=file, check=True)
    return initrd


def _copy_program(name: str, root: Path) -> None:
    """A program, by its bare name, and the libraries that it needs, where they lie."""
    found = shutil.which(name, path=TOOLS_PATH)
    assert found, f"{name} is not installed"
    shutil.copy(found, root / "bin" / name)
    said = subprocess.run(["ldd", found], stdout=subprocess.PIPE, text=True, check=True).stdout
    for library in re.findall(r"(/\S+) \(", said):
        there = root / library[1:]
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, there)


def _modules(kernel: Path) -> list[Path]:
    """The modules of a file system that is shared, each after what it needs."""
    (version,) = (entry.name for entry in (kernel / "lib/modules").iterdir())
    found: dict[Path, None] = {}
    for module in MODULES:
        ask = ["modprobe", "-d", str(kernel), "-S", version, "--show-depends", module]
        said = subprocess.run(
            ask, stdout=subprocess.PIPE, text=True, check=True, env={"PATH": TOOLS_PATH}
        ).stdout
        found |= {Path(line.split()[1]): None for line in said.splitlines() if line.startswith("insmod ")}
    return list(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
