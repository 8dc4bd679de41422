"""The students that a device keeps, and the runtimes that run them."""
