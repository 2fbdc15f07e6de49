"""Task engine: runs tasks with Daft, on this machine or on a Ray cluster.

A task is a picklable object that does the work of one part when it is called. Its result is a file,
not a value, and the file is the same wherever it was made. So the engine affects only the time that
the work takes. Daft gets a table with one row per task and calls a class in as many processes as
there are workers.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lit_llm.errors import UserError
from lit_llm.models.kernels.cpu_threads import usable_cores

Task: TypeAlias = Callable[[], None]


@dataclass(frozen=True)
class Engine:
    """Runs tasks.

    Attributes:
        runner: "local" or "ray".
        address: address of the Ray cluster; None starts one on this machine.
        workers: number of processes; None: one per core. A single local worker runs in this
            process, because starting another takes two seconds.
    """

    runner: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = None

    @property
    def processes(self) -> int:
        """Number of workers: as set, or one per core of this machine or of the cluster.

        Counting the cores of a cluster connects to it.
        """
        if self.workers is None and self.runner == "ray":
            _daft("ray", self.address)
            import ray

            return max(1, int(ray.cluster_resources().get("CPU", 1)))
        return self.workers or usable_cores()

    def run(self, tasks: Sequence[Task], threads: bool = False) -> Iterator[int]:
        """Run all ``tasks`` in any order, and yield the number of each when it is done.

        Args:
            tasks: the tasks; may be empty.
            threads: whether the tasks release the GIL, so that local workers can be threads of this
                process.

        Raises:
            UserError: the first task that raised one; the other tasks are not awaited.
            OSError: likewise.
        """
        if not tasks:
            return
        workers = min(self.processes, len(tasks))
        if self.runner == "local" and workers == 1:
            for number, task in enumerate(tasks):
                task()
                yield number
            return
        if self.runner == "local" and threads:
            with ThreadPoolExecutor(workers) as pool:
                running = {pool.submit(task): number for number, task in enumerate(tasks)}
                try:
                    for done in as_completed(running):
                        done.result()
                        yield running[done]
                finally:
                    pool.shutdown(cancel_futures=True)
            return
        # Processes: a table with a row per task, and a class that Daft calls with one row at a
        # time.
        daft = _daft(self.runner, self.address)
        rows = daft.from_pydict(
            {
                "number": list(range(len(tasks))),
                "task": [pickle.dumps((sys.path, pickle.dumps(task))) for task in tasks],
            }
        )
        if self.runner == "ray":
            rows = rows.into_partitions(len(tasks))  # otherwise one node gets all tasks
        one_by_one = daft.method.batch(return_dtype=daft.DataType.binary(), batch_size=1)
        kind = type("Worker", (), {"work": one_by_one(_work)})
        worker = daft.cls(kind, max_concurrency=workers, use_process=True)()
        done = rows.select(rows["number"], worker.work(rows["task"]).alias("failure"))
        for row in done.iter_rows(results_buffer_size=None):
            if row["failure"] is not None:
                raise pickle.loads(row["failure"])
            yield row["number"]


@functools.cache
def _daft(runner: str, address: str | None) -> Any:
    """Import Daft and set its runner. The import and the processes take two seconds each."""
    # Daft reads these when it is imported: by default it reports every query to its makers and
    # draws progress bars.
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    try:
        import daft
    except ImportError as error:
        raise UserError(
            "workers: more than one needs Daft; pip install 'lit_llm[corpus]', or set workers to 1"
        ) from error
    if runner == "local":
        daft.set_runner_native()
        return daft
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "runner: ray is not installed here; pip install 'lit_llm[ray]', or set runner to local"
        ) from error
    # Without log_to_driver=False the workers' progress bars are printed here. Daft then joins the
    # Ray session of this process.
    ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    daft.set_runner_ray(address, noop_if_initialized=True)
    return daft


def _work(worker: Any, tasks: Any) -> list[bytes | None]:
    """Run a series of pickled tasks in a worker process; return each task's error, or None."""
    failures: list[bytes | None] = []
    for task in tasks:
        try:
            # A user's blocks are found where the starting process finds them.
            paths, pickled = pickle.loads(task)
            sys.path += [path for path in paths if path not in sys.path]
            pickle.loads(pickled)()
            failures.append(None)
        except (UserError, OSError) as error:
            failures.append(pickle.dumps(error))
        except Exception:
            # An arbitrary exception may not be picklable; its text always is.
            failures.append(pickle.dumps(RuntimeError(traceback.format_exc())))
    return failures
