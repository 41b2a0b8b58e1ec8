"""Files wherever pyarrow reaches: folders of this machine, S3, Google Cloud Storage, HDFS."""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
from collections.abc import Collection
from typing import Any

#: They show a file when it is complete; everywhere else a temporary file is renamed.
_OBJECT_STORES = ("s3", "gcs", "abfs")


def resolve(place: str | os.PathLike[str], filesystem: Any = None) -> tuple[Any, str]:
    """A URL such as ``s3://bucket/folder``, or a path -> filesystem of pyarrow, and path in it."""
    from pyarrow.fs import FileSystem, LocalFileSystem

    place = os.fspath(place)
    if filesystem is not None:
        return filesystem, place.rstrip("/")
    if "://" in place:
        filesystem, path = FileSystem.from_uri(place)
        return filesystem, path.rstrip("/")
    return LocalFileSystem(), os.path.abspath(place)


def find_files(
    filesystem: Any, path: str, suffixes: Collection[str], recursive: bool = False
) -> list[str]:
    """A file itself, or the files of a folder with one of the suffixes, but for hidden ones.

    Raises FileNotFoundError if there is neither.
    """
    from pyarrow.fs import FileSelector, FileType

    info = filesystem.get_file_info(path)
    if info.type == FileType.File:
        return [path]
    if info.type != FileType.Directory:
        raise FileNotFoundError(f"{path} does not exist")
    found = filesystem.get_file_info(FileSelector(path, recursive=recursive))
    return sorted(
        file.path
        for file in found
        if file.type == FileType.File
        and posixpath.splitext(file.path)[1].lower() in suffixes
        and not any(part.startswith(".") for part in posixpath.relpath(file.path, path).split("/"))
    )


def read(filesystem: Any, path: str) -> bytes:
    """All of a file."""
    with filesystem.open_input_stream(path, compression=None) as file:
        data: bytes = file.read()
        return data


def read_if_there(filesystem: Any, path: str) -> bytes | None:
    """All of a file, or None where there is none."""
    try:
        return read(filesystem, path)
    except FileNotFoundError:
        return None


def write(filesystem: Any, path: str, data: bytes) -> None:
    """A file that nobody sees before it is complete, in a folder that is made if missing."""
    if filesystem.type_name in _OBJECT_STORES:
        with filesystem.open_output_stream(path, compression=None) as file:
            file.write(data)
        return
    folder = posixpath.dirname(path)
    filesystem.create_dir(folder, recursive=True)
    temporary = posixpath.join(folder, f".mlic-{secrets.token_hex(8)}.tmp")
    try:
        with filesystem.open_output_stream(temporary, compression=None) as file:
            file.write(data)
        filesystem.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.delete_file(temporary)
        raise
