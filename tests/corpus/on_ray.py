"""``lit_llm corpus build ARGS`` on a Ray cluster of two nodes with one worker each, all on this
machine."""

from __future__ import annotations

import socket
import sys

import ray
from ray.cluster_utils import Cluster

from lit_llm.cli import main


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def node() -> dict[str, int]:
    """A port that is known beforehand: a node waits for its agent to find one, and on a busy
    machine dies of it."""
    return {"num_cpus": 1, "object_store_memory": 80 * 2**20, "metrics_agent_port": free_port()}


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args=node())
    cluster.add_node(**node())
    status = main(
        ["corpus", "build", *sys.argv[1:], "--runner", "ray", "--address", cluster.address]
    )
    ray.shutdown()
    cluster.shutdown()
    sys.exit(status)
