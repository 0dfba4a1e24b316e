"""The search page: what people see of the index, and JSON for those without gRPC."""
