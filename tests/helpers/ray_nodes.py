"""A Ray cluster of some nodes on this machine, in a process of its own, on loopback.

    python ray_nodes.py NODES

Prints ``HOST:PORT`` of its head; ends, with all that it started, when its input is closed.
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

NODE = {
    "num_cpus": 1,
    "object_store_memory": 80 * 2**20,
    "include_dashboard": False,
    "node_ip_address": "127.0.0.1",
}


def main(nodes: int) -> None:
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**NODE)
        print(cluster.address, flush=True)  # noqa: T201
        sys.stdin.read()
    finally:
        cluster.shutdown()


main(int(sys.argv[1]))
