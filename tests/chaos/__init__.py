"""Chaos: tenants send while processes are killed at random; then nothing may be lost, doubled or stuck."""
