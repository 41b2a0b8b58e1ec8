"""What docs/contributing.md and docs/architecture.md say of the code is true of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text()


def test_the_exercise_fits_the_code() -> None:
    """Each hunk of the diff stands in its file, where the diff would change it."""
    (diff,) = re.findall(r"```diff\n(.*?)```", text("contributing"), re.DOTALL)
    files = re.split(r"^\+\+\+ (.*)\n", diff, flags=re.MULTILINE)[1:]
    assert len(files) == 2 * 5
    for name, hunks in zip(files[::2], files[1::2], strict=True):
        code = (ROOT / name).read_text()
        for hunk in re.split(r"^@@.*\n", hunks, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines()
            before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
            assert code.count(before) == 1, f"{name}:\n{hunk}"


@pytest.mark.parametrize("page", ["architecture", "contributing"])
def test_files_that_are_named_are_there(page: str) -> None:
    paths = set(re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|h|cpp|cu|toml|json))`", text(page)))
    assert len(paths) > 20
    folders = ("benchmarks", "csrc", "kernels", "mlic_fast", "tests")
    files = [file.as_posix() for folder in folders for file in (ROOT / folder).rglob("*.*")]
    for path in paths:
        if "NAME" not in path:  # files to come
            assert (ROOT / path).exists() or any(f.endswith(f"/{path}") for f in files), path
