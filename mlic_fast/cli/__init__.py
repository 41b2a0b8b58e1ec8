"""The command line, ``mlic-fast``.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int`` (the exit code). It
is imported only when it is called, so that encoding never loads what training needs, and
``--help`` loads nothing. Exit codes: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from mlic_fast.errors import MlicError

# Command: (module, what it does).
COMMANDS = {
    "encode": ("mlic_fast.cli.encode", "compress images to .mlic files"),
    "decode": ("mlic_fast.cli.decode", "decompress .mlic files to images"),
    "pack": ("mlic_fast.cli.pack", "turn a checkpoint into a packed file"),
    "verify": ("mlic_fast.cli.verify", "check that this machine decodes streams bit for bit"),
    "doctor": ("mlic_fast.cli.doctor", "show what this machine has and what would be used of it"),
    "bench": ("mlic_fast.cli.bench", "time encoding and decoding, side by side"),
    "profile": ("mlic_fast.cli.profile", "take one encode or decode apart, down to its kernels"),
    "compare": ("mlic_fast.cli.compare", "show pictures side by side, on a page for a browser"),
    "info": ("mlic_fast.cli.info", "show what .mlic files say about themselves"),
    "completion": ("mlic_fast.cli.completion", "print what completes commands in a shell"),
    "train": ("mlic_fast.cli.train", "train a model on a folder of photographs"),
    "eval": ("mlic_fast.cli.eval", "measure bits a pixel, PSNR and MS-SSIM on a folder of images"),
}


#: What other codecs call them.
_OTHER_NAMES = {"compress": "encode", "decompress": "decode", "evaluate": "eval"}


class UsageError(MlicError):
    """The arguments do not go together; the command line exits with 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Wrong arguments raise `SystemExit`, as argparse."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # numpy's threads, which nothing here uses: where memory is short they never end.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _prepare_output()
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("mlic-fast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print_error(message)
        return 2 if isinstance(error, UsageError) else 1


def _prepare_output() -> None:
    """Streams that are closed swallow what is printed; names of any bytes can be printed."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def explain(error: Exception) -> str | None:
    """What to tell the user of an error that input or machine caused; None for any other."""
    if isinstance(error, MlicError):
        return str(error)
    if _no_memory(error):
        return "there is not enough memory; take a smaller image or a machine with more"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return None


def _no_memory(error: Exception) -> bool:
    if isinstance(
        error, (ImportError, OSError)
    ):  # of a library that found none; numpy's says what it guesses
        said = f"{error} {error.__cause__} {error.__context__}"
        return any(text in said for text in ("failed to map segment", "allocate memory"))
    if isinstance(error, RuntimeError):
        from mlic_fast.engine.surroundings import out_of_memory  # imports numpy

        return out_of_memory(error)
    return isinstance(error, MemoryError)


def print_error(error: object) -> None:
    """Print one line on stderr, whatever the message holds."""
    print(f"mlic-fast: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)


def print_note(note: object) -> None:
    """Print one line on stderr that is no error."""
    print(f"mlic-fast: note: {printable(' '.join(str(note).split()))}", file=sys.stderr)


def printable(text: str) -> str:
    """With characters that a terminal would act on, or cannot show, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _run(argv: list[str]) -> int:
    # Pillow warns of odd metadata in two lines a file; what matters to the pixels is an error.
    warnings.filterwarnings("ignore", module="PIL")
    called = next((word for word in argv if not word.startswith("-")), None)
    parser = make_parser(called or "")
    if called is not None and called not in COMMANDS:
        parser.error(f"there is no command {printable(called)!r}: {_hint(called)}")
    args = parser.parse_args(argv)
    if args.version:
        from mlic_fast import __version__

        print(f"mlic-fast {__version__}")
        return 0
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    code: int = import_module(COMMANDS[args.command][0]).run(args)
    return code


def _hint(called: str) -> str:
    """What to type instead of a command that is none."""
    near = [
        *([_OTHER_NAMES[called]] if called in _OTHER_NAMES else []),
        *(name for name in COMMANDS if name.startswith(called)),
        *difflib.get_close_matches(called, COMMANDS, 1),
    ]
    if near:
        return f"did you mean {near[0]}?"
    if os.path.exists(called):
        command = "decode" if called.lower().endswith(".mlic") else "encode"
        return f"did you mean mlic-fast {command} {printable(called)}?"
    return f"there are {', '.join(COMMANDS)}"


def make_parser(called: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; if one is called, with the arguments of that one alone."""
    parser = argparse.ArgumentParser(
        prog="mlic-fast", description="Learned image compression with the MLIC family of models."
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if called is None or name == called:
            import_module(module).add_arguments(command)
    return parser
