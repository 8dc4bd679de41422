"""Networks and pure tensor functions; no files (except checkpoints), no logging, no transport."""
