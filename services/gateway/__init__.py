"""The gateway: gRPC Search."""
