"""``mlic-fast completion``: what teaches a shell to complete commands, options and files."""

from __future__ import annotations

import argparse

from mlic_fast.cli import make_parser
from mlic_fast.errors import MlicError

SHELLS = ("bash", "zsh")
#: Options and arguments that take something else than a file.
_NO_FILES = {"device", "engine", "against"}


class CompletionError(MlicError):
    """No shtab."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.epilog = (
        "Prints a script. To load it in every shell:\n"
        "  bash  mlic-fast completion bash > ~/.local/share/bash-completion/completions/mlic-fast\n"
        "  zsh   mlic-fast completion zsh > ~/.zfunc/_mlic-fast, with ~/.zfunc in fpath"
    )
    parser.add_argument("shell", choices=SHELLS, help="whose language the script is in")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        raise CompletionError(
            "completion needs shtab: pip install 'mlic_fast[completion]'"
        ) from error
    parser = make_parser()
    _complete_files(parser)
    print(shtab.complete(parser, args.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Texts are the names of files, but for a few."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command)
        elif action.dest.endswith(("_dir", "folder")):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif (
            action.nargs != 0
            and action.type is None
            and not action.choices
            and action.dest not in _NO_FILES
        ):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
