"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where results go."""
    parser.add_argument(
        "--output-dir", metavar="DIR", help="write the results into this folder, made if missing"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    add_json_option(parser)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model does the work, and on what."""
    parser.add_argument(
        "--model",
        default="demo",
        metavar="demo|FILE",
        help="the model that comes with the package, or a checkpoint file (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", default="auto", help="what computes (default: %(default)s, the best one here)"
    )
