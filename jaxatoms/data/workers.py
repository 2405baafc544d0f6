"""What worker processes do at their start, so that they end with the command that started them, and not before it."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Ends this worker when the process that started it is gone; a killed parent cannot say so itself."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()  # type: ignore[union-attr]  # a worker has a parent
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def leave_signals_to_parent() -> None:
    """Ignores what asks a command to stop, which reaches its workers too: it needs them until it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
