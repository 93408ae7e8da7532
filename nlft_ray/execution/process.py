"""How a process that is ours alone starts. (A runtime environment would have Ray start each worker twice.)"""

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def starting() -> Iterator[None]:
    """Keep the tokenizers' threads from cores that processes share, and Python's collector of garbage from what stays.

    torch and transformers make a million objects as they are imported. Looking through them again and again, as it does
    by default, takes the collector a fifth of the time of the import, and more than a second when the process ends.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    atexit.register(gc.freeze)
    thresholds = gc.get_threshold()
    gc.set_threshold(10_000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
