"""What both gRPC servers share."""
