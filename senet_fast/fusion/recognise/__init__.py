"""What a graph computes: layers by their weights, activations by values, excitations and what stands beside them."""
