"""The object store's buckets, users and events: what MinIO and SeaweedFS are told of them."""
