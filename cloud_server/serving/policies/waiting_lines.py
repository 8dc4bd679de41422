"""Where fedstill's queries wait, and batches as slices of these lines, so that forming one costs no loop over
queries."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedstill.cloud_server.serving.scheduling.queries import Query

Waiting = tuple[float, int, Query]
"""Deadline, identifier, query: sorts by urgency."""


@dataclass(slots=True)
class Line:
    """Waiting queries of one task and about one utility, most urgent first, and how many came lately."""

    task: int
    utility: float
    waiting: list[Waiting] = field(default_factory=list)
    recent: int = 0

    def add(self, query: Query) -> None:
        insort(self.waiting, (query.deadline, query.identifier, query))

    def drop_before(self, deadline: float) -> list[Query]:
        """Remove and return the queries whose deadline lies before `deadline`."""
        count = 0
        while count < len(self.waiting) and self.waiting[count][0] < deadline:
            count += 1
        gone = [query for _, _, query in self.waiting[:count]]
        del self.waiting[:count]
        return gone


@dataclass(slots=True)
class Piece:
    """The queries of a line from `start` up to `stop`."""

    line: Line
    start: int
    stop: int


@dataclass(slots=True)
class Forming:
    """A batch made of pieces of lines; nothing is moved until `take`."""

    pieces: list[Piece]
    size: int

    def deadline(self) -> float:
        """Of the most urgent query."""
        return min(piece.line.waiting[piece.start][0] for piece in self.pieces)

    def drop_most_urgent(self) -> None:
        """Leave the most urgent query in its line."""
        piece = min(self.pieces, key=lambda piece: piece.line.waiting[piece.start][0])
        piece.start += 1
        self.size -= 1
        if piece.start == piece.stop:
            self.pieces.remove(piece)

    def take(self) -> tuple[Query, ...]:
        """Move the queries out of their lines. No other batch formed before may be used after that."""
        taken = [
            query for piece in self.pieces for _, _, query in piece.line.waiting[piece.start : piece.stop]
        ]
        for piece in self.pieces:
            del piece.line.waiting[piece.start : piece.stop]
        return tuple(taken)


def fill(lines: Sequence[Line], size: int, most: int) -> list[Forming]:
    """Batches of up to `size` queries from the lines in order, at most `most` of them."""
    batches: list[Forming] = []
    for line in lines:
        start = 0
        while start < len(line.waiting):
            if not batches or batches[-1].size == size:
                if len(batches) == most:
                    return batches
                batches.append(Forming([], 0))
            batch = batches[-1]
            stop = min(len(line.waiting), start + size - batch.size)
            batch.pieces.append(Piece(line, start, stop))
            batch.size += stop - start
            start = stop
    return batches
