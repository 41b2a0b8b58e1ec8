"""Train a small classifier on the latents of compressed pictures: no pixel is ever decoded.

    python examples/train_on_latents.py FOLDER [--model photo] [--epochs 20] [--workers 2]

FOLDER has a subfolder for each class, with .mlic files in it (mlic-fast encode --recursive makes
them). Every fifth file is kept for validation. The pictures may differ in size, since the
classifier averages over positions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mlic_fast.data import MlicDataset


class LabelledLatents:
    """Mean and spread of every channel of the latents, with the number of the class."""

    def __init__(self, folder: Path) -> None:
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir())

    def __call__(self, latents: Tensor, path: Path) -> tuple[Tensor, int]:
        flat = latents.flatten(1)
        features = torch.cat([flat.mean(1), flat.std(1, correction=0)])
        return features, self.classes.index(path.parent.name)


def train(folder: Path, model: str = "photo", epochs: int = 20, workers: int = 2) -> float:
    """Train, print a line an epoch, and return the share of the validation files that is right."""
    torch.manual_seed(0)
    label = LabelledLatents(folder)
    dataset = MlicDataset(folder, model, latents=True, transform=label)
    kept = set(range(0, len(dataset), 5))
    training = DataLoader(
        Subset(dataset, [i for i in range(len(dataset)) if i not in kept]),
        batch_size=16,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    validation = DataLoader(Subset(dataset, sorted(kept)), batch_size=16, num_workers=workers)
    features = dataset[0][0].numel()
    classifier = nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, 64),
        nn.GELU(),
        nn.Linear(64, len(label.classes)),
    )
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for epoch in range(epochs):
        total = 0.0
        for inputs, classes in training:
            loss = F.cross_entropy(classifier(inputs), classes)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(training):.3f}")
    classifier.eval()
    right = sum(
        int((classifier(inputs).argmax(1) == classes).sum()) for inputs, classes in validation
    )
    print(f"{right} of {len(kept)} validation files are right")
    return right / len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a classifier on the latents of pictures.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    train(args.folder, args.model, args.epochs, args.workers)


if __name__ == "__main__":
    main()
