"""What clients of the serving tier talk to: the Open Inference Protocol over gRPC and REST, and our own calls."""
