"""Limits the threads of FAISS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import faiss


@contextmanager
def single_thread() -> Iterator[None]:
    """Makes FAISS use one thread in the calling thread.

    FAISS's threads wait actively for each other. While another process needs one of two cores, one query to 15,000
    faces takes 24 ms with two threads and 0.8 ms with one; on idle cores 64 queries take as long with either. OpenMP
    keeps the number for each thread of the process, so that it must be set where FAISS is called.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
