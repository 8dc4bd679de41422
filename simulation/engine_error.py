"""The one way in which an engine fails."""


class EngineError(RuntimeError):
    """Flower could not be started or the run failed; one line that says where to look."""
