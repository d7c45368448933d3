"""Speed beside a peer, measured in turn in the same minutes: `make bench`."""
