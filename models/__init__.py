"""Networks and pure tensor functions; no files (but checkpoints), no logging, no transport."""
