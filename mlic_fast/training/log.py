"""Progress bar, CSV and TensorBoard logs of a run."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from mlic_fast.atomic_files import write_atomically
from mlic_fast.training.run_config import TrainConfig
from mlic_fast.training.step import MEANS

LOG_COLUMNS = ("step", *MEANS, "psnr", "lr", "skipped", "images_per_second")
VALIDATION_COLUMNS = ("step", "lmbda", "loss", "bpp", "psnr", "ms_ssim", "mse")


class Clock:
    """Seconds of training, without those inside of :meth:`stopped`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._start = time.monotonic() - seconds

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """While entered, no time passes."""
        begin = time.monotonic()
        yield
        self._start += time.monotonic() - begin

    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start


class CsvLog:
    """A CSV file with a ``step`` column; rows are flushed at once.

    When a run resumes at ``step``, rows of later steps are dropped: they are about to be written
    again. So is a row that was cut short; a run that is killed here finds the old file.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], step: int) -> None:
        kept = []
        if step and path.is_file():
            with path.open(newline="") as file:
                kept = [
                    row
                    for row in csv.DictReader(line for line in file if line.endswith("\n"))
                    if int(row["step"]) <= step
                ]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(kept)
        write_atomically(path, text.getvalue().encode())
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row, by column; numbers have six digits."""
        self._writer.writerow(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        )
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Logs:
    """Everything a run reports: progress bar, ``log.csv``, ``validation.csv`` and TensorBoard where
    installed.

    Processes other than the main one report nothing.
    """

    def __init__(self, folder: Path, config: TrainConfig, step: int, is_main: bool) -> None:
        self._folder, self._config, self._step, self._is_main = folder, config, step, is_main

    def __enter__(self) -> Logs:
        from tqdm import tqdm

        hidden = None if self._is_main else True  # None: hidden where the output is not a terminal
        total = None if self._config.minutes else self._config.steps
        self._bar = tqdm(total=total, initial=self._step, unit="step", disable=hidden)
        if self._is_main:
            self._train = CsvLog(self._folder / "log.csv", LOG_COLUMNS, self._step)
            validation = self._folder / "validation.csv"
            self._validation = CsvLog(validation, VALIDATION_COLUMNS, self._step)
            self._board = _tensorboard(self._folder / "tensorboard", self._step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._is_main:
            self._train.close()
            self._validation.close()
            if self._board is not None:
                self._board.close()

    def advance(self) -> None:
        """One step more on the progress bar."""
        self._bar.update()

    def train(self, step: int, row: dict[str, float]) -> None:
        """Means since the last row, by column of :data:`LOG_COLUMNS`."""
        if not self._is_main:
            return
        self._train.write({"step": step, **row})
        self._scalars("train", row, step)
        shown: dict[str, object] = {
            k: f"{row[k]:.4g}" for k in ("loss", "bpp", "psnr", "images_per_second") if k in row
        }
        self._bar.set_postfix(shown)
        if self._bar.disable:
            print(f"step {step}: " + ", ".join(f"{k} {v}" for k, v in shown.items()), flush=True)

    def validation(self, step: int, rows: list[dict[str, float]]) -> None:
        """One row a rate."""
        for row in rows:
            self._validation.write({"step": step, **row})
            self._scalars(f"validation/{row['lmbda']:g}", row, step)
            self._bar.write(
                f"step {step}, lambda {row['lmbda']:g}: {row['bpp']:.4f} bits a pixel,"
                f" {row['psnr']:.2f} dB, MS-SSIM {row['ms_ssim']:.4f}"
            )

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        self._bar.write(line)

    def _scalars(self, prefix: str, row: dict[str, float], step: int) -> None:
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(f"{prefix}/{name}", value, step)


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer of TensorBoard events, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed: the logs are log.csv and validation.csv alone")
        return None
    return SummaryWriter(str(folder), purge_step=step or None)
