"""Data sets of compressed pictures: in loaders with several workers, in shards, as latents."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import skimage.data
import torch
from lively import photograph
from torch import Tensor
from torch.utils.data import DataLoader

import mlic_fast
from mlic_fast.data import MlicDataset, WebdatasetDecoder

SIZES = {"a.mlic": (70, 130), "b/c.mlic": (1, 1), "b/d.mlic": (64, 33), "b/e.f.mlic": (9, 200)}
PATIENCE = 120


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> mlic_fast.Codec:
    return mlic_fast.load(checkpoint)


@pytest.fixture(scope="module")
def folder(codec: mlic_fast.Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for name, size in {**SIZES, ".hidden.mlic": (3, 3), ".trash/x.mlic": (3, 3)}.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(codec.compress((photograph(*size)[0] * 255).to(torch.uint8)))
    (root / "b/notes.txt").write_text("no picture")
    return root


def with_name(tensor: Tensor, path: Path) -> tuple[Tensor, str]:
    return tensor, path.name


@pytest.mark.parametrize(("method", "latents"), [("fork", False), ("spawn", True)])
def test_loaders(
    codec: mlic_fast.Codec, checkpoint: Path, folder: Path, method: str, latents: bool
) -> None:
    """Twice over, in the order of the names, with what the codec gives itself."""
    dataset = MlicDataset(folder, checkpoint, latents=latents, transform=with_name)
    decode = codec.decode_latents if latents else codec.decompress
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        multiprocessing_context=method,
        timeout=PATIENCE,
        persistent_workers=True,
    )
    assert dataset.files == [folder / name for name in SIZES]
    for _ in range(2):
        for (tensor, name), path in zip(loader, dataset.files, strict=True):
            assert name == path.name
            assert torch.equal(tensor, decode(path))


def test_a_damaged_file_is_named(codec: mlic_fast.Codec, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mlic").write_bytes((folder / "a.mlic").read_bytes()[:-1])
    loader = DataLoader(MlicDataset(tmp_path, codec), batch_size=None, num_workers=1)
    with pytest.raises(mlic_fast.CorruptStreamError, match=r"bad\.mlic"):
        list(loader)
    with pytest.raises(FileNotFoundError, match=r"no \.mlic file"):
        MlicDataset(tmp_path / "nowhere", codec)


def test_webdataset(codec: mlic_fast.Codec, folder: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    shard = tmp_path / "shard-0.tar"
    with tarfile.open(shard, "w") as tar:
        for i, name in enumerate(SIZES):
            for suffix, data in ((".mlic", (folder / name).read_bytes()), (".cls", b"%d" % i)):
                member = tarfile.TarInfo(f"{i:03}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    for latents, decode in ((False, codec.decompress), (True, codec.decode_latents)):
        shards = wds.WebDataset(str(shard), shardshuffle=False)
        shards = shards.decode(WebdatasetDecoder(codec, latents=latents))
        samples = list(DataLoader(shards, batch_size=None, num_workers=1, timeout=PATIENCE))
        assert [sample["cls"] for sample in samples] == list(range(len(SIZES)))
        for sample, name in zip(samples, SIZES, strict=True):
            assert torch.equal(sample["mlic"], decode(folder / name))


def example(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_of_a_classifier(codec: mlic_fast.Codec, checkpoint: Path, tmp_path: Path) -> None:
    """Parts of three photographs are told apart by their latents, far better than by chance."""
    for name in ("astronaut", "chelsea", "coffee"):
        picture = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)
        (tmp_path / name).mkdir()
        for i, (top, left) in enumerate(
            (t, x) for t in range(0, 256, 64) for x in range(0, 384, 64)
        ):
            part = picture[:, top : top + 64, left : left + 64]
            (tmp_path / name / f"{i}.mlic").write_bytes(codec.compress(part.contiguous()))
    assert example("train_on_latents").train(tmp_path, str(checkpoint), 20, workers=0) > 0.6
