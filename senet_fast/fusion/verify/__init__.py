"""Whether the op computes what somebody's code does: values and gradients, compared on random numbers."""
