"""The one place that imports FAISS: an extra, `cpu` or `gpu`, brings it, since its flavours exclude each other."""

from __future__ import annotations

from typing import Any

try:
    import faiss as _faiss
except ImportError as error:
    raise ImportError(
        "an index needs FAISS, which no core dependency brings because its flavours overwrite each other; "
        "install exactly one extra: pip install 'recsys[cpu]', or 'recsys[gpu]' on a machine with a GPU"
    ) from error

faiss: Any = _faiss  # its annotations contradict its own Python wrappers

__all__ = ["faiss", "gpu_is_usable", "use_one_thread"]


def use_one_thread() -> None:
    """Makes FAISS compute on the calling thread only; a server calls it once in every thread that searches.

    OpenMP keeps this number per thread: setting it in the main thread leaves a pool's workers at the number of cores,
    so pass this function as `initializer=` of the pool, or start the process with OMP_NUM_THREADS=1.
    """
    faiss.omp_set_num_threads(1)


def gpu_is_usable() -> bool:
    """Whether this FAISS was compiled for GPUs and sees one."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
