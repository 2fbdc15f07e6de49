"""Where tasks run: Daft, on this machine or on a Ray cluster.

A task is a picklable object that does one part's work when called, and whose result is a file, not
a value: the file is the same wherever it was made, so the engine decides nothing but the time it
takes. Daft gets a table with a row a task and calls a class in as many processes as there are
workers.
"""

from __future__ import annotations

import functools
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lit_llm.errors import UserError
from lit_llm.models.kernels.cores import usable_cores

Task: TypeAlias = Callable[[], None]


@dataclass(frozen=True)
class Engine:
    """Runs tasks.

    Attributes:
        runner: "local" or "ray".
        address: of the Ray cluster; None starts one on this machine.
        workers: processes; None: a core each. One local worker works in this process: starting
            another takes two seconds.
    """

    runner: Literal["local", "ray"] = "local"
    address: str | None = None
    workers: int | None = None

    @property
    def processes(self) -> int:
        """Workers, or one for each core: of this machine, or of the cluster, which is then
        connected to."""
        if self.workers is None and self.runner == "ray":
            _daft("ray", self.address)
            import ray

            return max(1, int(ray.cluster_resources().get("CPU", 1)))
        return self.workers or usable_cores()

    def run(self, tasks: Sequence[Task], threads: bool = False) -> Iterator[int]:
        """Do all ``tasks`` in any order, and yield the number of each as it is done.

        Args:
            tasks: may be none.
            threads: they leave the GIL to others, so that local workers are threads of this
                process.

        Raises:
            UserError: the first task's mistake; the others are not waited for.
            OSError: the first task's.
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
        daft = _daft(self.runner, self.address)
        rows = daft.from_pydict(
            {"number": list(range(len(tasks))), "task": [pickle.dumps(task) for task in tasks]}
        )
        if self.runner == "ray":
            rows = rows.into_partitions(len(tasks))  # else all of them go to one node
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
    """Daft with this runner. Its import and its processes take two seconds each."""
    # Read at the import: it reports every query to its makers, and draws progress bars of its own.
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
    # Its workers' progress bars would come here. Daft joins a session that is there.
    ray.init(address, ignore_reinit_error=True, log_to_driver=False)
    daft.set_runner_ray(address, noop_if_initialized=True)
    return daft


def _work(worker: Any, tasks: Any) -> list[bytes | None]:
    """What a process does with the tasks (a series of bytes) that it is given; failures are
    values."""
    failures: list[bytes | None] = []
    for task in tasks:
        try:
            pickle.loads(task)()
            failures.append(None)
        except (UserError, OSError) as error:
            failures.append(pickle.dumps(error))
        except Exception:
            failures.append(
                pickle.dumps(RuntimeError(traceback.format_exc()))
            )  # its text is sure to survive the way
    return failures
