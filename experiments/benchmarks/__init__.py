"""Our train step beside its peers: `make bench`."""
