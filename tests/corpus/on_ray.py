"""``lit_llm corpus build ARGS`` on a Ray cluster of two nodes with one worker each, all on this machine."""

from __future__ import annotations

import sys

import ray
from ray.cluster_utils import Cluster

from lit_llm.cli import main

if __name__ == "__main__":
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    status = main(["corpus", "build", *sys.argv[1:], "--runner", "ray", "--address", cluster.address])
    ray.shutdown()
    cluster.shutdown()
    sys.exit(status)
