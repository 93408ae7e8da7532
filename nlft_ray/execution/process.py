"""The start of a process that is ours alone. (A runtime environment would have Ray start each worker twice.)"""

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starting() -> Iterator[None]:
    """Make Python's garbage collector rare for as long as torch, transformers or Ray are imported.

    They make a million objects that stay. Looking through these again and again, as it does by default, takes the
    collector a fifth of the time of the import, and more than a second when the process ends: for its end they are
    frozen. Tokenizers' own threads are turned off for good, since processes share the cores.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    atexit.register(gc.freeze)
    thresholds = gc.get_threshold()
    gc.set_threshold(10_000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
