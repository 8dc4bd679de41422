"""Media files that FFmpeg reads: what a player shows and plays, and when."""
