"""The images of examples/train.py. Which images a step sees depends on the seed and the step alone."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass
class Images:
    """One part of a data set, by index."""

    labels: Tensor  # [N]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, seed: int | None = None) -> Tensor:
        """[B, C, pixels, pixels] of the images with these indices; augmented where a seed is given."""
        raise NotImplementedError


@dataclass
class Digits(Images):
    """scikit-learn's 1,797 digits, 8 x 8 pixels; a fifth is for testing. Nothing is augmented."""

    pixels: Tensor  # [N, 1, 8, 8]
    size: int
    channels: int

    def batch(self, indices: Tensor, seed: int | None = None) -> Tensor:
        images = self.pixels[indices].expand(-1, self.channels, -1, -1)
        return images if self.size == 8 else interpolate(images, size=(self.size, self.size), mode="bilinear")


@dataclass
class Folder(Images):
    """FOLDER/CLASS/*.png and so on. Training crops and flips, testing crops the middle."""

    paths: list[Path]
    size: int

    def batch(self, indices: Tensor, seed: int | None = None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.stack([self._one(self.paths[index], generator) for index in indices.tolist()])

    def _one(self, path: Path, generator: torch.Generator | None) -> Tensor:
        import numpy as np
        from PIL import Image

        with Image.open(path) as file:
            image = file.convert("RGB")
        scale = 1.15 * self.size / min(image.size)
        image = image.resize((max(self.size, round(image.width * scale)), max(self.size, round(image.height * scale))))
        free = torch.tensor([image.width - self.size, image.height - self.size])
        place = torch.rand(3, generator=generator) if generator else torch.full((3,), 0.5)
        left, top = (place[:2] * (free + 1)).long().minimum(free).tolist()
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + self.size, top + self.size))))
        image_tensor = pixels.permute(2, 0, 1).float() / 255
        if generator and place[2] < 0.5:
            image_tensor = image_tensor.flip(2)
        return (image_tensor - 0.45) / 0.225


def digits(size: int, channels: int) -> tuple[Images, Images, int]:
    """Training part, test part, number of classes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels.reshape(-1, 1, 8, 8), labels, test_size=0.2, stratify=labels, random_state=0)
    train, test = (torch.tensor(part, dtype=torch.get_default_dtype()) for part in parts[:2])
    mean, deviation = train.mean(), train.std()
    made = [
        Digits(torch.tensor(part_labels), (part - mean) / deviation, size, channels)
        for part, part_labels in zip((train, test), parts[2:], strict=True)
    ]
    return made[0], made[1], 10


def folder(root: Path, size: int) -> tuple[Images, Images, int]:
    """ROOT/train/CLASS/... and ROOT/test/CLASS/...; ValueError where there is no image."""
    classes = sorted(path.name for path in (root / "train").glob("*") if path.is_dir())
    parts = []
    for part in ("train", "test"):
        found = [
            (path, place)
            for place, name in enumerate(classes)
            for path in sorted((root / part / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not found:
            raise ValueError(f"--data is {root}; expected images in {root / part / 'CLASS'}")
        parts.append(Folder(torch.tensor([place for _, place in found]), [path for path, _ in found], size))
    return parts[0], parts[1], len(classes)


def load(data: str, size: int, channels: int) -> tuple[Images, Images, int]:
    return digits(size, channels) if data == "digits" else folder(Path(data), size)
