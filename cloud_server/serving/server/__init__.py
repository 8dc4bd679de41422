"""The serving process: gRPC service, dispatcher, dashboard, metrics."""
