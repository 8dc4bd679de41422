"""What runs in the cloud: the method and its Flower ServerApp, the coordinator, edge inference, and the serving
tier."""
