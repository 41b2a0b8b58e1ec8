"""Ray: datasets, encoding on a cluster whose workers and nodes are lost, storage on S3."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lively import photograph
from PIL import Image

import mlic_fast
from mlic_fast import storage
from mlic_fast.cli import cluster as command
from mlic_fast.cli import main

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

SIZES = [(37, 64), (64, 33), (37, 64), (1, 1), (70, 130)]


@pytest.fixture(scope="module")
def s3(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[str]:
    """Query of URLs of an S3 server on the loopback."""
    server = pytest.importorskip("moto.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    yield (
        f"?endpoint_override=http://127.0.0.1:{port}&scheme=http&region=us-east-1"
        "&allow_bucket_creation=true"
    )
    running.stop()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Of 15, which is Ray's default: on a busy machine workers take minutes to start then.
        patch.setenv("RAY_worker_niceness", "0")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        yield patch


@pytest.fixture(scope="module")
def nodes(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of three nodes; the first computes nothing."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def codec(checkpoint: Path) -> mlic_fast.Codec:
    return mlic_fast.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures in two folders, and one file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for i in range(30):
        pixels = (photograph(*SIZES[i % 5])[0] * 255).to(torch.uint8)
        pixels[:, 0, 0] = i
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        image.save(folder / ("more" if i % 3 else ".") / f"{i:02}.png")
    (folder / "more" / "bad.png").write_bytes(b"no picture")
    return folder


def expected(codec: mlic_fast.Codec, folder: Path, quality: int) -> dict[str, bytes]:
    return {
        f"{path.relative_to(folder).with_suffix('.mlic')}": codec.compress(path, quality)
        for path in folder.rglob("*.png")
        if path.stem != "bad"
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]


def kill_a_worker(nodes: Any) -> bool:
    """One that codes pictures, on any node. Others start and end meanwhile, of themselves."""
    for node in nodes.worker_nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        for children in Path(f"/proc/{raylet}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for child in map(int, children.read_text().split()):
                    if Path(f"/proc/{child}/comm").read_text().startswith("ray::MapWorker"):
                        os.kill(child, signal.SIGKILL)
                        return True
    return False


def test_a_worker_and_a_node_are_lost(
    nodes: Any,
    codec: mlic_fast.Codec,
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every picture is there, with the bytes of one machine; one that cannot be read is one line,
    and so is one that kills its worker whenever it is read.
    """

    class Fragile(command.FileEncoder):
        def _open(self, job: dict[str, str]) -> Any:
            if job["source"].endswith("03.png"):
                os._exit(1)
            return super()._open(job)

    output = tmp_path / "out"

    arguments = ["encode", str(pictures), "-r", "--output-dir", str(output), "--ray", "auto"]
    arguments += ["--model", str(checkpoint), "--device", "cpu", "-q", "40", "--json"]
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setattr(command, "FileEncoder", Fragile)
        encoding = executor.submit(main, arguments)
        while not (encoding.done() or (list(output.rglob("*.mlic")) and kill_a_worker(nodes))):
            time.sleep(0.02)
        assert not encoding.done()
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        nodes.add_node(num_cpus=1, object_store_memory=80 << 20)  # from the main thread alone
        assert encoding.result() == 1
    right = expected(codec, pictures, 40)
    assert contents(output) == {k: v for k, v in right.items() if k != "03.mlic"}
    results = lines(capsys)
    assert sorted(result["input"] for result in results) == sorted(
        str(path) for path in pictures.rglob("*.png")
    )
    fatal, bad = sorted(
        (result for result in results if "error" in result), key=lambda r: Path(r["input"]).name
    )
    assert fatal["input"].endswith("03.png") and "lost" in fatal["error"]
    assert bad["input"].endswith("bad.png") and "not an image" in bad["error"]

    # Once more: damaged and missing files alone are made; the others stay as they are, one of
    # another quality too.
    (output / "00.mlic").write_bytes(right["00.mlic"][:-1])
    (output / "more" / "01.mlic").unlink()
    right["06.mlic"] = codec.compress(pictures / "06.png", 41)
    (output / "06.mlic").write_bytes(right["06.mlic"])
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.mlic")}
    assert main(arguments) == 1
    assert contents(output) == right
    results = lines(capsys)
    made = [result["input"] for result in results if not result.keys() & {"left", "error"}]
    assert sorted(Path(name).stem for name in made) == ["00", "01", "03"]
    changed = {path.stem for path, t in times.items() if path.stat().st_mtime_ns != t}
    assert changed == {"00"}
    assert sum("--force" in result.get("error", "") for result in results) == 1


def test_storage_of_objects(
    nodes: Any,
    s3: str,
    codec: mlic_fast.Codec,
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    """Sources and results on S3; then a dataset of them, and one written from it."""
    source = f"s3://pictures/in{s3}"
    filesystem, path = storage.resolve(source)
    filesystem.create_dir("pictures")
    for name in ("00.png", "03.png", "06.png"):
        storage.write(filesystem, f"{path}/{name}", (pictures / name).read_bytes())
    output = f"s3://pictures/out{s3}"
    arguments = ["encode", source, "--output-dir", output, "--ray", "auto", "-q", "40", "--quiet"]
    assert main([*arguments, "--model", str(checkpoint), "--device", "cpu"]) == 0
    right = expected(codec, pictures, 40)
    filesystem, path = storage.resolve(output)
    files = storage.find_files(filesystem, path, [".mlic"])
    assert {Path(f).name: storage.read(filesystem, f) for f in files} == {
        name: right[name] for name in ("00.mlic", "03.mlic", "06.mlic")
    }

    from mlic_fast.ray import read_mlic, write_mlic

    rows = read_mlic(path, checkpoint, filesystem=filesystem).take_all()
    rows.sort(key=lambda row: row["path"])  # they come as they are done
    assert len(rows) == 3
    for row in rows:
        stream = right[Path(row["path"]).name]
        assert np.array_equal(row["image"], codec.decompress(stream, output="numpy"))
        assert (row["height"], row["width"], row["quality"]) == (*row["image"].shape[:2], 40)
    latents = read_mlic(path, checkpoint, latents=True, filesystem=filesystem)
    for row in latents.take_all():
        stream = right[Path(row["path"]).name]
        assert np.array_equal(row["latents"], codec.decode_latents(stream).numpy())

    again = tmp_path / "again"
    made = {Path(row["path"]).name: codec.compress(row["image"], 20) for row in rows[:2]}
    again.mkdir()
    (again / "00.mlic").write_bytes(made["00.mlic"])  # by a worker that was lost
    dataset = ray.data.from_items([{k: row[k] for k in ("path", "image")} for row in rows[:2]])
    assert write_mlic(dataset, str(again), 20, checkpoint) == 2
    assert contents(again) == made
    with pytest.raises(Exception, match="exists already"):
        write_mlic(dataset, str(again), 21, checkpoint)

    # Both workers hold a CPU, which is all that there are; reading and writing need none.
    pictures = read_mlic(path, checkpoint, filesystem=filesystem)
    assert write_mlic(pictures, str(tmp_path / "smaller"), 20, checkpoint) == 3
    assert contents(tmp_path / "smaller").items() >= made.items()


def test_wrong_usage(pictures: Path, tmp_path: Path) -> None:
    arguments = ["encode", "--ray", "auto", "--output-dir", str(tmp_path), str(pictures)]
    for change in (["--skip-existing"], ["--output", "x.mlic"]):
        assert main([*arguments, *change]) == 2
    assert main([*arguments[:-1], "nothing-there"]) == 2
    assert main(["encode", str(pictures), "--ray", "auto"]) == 2
