"""What every sort of media shares: opening with FFmpeg, its errors, its channels."""
