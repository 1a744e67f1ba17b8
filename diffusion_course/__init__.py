"""One file for each later lesson; each imports the core, `diffusion_utils`, and at most one other of these."""
