"""Commands that training adds to `cra`."""
