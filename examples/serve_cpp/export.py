"""Write an SE network as an AOTInductor package that takes any number of images: `python export.py FOLDER`.

FOLDER gets network.pt2, the package, and images.pt, an input for it. main.cpp runs the one on the other.
"""

import sys
from pathlib import Path

import torch

from senet_fast.models import create


def main(folder: Path) -> None:
    torch.manual_seed(0)
    network = create("resnet_digits", num_classes=10, se=True).eval()
    images = torch.randn(3, 1, 8, 8)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "network.pt2"))
    torch.save(images, folder / "images.pt")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: export.py FOLDER")
    main(Path(sys.argv[1]))
