"""Makes Flower wait less, in the processes that tests start and nowhere else.

Python imports a module of this name at its start if it finds one on PYTHONPATH (see ``helpers/quick.py``). It imports
nothing of Flower: it changes a module when the process itself imports it. The product keeps Flower's own values.
A name that Flower no longer has ends the process, so that an upgrade cannot pass by unnoticed.
"""

import os
import sys
import time

OFFLINE_SECONDS = 10
"""Without a heartbeat; Flower's server takes no shorter interval."""
START_SECONDS = 20
"""Within these an app must have started, and its heartbeat may be this old; busy machines start slowly."""


class Hasty:
    """The module ``time`` with naps of a third: shorter ones cost more processor time than they save."""

    def __getattr__(self, name):
        return getattr(time, name)

    @staticmethod
    def sleep(seconds):
        time.sleep(seconds / 3)


CHANGES = {
    # Seconds between two heartbeats: (this - 5) * 0.8, so 2 s instead of 20.
    "flwr.supercore.heartbeat": {"HEARTBEAT_DEFAULT_INTERVAL": 7.5},
    # A node is offline after patience * interval: 10 s instead of 60.
    "flwr.supernode.fleet_http_connection": {"HEARTBEAT_DEFAULT_INTERVAL": OFFLINE_SECONDS},
    "flwr.server.superlink.linkstate.sql_linkstate": {"HEARTBEAT_PATIENCE": 1},
    "flwr.server.superlink.linkstate.in_memory_linkstate": {"HEARTBEAT_PATIENCE": 1},
    # A ServerApp or ClientApp is lost after patience * interval: 20 s instead of 60.
    "flwr.supercore.corestate.sql_corestate": {
        "HEARTBEAT_DEFAULT_INTERVAL": START_SECONDS,
        "HEARTBEAT_PATIENCE": 1,
    },
    "flwr.supercore.corestate.in_memory_corestate": {
        "HEARTBEAT_DEFAULT_INTERVAL": START_SECONDS,
        "HEARTBEAT_PATIENCE": 1,
    },
    # Between two looks for a message 1 s instead of 3, for its answer 0.17 s instead of 0.5.
    "flwr.supernode.start_client_internal": {"time": Hasty()},
    # The longest pause before a connection is tried again: 2 s instead of 20.
    "flwr.supercore.retry.http_retry": {"MAX_RETRY_DELAY": 2},
    # Our own: an agent looks for a coordinator that is away every 4 s instead of every minute.
    "fedstill.edge_client.node.supernode": {"LONGEST_AWAY_PAUSE": 4.0},
}

DAY_IN_SECONDS = {
    # Our own: a device looks at its clips at once, is asked for news every 12 s, and waits a second instead of a day.
    "fedstill.edge_client.node.change_watch": {"LOOK_SECONDS": 0.5},
    "fedstill.cloud_server.federation.service": {"HELLO_PAUSE": 12.0},
    "fedstill.cloud_server.journal.visit": {"CHANGE_PAUSE": 1.0},
}
if os.environ.get("QUICK_DAYS"):
    CHANGES |= DAY_IN_SECONDS


class Changer:
    """Finds what everybody else finds, and changes it after it was loaded."""

    def find_spec(self, name, path=None, target=None):
        if name not in CHANGES:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: change(module, load)
        return spec


def change(module, load):
    load(module)
    for name, value in CHANGES[module.__name__].items():
        if not hasattr(module, name):
            sys.exit(f"quick_flower: {module.__name__} has no {name} any more")
        setattr(module, name, value)


sys.meta_path.insert(0, Changer())
