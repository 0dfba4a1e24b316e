"""What each feature of search brings, measured with it on against off."""
