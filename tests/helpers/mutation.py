"""Files as broken downloads, cards and programs leave them: always the same injuries for the same name and number."""

from __future__ import annotations

import random

NUMBERS = (bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0")
"""What headers hold that were never written, or written by somebody with bad intentions."""


def mutated(content: bytes, name: str, number: int) -> bytes:
    """One to four injuries, half of them near the start, where headers are."""
    rng = random.Random(f"{name} {number}")
    injured = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not injured:
            break
        place = rng.randrange(min(len(injured), rng.choice((80, len(injured)))))
        other, length = rng.randrange(len(injured)), rng.randint(1, 400)
        match rng.choice(("flip", "cut", "zero", "swap", "number", "remove", "repeat")):
            case "flip":
                injured[place] ^= 1 << rng.randrange(8)
            case "cut":
                del injured[max(place, other) :]
            case "zero":
                end = min(len(injured), place + rng.choice((length, len(injured) // 5)))
                injured[place:end] = bytes(end - place)
            case "swap":
                injured[place : place + length], injured[other : other + length] = (
                    injured[other : other + length],
                    injured[place : place + length],
                )
            case "number":
                injured[place : place + 4] = rng.choice(NUMBERS)
            case "remove":
                del injured[place : place + length]
            case "repeat":
                injured[place:place] = injured[other : other + length]
    return bytes(injured)
