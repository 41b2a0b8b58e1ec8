"""Patches of photographs, their cache, graphics; logs that survive being killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import CPU, smooth

from mlic_fast.images import save_image
from mlic_fast.training import TrainingError
from mlic_fast.training.graphics import make_graphics
from mlic_fast.training.log import CsvLog
from mlic_fast.training.patches import GRAPHICS_WEIGHT, Cut, ImageCache, Patches, Pool, Squares


def test_patches_are_pieces_of_the_images_in_any_of_eight_symmetries(tmp_path: Path) -> None:
    # Each pixel tells where it comes from: (row, column, image).
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        row, column = np.mgrid[:80, :100]
        pixels = np.stack([row, column, np.full_like(row, i)])
        save_image(torch.from_numpy(pixels.astype(np.uint8)), folder / f"{i}.png")
    pool = Pool(ImageCache.build(folder, tmp_path / "cache"), CPU)
    squares = Squares([Cut(pool, 70, 4), Cut(pool, 64, 16)])
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        larger, drawn = squares.draw()
        assert larger.shape == (4, 3, 70, 70)
        for row, column, image in drawn.long():
            assert image.unique().numel() == 1
            pixels = {
                (int(r), int(c)) for r, c in zip(row.flatten(), column.flatten(), strict=True)
            }
            top, left = int(row.min()), int(column.min())
            assert pixels == {(top + r, left + c) for r in range(64) for c in range(64)}
            corner = (int(row[0, 0]) > top, int(column[0, 0]) > left)
            seen.add((*corner, bool(row[0, 0] != row[1, 0])))
    assert len(seen) == 8


def test_batches_mix_photographs_reductions_and_graphics(photographs: Path, tmp_path: Path) -> None:
    save_image(torch.zeros(3, 96, 97, dtype=torch.uint8), photographs / "black.png")
    photos = Pool(ImageCache.build(photographs, tmp_path / "cache"), CPU)
    white = Pool(ImageCache.of([np.full((64, 70, 3), 255, np.uint8)]), CPU)
    patches = Patches(photos, white, 64, 10, reduced=0.3)
    torch.manual_seed(1)
    x = patches.draw()
    assert x.shape == (10, 3, 64, 64) and x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    # Only the black one holds the 96x96 pixels of a reduction.
    assert x[6:9].abs().max() == 0 and x[9].min() == 1 and 0 < x[:6].mean() < 1
    assert patches.shares.tolist() == [1.0] * 9 + [GRAPHICS_WEIGHT]
    torch.manual_seed(1)
    assert torch.equal(patches.draw(), x)


def test_graphics_are_a_function_of_the_seed() -> None:
    first, second, other = (make_graphics(seed, 129, 8) for seed in (1, 1, 2))
    assert first.sizes == [(129, 129)] * 8
    assert (first.pixels == second.pixels).all() and (first.pixels != other.pixels).any()
    for i in range(8):  # none of the kinds is empty
        assert first.image(i).reshape(-1, 3).std(0).max() > 5


def test_cache_leaves_out_what_is_no_image_and_notices_changes(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "broken.jpg").write_bytes(b"not an image")
    cache = ImageCache.build(photographs, tmp_path / "cache")
    assert cache.sizes == [(70, 91), (128, 64), (65, 200)]
    assert "left out 1 unusable files" in capsys.readouterr().err
    image = torch.from_numpy(cache.image(2).copy()).permute(2, 0, 1)
    assert torch.equal(image, smooth(2, 65, 200))
    ImageCache.build(photographs, tmp_path / "cache")
    assert capsys.readouterr().err == ""  # nothing was decoded again
    (photographs / "broken.jpg").unlink()
    save_image(smooth(9, 66, 66), photographs / "b.png")
    assert ImageCache.build(photographs, tmp_path / "cache").sizes[1] == (66, 66)


def test_a_cache_that_is_killed_while_it_is_replaced_is_made_again(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of other files never pass for those of the index that stood there before."""
    before = ImageCache.build(photographs, tmp_path / "cache").pixels.copy()
    save_image(smooth(9, 66, 66), photographs / "new.png")

    def replace(source: Path, target: Path) -> None:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        source.rename(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", replace)
        ImageCache.build(photographs, tmp_path / "cache")
    (photographs / "new.png").unlink()
    assert np.array_equal(ImageCache.build(photographs, tmp_path / "cache").pixels, before)


def test_a_log_that_is_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a row is left out, and until all rows are written again the old file stands."""
    path = tmp_path / "log.csv"
    log = CsvLog(path, ("step", "loss"), 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 0.5})
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"30") + 1])
    before = path.read_bytes()

    def replace(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", replace)
        CsvLog(path, ("step", "loss"), 30)
    assert path.read_bytes() == before
    log = CsvLog(path, ("step", "loss"), 30)
    log.write({"step": 30, "loss": 0.5})
    log.close()
    assert path.read_bytes() == whole


def test_small_images_are_left_out_with_one_warning(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(smooth(0, 40, 300), photographs / "flat.png")
    cache = ImageCache.build(photographs, tmp_path / "cache")
    pool = Pool(cache, CPU)
    pool.check(64, warn=True)
    assert capsys.readouterr().err.count("left out 1 images smaller") == 1
    assert Squares([Cut(pool, 64, 3)]).draw()[0].shape == (3, 3, 64, 64)
    with pytest.raises(TrainingError, match="lower --patch-size"):
        pool.check(256, warn=True)
