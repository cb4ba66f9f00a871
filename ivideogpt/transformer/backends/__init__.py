"""Ways to run a frame's passes: torch, CUDA graphs, compiled CPU kernels."""
