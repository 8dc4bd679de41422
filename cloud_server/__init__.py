"""What runs in the cloud: the method and its ServerApp, the coordinator, edge inference, and the serving tier."""
