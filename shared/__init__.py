"""What a second service needs."""
