"""Simulated workers: threads that each hold a share of an array, and sum by waiting for each other."""

import threading

import numpy as np

from keras_ssl.solvers.shares import Share


def together(array, workers, function, seed=0):
    """Splits the rows at random, unevenly, and calls `function(share)` on all workers: their results."""
    random = np.random.default_rng(seed)
    owner = random.choice(workers, len(array), p=random.dirichlet(np.full(workers, 3.0)))
    owner[random.permutation(len(array))[:workers]] = np.arange(workers)  # no share is empty
    given, found, errors = [None] * workers, [None] * workers, []
    barrier = threading.Barrier(workers, timeout=60)

    def worker(index):
        def total(own):
            given[index] = own
            barrier.wait()
            assert len({(np.shape(each), np.asarray(each).dtype) for each in given}) == 1
            added = np.sum(np.stack(given), axis=0, dtype=given[0].dtype)
            barrier.wait()
            return added

        ids = np.flatnonzero(owner == index)
        try:
            found[index] = function(Share(array[ids], ids, len(array), index, total))
        except Exception as error:  # raised below
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=worker, args=(index,)) for index in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (real or errors)[0]
    return found
