"""The SE layers of real networks, as rows, and the cases that are measured by default."""

from benchmarks.modes import LAYOUTS, Case, Layer


def square(*rows: tuple[int, int, int, int]) -> list[tuple[int, int, tuple[int, ...], int]]:
    return [(blocks, channels, (pixels, pixels), hidden) for blocks, channels, pixels, hidden in rows]


# network: activation, gate, rows of (blocks, channels, spatial, hidden). Image networks at their default resolution.
NETWORKS: dict[str, tuple[str, str, list[tuple[int, int, tuple[int, ...], int]]]] = {
    # SE-ResNet-152, SENet-154 and SE-ResNeXt-101 have the same four shapes, more often
    "seresnet50": ("relu", "sigmoid", square((3, 256, 56, 16), (4, 512, 28, 32), (6, 1024, 14, 64), (3, 2048, 7, 128))),
    "mobilenetv3_large": (
        "relu",
        "hardsigmoid",
        square((1, 72, 28, 24), (2, 120, 28, 32), (1, 480, 14, 120), (1, 672, 14, 168), (1, 672, 7, 168))
        + square((2, 960, 7, 240)),
    ),
    "mobilenetv3_small": (
        "relu",
        "hardsigmoid",
        square((1, 16, 56, 8), (1, 96, 14, 24), (2, 240, 14, 64), (1, 120, 14, 32), (1, 144, 14, 40), (1, 288, 7, 72))
        + square((2, 576, 7, 144)),
    ),
    "efficientnet_b0": (
        "silu",
        "sigmoid",
        square((1, 32, 112, 8), (1, 96, 56, 4), (1, 144, 56, 6), (1, 144, 28, 6), (1, 240, 28, 10), (1, 240, 14, 10))
        + square((3, 480, 14, 20), (2, 672, 14, 28), (1, 672, 7, 28), (4, 1152, 7, 48)),
    ),
    "efficientnetv2_s": (
        "silu",
        "sigmoid",
        square((1, 256, 24, 16), (5, 512, 24, 32), (1, 768, 24, 32), (8, 960, 24, 40), (1, 960, 12, 40))
        + square((14, 1536, 12, 64)),
    ),
    "efficientnet_b7": (
        "silu",
        "sigmoid",
        square((1, 64, 300, 16), (3, 32, 300, 8), (1, 192, 150, 8), (6, 288, 150, 12), (1, 288, 75, 12))
        + square((6, 480, 75, 20), (1, 480, 38, 20), (10, 960, 38, 40), (9, 1344, 38, 56), (1, 1344, 19, 56))
        + square((13, 2304, 19, 96), (3, 3840, 19, 160)),
    ),
    "regnety_004": (
        "relu",
        "sigmoid",
        square((1, 48, 56, 8), (1, 104, 28, 12), (2, 104, 28, 26), (1, 208, 14, 26), (5, 208, 14, 52), (1, 440, 7, 52))
        + square((5, 440, 7, 110)),
    ),
    "regnety_160": (
        "relu",
        "sigmoid",
        square((1, 224, 56, 8), (1, 224, 56, 56), (1, 448, 28, 56), (3, 448, 28, 112), (1, 1232, 14, 112))
        + square((10, 1232, 14, 308), (1, 3024, 7, 308)),
    ),
    "regnety_320": (
        "relu",
        "sigmoid",
        square((1, 232, 56, 8), (1, 232, 56, 58), (1, 696, 28, 58), (4, 696, 28, 174), (1, 1392, 14, 174))
        + square((11, 1392, 14, 348), (1, 3712, 7, 348)),
    ),
    "resnetrs50": (
        "relu",
        "sigmoid",
        square((3, 256, 40, 64), (4, 512, 20, 128), (6, 1024, 10, 256), (3, 2048, 5, 512)),
    ),
    "nfnet_f0": (
        "relu",
        "sigmoid",
        square((1, 256, 48, 128), (2, 512, 24, 256), (6, 1536, 12, 768), (3, 1536, 6, 768)),
    ),
    "repvit_m1_0": ("relu", "sigmoid", square((1, 56, 56, 16), (1, 112, 28, 32), (7, 224, 14, 56), (1, 448, 7, 112))),
    "coatnet_0": ("relu", "sigmoid", square((1, 256, 56, 64), (1, 384, 56, 96), (1, 384, 28, 96), (2, 768, 28, 192))),
    "tresnet_m": ("relu", "sigmoid", square((3, 64, 56, 64), (4, 128, 28, 64), (11, 256, 14, 128))),
    "maxvit_t": ("silu", "sigmoid", square((2, 256, 56, 16), (2, 512, 28, 32), (5, 1024, 14, 64), (2, 2048, 7, 128))),
    # Restoration: one training patch
    "rcan": ("relu", "sigmoid", square((200, 64, 48, 4))),
    "hat": ("relu", "sigmoid", square((36, 180, 64, 6))),
    # Speech, [batch, channels, frames]: three seconds at 100 frames a second
    "ecapa_tdnn": ("relu", "sigmoid", [(3, 1024, (300,), 128)]),
    "speaker_encoder": ("relu", "sigmoid", [(3, 256, (300,), 64)]),
    # Volumes, from an input of 96 x 96 x 96
    "seresnet50_3d": (
        "relu",
        "sigmoid",
        [(3, 256, (24,) * 3, 16), (4, 512, (12,) * 3, 32), (6, 1024, (6,) * 3, 64), (3, 2048, (3,) * 3, 128)],
    ),
}

LAYERS = [
    Layer(network, blocks, channels, spatial, hidden, activation, gate)
    for network, (activation, gate, rows) in NETWORKS.items()
    for blocks, channels, spatial, hidden in rows
]

BATCHES = (1, 8, 32)


def of(network: str, *sizes: tuple[int, int, int]) -> list[Layer]:
    """The layers of a network, or those of these (channels, pixels, hidden channels)."""
    found = [layer for layer in LAYERS if layer.network == network]
    return [layer for layer in found if not sizes or (layer.channels, layer.spatial[0], layer.hidden) in sizes]


def default_cases() -> list[Case]:
    """SE-ResNet-50 at every batch size, in both layouts and dtypes; a few shapes of each other kind of network."""
    main = of("seresnet50")
    others = [
        *of("mobilenetv3_large", (120, 28, 32), (672, 14, 168), (960, 7, 240)),
        *of("efficientnet_b0", (32, 112, 8), (240, 28, 10), (672, 7, 28)),
        *of("regnety_160", (224, 56, 56), (1232, 14, 308)),
        *of("ecapa_tdnn"),
        *of("seresnet50_3d", (256, 24, 16)),
    ]
    return [
        *(Case(layer, batch) for batch in BATCHES for layer in main),
        *(Case(layer, 8, "nhwc") for layer in main),
        *(Case(layer, batch, layout, "bf16") for layout in LAYOUTS for batch in BATCHES for layer in main),
        *(Case(layer) for layer in others),
    ]


def all_cases() -> list[Case]:
    """Every layer at every batch size, layout and dtype; the layouts differ for images only."""
    return [
        Case(layer, batch, layout, dtype)
        for layer in LAYERS
        for batch in BATCHES
        for layout in (LAYOUTS if len(layer.spatial) == 2 else ("nchw",))
        for dtype in ("fp32", "bf16")
    ]
