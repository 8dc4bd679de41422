"""Commands that run a study of the method and show it."""
