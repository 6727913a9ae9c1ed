"""CMP (RFC 9810): messages are stored by the process that speaks HTTP, and answered by the process that issues."""
