"""The tenant's side, and the only home of its private keys."""
