"""Who calls the server: one record per call, its request id, and how much a node may ask."""
