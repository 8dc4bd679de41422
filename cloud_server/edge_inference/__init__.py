"""The gRPC service that classifies clips for devices."""
