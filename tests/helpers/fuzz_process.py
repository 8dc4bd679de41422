"""Injured files are read in a process of its own, which may crash, hang or grow without harm to who watches it."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from fedstill.common.errors import DataError
from helpers.mutation import mutated

PATIENCE = 60.0  # s without an answer: it hangs; files take milliseconds


@dataclass
class Report:
    """What became of the injured files of one format.

    Attributes:
        read: how many were read, with a result of the right kind.
        named: how many gave one line that begins with the path; by what was raised below.
        faults: the others, one line each.
        slowest: s of processor time for one file.
        memory: the most that the process held meanwhile (bytes), libraries included.
    """

    read: int = 0
    named: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0


def fuzz(
    counts: dict[str, int], module: str = "helpers.fuzz_formats", patience: float = PATIENCE
) -> dict[str, Report]:
    """Read so many injured files of each format.

    Args:
        counts: by name in the ``FORMATS`` of ``module``.
        module: where the process finds them.
        patience: s without an answer after which the process is ended, and the next one goes on.
    """
    reports = {name: Report() for name in counts}
    jobs = [(name, number) for name, count in counts.items() for number in range(count)]
    done = 0
    while done < len(jobs):
        for answer in _answers(jobs[done:], module, patience):
            name, number = jobs[done]
            _enter(reports[name], f"{name}, number {number}", answer)
            done += 1
    return reports


def _enter(report: Report, which: str, answer: dict[str, str | float]) -> None:
    match answer["outcome"]:
        case "read":
            report.read += 1
        case "named":
            report.named[str(answer["text"])] += 1
        case _:
            report.faults.append(f"{which}: {answer['text']}")
    report.slowest = max(report.slowest, float(answer.get("seconds", 0.0)))
    report.memory = max(report.memory, int(answer.get("memory", 0)))


def _answers(
    jobs: Sequence[tuple[str, int]], module: str, patience: float
) -> Iterator[dict[str, str | float]]:
    """One per job, in order; the last one tells of a crash or a hang if there are fewer than jobs."""
    places = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-m", "helpers.fuzz_process", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # libraries complain there
        text=True,
        env={**os.environ, "PYTHONPATH": places},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        output = process.stdout

        def pump() -> None:
            for line in output:
                lines.put(line)
            lines.put("")

        threading.Thread(target=pump, daemon=True).start()
        threading.Thread(target=_give, args=(process, json.dumps(jobs)), daemon=True).start()
        for _ in jobs:
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                process.kill()
                yield {"outcome": "hang", "text": f"no answer in {patience:.0f} s"}
                return
            if not line:
                code = process.wait()
                if code > 0:
                    raise RuntimeError(f"the process that reads the files failed with {code}")
                yield {"outcome": "crash", "text": f"ended its process with {code}"}
                return
            yield json.loads(line)


def _give(process: subprocess.Popen[str], jobs: str) -> None:
    assert process.stdin is not None
    process.stdin.write(jobs)
    process.stdin.close()


def _work() -> None:
    """The process: jobs come in on the standard input, answers go out on the standard output."""
    formats = import_module(sys.argv[1]).FORMATS
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    root = Path(tempfile.mkdtemp(prefix="fedstill_fuzz_"))
    previous = ""
    for number_of_job, (name, number) in enumerate(json.load(sys.stdin)):
        form = formats[name]
        content = mutated(form.content, name, number)
        if name != previous:
            _forget_peak()
            previous = name
        folder = root / str(number_of_job)
        folder.mkdir()
        begin = time.process_time()
        outcome, text = "read", ""
        try:
            form.read(folder / name, content)
        except DataError as error:
            outcome, text = "named", _cause(error)
            complaint = _complaint(error, folder)
            if complaint:
                outcome, text = "fault", complaint
        except BaseException as error:
            outcome, text = "fault", f"{type(error).__name__}: {error}"
        answer = {"outcome": outcome, "text": text, "seconds": time.process_time() - begin, "memory": _peak()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        shutil.rmtree(folder)
    shutil.rmtree(root)


def _complaint(error: Exception, folder: Path) -> str:
    """What is wrong with the line that a user would see; empty if nothing is."""
    line = str(error)
    if not line.startswith(str(folder)) or len(line.splitlines()) > 1 or "BytesIO" in line:
        return f"not one line that begins with the path: {line!r}"
    cause = error.__cause__
    if isinstance(cause, MemoryError) and not type(cause).__module__.startswith("av."):
        return f"asked for more memory than there is: {line}"
    return ""


def _cause(error: Exception) -> str:
    if error.__cause__ is None:
        return "our own check"
    kind = type(error.__cause__)
    return f"{kind.__module__}.{kind.__name__}" if kind.__name__ == "error" else kind.__name__


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    _work()
