"""Several devices in one process: each has a dispatcher with a policy of its own, and a query goes where it earns most.

The rule is that of replicas (``scheduling/price.py``), but what it goes by is of this moment: price, work and times
are read from the dispatchers themselves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fedstill.cloud_server.serving.callers.call import Call
from fedstill.cloud_server.serving.scheduling.price import TOLERANCE, AskedQuery, Figures, Offer, net_earning
from fedstill.cloud_server.serving.scheduling.profile import Profile
from fedstill.cloud_server.serving.server.dispatcher import Dispatcher
from fedstill.cloud_server.serving.server.requests import NOBODY, Deliver, Prepare, Request


class DeviceQueues:
    """A ``QueryQueue`` of several.

    Args:
        dispatchers: one per device, of the same tasks; they share a lock.
    """

    def __init__(self, dispatchers: Sequence[Dispatcher]) -> None:
        self._dispatchers = tuple(dispatchers)

    @property
    def draining(self) -> bool:
        return self._dispatchers[0].draining

    @property
    def profile(self) -> Profile:
        return self._dispatchers[0].profile

    @property
    def engines(self) -> int:
        return len(self._dispatchers)

    def queued(self) -> int:
        return sum(one.queued() for one in self._dispatchers)

    def submit(
        self,
        task: str,
        images: Sequence[Prepare],
        latency_seconds: float,
        utility: float,
        deliver: Deliver,
        caller: Call = NOBODY,
    ) -> Request:
        query = AskedQuery(task, utility, latency_seconds, len(images))
        place = self._best(query)
        request = self._dispatchers[place].submit(task, images, latency_seconds, utility, deliver, caller)
        request.queue = place
        return request

    def cancel(self, request: Request) -> None:
        self._dispatchers[request.queue].cancel(request)

    def start(self) -> None:
        for one in self._dispatchers:
            one.start()

    def drain(self) -> None:
        for one in self._dispatchers:
            one.drain()

    def wait_until_idle(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return all(one.wait_until_idle(max(0.0, end - time.monotonic())) for one in self._dispatchers)

    def stop(self) -> None:
        for one in self._dispatchers:
            one.stop()

    def _best(self, query: AskedQuery) -> int:
        """Of those that earn as much as the best one, or nearly, the one with the least work.

        An engine that fails is idle again at once. So one that has failed lately gets nothing while another has not.
        """
        places = range(len(self._dispatchers))
        healthy = [place for place in places if not self._dispatchers[place].failing] or places
        work = {place: self._dispatchers[place].backlog() for place in healthy}
        worth = {
            place: net_earning(_figures(self._dispatchers[place], query.task), query, waiting)
            for place, waiting in work.items()
        }
        best = max(worth.values())
        least = best - TOLERANCE * abs(best)
        # None are equal if a worth is no number: then only the work counts.
        equal = [place for place in healthy if worth[place] >= least] or healthy
        return min(equal, key=lambda place: work[place])


def _figures(dispatcher: Dispatcher, task: str) -> Figures:
    """As a replica publishes them, of one task."""
    policy = dispatcher.policy
    tasks = policy.profile.tasks
    offers = {task: Offer(0.0, 0.0, policy.offers(tasks.index(task)))} if task in tasks else {}
    return Figures(0, policy.price, 0.0, 0.0, offers)
