"""The teacher's encoders that somebody else trained: from local files through timm and torchaudio."""
