"""The op and whole networks on a GPU: `python -m benchmarks.gpu`."""
