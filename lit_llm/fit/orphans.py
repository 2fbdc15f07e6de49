"""A process of a run does not outlive the one that started it."""

from __future__ import annotations

import os
import sys
import threading
import time


def follow(parent: int, every: float = 1.0) -> None:
    """End this process, with status 1 and a line, once ``parent`` started it no more; looked for
    ``every`` seconds.

    Lightning's launcher watches the processes it started, and torchrun's agent its workers, but
    nobody watches them: if they are killed the rest waits for a peer as long as the backend allows,
    half an hour for gloo and while a group forms, or trains on beside the run that a scheduler
    starts in their place.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        try:
            sys.stderr.write(
                "lit_llm: the process that started this one is gone; --ckpt_path last goes on\n"
            )
            sys.stderr.flush()
        finally:  # who read the line may be gone too
            os._exit(1)  # the main thread may be waiting within a collective

    threading.Thread(target=watch, name="follows its parent", daemon=True).start()
