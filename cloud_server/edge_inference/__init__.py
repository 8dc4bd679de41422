"""The gRPC service that answers clips for devices."""
