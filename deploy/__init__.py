"""How the services are run: on one machine, and in containers."""
