"""A process of a run ends when the process that started it is gone."""

from __future__ import annotations

import os
import sys
import threading
import time


def follow(parent: int, every: float = 1.0) -> None:
    """End this process with status 1 and a message when ``parent`` is no longer its parent.

    Lightning's launcher watches the processes that it started, and torchrun's agent watches its
    workers. But nobody watches these two. If they are killed, the other processes wait for a peer
    until the backend's timeout (half an hour for gloo and while a group forms). Or they keep
    training beside the run that a scheduler starts in their place.

    Args:
        parent: process id of the parent.
        every: seconds between two checks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        try:
            sys.stderr.write(
                "lit_llm: the process that started this one is gone; "
                "--ckpt_path last resumes the run\n"
            )
            sys.stderr.flush()
        finally:  # the reader of stderr may be gone too
            os._exit(1)  # the main thread may be blocked in a collective

    threading.Thread(target=watch, name="follows its parent", daemon=True).start()
