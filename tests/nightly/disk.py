"""A small disk that only this process and those it starts see: a tmpfs in a mount namespace of its own."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_NEW_MOUNTS, _NEW_USERS = 0x0002_0000, 0x1000_0000
_REMOUNT, _RECURSIVE, _PRIVATE = 0x20, 0x4000, 0x4_0000
_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """A disk over a folder, empty and large at first. It goes with the last process that sees it.

    Raises:
        OSError: this kernel lets neither this user nor anybody in a user namespace mount one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        user, group = os.getuid(), os.getgid()
        _checked(_libc.unshare(_NEW_MOUNTS | (_NEW_USERS if user else 0)))
        if user:
            for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                Path(f"/proc/self/{name}").write_text(line)
        _checked(_libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None))
        self._mount(0, 1 << 30)

    @property
    def used(self) -> int:
        """Bytes."""
        said = os.statvfs(self.folder)
        return (said.f_blocks - said.f_bfree) * said.f_frsize

    def leave(self, room: int) -> None:
        """Makes it so small that only `room` bytes are free, rounded up to pages."""
        self._mount(_REMOUNT, self.used + room)

    def _mount(self, flags: int, size: int) -> None:
        # No size at all would mean no limit.
        said = f"size={max(size, 4096)}".encode()
        _checked(_libc.mount(b"tmpfs", os.fsencode(self.folder), b"tmpfs", flags, said))


def _checked(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
