"""Ways to tell a tenant that something happened."""
