"""Our training step compared with its peers: `make bench`."""
