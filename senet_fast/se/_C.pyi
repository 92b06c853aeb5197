from typing import Literal, Required, TypedDict, type_check_only

@type_check_only
class CudaInfo(TypedDict):
    nvcc: str
    runtime: int
    driver: int
    devices: int

@type_check_only
class BuildInfo(TypedDict):
    torch: str
    compiler: str
    openmp: bool
    cuda: CudaInfo | None

@type_check_only
class Plan(TypedDict):
    threads: int
    images_per_tile: int
    rows_per_block: int
    blocks: int
    stream: bool
    overlap: bool

@type_check_only
class ConvPlan(TypedDict, total=False):
    fused: Required[bool]
    because: Required[list[str]]
    threads: int
    images: int
    pixels: int
    tiles: int
    across: int
    channels: int
    tiles_a_pass: int
    stream: bool

@type_check_only
class ClusterPlan(TypedDict):
    blocks: int
    clusters: int
    threads: int
    images: int
    slice: tuple[int, int, int]
    slices: tuple[int, int, int]
    chunks: int
    shared_bytes: int

@type_check_only
class CudaPlan(TypedDict):
    tile: tuple[int, int, int]
    tiles: tuple[int, int, int]
    lanes: int
    images_ahead: int
    blocks: int
    kernel: Literal["ticket", "cluster"]
    microseconds: float
    microseconds_of_copy: float
    microseconds_unfused: float
    cluster: ClusterPlan | None

def build_info() -> BuildInfo: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def select_isa(name: str) -> None: ...
def plan(B: int, O: int, K: int, I: int, R: int, *, item_bytes: int = 4) -> Plan: ...
def plan_cuda(
    B: int,
    O: int,
    K: int,
    I: int,
    R: int | None = None,
    *,
    item_bytes: int = 4,
    backward: bool = False,
    residual: bool = False,
    kernel: str | None = None,
    processors: int = 132,
    blocks_per_processor: int = 2,
    l2_bytes: int = 52428800,
    shared_bytes: int = 232448,
) -> CudaPlan: ...
def force_plan(
    *,
    threads: int | None = None,
    images_per_tile: int | None = None,
    stream: bool | None = None,
    overlap: bool | None = None,
) -> None: ...
def plan_conv(
    B: int,
    C_in: int,
    pixels: int,
    C_out: int,
    R: int,
    *,
    side: str = "input",
    dtype: str = "float32",
    channels_last: bool = True,
    prepared: bool = True,
    residual: bool = False,
) -> ConvPlan: ...
def force_plan_conv(
    *,
    fused: bool | None = None,
    threads: int | None = None,
    images: int | None = None,
    pixels: int | None = None,
    across: int | None = None,
    channels: int | None = None,
    tiles_a_pass: int | None = None,
    stream: bool | None = None,
) -> None: ...
