"""A job, not a server: data, tuning, evaluation, releases."""
