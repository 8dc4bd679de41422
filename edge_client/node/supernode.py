"""Flower's SuperNode as a child of the agent: started, watched, and started again with growing pauses.

The SuperNode holds the connection to the coordinator and starts our ClientApp for every message. The process from which
a ClientApp starts warm begins when the SuperNode was let in, since it costs as much as that one's own start, and ends
with it, so that both are of the same installation. After a node was killed,
Flower takes its key for online and refuses it for up to a minute. So only a lasting refusal is final.

A SuperNode can wait for ever: if a ClientApp dies after it has said that it begins and before it has fetched its
message, or while it hands in its reply, Flower 1.41 makes no reply and takes no further message. Such a one is started
again.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fedstill.common.child_process import Child
from fedstill.common.flower_cli import environment, free_port, tool
from fedstill.common.trusted_roots import UNKNOWN_AUTHORITY, newest_roots_file
from fedstill.edge_client.link.reachability import why_unreachable
from fedstill.edge_client.node.clientapp_process import NAME as COMMAND
from fedstill.edge_client.node.clientapp_process import install_command
from fedstill.edge_client.node.warm_start import command as warm_start

LOG = logging.getLogger(__name__)

LAST_WORDS = (b"Giving up reconnection", b"handshake error detected")
ENDING_SECONDS = 5.0
STUCK = -1
TRYING, BACK = b"Connection attempt failed, retrying", b"Connection successful after"
"""In Flower's words, of a connection that was lost after it had stood."""
LOST_SECONDS = 10.0
LOST = "the connection to the coordinator is lost; it is tried again"
ACCEPTED = b"SuperNode ID: "
"""In Flower's words, the SuperLink has let this node in."""
STARTING_SECONDS = 180.0
"""A process that has not been let in for so long is started again. Slow devices take a minute to import Flower."""
BEGUN = b"Receiving: "
DONE = (b"Sent successfully", b"Failed to send message", b"Ignoring message", b"Ignoring reply message")
"""In Flower's words, a message in hand, and no longer in hand."""
SILENT_SECONDS, SURE_SECONDS = 120.0, 10.0
"""A message in hand, no ClientApp and not a word for so long, nor in another look: while a reply is tried again, Flower
says so every 20 s, and a dead ClientApp is noticed after 60 s."""
NOT_LET_IN = "[code: 2004]"
"""In Flower's words, beside its exit code 305: the SuperLink has not activated this node; it does not say why."""
REVOKED = (
    "this device was revoked, or its credentials are not this coordinator's: ask its operator for new ones (fedstill "
    "certs issue) and start the agent with them; or it has just been online, which passes within a minute"
)
NOT_TRUSTED = re.compile(
    r"unable to get (local )?issuer certificate|self-signed certificate in certificate chain"
)
"""In OpenSSL's words: the server's certificate is of none of the roots that were given."""
REASON_LINES = 3
"""Flower explains an exit code in the two lines below it."""
LOOK_BACK = 12
"""How many last lines of the log are searched for the reason."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 15.0
LONGEST_AWAY_PAUSE = 60.0
"""Between two looks for a coordinator that cannot be reached. A look costs some kilobytes and no process; pauses differ
by up to a half, so that a fleet does not come back in one moment."""
LONGEST_REFUSED_PAUSE = 900.0
"""Between two attempts of a node that was refused for good, and stays for the sake of the agent's other work."""
SETTLED_SECONDS = 20.0
"""After a SuperNode was accepted for this long, the next failure has another cause."""

PROBE_SECONDS = 3.0

WARM_SECONDS, LONGEST_WARM_SECONDS = 60.0, 3600.0
"""Between two looks whether the warm process still runs, twice as long after each of its ends. Without it messages take
longer, no more."""


class NodeRefused(RuntimeError):
    """The coordinator does not want this node, for longer than a restart explains; one line."""


@dataclass(frozen=True)
class Link:
    """The coordinator's address and this node's proof of identity; ``ca`` and ``key`` are empty without TLS.

    Attributes:
        via: the address to connect to if that is another one, which leads there; empty: ``address``.
        kept_ca: where roots are kept that the cloud sends in place of ``ca``; None: it is not used.
    """

    address: str
    ca: Path | None
    key: Path | None
    via: str = ""
    kept_ca: Path | None = None

    @property
    def trusted(self) -> Path | None:
        """The file of the roots to trust now."""
        return newest_roots_file(self.kept_ca, self.ca) if self.kept_ca and self.ca else self.ca

    @property
    def roots(self) -> bytes:
        """What that file has; empty without TLS, and while it cannot be read."""
        with suppress(OSError):
            return self.trusted.read_bytes() if self.trusted else b""
        return b""


@dataclass
class SuperNode:
    """One SuperNode for ``folder``; ``client`` is this device's number in the run.

    Attributes:
        patience: seconds since the last good moment until ``reconcile`` gives up.
        stays: it does not give up then, but tries less often: the agent answers clips, which a refusal must not end.
    """

    folder: Path
    link: Link
    client: int
    name: str
    patience: float = 180.0
    stays: bool = False
    _started: float = 0.0
    _accepted: float = 0.0
    _lost: float = 0.0
    _pause: float = FIRST_PAUSE
    _again: float = 0.0
    _good: float = 0.0
    _read: int = 0
    _ending: float = 0.0
    _in_hand: bool = False
    _heard: bool = False
    _spoke: float = 0.0
    _alone: float = 0.0
    _look: float = 0.0
    _rest: float = WARM_SECONDS
    _warmed: bool = False
    _trouble: str = ""
    _away: bool = False
    _roots: bytes = b""
    _child: Child = field(init=False)
    _warm: Child = field(init=False)

    def __post_init__(self) -> None:
        self._child = Child("supernode", self.folder)
        self._warm = Child("warm_start", self.folder)
        self._good = time.monotonic()

    def reconcile(self) -> None:
        """Call about once a second; takes up to ``PROBE_SECONDS`` while the coordinator cannot be reached.

        Raises:
            NodeRefused: it ended again and again for ``patience`` seconds, however long it had run before. A
                coordinator that cannot be reached refuses nobody.
        """
        now = time.monotonic()
        if self._child.pid is not None:
            code = self._child.poll()
            if code is None and (self._gave_up() or self._is_stuck(now)):
                code = STUCK
            if code is None:
                if self._accepted and now - self._accepted > SETTLED_SECONDS:
                    self._pause, self._good = FIRST_PAUSE, now
                    self._trouble = LOST if self._is_lost(now) else ""
                if self._accepted and not self._warmed:
                    self._warmed = True
                    self._prepare(warm=True)
                if now >= self._look:
                    self._keep_warm(now)
                    roots = self.link.roots  # none while they cannot be read: a running node needs none
                    if roots and self._roots != roots and not self._in_hand:
                        LOG.info("event=supernode_restarted reason=roots_renewed")
                        self.stop()
                        self._start(now)
                return
            self._ended(code, now)
        if now >= self._again and not self._is_away(now):
            self._start(now)

    @property
    def settled(self) -> bool:
        """Whether it runs, the coordinator has accepted it, and the connection was not lost since."""
        return self._child.pid is not None and self._accepted > 0 and not self._is_lost(time.monotonic())

    def _is_lost(self, now: float) -> bool:
        """A single attempt that fails is none."""
        return self._lost > 0 and now - self._lost > LOST_SECONDS

    @property
    def trouble(self) -> str:
        """Why the last process ended, in one line; empty if all has been well since."""
        return self._trouble

    @property
    def idle(self) -> float:
        """Seconds since the last word of a node that has had a message since its start; 0 while it has one in hand."""
        if not self.settled or not self._heard or self._in_hand:
            return 0.0
        return time.monotonic() - self._spoke

    @property
    def started(self) -> float:
        """When the present process was started, on a clock that only grows; 0 before the first one."""
        return self._started

    def _gave_up(self) -> bool:
        """Whether the process has given up but still runs: Flower's does so when a connection breaks in a TLS
        handshake."""
        log = self._child.log_file
        if not log.exists():
            return False
        with log.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read:  # put aside meanwhile, perhaps with words not read yet
                self._read, self._in_hand = 0, False
            file.seek(self._read)
            said = file.read()
        said = said[: said.rfind(b"\n") + 1]  # the rest of a line comes later
        self._read += len(said)
        if said:
            self._spoke, self._alone = time.monotonic(), 0.0
            begun, done = said.rfind(BEGUN), max(map(said.rfind, DONE))
            self._heard = self._heard or begun >= 0
            if begun != done:  # both are -1 if it speaks of other things
                self._in_hand = begun > done
            tried, back = said.rfind(TRYING), max(map(said.rfind, (BACK, ACCEPTED, BEGUN, DONE[0])))
            if tried != back:  # both are -1 if it speaks of other things
                self._lost = 0.0 if back > tried else self._lost or time.monotonic()
            if ACCEPTED in said:
                self._accepted = time.monotonic()
        if any(words in said for words in LAST_WORDS):
            self._ending = time.monotonic()
        return self._ending > self._started and time.monotonic() - self._ending > ENDING_SECONDS

    def _is_stuck(self, now: float) -> bool:
        """Whether it waits for a reply that nobody makes, or to be let in."""
        if not self._accepted:
            return now - self._started > STARTING_SECONDS
        if not self._in_hand or now - self._spoke < SILENT_SECONDS:
            return False
        if self._has_clientapp():
            self._spoke, self._alone = now, 0.0
            return False
        self._alone = self._alone or now
        return now - self._alone > SURE_SECONDS

    def _has_clientapp(self) -> bool:
        """Whether a ClientApp runs below it."""
        if self._child.pid is None:
            return False
        with suppress(psutil.Error):
            for process in psutil.Process(self._child.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if any(part.endswith(COMMAND) for part in process.cmdline()):
                        return True
        return False

    def rest(self) -> None:
        """Instead of ``reconcile``, while nothing may be sent: no process, and no time of trouble."""
        if self._child.pid is not None:
            self.stop()
        self._good, self._again, self._pause = time.monotonic(), 0.0, FIRST_PAUSE

    def stop(self) -> None:
        """End it and the ClientApp that it may be running."""
        self._child.stop()
        self._warm.stop()

    def _start(self, now: float) -> None:
        config = f"partition-id={self.client} state-dir={json.dumps(str(self.folder))} name={json.dumps(self.name)}"
        command = [
            tool("flower-supernode"), "--superlink", self.link.via or self.link.address, *self._trust(),
            "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", config,
        ]  # fmt: skip
        log = self._child.log_file
        self._read = log.stat().st_size if log.exists() else 0  # lines of an earlier process do not count
        self._in_hand, self._heard, self._alone, self._accepted, self._lost = False, False, 0.0, 0.0, 0.0
        self._rest, self._warmed = WARM_SECONDS, False
        self._look = now + self._rest
        self._prepare(warm=False)
        self._roots = self.link.roots
        self._child.start(command, self._variables(), self.folder)
        self._started = now

    def _prepare(self, warm: bool) -> None:
        """The command by which Flower starts our ClientApp, and on Linux its warm process: elsewhere one that has
        imported much may not be forked."""
        programs = self.folder / "flower" / "bin"
        try:
            install_command(programs)
            if warm and sys.platform == "linux":
                self._warm.start(warm_start(os.getpid()), self._variables(), programs)
        except OSError as error:  # a full disk: messages start cold
            LOG.warning("event=no_warm_start reason=%s", json.dumps(error.strerror or str(error)))

    def _keep_warm(self, now: float) -> None:
        if not self._warmed:
            self._look = now + self._rest
            return
        code = self._warm.poll()
        if code is not None:
            LOG.warning("event=warm_start_ended code=%d reason=%s", code, json.dumps(self._warm.log_tail()))
            self._rest = min(LONGEST_WARM_SECONDS, 2 * self._rest)
        if code is not None or self._warm.pid is None:
            self._prepare(warm=True)
        self._look = now + self._rest

    def _variables(self) -> dict[str, str]:
        home = self.folder / "flower"
        variables = environment(home)
        return {**variables, "PATH": f"{home / 'bin'}{os.pathsep}{variables['PATH']}"}

    def _trust(self) -> list[str]:
        trusted = self.link.trusted
        if trusted is None:
            return ["--insecure"]
        key = ["--auth-supernode-private-key", str(self.link.key)] if self.link.key else []
        return ["--root-certificates", str(trusted), *key]

    def _ended(self, code: int, now: float) -> None:
        reason = exit_reason(self._child.log_file)
        if code == STUCK and self._alone:
            reason = "it waits for the reply of a ClientApp that is gone"
        self._trouble = reason
        LOG.warning("event=supernode_ended code=%d reason=%s", code, json.dumps(reason))
        self.stop()
        if (
            self._lost and not self._accepted
        ):  # who answers there leads to no coordinator, which refuses nobody
            self._good = now
        is_final = now - self._good > self.patience
        if is_final and not self.stays:
            if self._is_away(now):
                return
            raise NodeRefused(
                f"the coordinator at {self.link.address} does not accept this node, tried for "
                f"{now - self._good:.0f} s: {reason}"
            )
        self._rest_until(now, LONGEST_REFUSED_PAUSE if is_final else LONGEST_PAUSE)

    def _is_away(self, now: float) -> bool:
        """Whether nobody answers at the coordinator's address: then no process needs to try."""
        reason = why_unreachable(self.link.via or self.link.address, self.link.ca is not None, PROBE_SECONDS)
        if not reason:
            if self._away:
                self._away, self._good = False, now
            return False
        if reason != self._trouble:
            LOG.warning(
                "event=coordinator_unreachable address=%s reason=%s", self.link.address, json.dumps(reason)
            )
        self._trouble, self._away = reason, True
        self._rest_until(now, LONGEST_AWAY_PAUSE)
        return True

    def _rest_until(self, now: float, longest: float) -> None:
        self._again = now + self._pause * random.uniform(0.5, 1.0)
        self._pause = min(longest, 2 * self._pause)


def exit_reason(log_file: Path) -> str:
    """Why the SuperNode ended, from its log: one line."""
    lines = log_file.read_text(errors="replace").splitlines()[-LOOK_BACK:] if log_file.exists() else []
    said = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines if line.strip()]
    if any(NOT_LET_IN in line for line in said):
        return REVOKED
    if any(NOT_TRUSTED.search(line) for line in said):
        return UNKNOWN_AUTHORITY
    for number, line in enumerate(said):
        if "Exit Code" in line:
            return " ".join(said[number : number + REASON_LINES])
    telling = [
        line for line in said if re.search(r"error|refused|denied|exit code|invalid|certificate", line, re.I)
    ]
    return (telling or said or ["it said nothing"])[-1]
