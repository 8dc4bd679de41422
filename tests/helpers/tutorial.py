"""Does what a tutorial's page says, in its order, and waits for what the page shows.

A block of ``sh`` is typed. Services go on in the background, each in a terminal of its own; a comment says which one
gets Ctrl-C. A block of ``text`` is what the block before it prints: every line must come, with other numbers, times,
sizes and versions, and anything in place of ``...``. Commands that only look are repeated until then; after a command
that prints nothing, any service may print the lines.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from fedstill.common.child_process import end, family
from fedstill.common.flower_cli import tool
from helpers.documented import Block

SERVICES = ("fedstill coordinator", "fedstill agent")
LOOKS = ("status", "privacy", "fleet")
STOP = re.compile(r"# Ctrl-C in the terminal of (\S+)")
PATIENCE = 240.0


class Tutorial:
    """A reader with a folder.

    Args:
        replaced: parts of commands that cannot be as the page has them, such as ports.
        environment: of all processes; what they print is as wide as it has to be.
    """

    def __init__(self, folder: Path, replaced: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self._folder, self._replaced = folder, replaced
        self._environment = {name: value for name, value in environment.items() if name != "COLUMNS"}
        self._services: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        self._looks: list[list[str]] = []
        self._printed = ""
        self._watched: list[Path] = []

    def follow(self, blocks: Sequence[Block]) -> None:
        """From the first block to the last."""
        for block in blocks:
            if block.language == "sh":
                self._looks, self._printed, self._watched = [], "", []
                for line in block.text.replace("\\\n", " ").splitlines():
                    self._type(line)
            elif block.language == "text":
                self._expect(block.text)

    def close(self) -> None:
        """End what still runs."""
        for process, _ in self._services.values():
            if process.poll() is None:
                end(family(psutil.Process(process.pid)))
                process.wait()

    def said(self, name: str) -> str:
        """Everything that the service with this ``--state`` has printed."""
        return self._services[name][1].read_text("utf-8", "replace")

    def _type(self, line: str) -> None:
        if stop := STOP.fullmatch(line.strip()):
            process, _ = self._services[stop[1]]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, self.said(stop[1])
            return
        for page, here in self._replaced.items():
            line = line.replace(page, here)
        words = shlex.split(line, comments=True)
        if not words:
            return
        words[0] = {"fedstill": tool("fedstill"), "python": sys.executable}.get(words[0], words[0])
        if line.startswith(SERVICES) and "--state" in words:
            self._start(words, words[words.index("--state") + 1])
        else:
            if words[0] == tool("fedstill") and words[1] in LOOKS:
                self._looks.append(words)
            self._printed += self._run(words)
            self._watched = [] if self._printed else [log for _, log in self._services.values()]

    def _start(self, words: list[str], name: str) -> None:
        log = self._folder / f"{name}.said"
        with log.open("wb") as out:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self._folder,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        self._services[name], self._watched = (process, log), [log]

    def _run(self, words: list[str]) -> str:
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=self._folder, env=self._environment, timeout=PATIENCE,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _expect(self, text: str) -> None:
        wanted = [pattern(line) for line in text.splitlines() if line.strip()]
        limit = time.monotonic() + PATIENCE
        while missing := [one.pattern for one in wanted if not one.search(plain(self._seen()))]:
            logs = "\n".join(f"== {name}\n{self.said(name)[-3000:]}" for name in self._services)
            assert time.monotonic() < limit, f"never seen: {missing}\nbut\n{self._seen()}\n{logs}"
            time.sleep(2.0 if self._looks else 0.5)  # a look costs a process

    def _seen(self) -> str:
        if self._watched:
            return "\n".join(log.read_text("utf-8", "replace") for log in self._watched)
        return "\n".join(map(self._run, self._looks)) if self._looks else self._printed


def pattern(line: str) -> re.Pattern[str]:
    """What a line of the page stands for."""
    return re.compile(".*".join(re.escape(plain(part.strip())) for part in line.split("...")))


def plain(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"\b(?=[a-f]*[0-9])[0-9a-f]{12}\b", "VERSION", text)
    text = re.sub(r"[0-9]+(?:\.[0-9]+)?(?: [kMG]?B\b)?", "0", text)
    return re.sub(r"[ \t]+", " ", text)


@contextmanager
def reading(folder: Path, replaced: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Tutorial]:
    """A tutorial of which nothing is left running."""
    tutorial = Tutorial(folder, replaced, environment)
    try:
        yield tutorial
    finally:
        tutorial.close()
