"""The layout of a device's folder, for all code that reads or writes there."""

from __future__ import annotations

DATA_FOLDER = "data"
CLIPS_FILE = "clips.json"
BAD_CLIPS_FILE = "bad_clips.json"
DECODING_FILE = "decoding.json"
KNOWN_CLIPS_FILE = "known_clips.json"
CHANGE_FILE = "change.json"
FORMAT_FILE = "clip_format.json"
SHELF_FOLDER = "students"
COMPRESSORS_FOLDER = "compressors"
EXPORT_FOLDER = "onnx"
PAUSE_FILE = "pause"
ALLOWED_FILE = "allowed"
WATCHED_FILE = "watched.jsonl"
