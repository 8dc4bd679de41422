"""The serving tier as replicas on Ray Serve: a dispatcher in each, a front that keeps protocol and TLS."""
