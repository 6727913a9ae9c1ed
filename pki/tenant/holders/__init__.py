"""One module for each kind of KMS that can hold a tenant's keys."""
