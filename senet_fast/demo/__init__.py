"""`python -m senet_fast demo`: main.py runs it; digits, network and ids each do one part; report writes it down."""
