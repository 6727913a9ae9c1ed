"""The journal's tables, one module for each noun; ``pki.tenant.journal`` opens them together."""
