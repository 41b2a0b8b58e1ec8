"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a temporary file beside ``path``, then rename it, so that nobody sees half a file.

    Raises `OSError`. Replaces a regular file, but never a device or a pipe, which a rename would
    destroy.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing where it did
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} exists and is not a regular file; choose another name")
    temporary = path.with_name(f".mlic-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        if path.exists():
            _take_over(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # the name that the user knows
        raise


def _take_over(old: Path, new: Path) -> None:
    """The mode and owner of a file that is to be replaced, as far as this user may."""
    status = os.stat(old)
    os.chmod(new, stat.S_IMODE(status.st_mode))
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(PermissionError):
            os.chown(new, status.st_uid, status.st_gid)
