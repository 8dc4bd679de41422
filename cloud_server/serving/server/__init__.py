"""The core of the serving process: dispatcher, live tasks, metrics."""
