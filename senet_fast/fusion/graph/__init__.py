"""Graphs of forwards: how they are traced, their nodes and sizes, how pieces of them run, which calls were observed."""
