"""Students as files for devices without torch."""
