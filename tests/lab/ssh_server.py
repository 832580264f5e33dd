"""OpenSSH's own server in corp, at an address and a name of its own: for ssh, and git over it."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

from lab import kernel
from lab.kernel import Place
from lab.world import CODE, World

SSH_NAME, SSH_LOGIN = "ssh.corp.example", "git"
_SSHD = "/usr/sbin/sshd"  # it starts itself again for each client, and wants its whole path for that
# The lab's own user: whether root may log in on this machine is none of its business.
_USER = f"{SSH_LOGIN}:*:0:0::/:/bin/sh\n"
_CONFIG = """\
ListenAddress {address}:22
HostKey {directory}/host
AuthorizedKeysFile {directory}/device.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""


class SshServer:
    """sshd with one host key, which lets in one key of the device."""

    def __init__(self, world: World) -> None:
        kernel.need("sshd", "ssh", "ssh-keygen")
        self._undo = ExitStack()
        self._directory = directory = world.directory / "ssh"
        directory.mkdir()
        self._undo.callback(shutil.rmtree, directory, ignore_errors=True)
        for name in ("host", "device"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(words, check=True, timeout=kernel.LIMIT_S)
        (directory / "sshd_config").write_text(_CONFIG.format(address=CODE, directory=directory))
        (directory / "passwd").write_text(_USER + Path("/etc/passwd").read_text())
        mounts = kernel.new_mounts(
            "mount -t tmpfs tmpfs /run\nmkdir -m 755 /run/sshd\n"
            f"mount --bind {directory / 'passwd'} /etc/passwd"
        )
        self._undo.callback(os.close, mounts)
        with (directory / "errors").open("wb") as errors:
            command = [_SSHD, "-D", "-e", "-f", str(directory / "sshd_config")]
            process = kernel.start(Place(world.corp, mounts), command, stderr=errors)
        self._undo.callback(kernel.end, process)
        kernel.until("sshd listens", self._listens, 60.0)

    def _listens(self) -> bool:
        return "listening" in (self._directory / "errors").read_text()

    @property
    def known_hosts(self) -> str:
        """What a client knows of the server."""
        kind, key, *_ = (self._directory / "host.pub").read_text().split()
        return f"{SSH_NAME} {kind} {key}\n"

    @property
    def secrets(self) -> dict[str, str]:
        """The files of a client: its key, and the server's."""
        return {"device.ssh": (self._directory / "device").read_text(), "known_hosts": self.known_hosts}

    def close(self) -> None:
        """End it."""
        self._undo.close()


def ssh(directory: Path, *options: str) -> list[str]:
    """An ssh client with the files of `secrets`, which trusts this server and nobody else."""
    settings = (
        "BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes",
        f"UserKnownHostsFile={directory}/known_hosts", *options,
    )  # fmt: skip
    words = [word for setting in settings for word in ("-o", setting)]
    return ["ssh", "-F", "none", "-i", f"{directory}/device.ssh", *words]
