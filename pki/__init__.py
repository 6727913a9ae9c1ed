"""keymailbox: a certificate directory and wrapped-key mailbox between key management systems."""
