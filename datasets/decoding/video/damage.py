"""What is wrong with a media file, told without its name: who asked for it knows the name."""

from __future__ import annotations


class MediaDamage(Exception):
    """Picture or sound is missing; the message completes a sentence that begins with the file."""
