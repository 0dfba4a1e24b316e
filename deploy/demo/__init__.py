"""The demonstration: `python -m deploy.demo` shows the whole path on real parts."""
