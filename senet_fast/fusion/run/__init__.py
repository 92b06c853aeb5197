"""What a fused module does at a call: the guards, one step for each excitation, the forward of each mode."""
