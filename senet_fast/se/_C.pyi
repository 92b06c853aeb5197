from typing import TypedDict, type_check_only

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

def build_info() -> BuildInfo: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def select_isa(name: str) -> None: ...
def plan(B: int, O: int, K: int, I: int, R: int, *, item_bytes: int = 4) -> Plan: ...
def force_plan(
    *, threads: int | None = None, images_per_tile: int | None = None, stream: bool | None = None
) -> None: ...
