"""Ways to run a decoder's passes, by name: torch, CUDA graphs, compiled CPU kernels."""

from ivideogpt.transformer.backends.base import AUTO, DecodeBackend, check_backend, open_backend, register_backend
from ivideogpt.transformer.backends.cpu_kernels.backend import CpuKernelsBackend
from ivideogpt.transformer.backends.cuda_graph import CudaGraphBackend
from ivideogpt.transformer.backends.torch import TorchBackend

register_backend("torch", TorchBackend)
register_backend("cpu_kernels", CpuKernelsBackend)
register_backend("cuda_graph", CudaGraphBackend)

__all__ = ["AUTO", "DecodeBackend", "TorchBackend", "check_backend", "open_backend", "register_backend"]
